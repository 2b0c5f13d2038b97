"""What a judge is biased by, measured on its own judgements: the order, the length, who wrote; with intervals. No torch here.

Each figure is of the pairs at hand. A judge that prefers longer answers, or its own, may be right where those are better: only
people's labels on the same pairs tell bias from judgement, and `against` compares with them.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from truing.feedback.sides import Side
from truing.judges.judgement import Comparison, Judgement
from truing.statistics import Estimate, bootstrap_mean, win_rate

OUTCOME: Mapping[Side, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A comparison and what was said of it."""

    comparison: Comparison
    judgement: Judgement
    own: Literal["first", "second"] | None = None
    """Which of the two the judge's own model wrote; None for neither, both, or nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measure. Example: `Figure(name="position", value=wilson(5, 10), said="...")`."""

    name: str
    value: Estimate
    said: str
    """What it is, with the value that an unbiased judge has."""


def biases(judged: Sequence[Judged], *, clusters: Sequence[Hashable] | None = None, seed: int = 0) -> list[Figure]:
    """All measures that the judgements allow; those with a problem are in the first alone.

    `clusters` names the prompt of each where several pairs share one: they are drawn together, or intervals come out too narrow.
    position: the mean probability given to the answer that is shown first, over both orders of each pair; 0.5 is unbiased.
    """
    if not judged:
        return []
    prompts = list(range(len(judged))) if clusters is None else list(clusters)
    assert len(prompts) == len(judged), "a cluster for each pair"

    def mean(rows: Sequence[int], values: Sequence[float]) -> Estimate:
        return bootstrap_mean(values, [prompts[i] for i in rows], seed=seed)

    def rate(rows: Sequence[int], values: Sequence[float | bool]) -> Estimate:
        of = [prompts[i] for i in rows]
        numbers = [float(value) for value in values]
        return _rate(numbers, of, seed)

    every = range(len(judged))
    rows = [i for i in every if not judged[i].judgement.problem]
    read = [judged[i] for i in rows]
    found = [
        Figure(
            name="judged",
            value=rate(every, [not one.judgement.problem for one in judged]),
            said="pairs with a judgement in both orders",
        )
    ]
    if not read:
        return found
    shown_first = [(one.judgement.orders[0] + 1 - one.judgement.orders[1]) / 2 for one in read]
    found += [
        Figure(
            name="position",
            value=mean(rows, shown_first),
            said="probability given to the answer shown first; 0.5 where order does not matter",
        ),
        Figure(name="flips", value=rate(rows, [one.judgement.flips for one in read]), said="pairs whose two orders disagree"),
        Figure(
            name="ties",
            value=rate(rows, [one.judgement.side == "tie" for one in read]),
            said="pairs that are no preference, flips among them",
        ),
    ]
    longer = [(i, value) for i in rows if (value := prefers_longer(judged[i].comparison, judged[i].judgement.side)) is not None]
    if longer:
        found.append(Figure(name="length", value=rate(*zip(*longer, strict=True)), said="preferences for the longer answer"))
    own = [(i, _for_own(judged[i])) for i in rows if judged[i].own is not None]
    if own:
        said = "win rate of answers by the judge's own model, ties as half"
        found.append(Figure(name="self", value=rate(*zip(*own, strict=True)), said=said))
    masses = [(i, judged[i].judgement.mass) for i in rows if np.isfinite(judged[i].judgement.mass)]
    if masses:
        said = "probability of the verdict's words together; near 0 the judge would have said something else"
        found.append(Figure(name="mass", value=mean(*zip(*masses, strict=True)), said=said))
    return found


def prefers_longer(comparison: Comparison, side: Side) -> bool | None:
    """Whether the preferred answer has more characters; None where neither is preferred or both are as long."""
    gap = len(comparison.first) - len(comparison.second)
    return None if side == "tie" or gap == 0 else (gap > 0) == (side == "first")


def _for_own(one: Judged) -> float:
    outcome = OUTCOME[one.judgement.side]
    return outcome if one.own == "first" else 1 - outcome


def _rate(values: Sequence[float], prompts: Sequence[Hashable], seed: int) -> Estimate:
    """Wilson's interval where each value has a prompt of its own; else prompts are drawn, or counted where all values are alike."""
    distinct = len(set(prompts))
    if distinct == len(values):
        return win_rate(values)
    if len(set(values)) > 1:
        return bootstrap_mean(values, prompts, seed=seed)
    alike = win_rate([values[0]] * distinct)
    return replace(alike, n=len(values), method=f"{alike.method}, of {distinct} prompts that say the same")


def against(
    judged: Sequence[Judged], people: Sequence[Side], *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> list[Figure]:
    """What the judge does where people decide: how often it agrees, and how much more it prefers the longer answer than they do.

    `clusters` as in `biases`.
    """
    assert len(judged) == len(people), "people's side of each pair"
    prompts = list(range(len(judged))) if clusters is None else list(clusters)
    assert len(prompts) == len(judged), "a cluster for each pair"
    decided = [i for i, one in enumerate(judged) if not one.judgement.problem and people[i] != "tie"]
    both, of = [(judged[i], people[i]) for i in decided], [prompts[i] for i in decided]
    found: list[Figure] = []
    if both:
        right = [OUTCOME[one.judgement.side] if side == "first" else 1 - OUTCOME[one.judgement.side] for one, side in both]
        value = _rate(right, of, seed)
        found.append(Figure(name="accuracy", value=value, said="agreement with people's preferences, ties as half"))
        means = [one.judgement.probability if side == "first" else 1 - one.judgement.probability for one, side in both]
        by_mean = [0.5 if mean == 0.5 else float(mean > 0.5) for mean in means]
        said = "the same where the probability over both orders decides, as with on_flip=average"
        found.append(Figure(name="accuracy by mean", value=_rate(by_mean, of, seed), said=said))
    lengths = [
        (float(mine), float(theirs), prompt)
        for (one, side), prompt in zip(both, of, strict=True)
        if (mine := prefers_longer(one.comparison, one.judgement.side)) is not None
        and (theirs := prefers_longer(one.comparison, side)) is not None
    ]
    if lengths:
        gaps = [mine - theirs for mine, theirs, _ in lengths]
        said = "preference for the longer answer, less people's on the same pairs; 0 is unbiased"
        value = bootstrap_mean(gaps, [prompt for _, _, prompt in lengths], seed=seed)
        found.append(Figure(name="length, less people's", value=value, said=said))
    return found


def lines(figures: Sequence[Figure]) -> list[str]:
    """The figures for people, one a line."""
    width = max((len(figure.name) for figure in figures), default=0)
    return [f"{figure.name:<{width}}  {figure.value}  {figure.said}" for figure in figures]
