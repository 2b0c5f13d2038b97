"""Win rates with the length of answers taken out: AlpacaEval 2's exact definition, and a generic one under another name.

Dubois, Galambosi, Liang and Hashimoto, "Length-Controlled AlpacaEval", 2024, arXiv 2404.04475:

    logit P(m beats b | x) = theta + phi tanh((len b - len m) / sd) + psi gamma_x

and the length-controlled win rate is the mean over x of sigmoid(theta + psi gamma_x): what it would be at equal lengths. Lengths
are characters, sd is that model's own (n - 1), gamma_x the fixed difficulty of instruction x. `alpaca_eval_2` is this, with the
published regulariser; `length_adjusted` has no difficulties and no regulariser, so its numbers stand on no leaderboard.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from truing.evals.logistic import Features, Logistic, sigmoid
from truing.statistics import Estimate, Numbers, bootstrap, bootstrap_mean

PENALTIES = np.logspace(-4, 4, 10)
"""The ten values of C, the inverse strength of the l1 penalty, that cross-validation chooses from."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""Weight of a row of the two gamed baselines: lambda / 2, lambda = 0.2."""
GAMED_TANH, GAMED_DIFFICULTY = -182.714, 412.938
"""Sums of preference x tanh and of preference x difficulty over both: all that the fit needs of their preferences."""
FEWEST_OVERLAPPING, SHARE_OVERLAPPING = 5, 0.05
"""Prompts on which either model is the longer one. Of simulated studies with so many 95% intervals hold the truth in 95.7%
(`benchmarks.coverage`); where one was always the longer one by much, in trials, in none."""
PRIOR_SD = 5.0
"""Of theta and phi in the generic fit, in logits: only so that a model that always wins has a finite rate."""
BASELINE, MODEL, INDEX, PREFERENCE = ("len_baseline", "output_1"), ("len_model", "output_2"), "index", "preference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Regulariser:
    """What AlpacaEval 2 fits every model with. Example: `Regulariser.read(Path("alpaca_eval_numbers"))`."""

    difficulty: Mapping[int, float]
    """gamma_x of each instruction."""
    features: Features
    """theta (0), tanh and difficulty of the rows of the gamed baselines."""
    preferences: Float[np.ndarray, " row"]
    """Preferences of these rows, in [0, 1], of maximal entropy among those with the published sums."""

    @classmethod
    def read(cls, folder: Path, *, sum_tanh: float = GAMED_TANH, sum_difficulty: float = GAMED_DIFFICULTY) -> "Regulariser":
        """From `instruction_difficulty.csv` (index, difficulty) and `gamed_lengths.csv` (index, baseline, verbose, concise)."""
        difficulty = {
            int(index): row["difficulty"] for index, row in _numbers(folder / "instruction_difficulty.csv", ("difficulty",)).items()
        }
        place = folder / "gamed_lengths.csv"
        gamed = _numbers(place, ("baseline", "verbose", "concise"))
        if gamed.keys() != difficulty.keys():
            odd = min(gamed.keys() ^ difficulty.keys())
            raise ValueError(f"{place}: instruction {odd} is not in both this file and instruction_difficulty.csv")
        gamma = np.array([difficulty[index] for index in gamed])
        parts = []
        for name in ("verbose", "concise"):
            gap = np.array([row["baseline"] - row[name] for row in gamed.values()])
            parts.append(np.column_stack([np.zeros(len(gap)), _squashed(gap), gamma]))
        features = np.concatenate(parts)
        preferences = _maximum_entropy(features[:, 1:], np.array([sum_tanh, sum_difficulty]))
        return cls(difficulty=difficulty, features=features, preferences=preferences)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthControlled:
    """A win rate as it is and at equal lengths, in [0, 1]. Example: `alpaca_eval_2(rows, regulariser).controlled.value`."""

    raw: Estimate
    """Mean preference, ties half."""
    controlled: Estimate
    """The same at equal lengths; its interval refits in every draw, so it holds the uncertainty of theta, phi and psi."""
    theta: float
    phi: float
    """Below 0 where longer answers are preferred, since a longer answer of the model has a negative length difference."""
    psi: float
    """0 in the generic fit."""
    penalty: float
    """The C that cross-validation chose; infinite in the generic fit, which has a wide normal prior instead."""
    missing: int
    """Rows without a preference: left out of the raw rate and of the fit, not of the mean over instructions."""
    comparable: bool
    """Whether it may stand beside the AlpacaEval 2 leaderboard."""


