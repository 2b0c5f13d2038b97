"""Best-of-n and over-optimisation: what the gold reward becomes when a proxy chooses among n answers.

Gao, Schulman and Hilton, "Scaling Laws for Reward Model Overoptimization", 2022, arXiv 2210.10760. With d = sqrt(KL):
best-of-n R(d) = d (alpha - beta d), reinforcement learning R(d) = d (alpha - beta log d); KL of best-of-n is log n - (n - 1) / n
(Stiennon et al. 2020, arXiv 2009.01325, appendix G.3), an upper bound where answers tie. One pool of N answers a prompt gives all
n <= N without bias: the answer of rank i is the best of n with chance C(i - 1, n - 1) / C(N, n) (Nakano et al. 2021, arXiv
2112.09332, appendix I).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from truing.statistics import Estimate, bootstrap_each

Pool = Float[np.ndarray, "prompt answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Best-of-n at one n. Example: `best_of_n(proxy, gold).points[-1].gold.value`."""

    n: int
    kl: float
    """In nats, from the sampler."""
    proxy: Estimate
    gold: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Proxy and gold reward over sqrt(KL), with the fitted law."""

    points: tuple[Point, ...]
    alpha: Estimate
    """Gold reward a unit of sqrt(KL) gains at first."""
    beta: Estimate
    """How fast the gain wears off; above 0 where the proxy is over-optimised."""
    best_n: int | None
    """The n among the points with the highest gold reward, where it is not the largest: stop there. None where gold still rises."""


def kl_of_best_of_n(n: int) -> float:
    """log n - (n - 1) / n, in nats."""
    if n < 1:
        raise ValueError(f"best of {n}; n must be 1 or more")
    return math.log(n) - (n - 1) / n


def rank_weights(size: int, n: int) -> Float[np.ndarray, " rank"]:
    """Chance that the answer of each rank, worst first, is the best of n drawn from the pool: C(i - 1, n - 1) / C(N, n)."""
    if not 1 <= n <= size:
        raise ValueError(f"best of {n} out of a pool of {size}; n must lie between 1 and {size}")
    return np.array([math.comb(i, n - 1) / math.comb(size, n) for i in range(size)])


def best_of_n(proxy: Pool, gold: Pool, *, ns: Sequence[int] | None = None, seed: int = 0, draws: int = 2000) -> Curve:
    """The curve over n (powers of two up to the pool by default), intervals over prompts. Answers of equal proxy share chances.

    Raises ValueError for a score that is not finite, naming its prompt and answer.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if proxy.ndim != 2 or proxy.shape != gold.shape or not proxy.size:
        raise ValueError(f"proxy is {proxy.shape} and gold {gold.shape}; both hold one row a prompt and one column an answer")
    for name, scores in (("proxy", proxy), ("gold", gold)):
        if (bad := np.argwhere(~np.isfinite(scores))).size:
            prompt, answer = bad[0]
            raise ValueError(f"{name}: prompt {prompt}, answer {answer} is {scores[prompt, answer]}; every score must be finite")
    prompts, size = proxy.shape
    ns = list(ns) if ns is not None else [2**k for k in range(int(math.log2(size)) + 1)]
    weights = np.stack([rank_weights(size, n) for n in ns])
    chances = np.stack([_shared(row, weights) for row in proxy])  # [prompt, n, answer]
    tables = [np.einsum("pna,pa->pn", chances, scores) for scores in (proxy, gold)]
    drawn = [
        bootstrap_each(
            lambda counts, table=table: counts @ table / counts.sum(1, keepdims=True),  # type: ignore[misc]
            prompts, seed=seed, draws=draws, what="prompt", groups=200,
        )
        for table in tables
    ]  # fmt: skip
    points = tuple(Point(n=n, kl=kl_of_best_of_n(n), proxy=drawn[0][i], gold=drawn[1][i]) for i, n in enumerate(ns))
    alpha, beta = _law(tables[1], ns, seed, draws)
    best = max(points, key=lambda point: point.gold.value)
    return Curve(points=points, alpha=alpha, beta=beta, best_n=best.n if best.n < max(ns) else None)


def _shared(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The chance of each answer [n, answer]: its rank's, averaged over the answers that tie with it."""
    _, level = np.unique(scores, return_inverse=True)
    order = np.argsort(scores, kind="stable")
    of_answer = np.empty_like(weights)
    of_answer[:, order] = weights
    same = level[:, None] == level[None]
    return of_answer @ (same / same.sum(1, keepdims=True)).T


def _law(table: np.ndarray, ns: Sequence[int], seed: int, draws: int) -> tuple[Estimate, Estimate]:
    """alpha and beta of R(d) - R(0) = d (alpha - beta d), by least squares over the points."""
    d = np.sqrt([kl_of_best_of_n(n) for n in ns])
    if len(set(ns)) < 3 or 1 not in ns:
        raise ValueError(f"the law has two numbers, so it needs n = 1 and two more n, not {list(ns)}; take larger pools")
    solve = np.linalg.pinv(np.column_stack([d, -d * d]))
    gain = table - table[:, [list(ns).index(1)]]
    alpha, beta = bootstrap_each(
        lambda counts: (counts @ gain / counts.sum(1, keepdims=True)) @ solve.T,
        len(table), seed=seed, draws=draws, what="prompt", groups=200,
    )  # fmt: skip
    return alpha, beta


def fit_rl(kl: Sequence[float], gold: Sequence[float]) -> tuple[float, float]:
    """alpha and beta of R(d) = d (alpha - beta log d) over checkpoints of a run; gold is the gain over its start, KL is in nats."""
    if len(kl) != len(gold) or len(kl) < 2:
        raise ValueError(f"{len(kl)} divergences and {len(gold)} rewards; give both of two checkpoints or more")
    if bad := [i for i, value in enumerate(kl) if not (math.isfinite(value) and value > 0)]:
        raise ValueError(f"kl[{bad[0]}] is {kl[bad[0]]}; it must be above 0: leave the start out")
    if bad := [i for i, value in enumerate(gold) if not math.isfinite(value)]:
        raise ValueError(f"gold[{bad[0]}] is {gold[bad[0]]}; it must be finite")
    d = np.sqrt(np.asarray(kl, dtype=np.float64))
    (alpha, beta), *_ = np.linalg.lstsq(np.column_stack([d, -d * np.log(d)]), np.asarray(gold, dtype=np.float64), rcond=None)
    return float(alpha), float(beta)
