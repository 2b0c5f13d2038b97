"""Win rates: how often one model's answers are preferred to another's on the same prompts, ties half.

A judge that reads two answers is asked in both orders, because many prefer what stands first (Zheng et al. 2023, arXiv
2306.05685, section 3.3: 16% to 70% of verdicts turn with the order). The interval is over prompts, never over verdicts. Left out:
who judges (`truing.evals.compare` takes scores), and win rates at equal lengths (`truing.evals.length_controlled`).
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from truing.statistics import Estimate, Numbers, bootstrap_mean, paired_difference, win_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class BothOrders:
    """Verdicts of one judge on pairs in both orders. Example: `both_orders([1, 0.5], [1, 0]).win_rate.value`."""

    win_rate: Estimate
    outcomes: tuple[float, ...]
    """The model's outcome on each pair: 1 a win, 0 a loss."""
    consistent: Estimate
    """Share of pairs on which both orders say the same."""
    first_preferred: Estimate
    """How much more often an answer wins by standing first: 0 without a position bias, in [-1, 1]."""


def outcomes(model: Numbers, baseline: Numbers) -> list[float]:
    """1 where the model's score is higher, 0.5 where both are equal, 0 where it is lower: one prompt a place."""
    a, b = np.asarray(model, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if len(a) != len(b):
        raise ValueError(f"the model has {len(a)} scores and the baseline {len(b)}; both are scored on the same prompts")
    for name, scores in (("model", a), ("baseline", b)):
        if (bad := np.flatnonzero(~np.isfinite(scores))).size:
            raise ValueError(f"{name}[{bad[0]}] is {scores[bad[0]]}; every score must be a finite number")
    found: list[float] = ((a > b) + 0.5 * (a == b)).tolist()
    return found


def win_rate_over_prompts(
    values: Numbers, prompts: Sequence[Hashable] | None = None, *, seed: int, draws: int = 10_000
) -> Estimate:
    """The mean outcome with its interval over prompts; where a prompt has several outcomes, it is drawn with all of them.

    Outcomes that are all equal have Wilson's interval over prompts, since resampling them says nothing.
    """
    array = np.asarray(values, dtype=np.float64)
    win_rate(array)
    return bootstrap_mean(array, prompts, seed=seed, draws=draws, bounds=(0.0, 1.0))


def both_orders(
    model_first: Numbers,
    model_second: Numbers,
    prompts: Sequence[Hashable] | None = None,
    *,
    rule: Literal["mean", "agree"] = "mean",
    seed: int = 0,
    draws: int = 10_000,
) -> BothOrders:
    """One outcome a pair out of two verdicts, each the model's outcome: where its answer stood first, and where second.

    `mean` averages them. `agree` is MT-bench's rule (arXiv 2306.05685, section 3.4): a win only if both say so, otherwise a tie.
    """
    first, second = np.asarray(model_first, dtype=np.float64), np.asarray(model_second, dtype=np.float64)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} verdicts with the model first and {len(second)} with it second; ask in both orders")
    win_rate(first)
    win_rate(second)
    same = first == second
    combined = (first + second) / 2 if rule == "mean" else np.where(same, first, 0.5)
    return BothOrders(
        win_rate=win_rate_over_prompts(combined, prompts, seed=seed, draws=draws),
        outcomes=tuple(combined.tolist()),
        consistent=win_rate_over_prompts(same.astype(float), prompts, seed=seed, draws=draws),
        first_preferred=paired_difference(first, second, prompts, seed=seed, draws=draws, bounds=(0.0, 1.0)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Every model against every other. Example: `matrix({"base": [0.1, 0.2], "dpo": [0.3, 0.1]}, seed=0).rates["dpo"]["base"]`."""

    models: tuple[str, ...]
    rates: Mapping[str, Mapping[str, Estimate]]
    """`rates[a][b]` is how often a is preferred to b."""


def matrix(scores: Mapping[str, Sequence[float]], *, seed: int) -> Matrix:
    """Win rates by score for all pairs of models, one score a prompt."""
    names = tuple(scores)
    for before, after in pairwise(names):
        if len(scores[before]) != len(scores[after]):
            raise ValueError(
                f"{before} has {len(scores[before])} scores and {after} {len(scores[after])}; all are scored on the same prompts"
            )
    rates = {a: {b: win_rate_over_prompts(outcomes(scores[a], scores[b]), seed=seed) for b in names if b != a} for a in names}
    return Matrix(models=names, rates=rates)
