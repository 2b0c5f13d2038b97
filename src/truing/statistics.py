"""Numbers with their uncertainty: rates, means and paired differences with 95% intervals, and a few plain summaries.

Every interval is of the mean over prompts like these, were they drawn again; where several values share a prompt, pass the prompts
as `clusters`, or the interval comes out too narrow. Few units vary less among themselves than where they come from: the ends are
those of a t distribution with units - 1 degrees of freedom (Hesterberg 2015, arXiv 1411.5279). The same seed gives the same
interval. A value that is not finite is an error that names its index. Left out: where the values come from
(`truing.evals.measures`), and tests of significance: look whether the interval of the difference holds 0.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float

Numbers = Sequence[float | int] | np.ndarray
Values = Float[np.ndarray, " value"]
Weights = Float[np.ndarray, "draw unit"]
"""How often each unit is in each draw."""
Clusters = tuple[Float[np.ndarray, " cluster"], Float[np.ndarray, " cluster"]]

NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)
_AT_ONCE = 2_000_000
"""Resampled values held in memory at a time."""
NO_INTERVAL = "no interval"
Bounds = tuple[float, float]
"""The least and the greatest that a value can be."""
FREE: Bounds = (-math.inf, math.inf)
JACKKNIFE = 1000
"""Groups that are left out in turn to see how skewed a statistic is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and its 95% interval. Example: `wilson(7, 10)` is 0.70 between 0.40 and 0.89, n=10."""

    value: float
    low: float
    high: float
    n: int
    """How many values it was made of."""
    method: str
    """How the interval was made, in words; it begins with `no interval` where the values do not say how they vary."""

    @property
    def known(self) -> bool:
        """False where there is no interval: both ends are the value itself, which claims nothing."""
        return not self.method.startswith(NO_INTERVAL)

    def __str__(self) -> str:
        interval = f"[{self.low:.3f}, {self.high:.3f}]" if self.known else "[unknown]"
        return f"{self.value:.3f} {interval} (n={self.n})"


def shown(estimate: Estimate) -> dict[str, Any]:
    """An estimate as results hold it; where there is no interval, the method, which says so."""
    found = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    return found if estimate.known else {**found, "method": estimate.method}


def ends(estimate: Mapping[str, Any], digits: int = 3, scale: float | int = 1, sign: str = "") -> str:
    """The interval of an estimate in a result (`shown`, or all its fields): `[0.397, 0.892]`; `[unknown]` where there is none."""
    if str(estimate.get("method", "")).startswith(NO_INTERVAL):
        return "[unknown]"
    return f"[{scale * estimate['low']:{sign}.{digits}f}, {scale * estimate['high']:{sign}.{digits}f}]"


def wilson(successes: float | int, n: int) -> Estimate:
    """A share and its Wilson score interval (Wilson 1927), which stays inside [0, 1] and is honest at 0 and at n."""
    if n < 1:
        raise ValueError(f"a rate of {n} trials; it needs at least one")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials; it must be between 0 and {n}")
    share = successes / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    reach = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # Rounding must not lift the end of the interval off the value at 0 and at n.
    low, high = min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))
    return Estimate(value=share, low=low, high=high, n=n, method="Wilson score interval, 95%")


def win_rate(outcomes: Numbers) -> Estimate:
    """Mean of wins 1, ties 0.5 and losses 0, one a prompt; a share between them, as of the pairs of a ranking, counts as itself.

    Without ties Wilson's interval; with ties Tango's score interval of wins less losses (1998, Statistics in Medicine 17, 891), as
    Wilson's would be too wide by what ties take off the variance; other shares have Wilson's at the n that has their own variance.
    """
    array = _finite(outcomes, "outcomes")
    outside = np.flatnonzero((array < 0) | (array > 1))
    if outside.size:
        raise ValueError(f"outcomes[{outside[0]}] is {array[outside[0]]:g}; a win is 1, a tie 0.5, a loss 0")
    wins, ties, losses = (int((array == value).sum()) for value in (1.0, 0.5, 0.0))
    n = len(array)
    if wins + losses == n:
        return wilson(wins, n)
    if wins + ties + losses == n:
        low, high = _tango(wins, losses, n)
        method = "Tango's score interval of wins less losses, 95%"
        return Estimate(value=float(array.mean()), low=low, high=high, n=n, method=method)
    return _score(array)


def _score(array: Values) -> Estimate:
    """Wilson's interval with as many trials as have the variance of these values; Student's quantile, since it is estimated."""
    n, mean = len(array), float(array.mean())
    if np.ptp(array) <= 1e-12:
        return _without_variation(mean, f"{n} values", n, n, (0.0, 1.0))
    z = reach(n) * math.sqrt((n - 1) / n)
    trials = mean * (1 - mean) / float(array.var(ddof=1)) * n
    middle = (mean + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(mean * (1 - mean) / trials + z**2 / (4 * trials**2))
    low, high = min(mean, max(0.0, middle - half)), max(mean, min(1.0, middle + half))
    return Estimate(value=mean, low=low, high=high, n=n, method="Wilson score interval with the values' own variance, 95%")


def _tango(wins: int, losses: int, n: int) -> tuple[float, float]:
    """Ends for (1 + d) / 2, where d is the share of wins less that of losses: all d that the score test does not refuse."""

    def score(d: float) -> float:
        # The share of losses that is likeliest at this d is the root of 2 n q^2 + b q + c.
        b, c = -wins - losses + (2 * n - wins + losses) * d, -losses * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        return (wins - losses - n * d) / math.sqrt(max(n * (2 * q + d * (1 - d)), 1e-300))

    found = (wins - losses) / n
    ends = []
    for side, edge in ((1.0, -1.0), (-1.0, 1.0)):
        inside, outside = found, edge
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if side * score(middle) < Z else (inside, middle)
        ends.append((1 + outside) / 2)
    return ends[0], ends[1]


def bootstrap_mean(
    values: Numbers, clusters: Sequence[Hashable] | None = None, *, seed: int, draws: int = 10_000, bounds: Bounds = FREE
) -> Estimate:
    """The mean and its BCa bootstrap interval (Efron 1987), resampling whole clusters where they are given.

    Values that are all equal, or all of one cluster, say nothing of how they vary. Where `bounds` says what a value can be, the
    interval is then what Wilson's allows of what was not seen; else there is none, and `method` says so.
    """
    return _bootstrap(_finite(values, "values"), clusters, seed, draws, "", bounds)


def paired_difference(
    a: Numbers,
    b: Numbers,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int,
    draws: int = 10_000,
    bounds: Bounds | None = None,
) -> Estimate:
    """Mean of a - b, where a[i] and b[i] are of the same prompt, with the bootstrap interval of the differences.

    `bounds` are those of a and b; None takes 0 and 1 where every value is 0, 1/2 or 1, as of right and wrong answers.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise ValueError(f"a has {len(first)} values and b has {len(second)}; a pair is two values of one prompt")
    if bounds is None:
        bounds = (0.0, 1.0) if np.isin([first, second], (0.0, 0.5, 1.0)).all() else FREE
    width = bounds[1] - bounds[0]
    return _bootstrap(first - second, clusters, seed, draws, "paired ", (-width, width))


