"""Rules by hand; the worker that a hanging, raising or dying rule cannot take along; the weighted sum and its named problems."""

import math
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trees import random_trees, tiny_policy
from truing.data.tree import TreeBatch
from truing.models.heads import RewardModel
from truing.records import Completion, Message, Origin, Prompt, Reward, Rollout
from truing.rewards import REWARDS
from truing.rewards.base import Failure, WeightedSum
from truing.rewards.learned import LearnedScorer
from truing.rewards.outside import OutsideRule, as_json
from truing.rewards.rules import (
    ExactAnswer,
    Format,
    Length,
    LengthWindow,
    NumericAnswer,
    PythonFunction,
    RegularExpression,
    last_number,
)
from truing.rewards.worker import rollout_of


def rollout(response: str, tokens: int = 3, **tags: str) -> Rollout:
    asked = Prompt(messages=(Message(role="user", content="2+2?"),), origin=Origin(file="sums.jsonl", row=7), tags=tags)
    said = Completion(tokens=tuple(range(10, 10 + tokens)), stop="end")
    return Rollout(prompt=asked, trunk=(1, 17), completion=said, response=response, version=4)


def test_rules_by_hand() -> None:
    tea = RegularExpression(pattern=r"(?i)\btea\b", most=2)
    assert [tea.score(rollout(text)) for text in ("Tea, tea and tea", "tea", "team", "")] == [2.0, 1.0, 0.0, 0.0]
    window = LengthWindow(least=2, most=4, slope=2.0)
    assert [window.score(rollout("", tokens=n)) for n in (1, 2, 4, 5, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert Length(unit="words").score(rollout("one two  three")) == 3.0
    assert Length(unit="characters").score(rollout("")) == 0.0


@pytest.mark.parametrize(("pattern", "wrong"), [("(", "missing \\), unterminated subpattern"), ("a{99999999999}", "too large")])
def test_a_pattern_that_is_no_regular_expression_is_named_when_settings_are_read(pattern: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=rf"pattern '{re.escape(pattern)}' is no regular expression: .*{wrong}"):
        RegularExpression(pattern=pattern)


@pytest.mark.parametrize("rule", [Length(), LengthWindow(most=3)])
def test_text_without_tokens_has_no_length_in_tokens(rule: Length | LengthWindow) -> None:
    with pytest.raises(ValueError, match="the answer 'four' came as text, without tokens to count; set unit=words"):
        rule.score(rollout("four", tokens=0))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a\nb</think> <answer>4</answer>", 1.0),
        ("  <think></think><answer></answer>\n", 1.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>4</answer> and more", 0.0),
        ("<think>a</think><think>b</think><answer>4</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_a_format_of_tags(text: str, value: float) -> None:
    assert Format(form="tags").score(rollout(text)) == value


def test_a_format_of_json() -> None:
    rule = Format(form="json")
    assert [rule.score(rollout(text)) for text in ('{"a": [1]}', "[" * 10**5, "{", "")] == [1.0, 0.0, 0.0, 0.0]


def test_exact_and_numeric_answers() -> None:
    exact = ExactAnswer(column="right", after="####")
    assert exact.score(rollout("so ####  Four ", right="long #### four")) == 1.0
    assert exact.score(rollout("five", right="four")) == 0.0
    numeric = NumericAnswer(column="right", after="####")
    said = ("it is 18.", "#### 1,800", "3 of 18", "18.0001", "none", "")
    assert [numeric.score(rollout(text, right="16-3=13 #### 18")) for text in said] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert [last_number(text) for text in ("-1,234.5e1x", "a.5", "1.", "-")] == [-12345.0, 0.5, 1.0, None]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,2", 2.0),  # a list, not 12
        ("7-4", 4.0),
        ("COVID-19", 19.0),
        ("(3)-4", 4.0),
        ("2026-11-21", 21.0),
        ("7 - 4 = -4", -4.0),
        ("3--4", -4.0),
        ("x=\u22124", -4.0),
        ("$1,234.50.", 1234.5),
        ("1,234,567", 1234567.0),
        ("12,3456", 3456.0),  # no thousands
        ("1,234,5", 5.0),
        ("version 1.2.3", 3.0),
        ("+3e2", 300.0),
        ("10,20,30", 30.0),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float) -> None:
    assert last_number(text) == number


def test_what_the_row_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"sums\.jsonl:7: no column right \(columns there: topic\)"):
        ExactAnswer(column="right").score(rollout("4", topic="sums"))
    with pytest.raises(ValueError, match=r"column right of sums\.jsonl:7 holds no number"):
        NumericAnswer(column="right").score(rollout("4", right="four"))


def test_a_rollout_crosses_to_the_worker_unchanged() -> None:
    one = rollout('with "quotes", \n and \u00e9', right="4")
    assert rollout_of(dict(as_json(one))) == one


@pytest.fixture
def outside(tmp_path: Path):
    """source, seconds -> a reward by the function `reward` of that source; ended with the test."""
    made: list[OutsideRule] = []

    def of(source: str, seconds: float = 10.0) -> OutsideRule:
        path = tmp_path / "mine.py"
        path.write_text(source)
        made.append(OutsideRule(PythonFunction(file=path), seconds=seconds))
        return made[-1]

    yield of
    for rule in made:
        rule.close()


UNRULY = """
import os, time
print("loaded, and saying so")
def reward(rollout):
    print("scoring", rollout.response)
    if rollout.response == "raise": raise KeyError("answer")
    if rollout.response == "hang":
        while True: pass
    if rollout.response == "sleep": time.sleep(1e6)
    if rollout.response == "die": os._exit(7)
    if rollout.response == "nan": return float("nan")
    return len(rollout.response) + rollout.version
"""


def test_a_reward_that_hangs_raises_dies_or_is_not_a_number_costs_one_reward_and_is_named(outside: Callable) -> None:
    scorer = outside(UNRULY, seconds=2.0)
    said = ["a", "raise", "hang", "bb", "die", "nan", "ccc"]
    found = scorer([rollout(text) for text in said])
    assert [found[i] for i in (0, 3, 6)] == [5.0, 6.0, 7.0]
    assert found[1] == Failure(fault="raised", text="KeyError: 'answer'")
    assert found[2] == Failure(fault="timed out", text="after 2 s")
    assert found[4] == Failure(fault="died", text="its process ended with status 7")
    assert math.isnan(found[5])


def test_a_reward_that_sleeps_is_not_waited_for_but_one_without_a_processor_is(outside: Callable) -> None:
    """Else a busy machine would change rewards, and a continued run would not be the run."""
    scorer = outside(UNRULY, seconds=0.5)
    assert scorer([rollout("sleep")]) == [Failure(fault="timed out", text="after 0.5 s")]
    scorer.start()
    worker = scorer._worker.process.pid
    os.kill(worker, signal.SIGSTOP)
    threading.Timer(1.5, os.kill, (worker, signal.SIGCONT)).start()
    assert scorer([rollout("a")]) == [5.0]


def test_a_regular_expression_that_never_ends_is_stopped() -> None:
    scorer = OutsideRule(RegularExpression(pattern=r"(a+)+$"), seconds=1.0)
    found = scorer([rollout("a" * 60 + "b"), rollout("aa")])
    scorer.close()
    assert found == [Failure(fault="timed out", text="after 1 s"), 1.0]


def test_the_worker_ends_when_closed_and_when_its_parent_is_gone(outside: Callable) -> None:
    scorer = outside(UNRULY)
    assert scorer([rollout("a")]) == [5.0]
    worker = scorer._worker
    assert worker is not None
    worker.line.close()
    assert worker.process.wait(10) == 0
    scorer._worker = None
    scorer.start()
    process = scorer._worker.process
    scorer.close()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def other(rollout): return 1", r"mine\.py: has no function reward"),
        ("def reward(rollout) return 1", "SyntaxError"),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
    ],
)
def test_a_function_that_cannot_be_had_is_an_error_before_anything_else(source: str, said: str, outside: Callable) -> None:
    with pytest.raises(ValueError, match=said):
        outside(source).start()


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.py: no such file"):
        OutsideRule(PythonFunction(file=Path("nowhere.py")), seconds=5.0).start()


