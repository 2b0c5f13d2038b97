"""Agreement on pairs: by hand, against the general coefficients of both orientations, coverage, pairs of one prompt."""

import numpy as np
import pytest

from truing.feedback.agreement import cohen_kappa, krippendorff_alpha
from truing.feedback.sides import Side, same_side, side_alpha, side_kappa

OTHER: dict[Side | None, Side | None] = {"first": "second", "second": "first", "tie": "tie", None: None}


def flipped(sides: list[Side], which: np.ndarray) -> list[Side]:
    return [OTHER[side] if turn else side for side, turn in zip(sides, which, strict=True)]  # type: ignore[misc]


def test_what_was_called_the_first_does_not_matter() -> None:
    """96 pairs of 100 have the better answer first, and both see it in 92: plain kappa is below 0 there, ours is 2 * 0.92 - 1."""
    judge: list[Side] = ["first"] * 96 + ["second"] * 4
    people: list[Side] = ["first"] * 92 + ["second"] * 4 + ["first"] * 4
    assert cohen_kappa(judge, people, draws=100).value < 0
    for turns in (np.zeros(100, bool), np.random.default_rng(0).random(100) < 0.5):
        got = side_kappa(flipped(judge, turns), flipped(people, turns))
        assert (got.value, got.n) == (pytest.approx(0.84), 100)
        rows = list(zip(flipped(judge, turns), flipped(people, turns), strict=True))
        assert side_alpha(rows).value == pytest.approx(0.84, abs=0.001)


def labels(generator: np.random.Generator, count: int, right: float, ties: float) -> list[Side]:
    """Of pairs whose first answer is the better one."""
    said = np.where(generator.random(count) < right, "first", "second")
    return list(np.where(generator.random(count) < ties, "tie", said))  # type: ignore[arg-type]


def test_it_is_the_general_coefficient_of_both_orientations() -> None:
    generator = np.random.default_rng(1)
    for _ in range(5):
        one, other, third = (labels(generator, 40, 0.8, ties) for ties in (0.3, 0.1, 0.5))
        both = [[*said, *(OTHER[side] for side in said)] for said in (one, other)]
        assert side_kappa(one, other).value == pytest.approx(cohen_kappa(*both, draws=100).value)
        asked = [side if generator.random() < 0.6 else None for side in third]
        items: list[list[Side | None]] = [list(row) for row in zip(one, other, asked, strict=True)]
        mirrored = [[OTHER[side] for side in item] for item in items]
        assert side_alpha(items).value == pytest.approx(krippendorff_alpha([*items, *mirrored], draws=100).value)


def test_thirty_pairs_that_all_agree_are_no_certainty() -> None:
    """Wilson's interval of 30 of 30 begins at 0.8865: kappa at 2 * 0.8865 - 1."""
    got = side_kappa(["first"] * 30, ["first"] * 30)
    assert (got.value, got.low, got.high) == (1.0, pytest.approx(0.7730, abs=1e-4), 1.0)
    alpha = side_alpha([("first", "first")] * 30)
    assert (alpha.value, alpha.high) == (1.0, 1.0)
    assert alpha.low == pytest.approx(0.7730, abs=0.01)


def test_pairs_of_one_prompt_are_worth_one() -> None:
    """16 prompts of 6 pairs are worth 16 pairs; one of 6 and ten of 1 are worth 16 * 16 / 46, which is 5."""
    prompts = [i // 6 for i in range(96)]
    judge: list[Side] = ["first"] * 96
    alike: list[Side] = ["second" if prompt < 3 else "first" for prompt in prompts]
    whole, of_prompts = same_side(judge, alike), same_side(judge, alike, prompts)
    assert (whole.value, whole.n) == (of_prompts.value, of_prompts.n) == (pytest.approx(13 / 16), 96)
    sixteen = same_side(judge[:16], alike[::6])
    assert (of_prompts.low, of_prompts.high) == pytest.approx((sixteen.low, sixteen.high))
    assert same_side(judge, judge, prompts).low == pytest.approx(same_side(judge[:16], judge[:16]).low)
    uneven = same_side(judge[:16], judge[:16], [0] * 6 + list(range(1, 11)))
    assert uneven.low == pytest.approx(same_side(judge[:5], judge[:5]).low)


@pytest.mark.parametrize(
    ("count", "right", "ties", "per"), [(30, 0.97, 0.0, 1), (30, 0.8, 0.0, 1), (60, 0.85, 0.3, 1), (96, 0.85, 0.0, 6)]
)
def test_the_interval_of_kappa_holds_the_truth(count: int, right: float, ties: float, per: int) -> None:
    """A judge that is always right and never ties against one that is right in so many; where prompts have several, all alike."""
    generator = np.random.default_rng(count)
    same, by_chance = (1 - ties) * right, (1 - ties) / 2
    truth, held = (same - by_chance) / (1 - by_chance), 0
    for _ in range(400):
        people = [side for side in labels(generator, count // per, right, ties) for _ in range(per)]
        got = side_kappa(["first"] * count, people, [i // per for i in range(count)])
        held += got.low <= truth <= got.high
    assert 0.925 <= held / 400 <= 0.995


def test_what_has_no_answer_says_why() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        side_kappa([], [])
    with pytest.raises(ValueError, match="all labels are ties"):
        side_kappa(["tie"], ["tie"])
    with pytest.raises(ValueError, match="two annotators on the same pair"):
        side_alpha([("first", None)])