def bootstrap(
    statistic: Callable[[Weights], Float[np.ndarray, " draw"]],
    units: int,
    *,
    seed: int,
    draws: int = 10_000,
    what: str = "value",
    n: int | None = None,
    bounds: Bounds = FREE,
    groups: int = JACKKNIFE,
) -> Estimate:
    """Any statistic of exchangeable units and its BCa interval (Efron 1987): `statistic` maps counts [draw, unit] to values [draw].

    A count says how often a unit is in a draw, so a mean is `counts @ totals / counts @ sizes`, and a fit weighs its rows by them.
    `groups` is how many parts are left out in turn to see how skewed it is; few for a costly statistic.
    Draws in which the statistic is undefined (NaN) are left out and counted in `method`; undefined on all units is a ValueError.
    `bounds` is what the statistic can be: the interval stays inside.
    """
    (found,) = bootstrap_each(
        lambda counts: statistic(counts)[:, None], units, seed=seed, draws=draws, what=what, n=n, bounds=bounds, groups=groups
    )
    return found


def bootstrap_each(
    statistics: Callable[[Weights], Float[np.ndarray, "draw figure"]],
    units: int,
    *,
    seed: int,
    draws: int = 10_000,
    what: str = "value",
    n: int | None = None,
    bounds: Bounds = FREE,
    groups: int = JACKKNIFE,
) -> list[Estimate]:
    """As `bootstrap`, for several figures that are computed together, such as the ratings of many models."""
    if draws < 100:
        raise ValueError(f"{draws} draws are too few for an interval; take 10000")
    values = statistics(np.ones((1, units)))[0]
    if not np.isfinite(values).all():
        raise ValueError(f"undefined on these {units} {what}s: they do not vary")
    name, count = f"{units} {what}{'s' if units > 1 else ''}", units if n is None else n
    if units == 1:
        return [_without_variation(float(value), name, units, count, FREE) for value in values]
    generator = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _AT_ONCE // units)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    drawn = np.concatenate([statistics(_counts(generator, size, units)) for size in sizes])
    without = np.concatenate([statistics(rows) for rows in _left_out(units, groups)])
    return [_interval(float(v), drawn[:, i], without[:, i], units, name, count, bounds) for i, v in enumerate(values)]


