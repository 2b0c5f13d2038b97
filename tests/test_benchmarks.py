"""The arithmetic of the benchmarks, worked by hand. Nothing here is timed and no peer runs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.floor import Tokens, Weights, forward, measured_rate, operations, share
from benchmarks.growth import CURVES, bends, show, slopes
from benchmarks.growth_side import PARTS, many
from benchmarks.kept import INSTRUCTIONS, RULES, reward
from benchmarks.measure import Conditions, fitted
from benchmarks.peers import PEERS
from benchmarks.prepare import DATA, as_read, as_trained, with_answers
from benchmarks.published_labels import is_published
from benchmarks.published_labels import main as published_labels
from benchmarks.ratios import HEADER, Spread, adapters, figures, line, second_epoch, work
from benchmarks.rounds import HERE, OURS, ROUNDS, Round, parts_of
from benchmarks.rounds import figures as figures_of_rounds
from benchmarks.rounds import show as show_rounds
from benchmarks.rounds_floor import seconds_of
from benchmarks.rows import ROWS
from truing.data.formats import recognise
from truing.losses import PAIR_LOSSES
from truing.records import Completion, Demonstration, Feedback, Message, Preference, Prompt, Ranking, Rollout

PREPARED = {
    "tree_tokens": 100,
    "scored_tokens": 30,
    "response_tokens": 40,
    "body": 1000,
    "head": 500,
    "shapes": [[8, 4, 2], [16, 8, 1]],
}
ASKED = (Message(role="user", content="Is the kettle on?"),)


def side(seconds: float, peak_gb: float, tokens: int, **more: Any) -> dict[str, Any]:
    report = {"seconds": seconds, "peak_gb_trained": peak_gb, "tokens": {"trained": tokens, "read": 0}, **more}
    return {"seconds": seconds + 1, "peak_gb": peak_gb, "report": report}


def test_reading_a_token_costs_two_operations_a_weight_and_scoring_it_two_of_the_head() -> None:
    assert forward(Weights(body=1000, head=500), tokens=100, scored=30) == 2 * 1000 * 100 + 2 * 500 * 30 == 230_000


def test_training_costs_three_times_reading_and_adapters_two_and_their_own_six() -> None:
    tokens = Tokens(trained=100, trained_scored=30)
    assert operations(Weights(body=1000, head=500), tokens) == 690_000
    assert operations(Weights(body=1000, head=500, adapters=10), tokens) == 2 * 230_000 + 6 * 10 * 100 == 466_000


def test_dpo_reads_every_token_once_more_for_the_reference_and_only_in_the_first_epoch() -> None:
    weights = Weights(body=1000, head=500)
    assert operations(weights, work(ROWS["dpo-hh"], PREPARED)) == 230_000 + 690_000
    assert operations(weights, work(ROWS["dpo-second-epoch"], PREPARED)) == 230_000 + 2 * 690_000
    assert operations(weights, work(ROWS["simpo-hh"], PREPARED)) == 690_000


def test_a_reward_model_has_no_head_over_the_vocabulary() -> None:
    assert work(ROWS["reward-hh"], PREPARED) == Tokens(trained=100, trained_scored=0)


def test_kto_reads_matched_and_mismatched_answers_by_the_reference_and_the_mismatched_by_the_policy() -> None:
    assert work(ROWS["kto-hh"], PREPARED) == Tokens(trained=100, trained_scored=30, read=100 + 40 + 40, read_scored=3 * 30)


def test_an_adapter_of_rank_r_has_r_times_rows_plus_columns_of_each_matrix_but_the_heads() -> None:
    assert adapters(ROWS["dpo-lora"], PREPARED["shapes"]) == 16 * (8 + 4) * 2
    assert adapters(ROWS["dpo-hh"], PREPARED["shapes"]) is None


def test_share_of_the_floor_is_one_at_the_machines_rate() -> None:
    assert share(1_000, 500.0, 2.0) == 1.0
    assert share(1_000, 500.0, 4.0) == 0.5


def test_on_a_gpu_the_memory_of_the_table_is_the_devices() -> None:
    pair = {"ours": side(10.0, 3.0, 6_000, device_peak_gb=20.0), "theirs": side(50.0, 6.0, 9_000, device_peak_gb=80.0)}
    found = figures(ROWS["dpo-hh"], PREPARED, [1e9], [pair])
    assert (found["peak_gb"], found["peer"]["peak_gb"], found["memory_ratio"]) == (20.0, 80.0, 0.25)


def test_on_a_gpu_prompts_are_brought_to_2048_tokens() -> None:
    here = {"pairs": 1, "data": Path(), "results": Path(), "scratch": Path()}
    gpu, quick = Conditions(device="cuda", quick=False, **here), Conditions(device="cpu", quick=True, **here)
    assert (fitted(ROWS["dpo-hh"], gpu).prompt_tokens, fitted(ROWS["dpo-hh"], gpu).max_tokens) == (2048, 2560)
    assert fitted(ROWS["dpo-rasbt"], gpu) == ROWS["dpo-rasbt"]
    assert fitted(ROWS["dpo-hh"], quick).batch == 2


def test_the_measured_rate_is_positive() -> None:
    spec = {"shapes": [[16, 8, 2, 4]], "dtype": "fp32", "device": "cpu"}
    assert 0 < measured_rate(spec) < float("inf")


def test_second_epoch_is_held_against_the_first_with_its_reference_pass() -> None:
    assert second_epoch({"step_seconds": [3.0, 5.0, 7.0, 9.0]}) == pytest.approx(4 / 5)


def test_ratios_are_taken_pair_by_pair() -> None:
    """4, 3 and 2 times as fast in the three pairs; the ratio of medians, 20 / 5 = 4, is another number."""
    pairs = [
        {"ours": side(5.0, 2.0, 600), "theirs": side(20.0, 8.0, 900)},
        {"ours": side(10.0, 2.2, 600), "theirs": side(30.0, 8.0, 900)},
        {"ours": side(4.0, 2.4, 600), "theirs": side(8.0, 9.0, 900)},
    ]
    found = figures(ROWS["dpo-hh"], PREPARED, [920_000.0, 920_000.0, 920_000.0], pairs)
    assert found["speed_ratio"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["per_second"] == {"median": 4.0, "min": 2.0, "max": 5.0}
    assert found["peer"]["per_second"]["median"] == 1.0
    assert found["memory_ratio"] == pytest.approx(2.2 / 8.0)
    assert (found["tokens"], found["peer"]["tokens"]) == (600, 900)
    assert found["share_of_floor"] == pytest.approx({"median": 1 / 5, "min": 1 / 10, "max": 1 / 4})
    shown = line("dpo-hh", json.loads(json.dumps(found)), "5x")
    assert shown.startswith(
        "| dpo-hh | 4.00 pairs | 1.00 | 3.00 [2.00, 4.00] | 2.20 | 8.00 | 0.28 | 600 | 900 | 0.20 [0.10, 0.25] |"
    )
    assert shown.count("|") == HEADER.splitlines()[0].count("|")


def test_a_row_without_a_peer_says_what_it_is_about() -> None:
    pairs = [{"ours": side(9.0, 2.0, 600, step_seconds=[3.0, 5.0, 7.0, 9.0])}]
    found = figures(ROWS["dpo-second-epoch"], PREPARED, [1.0], pairs)
    assert "peer" not in found
    assert "second epoch 0.80 [0.80, 0.80] of the first's time" in line("dpo-second-epoch", found, "0.8x")


def test_spread_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert str(Spread.of([1.0, 2.0, 4.0, 9.0])) == "3.00 [1.00, 9.00]"


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_its_data_and_says_what_is_to_be_reached(name: str) -> None:
    row = ROWS[name]
    assert row.data in DATA
    assert row.target
    assert row.trainer is None or row.notes
    assert (row.passes == "reference") == (row.method in PAIR_LOSSES and PAIR_LOSSES[row.method].needs_reference)


def test_simpo_has_the_same_parameters_on_both_sides() -> None:
    """TRL's own are 0.1 and 0.5."""
    row = ROWS["simpo-hh"]
    ours = dict(setting.split("=") for setting in row.settings)
    theirs = {"loss.beta": row.peer["beta"], "loss.gamma": row.peer["simpo_gamma"]}
    assert {name: float(value) for name, value in ours.items()} == theirs == {"loss.beta": 2.0, "loss.gamma": 1.0}


