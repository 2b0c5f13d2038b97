"""The people behind the preferences: models worked by hand, and alarms at the rate that is stated."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from samples import Truing
from truing.quality.annotators import Annotators, Vote, agreement_with_others, dawid_skene, group_chance, trend, vote_of
from truing.quality.finding import Finding
from truing.quality.sample import Sample
from truing.records import Message, Origin, Preference
from truing.statistics import Estimate, wilson


def findings(votes: list[Vote]) -> dict[str, Finding]:
    return {finding.name: finding for finding in Annotators(votes).findings()}


def crowd(right: Callable[[int, int], float], *, people: int = 8, items: int = 120, seed: int = 0, **more: object) -> list[Vote]:
    """Everybody votes on everything; `right(person, item)` is the chance of the right vote, which is 1 or -1 by turns."""
    draw = random.Random(seed)
    return [
        Vote(item=i, annotator=f"p{j}", choice=(1 if i % 2 else -1) * (1 if draw.random() < right(j, i) else -1), time=float(i))
        for i in range(items)
        for j in range(people)
    ]


def test_others_weighed_by_hand() -> None:
    items, people = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 0, 1, 2])
    agrees, known = agreement_with_others(items, people, np.array([1, 1, -1, 1, -1, 1]))
    assert agrees[:3].tolist() == [True, True, False]
    assert known[5] == np.False_, "nobody else voted on the last item"
    assert not agrees[3]
    assert not agrees[4]


def test_dawid_skene_finds_how_often_each_is_right() -> None:
    chances = [0.95, 0.85, 0.75, 0.65, 0.5]
    votes = crowd(lambda person, item: chances[person], people=5, items=4000)
    found = dawid_skene(
        np.array([v.item for v in votes]), np.array([int(v.annotator[1:]) for v in votes]), np.array([v.choice for v in votes])
    )
    assert np.abs(found - chances).max() < 0.03


def test_dawid_skene_does_not_care_which_answer_is_called_first() -> None:
    votes = crowd(lambda person, item: 0.6 + 0.1 * (person % 4), items=300)
    items, people = np.array([v.item for v in votes]), np.array([int(v.annotator[1:]) for v in votes])
    choices = np.array([v.choice for v in votes])
    flips = np.where(items % 3 == 0, -1, 1)
    assert np.allclose(dawid_skene(items, people, choices), dawid_skene(items, people, choices * flips))


def test_one_who_votes_by_a_coin_is_named_and_nobody_else() -> None:
    says = findings(crowd(lambda person, item: 0.5 if person == 3 else 0.85))["unreliable_annotators"]
    assert (says.level, says.details[0]) == ("watch", "p3")
    assert says.value == wilson(1, 8)
    assert says.details[1].startswith("p3: agrees with the others in 0.")


def test_agreement_is_of_the_annotators() -> None:
    says = findings(crowd(lambda person, item: 1.0))["agreement"]
    assert isinstance(says.value, Estimate)
    assert (says.value.value, says.level) == (1.0, "fine")
    assert findings(crowd(lambda person, item: 0.5))["agreement"].level == "act"


def test_the_trend_by_hand() -> None:
    # votes right, right, wrong, wrong at places -1.5 -0.5 0.5 1.5: sum -2; variance 1/4 * 5 * 4/3 = 5/3
    assert trend(np.array([True, True, False, False])) == pytest.approx(-2 / np.sqrt(5 / 3))
    assert trend(np.array([True, True])) == 0
    right = np.random.Generator(np.random.PCG64(0)).random(50) < 0.7
    assert trend(right) == pytest.approx(-trend(right[::-1]))


def test_one_who_tires_is_named_whatever_the_order_of_rows() -> None:
    votes = crowd(lambda person, item: 0.3 if person == 2 and item > 60 else 0.9)
    says = findings(votes)["drift"]
    assert (says.level, says.details[0]) == ("watch", "p2")
    random.Random(1).shuffle(votes)
    assert findings(votes)["drift"].details[0] == "p2"


def test_position_bias_and_who_has_it() -> None:
    draw = random.Random(0)
    votes = [
        Vote(item=i, annotator=f"p{j}", choice=1, first_shown=True if j == 1 else draw.random() < 0.5)
        for i in range(60)
        for j in range(5)
    ]
    says = findings(votes)["position_bias"]
    assert says.level == "watch"
    assert [line.split(":")[0] for line in says.details] == ["p1"]
    assert findings([Vote(item=i, annotator="p", choice=1, first_shown=True) for i in range(30)])["position_bias"].level == "act"


def test_votes_that_nobody_can_have_read() -> None:
    votes = [Vote(item=i, annotator=f"p{i % 2}", choice=1, pace=100.0 if i % 2 else 4.0) for i in range(60)]
    says = findings(votes)["too_fast"]
    assert (says.value, says.level, says.details) == (wilson(30, 60), "act", ("p1: 30 of 30",))


def test_groups_that_differ() -> None:
    means, of = np.array([0.9, 0.91, 0.92, 0.6, 0.61, 0.62]), np.array([0, 0, 0, 1, 1, 1])
    # of the 20 ways to part six into three and three, this one and its mirror are the farthest apart
    assert group_chance(means, of, 2, seed=0) == pytest.approx(2 / 20, abs=0.03)
    assert group_chance(means, np.array([0, 1, 0, 1, 0, 1]), 2, seed=0) > 0.4


@pytest.mark.parametrize("name", ["unreliable_annotators", "drift", "position_bias"])
def test_false_alarms_are_as_rare_as_stated(name: str) -> None:
    """100 crowds in which nobody stands out: 5% of alarms, give or take three standard deviations (0.022 each)."""
    alarms = 0
    for seed in range(100):
        draw = random.Random(seed)
        votes = [
            Vote(item=i, annotator=f"p{j}", choice=1 if draw.random() < 0.8 else -1, first_shown=draw.random() < 0.5, time=float(i))
            for i in range(60)
            for j in range(5)
        ]
        found = Annotators(votes)
        items, people = np.asarray(found.items, dtype=np.int64), np.asarray(found.people, dtype=np.int64)
        agrees, known = agreement_with_others(items, people, np.asarray(found.choices, dtype=np.int64))
        if name == "drift":
            (says,) = found._drift(agrees, known, people, np.asarray(found.time))
        elif name == "position_bias":
            (says,) = found._position(people)
        else:
            (says,) = found._reliability(agrees, known, people)
        alarms += says.level != "fine"
    assert alarms / 100 < 0.05 + 3 * 0.0218


def test_a_row_that_names_its_annotator_is_a_vote() -> None:
    def row(chosen: str, rejected: str, **tags: str) -> Sample:
        prompt = (Message(role="user", content="q"),)
        return Sample.of(Preference(prompt=prompt, chosen=chosen, rejected=rejected, origin=Origin(file="f", row=1), tags=tags))

    one = vote_of(row("a b", "c", annotator="ann", seconds="1.5", shown_first="rejected", time="3", group="east"))
    other = vote_of(row("C", "a  b", annotator="bob"))
    assert one is not None
    assert other is not None
    assert (one.item, one.choice) == (other.item, -other.choice)
    assert (one.pace, one.first_shown, one.time, one.group) == (2.0, False, 3.0, "east")
    assert np.isnan(other.pace)
    assert vote_of(row("a", "b")) is None
    assert Annotators().findings() == []


def test_three_columns_of_votes_are_read(tmp_path, truing: Truing) -> None:
    path = tmp_path / "p.jsonl"
    line = '{"instruction": "q%d", "response1": "one", "response2": "two", "annotator1": %d, "annotator2": %d, "annotator3": %d}\n'
    path.write_text("".join(line % (i, *((1, 1, 1) if i % 2 else (2, 2, i % 3))) for i in range(60)))
    code, said, _ = truing("check", path, "checks=[annotators]", "--all")
    assert code == 0
    assert "agreement: " in said
    assert "annotator3: agrees with the others in" in said
    assert truing("check", path, "checks=[annotator]")[0] == 2
