"""Length-controlled win rates: the published ones of 25 models come out, and what the definition says by hand."""

import csv
import gzip
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import truing.evals
from truing.evals.compare import _against
from truing.evals.length_controlled import Regulariser, alpaca_eval_2, length_adjusted, lengths_overlap, order_of_equals

DATA = Path(__file__).parents[2] / "shared" / "data" / "alpaca_eval_numbers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the public numbers of AlpacaEval 2 are not in {DATA}")


@cache
def annotations() -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    with gzip.open(DATA / "annotations.csv.gz", "rt") as stream:
        for row in csv.DictReader(stream):
            found.setdefault(row["model"], []).append(row)
    return found


@cache
def regulariser() -> Regulariser:
    return Regulariser.read(DATA)


def published() -> list[dict[str, str]]:
    return list(csv.DictReader((DATA / "published.csv").open())) if DATA.is_dir() else []


@needs_data
def test_all_published_win_rates_come_out():
    assert len(published()) == 25
    gaps = []
    for row in published():
        got = alpaca_eval_2(annotations()[row["model"]], regulariser(), draws=100)
        assert 100 * got.raw.value == pytest.approx(float(row["win_rate"]), abs=1e-6), row["model"]
        assert got.controlled.low < got.controlled.value < got.controlled.high
        assert got.comparable
        gaps.append(abs(100 * got.controlled.value - float(row["length_controlled_win_rate"])))
    assert max(gaps) < 0.14
    assert (sum(gap < 0.1 for gap in gaps), sum(gap < 0.012 for gap in gaps)) == (24, 20)


def test_equal_keys_are_left_in_the_order_of_a_quicksort():
    """18 keys by hand: what lies between the first and the last two is turned over, in one pass; up to 17 stay as they are."""
    assert order_of_equals(17).tolist() == list(range(17))
    assert order_of_equals(18).tolist() == [0, *range(15, 0, -1), 16, 17]
    assert sorted(order_of_equals(2415).tolist()) == list(range(2415))


@needs_data
def test_one_function_of_the_package_goes_from_records_and_a_folder_to_both_rates():
    rows = annotations()["claude"]
    whole = truing.evals.alpaca_eval_2(rows, str(DATA), draws=100)
    assert whole == alpaca_eval_2(rows, regulariser(), draws=100)
    texts = [{**row, "output_1": "x" * int(row["len_baseline"]), "output_2": "y" * int(row["len_model"])} for row in rows]
    bare = [{name: row[name] for name in ("index", "preference", "output_1", "output_2")} for row in texts]
    assert truing.evals.alpaca_eval_2(bare, DATA, draws=100) == whole


@needs_data
def test_order_of_the_records_does_not_matter_and_a_tie_can_be_written_two_ways():
    rows = annotations()["claude"]
    straight = alpaca_eval_2(rows, regulariser(), draws=100)
    # Cross-validation deals the rows by place, so a shuffle may choose another C: by far the smaller part of the figure.
    turned = alpaca_eval_2(rows[::-1], regulariser(), draws=100)
    assert turned.raw.value == pytest.approx(straight.raw.value)
    assert turned.controlled.value == pytest.approx(straight.controlled.value, abs=1e-3)
    halves = [{**row, "preference": "1.5"} for row in rows]
    zeros = [{**row, "preference": 0} for row in rows]
    got = [alpaca_eval_2(each, regulariser(), draws=100) for each in (halves, zeros)]
    assert got[0] == got[1]
    assert got[0].raw.value == 0.5


@needs_data
def test_missing_preferences_are_counted_and_still_predicted():
    rows = [{**row, "preference": ""} if i % 10 == 0 else row for i, row in enumerate(annotations()["claude"])]
    got = alpaca_eval_2(rows, regulariser(), draws=100)
    assert (got.missing, got.raw.n, got.controlled.n) == (81, 724, 805)


@needs_data
def test_broken_annotations_are_named():
    rows = annotations()["claude"]
    for changed, said in (
        ({"preference": "2.5"}, r"^annotation 3: preference is 2\.5; it must lie in \[1, 2\]"),
        ({"preference": "good"}, r"^annotation 3: preference is 'good'; it must be a finite number"),
        ({"len_model": "nan"}, "^annotation 3: len_model is 'nan'; it must be a finite number"),
        ({"index": "0"}, "^annotation 3: instruction 0 is there already, as annotation 1"),
        ({"index": "900"}, "^annotation 3: instruction 900 has no difficulty; for other data take length_adjusted"),
    ):
        with pytest.raises(ValueError, match=said):
            alpaca_eval_2([*rows[:2], {**rows[2], **changed}, *rows[3:]], regulariser(), draws=100)
    with pytest.raises(ValueError, match="there are no annotations"):
        alpaca_eval_2([], regulariser())
    with pytest.raises(ValueError, match="1 of 2 annotations have an index"):
        alpaca_eval_2([rows[0], {k: v for k, v in rows[1].items() if k != "index"}], regulariser())