def test_both_sides_get_the_same_rows() -> None:
    pair = Preference(prompt=ASKED, chosen="Yes.", rejected="Look.")
    assert as_read(pair) == as_trained(pair)[0]
    ranking = Ranking(prompt=ASKED, responses=("good", "fair", "poor"))
    expanded = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in as_trained(ranking)]  # type: ignore[index]
    assert expanded == [("good", "fair"), ("good", "poor"), ("fair", "poor")]
    shown = Demonstration(messages=(*ASKED, Message(role="assistant", content="Yes.")))
    for record, name in (
        (pair, "preference"),
        (ranking, "ranking"),
        (shown, "messages"),
        (Feedback(prompt=ASKED, response="Yes.", desirable=True), "feedback"),
    ):
        assert recognise(as_read(record)).name == name


def test_rankings_of_k_answers_are_made_of_the_next_pairs() -> None:
    pairs = [Preference(prompt=ASKED, chosen=f"good {i}", rejected="poor") for i in range(3)]
    first, *_ = with_answers(pairs, 2)
    assert isinstance(first, Ranking)
    assert first.responses == ("good 0", "good 1")


def test_slopes_are_exponents_and_a_bend_is_where_they_change() -> None:
    at = [1.0, 2.0, 4.0, 8.0]
    assert slopes(at, [3.0, 6.0, 12.0, 24.0]) == pytest.approx([1.0, 1.0, 1.0])
    assert slopes(at, [5.0, 5.0, 5.0, 20.0]) == pytest.approx([0.0, 0.0, 2.0])
    assert bends(at, [3.0, 6.0, 12.0, 24.0]) == []
    assert bends(at, [5.0, 5.0, 5.0, 20.0]) == [4.0]


