"""How good a reward model is: accuracy by category, calibration, and how much of it length and style would explain.

All of it is made of scores of pairs whose better answer is known. Best-of-n and over-optimisation are `truing.evals.best_of_n`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from truing.evals.logistic import sigmoid
from truing.evals.ratings import STYLE, style_of
from truing.evals.winrate import win_rate_over_prompts
from truing.randomness import counted_seed
from truing.statistics import Estimate, bootstrap, bootstrap_mean

BINS = 15
NULL_DRAWS = 200
DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One pair with its scores. Example: `Scored(prompt="7", category="manner", chosen=1.2, rejected=-0.3)`."""

    prompt: str
    """Pairs of one prompt are drawn together."""
    chosen: float
    """Score of the answer that people preferred."""
    rejected: float
    category: str = ""
    chosen_text: str = ""
    """The answers themselves, where length and style are asked for."""
    rejected_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """A stretch of the reliability curve: what the model says of its pairs and how often it is right."""

    said: float
    """Mean of sigma(score difference)."""
    right: float
    """Share that were so."""
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Whether sigma(r_chosen - r_rejected) is the chance that it claims to be."""

    ece: float
    """Expected calibration error over bins of equal mass (Naeini et al. 2015); biased upwards for few pairs."""
    ece_by_chance: float
    """What a perfectly calibrated model with these very probabilities would show on as many pairs, on average: subtract it."""
    brier: Estimate
    """Mean of (1 - p)^2 for p the probability given to the answer that people preferred; 0.25 knows nothing."""
    nll: Estimate
    """Mean of -log p; 0.693 knows nothing."""
    temperature: float
    """What the score differences should be divided by, by maximum likelihood: above 1 the model is too sure of itself."""
    curve: tuple[Bin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confounds:
    """What a much simpler rule would get. Style features are those of `truing.evals.ratings.style_of`."""

    prefers_more: Mapping[str, Estimate]
    """How often the model scores the answer with more of a feature higher, over pairs that differ in it."""
    people_prefer_more: Mapping[str, Estimate]
    """How often people do, over the same pairs; the model's bias is what it has beyond this."""
    correlation: Mapping[str, Estimate]
    """Pearson's r of the score difference with the difference in the feature."""
    accuracy_when_longer: Estimate | None
    """Where the preferred answer is the longer one; None without such pairs."""
    accuracy_when_shorter: Estimate | None
    """Where it is not: far below the former, the model goes by length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelReport:
    """Example: `evaluate_reward_model(pairs, seed=0).accuracy["all"].value`."""

    accuracy: Mapping[str, Estimate]
    """By category, `all` first; ties count half."""
    ties: int
    """Pairs with equal scores."""
    calibration: Calibration
    confounds: Confounds | None
    """None where the pairs came without texts."""


def evaluate_reward_model(pairs: Sequence[Scored], *, seed: int = 0) -> RewardModelReport:
    """All measures over pairs. Raises ValueError naming a pair with a score that is not finite, or that alone lacks texts."""
    if not pairs:
        raise ValueError("there are no pairs")
    for number, pair in enumerate(pairs, 1):
        if not (math.isfinite(pair.chosen) and math.isfinite(pair.rejected)):
            raise ValueError(
                f"pair {number} (prompt {pair.prompt!r}): scores {pair.chosen} and {pair.rejected}; both must be finite"
            )
    texts = [bool(pair.chosen_text or pair.rejected_text) for pair in pairs]
    if any(texts) and not all(texts):
        raise ValueError(f"pair {texts.index(False) + 1} has no texts, others have; give all or none")
    difference = np.array([pair.chosen - pair.rejected for pair in pairs])
    right = _right(difference)
    prompts = [pair.prompt for pair in pairs]
    categories = ["all", *sorted({pair.category for pair in pairs} - {""})]
    accuracy = {}
    for category in categories:
        rows = [i for i, pair in enumerate(pairs) if category in ("all", pair.category)]
        accuracy[category] = win_rate_over_prompts(right[rows], [prompts[i] for i in rows], seed=seed)
    return RewardModelReport(
        accuracy=accuracy,
        ties=int((difference == 0).sum()),
        calibration=calibration(difference, prompts, seed=seed),
        confounds=_confounds(pairs, difference, seed) if all(texts) else None,
    )


def calibration(difference: Float[np.ndarray, " pair"], prompts: Sequence[str] | None = None, *, seed: int = 0) -> Calibration:
    """Of score differences preferred minus other. Each pair counts from both sides, so bins lie on both sides of one half."""
    p = sigmoid(np.asarray(difference, dtype=np.float64))
    generator = np.random.Generator(np.random.PCG64(counted_seed(seed, "calibration")))
    by_chance = [_ece(_curve(p, (generator.random(len(p)) < p).astype(np.float64))) for _ in range(NULL_DRAWS)]
    curve = _curve(p, np.ones(len(p)))
    return Calibration(
        ece=_ece(curve),
        ece_by_chance=float(np.mean(by_chance)),
        brier=bootstrap_mean((1 - p) ** 2, prompts, seed=seed, draws=DRAWS, bounds=(0.0, 1.0)),
        nll=bootstrap_mean(np.logaddexp(0, -np.asarray(difference)), prompts, seed=seed, draws=DRAWS),
        temperature=_temperature(np.asarray(difference, dtype=np.float64)),
        curve=tuple(curve),
    )


def _curve(p: np.ndarray, outcome: np.ndarray) -> list[Bin]:
    """Bins of equal mass over (p, outcome) and (1 - p, 1 - outcome)."""
    said, seen = np.concatenate([p, 1 - p]), np.concatenate([outcome, 1 - outcome])
    order = np.argsort(said, kind="stable")
    # Equal probabilities may lie on both sides of an edge: each stands for the mean of all of them.
    _, level = np.unique(said, return_inverse=True)
    seen = (np.bincount(level, weights=seen) / np.bincount(level))[level]
    return [
        Bin(said=float(said[rows].mean()), right=float(seen[rows].mean()), n=len(rows))
        for rows in np.array_split(order, min(BINS, len(said)))
    ]


def _ece(curve: Sequence[Bin]) -> float:
    total = sum(found.n for found in curve)
    return sum(found.n / total * abs(found.said - found.right) for found in curve)


def _temperature(difference: np.ndarray) -> float:
    """The T of least NLL, by bisection on 1 / T: infinite where scores tell nothing, 0 where all are right."""
    if (difference > 0).all():
        return 0.0

    def slope(inverse: float) -> float:
        return float((difference * sigmoid(-inverse * difference)).mean())

    if slope(0.0) <= 0:
        return math.inf
    low, high = 0.0, 1.0
    while slope(high) > 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 2 / (low + high)


def _right(difference: np.ndarray) -> np.ndarray:
    return np.asarray((difference > 0) + 0.5 * (difference == 0))


def _confounds(pairs: Sequence[Scored], difference: np.ndarray, seed: int) -> Confounds:
    more = np.array([style_of(pair.chosen_text) for pair in pairs]) - np.array([style_of(pair.rejected_text) for pair in pairs])
    prompts = [pair.prompt for pair in pairs]

    def rate(values: np.ndarray, rows: np.ndarray) -> Estimate:
        return win_rate_over_prompts(values[rows], [prompts[i] for i in np.flatnonzero(rows)], seed=seed)

    model, people, linear = {}, {}, {}
    for name, gap in zip(STYLE, more.T, strict=True):
        rows = gap != 0
        if rows.any():
            model[name] = rate(_right(difference * np.sign(gap)), rows)
            people[name] = rate(_right(gap), rows)
        if len(set(gap.tolist())) > 1 and np.ptp(difference) > 0:
            linear[name] = correlation(gap, difference, prompts, seed=seed)
    longer, shorter, right = more[:, 0] > 0, more[:, 0] < 0, _right(difference)
    return Confounds(
        prefers_more=model,
        people_prefer_more=people,
        correlation=linear,
        accuracy_when_longer=rate(right, longer) if longer.any() else None,
        accuracy_when_shorter=rate(right, shorter) if shorter.any() else None,
    )


def correlation(
    x: np.ndarray, y: np.ndarray, clusters: Sequence[str] | None = None, *, seed: int = 0, draws: int = 2000
) -> Estimate:
    """Pearson's r with its interval over clusters."""
    x, y = (np.asarray(values, dtype=np.float64) - np.mean(values) for values in (x, y))
    index: dict[str, int] = {}
    of = [index.setdefault(name, len(index)) for name in (map(str, range(len(x))) if clusters is None else clusters)]
    parts = np.zeros((len(index), 6))
    np.add.at(parts, of, np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y]))

    def r(counts: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = (counts @ parts).T
        spread = np.maximum((n * sxx - sx * sx) * (n * syy - sy * sy), 0.0)
        return np.divide(n * sxy - sx * sy, np.sqrt(spread), out=np.full(len(n), np.nan), where=spread > 1e-18)

    return bootstrap(r, len(parts), seed=seed, draws=draws, what="prompt", n=len(x), bounds=(-1.0, 1.0))
