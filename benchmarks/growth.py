"""How cost grows with length, pairs, vocabulary and responses: each point in a process of its own, the median of its runs.

A curve's table has the slope between neighbouring points on logarithmic axes: 1 where cost grows in proportion, 0 where it does not
grow, 2 where it grows with the square. A bend is where the slope changes by more than BEND.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks import children
from benchmarks.machine import machine
from benchmarks.measure import SMOLLM2, Conditions, say

BEND = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Example: `Curve(what="responses", part="trees", at=(1, 2, 4), quick=(1, 2))`."""

    what: str
    """What grows, in words."""
    part: str
    """What is run, by its name in `benchmarks.growth_side`."""
    at: tuple[int, ...]
    """The points."""
    quick: tuple[int, ...]
    """The points of a quick run."""
    unit: str
    """What is counted per second."""
    per_point: int = 1
    """Units for each of what grows; 0 where their number stays the same."""
    target: str = "plotted, and every bend explained"
    """What is to be reached."""


CURVES: dict[str, Curve] = {
    "growth-length": Curve(
        what="tokens of prompt and response", part="length", at=(256, 512, 1024, 2048, 4096, 8192), quick=(256, 512), unit="tokens"
    ),
    "growth-vocabulary": Curve(
        what="vocabulary",
        part="vocabulary",
        at=(32_768, 65_536, 131_072, 262_144),
        quick=(32_768, 65_536),
        unit="steps",
        per_point=0,
    ),
    "growth-responses": Curve(
        what="responses to a prompt", part="responses", at=(1, 2, 4, 8, 16), quick=(1, 2, 4), unit="responses"
    ),
    "growth-pairs": Curve(what="pairs", part="pairs", at=(100, 1_000, 10_000, 100_000), quick=(100, 1_000), unit="pairs"),
}


def slopes(at: Sequence[float], cost: Sequence[float]) -> list[float]:
    """Exponents between neighbouring points. Example: `slopes([1, 2, 4], [1, 2, 8])` is [1, 2]."""
    points = list(zip(at, cost, strict=True))
    return [math.log(b / a) / math.log(y / x) for (x, a), (y, b) in pairwise(points)]


def bends(at: Sequence[float], cost: Sequence[float]) -> list[float]:
    """The points at which the exponent changes by more than BEND. Example: `bends([1, 2, 4], [1, 2, 8])` is [2]."""
    found = slopes(at, cost)
    return [place for place, before, after in zip(at[1:], found, found[1:], strict=False) if abs(after - before) > BEND]


def measure(name: str, curve: Curve, conditions: Conditions) -> dict[str, Any]:
    """Measure a curve and write its JSON; returns what was written."""
    folder = conditions.scratch / name
    env = dict(os.environ) if conditions.device == "cuda" else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    points = []
    for at in curve.quick if conditions.quick else curve.at:
        say(f"{name}: {at:,}")
        spec = {
            "part": curve.part,
            "at": at,
            "data_folder": str(conditions.data),
            "folder": str(folder),
            "model": "tiny" if conditions.quick else SMOLLM2,
        }
        runs = []
        for _ in range(conditions.pairs):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            command = [sys.executable, "-m", "benchmarks.growth_side"]
            runs.append(asdict(children.run(command, spec, folder, "point", env=env)))
        points.append(_point(at, curve, runs))
        say(f"  {points[-1]['seconds']:.2f} s, {points[-1]['peak_gb']:.2f} GB")
    shutil.rmtree(folder, ignore_errors=True)
    result = {
        "name": name,
        "what": curve.what,
        "unit": curve.unit,
        "target": curve.target,
        "machine": machine(conditions.device),
        "date": datetime.now(UTC).date().isoformat(),
        "points": points,
    }
    conditions.results.mkdir(parents=True, exist_ok=True)
    (conditions.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def show(result: Mapping[str, Any]) -> str:
    """A curve as a table, with its slopes and bends."""
    points = result["points"]
    at = [point["at"] for point in points]
    seconds, memory = ([point[key] for point in points] for key in ("seconds", "peak_gb"))
    lines = [
        f"| {result['what']} | seconds | {result['unit']}/s | peak GB | slope of seconds | parts |",
        "|---|---|---|---|---|---|",
    ]
    rising = ["", *(f"{slope:.2f}" for slope in slopes(at, seconds))]
    for point, slope in zip(points, rising, strict=True):
        parts = ", ".join(f"{part} {taken:.2f}" for part, taken in point["parts"].items())
        cells = [
            f"{point['at']:,}",
            f"{point['seconds']:.2f}",
            f"{point['per_second']:,.0f}",
            f"{point['peak_gb']:.2f}",
            slope,
            parts,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    bent = ", ".join(f"{place:,}" for place in bends(at, seconds)) or "none"
    bent_memory = ", ".join(f"{place:,}" for place in bends(at, memory)) or "none"
    return "\n".join([*lines, "", f"Bends of time: {bent}. Bends of memory: {bent_memory}. To reach: {result['target']}."])


def _point(at: int, curve: Curve, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median run's figures."""
    seconds = median(run["report"]["seconds"] for run in runs)
    parts = {part: median(run["report"]["parts"][part] for run in runs) for part in runs[0]["report"]["parts"]}
    return {
        "at": at,
        "seconds": seconds,
        "per_second": (at * curve.per_point or 1) / seconds,
        "peak_gb": median(run["peak_gb"] for run in runs),
        "parts": parts,
        "runs": [run["report"]["seconds"] for run in runs],
    }