def test_a_curve_names_its_bends() -> None:
    points = [
        {"at": at, "seconds": taken, "per_second": at / taken, "peak_gb": 1.0, "parts": {"packing": taken}}
        for at, taken in ((100, 1.0), (1_000, 10.0), (10_000, 1_000.0))
    ]
    shown = show({"what": "pairs", "unit": "pairs", "target": "a plot", "points": points})
    assert "| 10,000 | 1000.00 | 10 | 1.00 | 2.00 | packing 1000.00 |" in shown
    assert "Bends of time: 1,000. Bends of memory: none." in shown


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_has_its_part(name: str) -> None:
    assert CURVES[name].part in PARTS
    assert list(CURVES[name].at) == sorted(CURVES[name].at)


def test_many_rows_are_all_different() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    rows = [json.dumps(row) for row in many(folder, 1_200)]
    assert len(set(rows)) == 1_200


SHORT = Round(method="ppo", peers={"trl_ppo": "ppo"}, prompts=2, k=1, new_tokens=4, rounds=2, epochs=3, target="1x", learned=True)


def test_the_least_work_of_a_round_is_every_prompt_once_every_answer_twice_and_each_role_once() -> None:
    """Two rounds of two prompts, 40 tokens in all, and 12 said: 20 + 6 a round; the first token of an answer comes of reading."""
    parts = parts_of(SHORT, {"prompt_tokens": 40}, {"tokens": 12})
    assert list(parts) == ["sampling", "scoring: policy", "scoring: reference", "update", "scoring: critic", "reward"]
    read, decode = parts["sampling"]
    assert (read["tokens"], read["scored"], read["count"]) == (20, 2, 2)
    assert (decode["tokens"], decode["scored"], decode["count"]) == (2, 2, (12 / 4 - 1) * 2)
    assert parts["scoring: policy"] == [{"tokens": 26, "scored": 6, "count": 2.0, "trained": "", "layers": 1}]
    assert parts["reward"] == [{"tokens": 26, "scored": 0, "count": 2.0, "trained": "", "layers": 1}]
    assert [(one["count"], one["scored"], one["trained"]) for one in parts["update"]] == [(6.0, 6, "all"), (6.0, 0, "all")]
    upper = replace(SHORT, settings=("lora.rank=16", "lora.top_layers=10"))
    parts = parts_of(upper, {"prompt_tokens": 40, "layers": 40}, {"tokens": 12})
    assert {name: [one["layers"] for one in passes] for name, passes in parts.items()} == {
        "sampling": [1, 1],
        "scoring: policy": [1],
        "scoring: reference": [0.25],
        "update": [0.25, 0.25],
        "scoring: critic": [0.25],
        "reward": [0.25],
    }


def test_the_floor_of_a_part_is_its_products_by_their_own_rows() -> None:
    shapes = [[8, 4, 2], [16, 4, 1]]
    part = {"tokens": 10, "scored": 3, "count": 2.0, "trained": "adapters", "layers": 0.5}

    def taken(out: int, width: int, rows: int, gradients: int) -> float:
        return out * width * rows * (1 + gradients)

    assert seconds_of(part, shapes, taken) == 2 * (0.5 * 2 * 8 * 4 * 10 + 16 * 4 * 3) * 2


