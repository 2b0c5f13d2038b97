"""What an answer is judged by: shapes, running deviations and constraints by hand; the same on ranks and after a stop."""

import json
import math
import random

import pytest

from rounds import Setup
from samples import Truing
from truing.config import ConfigError, load
from truing.recipes.ppo import Config
from truing.records import Reward
from truing.rewards.combine import SUM, Combination, Constraint, Running, Shape, combination
from truing.rollouts.credit import LeaveOneOut
from truing.rollouts.on_policy import Rounds
from truing.runs.read import read_rows


def rewards(*values: float, name: str = "good") -> list[Reward]:
    return [Reward(value=value, parts={name: value}) for value in values]


def judged(combined: Combination, *values: float, tokens: int = 0) -> list[float]:
    return list(combined(rewards(*values), [tokens] * len(values), list).scores)


def test_shapes_by_hand_and_their_order() -> None:
    def of(value: float, *, deviation: float = 1.0, tokens: int = 0, **settings: object) -> float:
        return Shape(**settings)(value, deviation=deviation, tokens=tokens)

    assert [of(value, threshold=1.0) for value in (-1.0, 1.0, 9.0)] == [-2.0, 0.0, 0.0]
    assert [of(value, clip=2.0) for value in (-3.0, 1.5, 3.0)] == [-2.0, 1.5, 2.0]
    assert [of(value, soft_clip=2.0) for value in (-1e9, 2.0)] == [-2.0, pytest.approx(2 * math.tanh(1.0))]
    assert of(1e-3, soft_clip=2.0) == pytest.approx(1e-3, rel=1e-6)
    assert of(3.0, token_price=0.5, tokens=4) == 1.0
    assert of(3.0, scale=True, deviation=2.0) == 1.5
    assert of(3.0, scale=True, deviation=0.0) == 3.0, "nothing differs yet"
    every = {"threshold": 4.0, "scale": True, "clip": 1.0, "token_price": 0.25}
    assert of(0.0, deviation=2.0, tokens=2, **every) == -1.5, "(0 - 4) / 2 is -2, held at -1, and two tokens cost a half"


def test_trap_16_running_scaling_divides_by_the_deviation_so_far_and_does_not_shift_the_mean() -> None:
    """1 and 3: mean 2, deviation 1. Then 5 and 7: of all four mean 4, deviation sqrt 5. Good answers stay good."""
    combined = combination({"good": 1.0}, {"good": Shape(scale=True)}, {})
    assert judged(combined, 1.0, 3.0) == [1.0, 3.0]
    assert judged(combined, 5.0, 7.0) == pytest.approx([5 / math.sqrt(5), 7 / math.sqrt(5)])
    assert combined.running["good"].mean == 4.0


def test_a_running_deviation_is_that_of_all_values_however_they_came() -> None:
    rng = random.Random(0)
    values = [rng.gauss(1e6, 1.0) for _ in range(99)]
    whole, parts = Running(), Running()
    whole.take(values)
    for start in range(0, 99, 7):
        parts.take(values[start : start + 7])
    parts.take([])
    mean = math.fsum(values) / 99
    expected = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / 99)
    assert (whole.deviation, parts.deviation) == (pytest.approx(expected, rel=1e-9), pytest.approx(expected, rel=1e-6))
    mixed = Running()
    mixed.take(values[::-1])
    assert mixed.deviation == whole.deviation, "the order of ranks does not matter to the last bit"


def test_parts_are_shaped_weighted_and_summed_and_then_the_sum_is_shaped() -> None:
    shapes = {"good": Shape(clip=2.0), SUM: Shape(clip=3.0, token_price=0.1)}
    combined = combination({"good": 1.0, "brief": -0.5}, shapes, {})
    reward = Reward(value=math.nan, parts={"good": 9.0, "brief": -4.0})
    found = combined([reward], [5], list)
    assert found.scores == (2.5,), "2 + 2, held at 3, less 5 tokens of 0.1"
    assert found.metrics == {"shaped_reward": 2.5, "clipped_good": 1.0, "clipped_sum": 1.0}
    assert combination({"good": 2.0}, {}, {})(rewards(3.0), [5], list).metrics == {}


def test_a_constraint_is_priced_by_what_is_missing_and_no_more_once_it_is_met() -> None:
    """At least 1, rate 0.5: means 0, 1, 2 give lambda 0.5, 0.5, 0; answers are judged by (sum + lambda value) / (1 + lambda)."""
    combined = combination({"good": 1.0, "safe": 7.0}, {}, {"safe": Constraint(at_least=1.0, rate=0.5)})
    assert combined.weights == {"good": 1.0}
    rounds = [[(4.0, 0.0), (2.0, 0.0)], [(4.0, 0.0), (1.0, 2.0)], [(0.0, 3.0), (0.0, 1.0)], [(5.0, 0.0)]]
    scores, prices, missing = [], [], []
    for values in rounds:
        found = combined([Reward(value=good, parts={"good": good, "safe": safe}) for good, safe in values], [1] * len(values), list)
        scores.append(found.scores)
        prices.append(found.metrics["lagrange_safe"])
        missing.append(found.metrics["violation_safe"])
    assert prices == [0.0, 0.5, 0.5, 0.0]
    assert missing == [1.0, 0.0, -1.0, 1.0]
    assert scores[0] == (4.0, 2.0)
    assert scores[1] == pytest.approx((4 / 1.5, 2 / 1.5))
    assert scores[3] == (5.0,)
    assert Constraint(at_least=1e9, rate=1.0, most=3.0).next(2.0, 0.0) == 3.0
    assert Constraint(at_least=0.0, rate=1.0).next(0.1, 5.0) == 0.0