def alpaca_eval_2(
    annotations: Sequence[Mapping[str, object]], regulariser: Regulariser | Path | str, *, seed: int = 0, draws: int = 1000
) -> LengthControlled:
    """From annotation records to the raw and the length-controlled win rate of the leaderboard; both in [0, 1].

    `regulariser` is the folder of `instruction_difficulty.csv` and `gamed_lengths.csv`, or what was read of it for many models.
    A record holds `preference` in [1, 2] (2: the model wins; 0 means 1.5; None or NaN is missing) and the two lengths in
    characters (`len_baseline`, `len_model`) or the texts (`output_1` of the baseline, `output_2` of the model), and `index`, the
    number of its instruction; where no record has one, its place. A ValueError names a record that is broken or there twice.
    """
    regulariser = regulariser if isinstance(regulariser, Regulariser) else Regulariser.read(Path(regulariser))
    index, preference, gap = _annotations(annotations)
    for number, i in enumerate(index, 1):
        if i not in regulariser.difficulty:
            raise ValueError(f"annotation {number}: instruction {i} has no difficulty; for other data take length_adjusted")
    gamma = np.array([regulariser.difficulty[i] for i in index])
    own = np.column_stack([np.ones(len(gap)), _squashed(gap), gamma])
    there = np.isfinite(preference)
    if not there.any():
        raise ValueError("every annotation lacks its preference")
    fit = Logistic(
        features=np.concatenate([regulariser.features, own[there]]),
        target=np.concatenate([regulariser.preferences, preference[there]]),
    )
    fixed = len(regulariser.features)
    weight = np.concatenate([np.full(fixed, GAMED_WEIGHT), np.ones(int(there.sum()))])
    penalty = _chosen_penalty(fit, weight)
    neutral = own * np.array([1.0, 0.0, 1.0])
    whole = fit.l1(weight[None], penalty)

    def rate(counts: np.ndarray) -> np.ndarray:
        weights = np.concatenate([np.full((len(counts), fixed), GAMED_WEIGHT), counts[:, there]], axis=1)
        predicted = sigmoid(fit.l1(weights, penalty, whole) @ neutral.T)
        return np.asarray((counts * predicted).sum(1) / counts.sum(1))

    theta, phi, psi = whole[0].tolist()
    return LengthControlled(
        raw=bootstrap_mean(preference[there], seed=seed, bounds=(0.0, 1.0)),
        controlled=bootstrap(rate, len(own), seed=seed, draws=draws, what="instruction", bounds=(0.0, 1.0), groups=100),
        theta=theta,
        phi=phi,
        psi=psi,
        penalty=float(penalty),
        missing=int((~there).sum()),
        comparable=True,
    )


def length_adjusted(
    outcomes: Numbers, baseline_lengths: Numbers, model_lengths: Numbers, *, seed: int = 0, draws: int = 2000
) -> LengthControlled:
    """The generic one, one value a prompt: sigmoid(theta) of logit p = theta + phi tanh(gap / sd). Not for a leaderboard.

    Outcomes are the model's: 1 a win, 0.5 a tie, 0 a loss; lengths in any unit, the same for both.
    """
    p, baseline, model = (np.asarray(values, dtype=np.float64) for values in (outcomes, baseline_lengths, model_lengths))
    if not len(p) == len(baseline) == len(model):
        raise ValueError(f"{len(p)} outcomes, {len(baseline)} and {len(model)} lengths; give one of each for every prompt")
    for name, values in (("outcomes", p), ("baseline_lengths", baseline), ("model_lengths", model)):
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            raise ValueError(f"{name}[{bad[0]}] is {values[bad[0]]}; every value must be a finite number")
    if (bad := np.flatnonzero((p < 0) | (p > 1))).size:
        raise ValueError(f"outcomes[{bad[0]}] is {p[bad[0]]:g}; a win is 1, a tie 0.5, a loss 0")
    fit = Logistic(features=np.column_stack([np.ones(len(p)), _squashed(baseline - model)]), target=p)
    theta, phi = fit.ridge(np.ones((1, len(p))), prior_sd=PRIOR_SD)[0].tolist()
    return LengthControlled(
        raw=bootstrap_mean(p, seed=seed, bounds=(0.0, 1.0)),
        controlled=bootstrap(
            lambda counts: sigmoid(fit.ridge(counts, prior_sd=PRIOR_SD)[:, 0]),
            len(p),
            seed=seed,
            draws=draws,
            what="prompt",
            bounds=(0.0, 1.0),
        ),
        theta=theta,
        phi=phi,
        psi=0.0,
        penalty=math.inf,
        missing=0,
        comparable=False,
    )