def test_a_row_of_rounds_says_where_its_time_goes() -> None:
    def outcome(seconds: float, peak: float, parts: dict[str, float]) -> dict[str, Any]:
        return {"seconds": seconds, "peak_gb": peak, "report": {"seconds": seconds, "tokens": 12, "parts": parts}}

    pairs = [{"ours": outcome(2.0, 3.0, {"sampling": 1.0, "update": 0.8}), "ppo": outcome(8.0, 6.0, {})}]
    found = figures_of_rounds(SHORT, [{"sampling": 0.5, "update": 0.4}], pairs)
    assert found["per_second"]["median"] == 4 / 2.0
    assert found["speed_ratio"]["median"] == 4.0
    assert found["outside"] == pytest.approx(0.1)
    assert found["share_of_floor"]["median"] == pytest.approx(0.45)
    shown = show_rounds([{"name": "short", "figures": found, "row": {"rounds": 2, "target": "1x", "notes": ["None."]}}])
    assert "| short | 2.00 answers | 0.50 | 4.00 [4.00, 4.00] | 3.00 | 6.00 | 0.50 | 0.45 [0.45, 0.45] | 10% | 1x |" in shown
    assert "| sampling | 1.00 | 50% | 0.50 | 0.50 |" in shown


@pytest.mark.parametrize("name", ROUNDS)
def test_every_row_of_rounds_has_a_peer_of_its_own_environment_and_says_where_the_sides_differ(name: str) -> None:
    row = ROUNDS[name]
    assert row.target
    assert set(row.peers) <= PEERS.keys() | {OURS}
    if OURS in row.peers:
        assert (HERE / f"rounds_{row.peers[OURS]}.py").is_file()
    assert row.notes or row.method == "sample"
    assert name not in ROWS


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        ("no comma", "Yes. It is on.", "Yes, it is."),
        ("few words", "one two three four", "a " * 15),
        ("lowercase", "yes it is.", "Yes it is."),
        ("keyword", "They were happy.", "They were unhappy."),
    ],
)
def test_an_instruction_is_kept_or_not(rule: str, kept: str, broken: str) -> None:
    def of(text: str) -> float:
        prompt = Prompt(messages=ASKED, tags={"rule": rule})
        return reward(Rollout(prompt=prompt, trunk=(1,), completion=Completion(tokens=(2,), stop="end"), response=text, version=0))

    assert [of(kept), of(broken), of("  ")] == [1.0, 0.0, 0.0]
    assert INSTRUCTIONS.keys() == RULES.keys()


def test_a_check_against_published_labels_says_where_its_data_belong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "found.json"
    published_labels(["--data", str(tmp_path), "--results", str(results)])
    said = capsys.readouterr().out
    for name in ("gsm8k/example_model_solutions.jsonl", "humaneval/HumanEval.jsonl.gz", "mt_bench/human_judgments.json"):
        assert f"not at hand, there is no {tmp_path}/{name}" in said
    assert f"XSTest's answers: not at hand, there are no {tmp_path}/xstest/xstest_v2_completions_*.csv" in said
    assert f"IFEval's flags: not at hand, there are no {tmp_path}/ifeval/eval_results_*.jsonl" in said
    (tmp_path / "gsm8k").mkdir()
    solutions = [{"solution": f"so #### {value}", "is_correct": value == 3} for value in (3, 4)]
    row = {"ground_truth": "1 + 2 = 3 #### 3", **{f"175b_{i}": solution for i, solution in enumerate(solutions)}}
    (tmp_path / "gsm8k" / "example_model_solutions.jsonl").write_text(json.dumps(row) + "\n")
    votes = [
        {"question_id": 1, "turn": turn, "model_a": "a", "model_b": "b", "winner": "model_a", "judge": judge}
        for turn in (1, 2)
        for judge in (["gpt-4", "pair-v2"], "expert_1", "expert_2")
    ]
    (tmp_path / "mt_bench").mkdir()
    (tmp_path / "mt_bench" / "human_judgments.json").write_text(json.dumps(votes))
    # Of these few votes all agree, which is not what was published.
    with pytest.raises(SystemExit, match="not what is asked: MT-bench, gpt4-pair and human, S1, turn 1; published 66% of 1343; MT"):
        published_labels(["--data", str(tmp_path), "--results", str(results)])
    found = json.loads(results.read_text())
    assert found["GSM8K, flexible extraction against labels"]["n"] == 2
    assert found["MT-bench, gpt4-pair and human, S2, turn 1; published 85% of 859"]["value"] == 1.0
    assert [is_published(share, 0.66) for share in (0.6541, 0.6559, 0.66, 0.6659, 0.6661)] == [True, True, True, True, False]