def test_a_reward_with_a_problem_teaches_nothing_and_has_no_score() -> None:
    combined = combination({"good": 1.0}, {"good": Shape(scale=True)}, {})
    found = combined([*rewards(1.0), Reward(value=math.nan, problem="good raised"), *rewards(3.0)], [1, 1, 1], list)
    assert math.isnan(found.scores[1])
    assert (found.scores[0], found.scores[2], combined.running["good"].count) == (1.0, 3.0, 2)
    before = combined.state_dict()
    assert combined([Reward(value=math.nan, problem="good raised")], [1], list).metrics == {}
    assert combined.state_dict() == before


def test_two_ranks_judge_as_one() -> None:
    def made() -> Combination:
        shapes = {"good": Shape(scale=True, clip=1.0), SUM: Shape(scale=True)}
        return combination({"good": 1.0, "safe": 1.0}, shapes, {"safe": Constraint(at_least=3.0, rate=0.3)})

    rng, one, first, second = random.Random(1), made(), made(), made()
    for _ in range(3):
        every = [Reward(value=0.0, parts={"good": rng.gauss(0, 3), "safe": rng.gauss(1, 1)}) for _ in range(7)]
        rows = [(reward.parts, 2) for reward in every]
        whole = one(every, [2] * 7, list)
        mine, theirs = first(every[:3], [2] * 3, lambda _, rows=rows: rows), second(every[3:], [2] * 4, lambda _, rows=rows: rows)
        assert (*mine.scores, *theirs.scores) == whole.scores
        assert mine.metrics == theirs.metrics == whole.metrics


def test_its_state_survives_json_and_goes_on_to_the_last_bit() -> None:
    def made() -> Combination:
        return combination({"good": 1.0, "safe": 1.0}, {"good": Shape(scale=True)}, {"safe": Constraint(at_least=1.0)})

    one, again = made(), made()
    rows = [Reward(value=0.0, parts={"good": 0.1 * i * i, "safe": 0.3}) for i in range(5)]
    one(rows, [1] * 5, list)
    again.load_state(json.loads(json.dumps(one.state_dict())))
    assert again(rows[::-1], [1] * 5, list) == one(rows[::-1], [1] * 5, list)
    assert again.state_dict() == one.state_dict()


@pytest.mark.parametrize(
    ("shapes", "constraints", "said"),
    [
        ({"god": Shape()}, {}, r"shape\.god: the reward has no part god \(there are good\)"),
        ({}, {"safe": Constraint(at_least=1.0)}, r"constraints\.safe: the reward has no part safe"),
        ({}, {"good": Constraint(at_least=1.0)}, "every part of the reward is a constraint"),
    ],
)
def test_names_that_no_part_has_are_refused(shapes: dict, constraints: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        combination({"good": 1.0}, shapes, constraints)


def test_a_part_called_sum_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be called sum"):
        combination({"sum": 1.0}, {}, {})


def test_a_round_is_credited_by_the_score_and_logs_the_reward_as_it_is() -> None:
    rounds = Rounds(samples=3, missing_end_penalty=0.25)
    setup = Setup(credit=LeaveOneOut(), rounds=rounds, shape={SUM: Shape(scale=True, token_price=0.1)})
    plain = Setup(credit=LeaveOneOut(), rounds=rounds)
    one, other = setup.run(1)[0], plain.run(1)[0]
    assert one["reward"] == other["reward"]
    for row in setup.rows:
        expected = row["reward"] / one["deviation_sum"] - 0.1 * row["length"] - (0.25 if row["stop"] == "length" else 0.0)
        assert row["score"] == pytest.approx(expected)
    assert [row["reward"] for row in plain.rows] == [row["reward"] for row in setup.rows]
    assert all(row["score"] == row["reward"] - (0.25 if row["stop"] == "length" else 0.0) for row in plain.rows)


REWARD = ("data.path=a.csv", "reward.brief=length_window", "reward.long=length")


def test_settings_are_typed_and_mistakes_named() -> None:
    given = ("shape.brief.clip=2", "shape.sum.scale=true", "constraints.long.at_least=3")
    config = load(Config, overrides=[*REWARD, *given]).value
    assert config.shape == {"brief": Shape(clip=2.0), "sum": Shape(scale=True)}
    assert config.constraints == {"long": Constraint(at_least=3.0)}
    for wrong, said in (
        ("shape.brief.clip=-1", "shape.brief.clip"),
        ("shape.brief.klip=1", "clip"),
        ("constraints.long.rate=1", "at_least"),
    ):
        with pytest.raises(ConfigError, match=said):
            load(Config, overrides=[*REWARD, wrong])


def test_the_command_trains_under_a_constraint(truing: Truing, tiny_model_folder, pairs_file, tmp_path) -> None:
    settings = ("reward.brief=length_window", "reward.brief.most=4", "reward.long=length", "reward.long.weight=5")
    kept = ("constraints.long.at_least=100", "constraints.long.rate=0.01", "shape.brief.scale=true")
    common = (f"model={tiny_model_folder}", f"data.path={pairs_file}", "dtype=fp32", "batch_size=4", "measure_before=false")
    code, _, told = truing(
        "train", "rloo", *common, *settings, *kept, "max_steps=2", "answers.max_tokens=6", f"run={tmp_path / 'run'}"
    )
    assert code == 0, told
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if "lagrange_long" in row]
    assert rows[1]["lagrange_long"] == pytest.approx(0.01 * rows[0]["violation_long"])
    assert rows[0]["reward"] == pytest.approx(rows[0]["reward_brief"]), "a constrained part is not summed"
    code, _, told = truing("train", "rloo", *common, *settings, "shape.bref.clip=1", f"run={tmp_path / 'other'}")
    assert code != 0
    assert "the reward has no part bref" in told