def _interval(
    value: float,
    drawn: Float[np.ndarray, " draw"],
    without: Float[np.ndarray, " left"],
    units: int,
    name: str,
    n: int,
    bounds: Bounds,
) -> Estimate:
    kept = drawn[np.isfinite(drawn)]
    undefined = len(drawn) - len(kept)
    if undefined > len(drawn) / 2 or np.ptp(kept) <= 1e-12 * max(1.0, abs(value)):
        return _without_variation(value, name, units, n, FREE)
    low, high = _bca(value, kept, without[np.isfinite(without)], reach(units))
    method = f"BCa bootstrap over {name}, {len(drawn)} draws, 95%"
    method += f", {undefined} undefined draws left out" if undefined else ""
    low, high = max(min(low, value), bounds[0]), min(max(high, value), bounds[1])
    return Estimate(value=value, low=low, high=high, n=n, method=method)


def _without_variation(value: float, name: str, units: int, n: int, bounds: Bounds) -> Estimate:
    """What can be said where nothing varies: at most Wilson's share of units may be elsewhere, and at worst at a bound."""
    if not all(map(math.isfinite, bounds)):
        return Estimate(value=value, low=value, high=value, n=n, method=f"{NO_INTERVAL}: {name}, and no variation to resample")
    low, high = bounds
    elsewhere = wilson(0, units).high
    return Estimate(
        value=value,
        low=min(value, value - elsewhere * (value - low)),
        high=max(value, value + elsewhere * (high - value)),
        n=n,
        method=f"no variation over {name}: Wilson's bound on what was not seen, within [{low:g}, {high:g}], 95%",
    )


def _counts(generator: np.random.Generator, draws: int, units: int) -> Weights:
    """How often each unit is in each draw of as many units, with replacement."""
    picked = generator.integers(0, units, size=(draws, units))
    picked += np.arange(draws)[:, None] * units
    return np.bincount(picked.ravel(), minlength=draws * units).reshape(draws, units).astype(np.float64)


