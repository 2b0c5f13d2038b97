"""The packaged preferences are what their page says: rows, topics, premises that decide, nothing to be had from length."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest

from truing.data.read import read
from truing.evals.premise import stance
from truing.recipes.align import HELD_OUT_TOPICS
from truing.recipes.selection import PACKAGED
from truing.records import Preference

PAGE = PACKAGED["everyday"].parent / "README.md"


@cache
def pairs() -> tuple[Preference, ...]:
    reading = read(PACKAGED["everyday"])
    assert reading.format == "good_bad"
    assert reading.rows_in == len(reading.records)
    assert all(isinstance(record, Preference) for record in reading.records)
    return reading.records


def held_out(rows: Sequence[Preference], held: bool) -> list[Preference]:
    return [row for row in rows if (row.tags["topic"] in HELD_OUT_TOPICS) == held]


def of_kind(kind: str) -> list[Preference]:
    return [row for row in pairs() if row.tags["kind"] == kind]


def bag(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def test_rows_kinds_and_topics() -> None:
    kinds = Counter(row.tags["kind"] for row in pairs())
    assert kinds == {"manner": 280, "premise": 224}
    assert set(Counter(row.tags["topic"] for row in pairs()).values()) == {18}
    assert len({row.tags["topic"] for row in pairs()}) == 28


def test_each_prompt_is_asked_once() -> None:
    prompts = [" ".join(row.prompt[-1].content.lower().split()) for row in pairs()]
    assert all(len(row.prompt) == 1 for row in pairs())
    assert [prompt for prompt, count in Counter(prompts).items() if count > 1] == []


def test_the_held_out_topics_are_whole_and_share_nothing_with_the_others() -> None:
    inside, outside = held_out(pairs(), True), held_out(pairs(), False)
    assert (len(inside), len(outside)) == (126, 378)
    assert {row.tags["topic"] for row in inside} == set(HELD_OUT_TOPICS)
    assert not {row.tags["topic"] for row in inside} & {row.tags["topic"] for row in outside}
    assert not {row.prompt for row in inside} & {row.prompt for row in outside}


def test_half_of_the_premises_are_true_and_the_answers_take_opposite_sides() -> None:
    rows = of_kind("premise")
    sides = [(stance(row.chosen), stance(row.rejected)) for row in rows]
    assert set(sides) == {("corrects", "confirms"), ("confirms", "corrects")}
    assert Counter(good for good, _ in sides) == {"confirms": 112, "corrects": 112}


GROUPS = {
    "all": lambda: list(pairs()),
    "train": lambda: held_out(pairs(), False),
    "held out": lambda: held_out(pairs(), True),
    "manner": lambda: of_kind("manner"),
    "premise": lambda: of_kind("premise"),
}


@pytest.mark.parametrize("measure", [len, lambda text: len(text.split())], ids=["characters", "words"])
@pytest.mark.parametrize("group", GROUPS)
def test_length_does_not_tell_good_from_bad(group: str, measure) -> None:
    good = np.array([measure(row.chosen) for row in GROUPS[group]()])
    bad = np.array([measure(row.rejected) for row in GROUPS[group]()])
    longer = good[:, None] - bad[None, :]
    assert 0.45 <= float(((longer > 0) + 0.5 * (longer == 0)).mean()) <= 0.55


def asked(row: Preference) -> dict[str, int]:
    return dict.fromkeys(bag(row.prompt[-1].content), 1)


def compared(row: Preference) -> dict[str, int]:
    """Words of the good answer less words of the bad one."""
    good, bad = bag(row.chosen), bag(row.rejected)
    return {word: (word in good) - (word in bad) for word in good | bad}


def right_by_words(
    rows: Sequence[Preference], words: Callable[[Preference], dict[str, int]], side: Callable[[Preference], int]
) -> float:
    """Share of held-out rows whose side (1 or -1) is found by a ridge regression on the words of the training topics' rows."""
    train, held = held_out(rows, False), held_out(rows, True)
    vocabulary = sorted({word for row in train for word in words(row)})
    known, new = ([[words(row).get(word, 0) for word in vocabulary] for row in part] for part in (train, held))
    known, new = np.array(known, float), np.array(new, float)
    weights = known.T @ np.linalg.solve(known @ known.T + 10 * np.eye(len(train)), [side(row) for row in train])
    return round(float((new @ weights * [side(row) for row in held] > 0).mean()), 2)


def test_the_page_says_how_far_words_alone_go() -> None:
    found = {
        "true premises": right_by_words(of_kind("premise"), asked, lambda row: 1 if stance(row.chosen) == "confirms" else -1),
        "manner": right_by_words(of_kind("manner"), compared, lambda row: 1),
        "premise": right_by_words(of_kind("premise"), compared, lambda row: 1),
    }
    assert found == {"true premises": 0.68, "manner": 0.94, "premise": 0.71}
    assert [f"{share:.2f}" for share in found.values()] == re.findall(r"\b0\.\d\d\b", PAGE.read_text())