@needs_data
def test_a_broken_regulariser_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no such file; without it take length_adjusted"):
        Regulariser.read(tmp_path)
    for name in ("instruction_difficulty.csv", "gamed_lengths.csv"):
        (tmp_path / name).write_text((DATA / name).read_text())
    lines = (tmp_path / "gamed_lengths.csv").read_text().splitlines()
    (tmp_path / "gamed_lengths.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    shuffled = Regulariser.read(tmp_path)
    rows = annotations()["claude"]
    got, want = (alpaca_eval_2(rows, r, draws=100).controlled.value for r in (shuffled, regulariser()))
    assert got == pytest.approx(want, abs=1e-3)
    (tmp_path / "gamed_lengths.csv").write_text("\n".join([*lines[:4], lines[4].replace(",", ",x", 1), *lines[5:]]))
    with pytest.raises(ValueError, match=r"gamed_lengths\.csv:5: baseline is 'x\d+'; it must be a finite number"):
        Regulariser.read(tmp_path)
    (tmp_path / "gamed_lengths.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="instruction 804 is not in both"):
        Regulariser.read(tmp_path)


def test_without_a_length_effect_nothing_is_adjusted():
    # Wins alternate within each pair of equal gaps: theta is the logit of the raw rate, phi is 0.
    got = length_adjusted([1, 0, 1, 0, 1, 1, 1, 1], [10] * 8, [20, 20, 5, 5, 20, 20, 5, 5], draws=100)
    assert got.raw.value == 0.75
    assert got.controlled.value == pytest.approx(0.75, abs=0.01)
    assert got.phi == pytest.approx(0, abs=0.02)
    assert not got.comparable


def test_a_win_by_length_alone_is_taken_out():
    generator = np.random.default_rng(0)
    gap = generator.normal(size=4000)
    longer = generator.random(4000) < 1 / (1 + np.exp(2 * np.tanh((gap - 1.0) / (gap - 1.0).std(ddof=1))))
    got = length_adjusted(longer.astype(float), gap - 1.0, np.zeros(4000), draws=100)
    assert got.raw.value > 0.7
    assert got.controlled.value == pytest.approx(0.5, abs=0.03)
    assert got.phi == pytest.approx(-2.0, abs=0.2)


def test_swapping_the_models_turns_the_rate_over():
    generator = np.random.default_rng(1)
    p, a, b = generator.choice([0, 0.5, 1], 50), generator.integers(5, 50, 50), generator.integers(5, 50, 50)
    there, back = length_adjusted(p, a, b, draws=100), length_adjusted(1 - p, b, a, draws=100)
    assert there.controlled.value == pytest.approx(1 - back.controlled.value)


def test_all_wins_and_equal_lengths_stay_finite():
    got = length_adjusted([1.0] * 30, list(range(30)), [7] * 30, draws=100)
    assert 0.9 < got.controlled.value < 1
    equal = length_adjusted([1.0, 0.0, 1.0], [5] * 3, [5] * 3, draws=100)
    assert equal.controlled.value == pytest.approx(2 / 3, abs=0.01)
    with pytest.raises(ValueError, match=r"outcomes\[0\] is nan"):
        length_adjusted([math.nan], [1], [1])
    with pytest.raises(ValueError, match="2 outcomes, 1 and 2 lengths"):
        length_adjusted([1, 0], [1], [1, 2])


def test_lengths_overlap_where_either_is_the_longer_one_often_enough():
    """Of 200 prompts a twentieth is ten; of 40, five are asked for. Equal lengths count for both."""
    baseline, longer = np.zeros(200), np.ones(200)
    assert not lengths_overlap(baseline, longer)
    for shorter, enough in ((9, False), (10, True)):
        assert lengths_overlap(baseline, np.r_[-longer[:shorter], longer[shorter:]]) is enough
        assert lengths_overlap(baseline, np.r_[0 * longer[:shorter], longer[shorter:]]) is enough
        assert lengths_overlap(np.r_[-longer[:shorter], longer[shorter:]], baseline) is enough
    assert [lengths_overlap(np.zeros(40), np.r_[-np.ones(k), np.ones(40 - k)]) for k in (4, 5)] == [False, True]
    assert lengths_overlap([7, 8, 9, 7, 8], [7, 8, 9, 7, 8])


def test_what_length_explains_is_not_said_where_one_model_is_always_the_longer_one():
    """Four of five are won whatever the length, and the prior alone would give length a share of it."""
    won = np.tile([1.0, 1.0, 1.0, 1.0, 0.0], 40)
    assert length_adjusted(won, np.zeros(200), np.full(200, 60.0), draws=100).controlled.value < 0.75
    answers = {"short": ["no"] * 200, "long": ["yes, that it is"] * 200}
    found = _against(answers, {}, {("long", "short"): won.tolist()}, "long", "short", 0, 100)
    assert found["length_adjusted_win_rate"] is None
    assert found["words"].endswith("so nobody can say what length explains")
    answers["long"][::4] = ["y"] * 50
    found = _against(answers, {}, {("long", "short"): won.tolist()}, "long", "short", 0, 100)
    assert found["length_adjusted_win_rate"]["value"] == pytest.approx(won.mean(), abs=0.03)