def test_the_sum_is_weighted_and_a_failed_part_leaves_the_others() -> None:
    parts = {"right": lambda rollouts: [1.0, 2.0, math.inf], "style": lambda rollouts: [4.0, Failure(fault="timed out"), 5.0]}
    found = WeightedSum(parts=parts, weights={"right": 1.0, "style": -0.5})([rollout("")] * 3)
    assert found[0] == Reward(value=-1.0, parts={"right": 1.0, "style": 4.0})
    assert [reward.problem for reward in found] == ["", "style timed out", "right not a number: inf"]
    assert [dict(reward.parts) for reward in found[1:]] == [{"right": 2.0}, {"style": 5.0}]
    assert math.isnan(found[1].value)
    assert math.isnan(found[2].value)


def test_trap_07_a_learned_reward_scores_the_very_tokens_whatever_stands_beside_them() -> None:
    """Two prompts, one of them twice in a row: as many values, in order, as each alone."""
    model = RewardModel(tiny_policy(), seed=3)
    trees = random_trees(3, branches=2)
    rollouts = [
        Rollout(
            prompt=Prompt(messages=(Message(role="user", content=""),)),
            trunk=tree.trunk,
            completion=Completion(tokens=branch.tokens, stop="end"),
            response="",
        )
        for tree in (trees[0], trees[1], trees[0], trees[2])
        for branch in tree.branches
    ]
    found = LearnedScorer(model, budget=60)(rollouts)
    with torch.no_grad():
        expected = model.scores(TreeBatch.of([trees[0], trees[1], trees[0], trees[2]])).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    assert LearnedScorer(model, budget=60)([]) == []


def test_every_reward_of_the_table_has_a_weight() -> None:
    assert [name for name, kind in REWARDS.items() if "weight" not in kind.__dataclass_fields__] == []