def lengths_overlap(baseline_lengths: Numbers, model_lengths: Numbers) -> bool:
    """Whether each of the two is the longer one, or as long, on enough prompts to say what would be at equal lengths.

    Where one is nearly always the longer one, length and being better cannot be told apart, and the prior of `length_adjusted`
    would decide how much goes to which.
    """
    gap = np.asarray(model_lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    return min(int((gap <= 0).sum()), int((gap >= 0).sum())) >= max(FEWEST_OVERLAPPING, SHARE_OVERLAPPING * len(gap))


def _chosen_penalty(fit: Logistic, weight: np.ndarray) -> float:
    """The C of the least weighted log loss over the folds, to which rows are dealt in turn, from the last of the order on."""
    fold = np.empty(len(weight), dtype=np.int64)
    fold[order_of_equals(len(weight))[::-1]] = np.arange(len(weight)) % FOLDS
    losses = []
    for penalty in PENALTIES:
        loss = weight * fit.losses(fit.l1(np.stack([weight * (fold != k) for k in range(FOLDS)]), float(penalty)))
        losses.append(np.mean([loss[k, fold == k].mean() for k in range(FOLDS)]))
    return float(PENALTIES[int(np.argmin(losses))])


def order_of_equals(n: int) -> Int[np.ndarray, " row"]:
    """The order in which quicksort leaves n equal keys, as numpy's argsort does without vector instructions.

    The original deals its rows to folds by size, and all are of one size: its folds are what this sort, which is not stable, makes
    of them. Median of three, the larger part later, parts of at most 16 as they are (they are sorted by insertion).
    """
    order = list(range(n))
    waiting = [(0, n - 1)]
    while waiting:
        low, high = waiting.pop()
        while high - low > 16:
            middle, left, right = low + (high - low) // 2, low, high - 1
            order[middle], order[right] = order[right], order[middle]
            left, right = left + 1, right - 1
            while left < right:
                order[left], order[right] = order[right], order[left]
                left, right = left + 1, right - 1
            order[left], order[high - 1] = order[high - 1], order[left]
            if left - low < high - left:
                waiting.append((left + 1, high))
                high = left - 1
            else:
                waiting.append((low, left - 1))
                low = left + 1
    return np.array(order)


def _maximum_entropy(features: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Preferences sigmoid(features a) with the given sums of preference x feature, by Newton."""
    a = np.zeros(features.shape[1])
    for _ in range(100):
        p = sigmoid(features @ a)
        missing = sums - features.T @ p
        a = a + np.linalg.solve(features.T @ (features * (p * (1 - p))[:, None]), missing)
        if np.abs(missing).max() < 1e-9:
            return p
    raise ValueError(f"no preferences in [0, 1] have the sums {sums.tolist()} on these gamed baselines; check their lengths")


def _squashed(gap: np.ndarray) -> np.ndarray:
    """tanh(gap / sd); where all gaps are equal, their sign."""
    sd = gap.std(ddof=1) if len(gap) > 1 else 0.0
    return np.tanh(gap / sd) if sd > 0 else np.sign(gap)


def _annotations(rows: Sequence[Mapping[str, object]]) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Instruction, preference in [0, 1] (NaN where missing) and length difference of each record."""
    if not rows:
        raise ValueError("there are no annotations")
    numbered = sum(INDEX in row for row in rows)
    if numbered not in (0, len(rows)):
        raise ValueError(f"{numbered} of {len(rows)} annotations have an index; give it to all or to none")
    index: list[int] = []
    seen: dict[int, int] = {}
    values = np.empty((len(rows), 2))
    for number, row in enumerate(rows, 1):
        where = f"annotation {number}"
        place = int(_number(row.get(INDEX, number - 1), f"{where}: index"))
        if place in seen:
            raise ValueError(f"{where}: instruction {place} is there already, as annotation {seen[place]}; give one model's, once")
        seen[place] = number
        index.append(place)
        values[number - 1, 0] = _preference(row, where)
        values[number - 1, 1] = _length(row, BASELINE, where) - _length(row, MODEL, where)
    return index, values[:, 0], values[:, 1]


def _preference(row: Mapping[str, object], where: str) -> float:
    if PREFERENCE not in row:
        raise ValueError(f"{where}: has no {PREFERENCE}")
    said = row[PREFERENCE]
    if said is None or said == "" or said != said:
        return math.nan
    value = _number(said, f"{where}: {PREFERENCE}")
    if value == 0:
        return 0.5
    if not 1 <= value <= 2:
        raise ValueError(f"{where}: {PREFERENCE} is {value:g}; it must lie in [1, 2], or be 0 for a tie")
    return value - 1


def _length(row: Mapping[str, object], names: tuple[str, str], where: str) -> float:
    number, text = names
    if number in row:
        length = _number(row[number], f"{where}: {number}")
        if length < 0:
            raise ValueError(f"{where}: {number} is {length:g}; a length is not below 0")
        return length
    said = row.get(text)
    if not isinstance(said, str):
        raise ValueError(f"{where}: has neither {number} nor the text {text}")
    return float(len(said))


def _number(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str | np.number) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where} is {value!r}; it must be a finite number")
    return number


def _numbers(path: Path, columns: tuple[str, ...]) -> dict[int, dict[str, float]]:
    """A CSV of numbers by its column `index`, each index once."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; without it take length_adjusted, which is not for the leaderboard")
    found: dict[int, dict[str, float]] = {}
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if lacking := [name for name in (INDEX, *columns) if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}:1: has no column {lacking[0]}")
        for row in reader:
            where = f"{path}:{reader.line_num}"
            index = int(_number(row[INDEX], f"{where}: {INDEX}"))
            if index in found:
                raise ValueError(f"{where}: index {index} is there already")
            found[index] = {name: _number(row[name], f"{where}: {name}") for name in columns}
    if not found:
        raise ValueError(f"{path}: holds no rows")
    return found