def test_stored_flags_are_compared_kind_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ifeval").mkdir()
    kinds = ["punctuation:no_comma", "startend:quotation"]
    asked = {"key": 1, "prompt": "Say it.", "instruction_id_list": kinds, "kwargs": [{}, {}]}
    (tmp_path / "ifeval" / "input_data.jsonl").write_text(json.dumps(asked) + "\n")
    for name, kept in (("strict", [True, True]), ("loose", [True, False])):
        row = {"prompt": "Say it.", "response": '"No comma"', "instruction_id_list": kinds, "follow_instruction_list": kept}
        (tmp_path / "ifeval" / f"eval_results_{name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match="not what is asked: IFEval, flags of stored answers"):
        published_labels(["--data", str(tmp_path), "--results", str(tmp_path / "found.json")])
    said = capsys.readouterr().out
    assert "IFEval's flags that differ, by kind: {'startend:quotation': 1}" in said
    assert "IFEval, flags of stored answers: 75.00%" in said


VOTE = {"question_id": 1, "turn": 1, "model_a": "a", "model_b": "b", "winner": "model_a", "judge": "expert_1"}
FLAGS = {"prompt": "Say it.", "response": "", "instruction_id_list": ["punctuation:no_comma"], "follow_instruction_list": [False]}


@pytest.mark.parametrize(
    ("option", "row", "says"),
    [
        ("--votes", "{", "broken JSON"),
        ("--votes", {**VOTE, "winner": "c"}, "winner is 'c'; it must be model_a, model_b or tie"),
        ("--votes", {"question_id": 1}, "has no turn"),
        ("--votes", {**VOTE, "question_id": [1]}, "question_id is [1]; it must be a number or a name"),
        ("--ifeval", {**FLAGS, "prompt": "Say that."}, "the prompt is none of"),
        ("--ifeval", {**FLAGS, "instruction_id_list": ["startend:quotation"]}, "the instructions are"),
        ("--ifeval", {**FLAGS, "follow_instruction_list": [True, True]}, "one true or false for each of 1 instructions"),
        ("--ifeval", {**FLAGS, "response": None}, "\"response\" is 'None', and text is needed"),
        ("--gsm8k", {"ground_truth": "#### 3", "175b": {"solution": "#### 3", "is_correct": "no"}}, "true or false is needed"),
        ("--gsm8k", {"ground_truth": "#### 3", "175b": {"is_correct": True}}, '175b: the column "solution" is missing'),
    ],
)
def test_a_broken_row_of_published_labels_is_named(tmp_path: Path, option: str, row: object, says: str) -> None:
    (tmp_path / "ifeval").mkdir()
    asked = {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "ifeval" / "input_data.jsonl").write_text(json.dumps(asked) + "\n")
    path = tmp_path / "given.jsonl"
    path.write_text(row if isinstance(row, str) else json.dumps(row) + "\n")
    with pytest.raises(SystemExit, match=rf"^{path}:1.*{re.escape(says)}"):
        published_labels(["--data", str(tmp_path), option, str(path), "--results", str(tmp_path / "found.json")])
    assert not (tmp_path / "found.json").exists()


def test_a_check_against_published_labels_fails_below_what_is_asked_and_keeps_what_is_not_at_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, path = tmp_path / "found.json", tmp_path / "solutions.jsonl"
    results.write_text(json.dumps({"HumanEval, published solutions that pass": {"value": 1.0}}))
    rows = [{"ground_truth": "#### 3", "175b": {"solution": "so #### 3", "is_correct": i > 0}} for i in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--data", str(tmp_path / "nowhere"), "--gsm8k", str(path), "--results", str(results)]
    with pytest.raises(SystemExit, match="not what is asked: GSM8K, flexible extraction against labels"):
        published_labels(asked)
    assert "GSM8K, flexible extraction against labels: 99.80%" in capsys.readouterr().out
    assert json.loads(results.read_text())["HumanEval, published solutions that pass"] == {"value": 1.0}
