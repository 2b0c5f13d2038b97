"""From the laboratory's runs to figures: proxy and gold over sqrt(KL), how far the gold falls, intervals over seeds.

Every answer of a run lies in its samples.jsonl with its proxy reward and KL, so the gold is computed afterwards: no run knew it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.laboratory_gold import gold
from truing.charts import Series, scatter
from truing.evals.best_of_n import Curve, fit_rl
from truing.statistics import Estimate, mean_and_deviation

BLOCK = 2
"""Rounds that are averaged into one point of a curve, so that its highest point is not the luckiest round."""
T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""0.975 quantile of Student's t of n - 1 degrees of freedom, by n."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Some rounds of a run, averaged over all their answers."""

    round: int
    """The last of them."""
    kl: float
    """k1 in nats an answer, from the start; of rounds near the start chance can put it below 0."""
    proxy: float
    """Above the first round's mean, in deviations of its answers."""
    gold: float
    length: float
    """Words."""


def points(run: Path, part: str = "proxy", block: int = BLOCK) -> list[Point]:
    """The curve of a run; the first point is the first round alone, whose policy is the start itself."""
    rounds: dict[int, list[tuple[float, float, float, float]]] = {}
    for line in (run / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        found = (row["kl"], row["parts"][part], gold(row["response"]), len(row["response"].split()))
        rounds.setdefault(row["step"], []).append(found)
    mean, deviation = mean_and_deviation([proxy for _, proxy, _, _ in rounds[1]])
    last = max(rounds)
    groups = [(1, 1), *((first, min(first + block - 1, last)) for first in range(2, last + 1, block))]
    curve = []
    for first, end in groups:
        kl, proxy, worth, length = np.array([row for step in range(first, end + 1) for row in rounds[step]]).mean(0).tolist()
        curve.append(Point(round=end, kl=kl, proxy=(proxy - mean) / deviation, gold=worth, length=length))
    return curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a curve comes to."""

    kl: float
    """Of the last point, nats."""
    proxy: float
    """Of the last point, deviations."""
    start: float
    """Gold of the first point."""
    highest: float
    """Gold of the highest point."""
    end: float
    """Gold of the last point."""

    @property
    def fall(self) -> float:
        """From the highest point to the end; 0 where the end is the highest."""
        return self.highest - self.end

    @classmethod
    def of(cls, curve: Sequence[Point]) -> "Course":
        return cls(
            kl=curve[-1].kl,
            proxy=curve[-1].proxy,
            start=curve[0].gold,
            highest=max(point.gold for point in curve),
            end=curve[-1].gold,
        )


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval of Student's t over runs: of few runs an honest interval is wide. Raises ValueError for one run."""
    if len(values) not in T975:
        raise ValueError(f"{len(values)} seeds; an interval over seeds needs 2 to {max(T975)}")
    mean, deviation = mean_and_deviation(values)
    reach = T975[len(values)] * deviation / math.sqrt(len(values))
    return Estimate(value=mean, low=mean - reach, high=mean + reach, n=len(values), method="Student's t over seeds, 95%")


def law(curve: Sequence[Point]) -> tuple[float, float] | None:
    """alpha and beta of Gao et al.'s law for reinforcement learning, by points with a KL above 0.1 nats; None of fewer than 3."""
    there = [point for point in curve[1:] if point.kl > 0.1]
    if len(there) < 3:
        return None
    return fit_rl([point.kl for point in there], [point.gold - curve[0].gold for point in there])


def cell(values: Sequence[float]) -> str:
    """Mean and interval for a table."""
    found = over_seeds(values)
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def table(courses: Mapping[tuple[str, str], Sequence[Course]], free: str) -> str:
    """One line a method and setting, over seeds; `free` names the setting that the others are held against, seed by seed."""
    lines = [
        "| method | setting | sqrt(KL) at the end | proxy gained, deviations | gold at the start | highest gold | gold at the end "
        "| fall from the highest | fall, less than without | gold at the end, more than without |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (method, setting), found in courses.items():
        pairs = list(zip(found, courses[method, free], strict=True))
        saved, more = "", ""
        if setting != free:
            saved, more = cell([without.fall - one.fall for one, without in pairs]), cell([a.end - b.end for a, b in pairs])
        figures = (
            [math.sqrt(max(0.0, one.kl)) for one in found],
            [one.proxy for one in found],
            [one.start for one in found],
            [one.highest for one in found],
            [one.end for one in found],
            [one.fall for one in found],
        )
        lines.append(f"| {method} | {setting} | {' | '.join(cell(values) for values in figures)} | {saved} | {more} |")
    return "\n".join(lines)


def chart(curves: Mapping[str, Sequence[Sequence[Point]]], free: str) -> str:
    """Gold over sqrt(KL) by setting, all seeds; and the proxy without KL, from the start's gold, in its own deviations."""
    series = [
        Series(name=f"gold, {setting}", points=tuple((root(point.kl), point.gold) for curve in found for point in curve))
        for setting, found in curves.items()
    ]
    unbound = tuple((root(point.kl), curve[0].gold + point.proxy) for curve in curves[free] for point in curve)
    series.insert(0, Series(name=f"proxy, {free}", points=unbound))
    return scatter(series, "sqrt(KL), nats", "reward")


def chart_of_best(curves: Sequence[Curve]) -> str:
    """Best-of-n: proxy and gold over sqrt(KL), one point a seed and n."""
    found = [
        Series(name=name, points=tuple((root(point.kl), getattr(point, name).value) for curve in curves for point in curve.points))
        for name in ("proxy", "gold")
    ]
    return scatter(found, "sqrt(KL), nats", "reward")


def table_of_best(curves: Sequence[Curve]) -> str:
    """One line an n, over seeds."""
    lines = ["| n | KL | proxy, deviations | gold |", "|---|---|---|---|"]
    for points_of_n in zip(*(curve.points for curve in curves), strict=True):
        one = points_of_n[0]
        columns = [[getattr(point, name).value for point in points_of_n] for name in ("proxy", "gold")]
        lines.append(f"| {one.n} | {one.kl:.2f} | {' | '.join(cell(values) for values in columns)} |")
    return "\n".join(lines)


def root(kl: float) -> float:
    """sqrt(KL), 0 where chance has put an estimate below 0."""
    return math.sqrt(max(0.0, kl))


def read_points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """A curve out of a file."""
    return [Point(**row) for row in rows]


def as_json(curve: Sequence[Point]) -> list[dict[str, float]]:
    """A curve for a file."""
    return [{name: round(value, 5) for name, value in asdict(point).items()} for point in curve]