def _left_out(units: int, most: int) -> Iterator[Weights]:
    """Each unit left out once, a block at a time; of many units, groups of neighbours, which say the same of skewness."""
    groups = np.array_split(np.arange(units), min(units, most))
    step = max(1, _AT_ONCE // units)
    for start in range(0, len(groups), step):
        block = groups[start : start + step]
        rows = np.ones((len(block), units))
        for row, group in zip(rows, block, strict=True):
            row[group] = 0.0
        yield rows


def reach(units: int) -> float:
    """Deviations of the draws to each end: t's 97.5% quantile at units - 1 degrees of freedom, times sqrt(units / (units - 1)).

    The root is for draws of n units, whose variance divides by n (Hesterberg 2015, arXiv 1411.5279). The quantile is Cornish and
    Fisher's expansion (Abramowitz and Stegun, 26.7.5): within 0.1% from 4 degrees on, 11% short at 1.
    """
    if units < 2:
        raise ValueError(f"{units} units have no interval; it needs two")
    v = units - 1
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return (Z + sum(term / v**power for power, term in enumerate(terms, 1))) * math.sqrt(units / v)


def _bca(
    value: float, drawn: Float[np.ndarray, " draw"], without: Float[np.ndarray, " unit"], deviations: float
) -> tuple[float, float]:
    """Ends of the interval: percentiles of the draws, moved for bias and for skewness (Efron 1987, section 3)."""
    near = np.abs(drawn - value) <= 1e-12 * max(1.0, abs(value))
    below = float(np.mean((drawn < value) & ~near) + np.mean(near) / 2)
    bias = NORMAL.inv_cdf(min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    lean = without.mean() - without
    spread = float((lean**2).sum()) ** 1.5
    skew = float((lean**3).sum()) / (6 * spread) if spread > 0 else 0.0
    ends = [NORMAL.cdf(bias + (bias + z) / max(1 - skew * (bias + z), 1e-9)) for z in (-deviations, deviations)]
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def clustered(values: Values, clusters: Sequence[Hashable] | None) -> Clusters:
    """Total and number of the values of each cluster, in order of first appearance; without clusters each value is its own."""
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters; name the cluster of each value")
    index: dict[Hashable, int] = {}
    of = [index.setdefault(cluster, len(index)) for cluster in (range(len(values)) if clusters is None else clusters)]
    return np.bincount(of, weights=values), np.bincount(of).astype(np.float64)


def _bootstrap(values: Values, clusters: Sequence[Hashable] | None, seed: int, draws: int, prefix: str, bounds: Bounds) -> Estimate:
    slack = 1e-9
    outside = np.flatnonzero((values < bounds[0] - slack) | (values > bounds[1] + slack))
    if outside.size:
        raise ValueError(f"value {outside[0]} is {values[outside[0]]:g}; it must lie in [{bounds[0]:g}, {bounds[1]:g}]")
    totals, sizes = clustered(values, clusters)
    what = "value" if clusters is None else "cluster"
    units = len(totals)
    name = f"{units} {what}{'s' if units > 1 else ''}"
    if np.ptp(values) == 0:
        return _without_variation(float(values[0]), name, units, len(values), bounds)

    def mean(counts: Weights) -> Float[np.ndarray, " draw"]:
        return np.asarray((counts @ totals) / (counts @ sizes))

    found = bootstrap(mean, units, seed=seed, draws=draws, what=what, n=len(values), bounds=bounds)
    if found.known:
        return replace(found, method=prefix + found.method)
    return _without_variation(found.value, name, units, found.n, bounds)


def mean_and_deviation(values: Numbers) -> tuple[float, float]:
    """The mean and the sample standard deviation (n - 1); the deviation of one value is 0."""
    array = _finite(values, "values")
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct word n-grams of all texts over their number (Li et al. 2016, arXiv 1510.03055); words are what spaces divide.

    It falls as texts grow longer, so compare like lengths. Where no text has n words it is 0.
    """
    if n < 1:
        raise ValueError(f"n-grams of {n} words; n must be 1 or more")
    if not texts:
        raise ValueError("texts is empty")
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def auc(scores_pos: Numbers, scores_neg: Numbers) -> float:
    """Chance that a positive scores higher than a negative, ties half: the area under the ROC curve."""
    pos, neg = _finite(scores_pos, "scores_pos"), np.sort(_finite(scores_neg, "scores_neg"))
    lower, not_higher = np.searchsorted(neg, pos, side="left"), np.searchsorted(neg, pos, side="right")
    return float((lower.sum() + not_higher.sum()) / (2 * len(pos) * len(neg)))


def _finite(values: Numbers, name: str) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has {array.ndim} axes; it must be a plain list of numbers")
    if not len(array):
        raise ValueError(f"{name} is empty")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}; every value must be a finite number")
    return array
