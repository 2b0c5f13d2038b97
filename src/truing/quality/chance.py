"""How likely what was seen of annotators is by chance alone: tests that raise a false alarm no more often than they say.

Coins and cards are counted exactly; where an order or a group is exchangeable, it is drawn anew `DRAWS` times and what was seen is
counted among the draws (Phipson and Smyth 2010, arXiv 1603.05766), which keeps the level whatever the numbers are. Sets so large
that this would take seconds go by the normal distribution, which is as good there.
"""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float, Int

from truing.randomness import counted_seed

DRAWS = 2000
LARGE = 20_000
"""Votes or items from which on the normal distribution is taken."""


def coin_chance(heads: int, tosses: int) -> float:
    """Chance that so many tosses of a fair coin are as far from half as this, on either side (exact binomial)."""
    least = min(heads, tosses - heads)
    x = np.arange(tosses)
    logs = np.concatenate([[0.0], np.cumsum(np.log((tosses - x) / (x + 1)))]) - tosses * math.log(2)
    return min(1.0, 2 * float(np.exp(logs[: least + 1]).sum()))


def fewer_chance(right: int, n: int, rest_right: int, rest: int) -> float:
    """Chance that n of all these votes, drawn without replacement, hold so few right ones or fewer (Fisher's exact test)."""
    total, good = n + rest, right + rest_right
    low, high = max(0, n - (total - good)), min(n, good)
    x = np.arange(low, high)
    logs = np.concatenate([[0.0], np.cumsum(np.log((good - x) * (n - x)) - np.log((x + 1) * (total - good - n + x + 1)))])
    chances = np.exp(logs - logs.max())
    return float(chances[: right - low + 1].sum() / chances.sum())


def side_chance(first: Bool[np.ndarray, " vote"], items: Int[np.ndarray, " vote"], seed: int) -> float:
    """Chance that votes lean so far to one side, were the two answers of each item laid out by a coin.

    Votes on one item may have seen one order, so an item's votes turn together.
    """
    _, place = np.unique(items, return_inverse=True)
    leans = np.bincount(place, weights=np.where(first, 1.0, -1.0))
    seen = abs(leans.sum())
    if len(leans) > LARGE:
        return math.erfc(seen / math.sqrt(2 * max(1e-12, float((leans**2).sum()))))
    generator = np.random.Generator(np.random.PCG64(counted_seed(seed, "sides")))
    drawn = sum(
        int((np.abs((generator.integers(0, 2, (count, len(leans)), dtype=np.int8) * 2.0 - 1.0) @ leans) >= seen - 1e-9).sum())
        for count in [DRAWS // 20] * 20
    )
    return (1 + drawn) / (1 + DRAWS)


def trend(right: Bool[np.ndarray, " vote"], sessions: Sequence[object] | None = None) -> float:
    """Standard score of how right votes move through their sessions, over all orders within each; one session where None is given.

    Votes of a session stand together, in their order.
    """
    moved, spread = _moved(right, sizes(sessions) if sessions is not None else [len(right)])
    return moved / spread if spread else 0.0


def sizes(sessions: Sequence[object]) -> list[int]:
    """How many votes each session has; a session ends where the next begins."""
    return [sum(1 for _ in group) for _, group in groupby(sessions)]


def _moved(right: Bool[np.ndarray, " vote"], votes: Sequence[int]) -> tuple[float, float]:
    """The sum of places of right votes, each counted from the middle of its session; and its deviation over all orders."""
    moved, variance = 0.0, 0.0
    for part in np.split(right, np.cumsum(votes)[:-1]):
        n = len(part)
        places = _places(n)
        moved += float((part * places).sum())
        variance += float(part.var() * (places**2).sum()) * n / (n - 1) if n > 1 else 0.0
    return moved, math.sqrt(variance)


def _places(n: int) -> Float[np.ndarray, " vote"]:
    return np.arange(n) - (n - 1) / 2


def drift_chances(people: Sequence[tuple[Bool[np.ndarray, " _"], Sequence[int]]], seed: int) -> list[float]:
    """For each of several people, given as right votes in their order and the sizes of sessions, the chance that the largest trend
    of all of them is as large as his, were the order within sessions drawn at random."""
    found = [_moved(right, votes) for right, votes in people]
    seen = [abs(moved / spread) if spread else 0.0 for moved, spread in found]
    if sum(len(right) for right, _ in people) > LARGE:
        return [min(1.0, len(people) * math.erfc(z / math.sqrt(2))) for z in seen]
    largest = np.zeros(DRAWS // 2)
    for number, ((right, votes), (_, spread)) in enumerate(zip(people, found, strict=True)):
        if not spread:
            continue
        generator = np.random.Generator(np.random.PCG64(counted_seed(seed, "drift", number)))
        moved = np.zeros(len(largest))
        for part in np.split(right, np.cumsum(votes)[:-1]):
            drawn = generator.permuted(np.tile(part.astype(np.int8), (len(largest), 1)), axis=1)
            moved += drawn @ _places(len(part))
        np.maximum(largest, np.abs(moved) / spread, out=largest)
    return [float((1 + (largest >= z - 1e-9).sum()) / (1 + len(largest))) for z in seen]


def group_chance(means: Float[np.ndarray, " person"], of: Int[np.ndarray, " person"], groups: int, seed: int) -> float:
    """Chance that groups drawn at random differ as much in their means, by permuting who is in which."""
    generator = np.random.Generator(np.random.PCG64(counted_seed(seed, "groups")))

    def between(assigned: Int[np.ndarray, "draw person"]) -> Float[np.ndarray, " draw"]:
        there = [assigned == group for group in range(groups)]
        return np.asarray(np.sum([(mine @ means) ** 2 / np.maximum(mine.sum(axis=1), 1) for mine in there], axis=0))

    seen = between(of[None])
    drawn = between(generator.permuted(np.tile(of, (DRAWS, 1)), axis=1))
    return float((1 + (drawn >= seen - 1e-12).sum()) / (1 + DRAWS))
