"""Looking while the votes come in: a confidence sequence that holds at all times at once, and how many more votes would tell.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024, arXiv 2010.09686: the hedged capital
process (Theorem 3) with predictable plug-in bets (equation 26). One may stop at any time, for any reason, and the interval still
holds the mean with 95%. A fixed-sample interval that is looked at after every vote does not.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from truing.statistics import NORMAL, Estimate, Numbers

CELLS = 1000
"""The interval is found to 1 / CELLS, and rounded outwards."""
CAP = 0.5
"""Part of the largest bet that keeps the capital positive (the paper's c)."""
POWER = 0.8
MANY = 10_000
"""More prompts than these are not worth naming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceSequence:
    """The interval after each value. Example: `confidence_sequence(votes).low[-1] > 0.5` says that a is better, at any time."""

    low: Float[np.ndarray, " time"]
    high: Float[np.ndarray, " time"]

    def decided(self, against: float = 0.5) -> int | None:
        """After how many values the interval first left `against` out; None where it never did."""
        outside = np.flatnonzero((self.low > against) | (self.high < against))
        return int(outside[0]) + 1 if outside.size else None


def confidence_sequence(values: Numbers, *, alpha: float = 0.05) -> ConfidenceSequence:
    """For values in [0, 1] in the order they came, with a mean that does not drift: votes as 1, 0.5 and 0, one a prompt.

    Where a prompt is voted on more than once, give the mean of its votes.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError("values is empty or no plain list")
    if (bad := np.flatnonzero(~((x >= 0) & (x <= 1)))).size:
        raise ValueError(f"values[{bad[0]}] is {x[bad[0]]}; every value must lie in [0, 1]")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    bets = _bets(x, alpha)
    m = np.linspace(0, 1, CELLS + 1)
    up, down = CAP / np.maximum(m, 1e-12), CAP / np.maximum(1 - m, 1e-12)
    log_up, log_down = np.zeros_like(m), np.zeros_like(m)
    inside = np.ones(len(m), dtype=bool)
    low, high = np.empty(len(x)), np.empty(len(x))
    # Ville's inequality: under the true mean either half of the capital exceeds 2 / alpha at any time with at most alpha / 2.
    limit = math.log(2 / alpha)
    for t, (value, bet) in enumerate(zip(x, bets, strict=True)):
        log_up += np.log1p(np.minimum(bet, up) * (value - m))
        log_down += np.log1p(-np.minimum(bet, down) * (value - m))
        inside &= np.maximum(log_up, log_down) < limit
        there = np.flatnonzero(inside)
        # Nothing left means that the mean drifts or chance struck (at most alpha): the last interval stands.
        low[t], high[t] = (m[max(there[0] - 1, 0)], m[min(there[-1] + 1, CELLS)]) if there.size else (low[t - 1], high[t - 1])
    return ConfidenceSequence(low=low, high=high)


def looked(votes: Numbers) -> str:
    """What may be said while votes come in: "58.6% after 64, between 51.0 and 66.0 whenever one looks; told after 31"."""
    found = confidence_sequence(votes)
    decided = found.decided()
    ends = f"between {100 * found.low[-1]:.1f} and {100 * found.high[-1]:.1f} whenever one looks"
    said = "not told yet" if decided is None else f"told after {decided}"
    return f"{100 * float(np.mean(votes)):.1f}% after {len(votes)}, {ends}; {said}"


def _bets(x: np.ndarray, alpha: float) -> np.ndarray:
    """lambda_t = sqrt(2 log(2 / alpha) / (s2_{t-1} t log(1 + t))), from the values before t alone."""
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.asarray(np.sqrt(2 * math.log(2 / alpha) / (before * t * np.log1p(t))))


def prompts_needed(differences: Numbers, *, power: float = POWER) -> int | None:
    """How many more prompts would tell the mean of these differences from 0, were it as large as it seems; None for very many.

    n = ((z_0.975 + z_power) s / d)^2 for a two-sided 5% test. The guess is as uncertain as d itself.
    """
    d = np.asarray(differences, dtype=np.float64)
    mean, sd = float(d.mean()), float(d.std(ddof=1)) if len(d) > 1 else math.inf
    if mean == 0 or not math.isfinite(sd):
        return None
    n = math.ceil(((NORMAL.inv_cdf(0.975) + NORMAL.inv_cdf(power)) * sd / mean) ** 2)
    return None if n - len(d) > MANY else max(0, n - len(d))


def would_tell(differences: Numbers, what: str, each: float = 1.0) -> str:
    """In words: "about 690 more prompts would", or that very many would not; every difference stands for `each` of them."""
    if len(differences) < 2:
        return f"one alone does not say how many more {what} would"
    more = prompts_needed(differences)
    if more is None:
        return f"nor would {MANY:,} more {what}"
    return f"about {_rounded(max(math.ceil(each * more), 1))} more {what} would"


def verdict(gain: Estimate, differences: Numbers, *, explained_by_length: float | None = None, what: str = "prompts") -> str:
    """A comparison in words: "better by 6.1 points [2.0, 10.2], n = 240; length explains 1.3 of them".

    `gain` and what length explains are in [-1, 1]; `differences` holds one value a prompt, whose mean is the gain. What length
    explains is None where it plays no part, and NaN where nobody can say.
    """
    if not gain.known:
        return f"cannot tell: {100 * gain.value:+.1f} points, n = {gain.n}; {gain.method}"
    numbers = f"{100 * abs(gain.value):.1f} points"
    if gain.low > 0 or gain.high < 0:
        ends = sorted((100 * math.copysign(1, gain.value) * gain.low, 100 * math.copysign(1, gain.value) * gain.high))
        said = f"{'better' if gain.low > 0 else 'worse'} by {numbers} [{ends[0]:.1f}, {ends[1]:.1f}], n = {gain.n}"
        if explained_by_length is None:
            return said
        if math.isnan(explained_by_length):
            return f"{said}; one is the longer one on nearly all {what}, so nobody can say what length explains"
        explained = 100 * math.copysign(1, gain.value) * explained_by_length
        if abs(explained) < 0.05:
            return f"{said}; length explains none of them"
        return (
            f"{said}; length explains {explained:.1f} of them" if explained > 0 else f"{said}; length hides {-explained:.1f} more"
        )
    interval = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    return f"cannot tell: {100 * gain.value:+.1f} points {interval}, n = {gain.n}; {would_tell(differences, what)}"


def _rounded(n: int) -> int:
    """To two digits: it is a guess."""
    step = 10 ** max(0, len(str(n)) - 2)
    return math.ceil(n / step) * step
