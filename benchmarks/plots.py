"""Draws what the JSON files of a results' folder hold. Runs in the environment `plots`, which has matplotlib and nothing else.

python benchmarks/plots.py RESULTS
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("svg")
plt.rcParams.update({"svg.hashsalt": "truing", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def save(figure, path):
    figure.savefig(path, metadata={"Date": None})  # the same figures give the same file
    plt.close(figure)


def table(rows, path):
    """Times as fast as the peer, with the least and the most of the pairs, beside peak memory on both sides."""
    names = [row["name"] for row in rows]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9, 1.2 + 0.35 * len(rows)), sharey=True, layout="constrained")
    ratios = [row["figures"]["speed_ratio"] for row in rows]
    medians = [ratio["median"] for ratio in ratios]
    around = [[r["median"] - r["min"] for r in ratios], [r["max"] - r["median"] for r in ratios]]
    speed.barh(names, medians, xerr=around, color="#4c72b0", capsize=2)
    speed.axvline(1, color="black", linewidth=0.8)
    speed.set_xlabel("times as fast as the peer")
    memory.barh(names, [row["figures"]["memory_ratio"] for row in rows], color="#55a868")
    memory.axvline(1, color="black", linewidth=0.8)
    memory.set_xlabel("peak memory, share of the peer's")
    speed.invert_yaxis()
    save(figure, path)


def growth(curve, path):
    """Seconds and peak memory against what grows, both on logarithmic axes, each point the median of its runs."""
    at = [point["at"] for point in curve["points"]]
    figure, (seconds, memory) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, key, label in ((seconds, "seconds", "seconds"), (memory, "peak_gb", "peak GB")):
        axis.plot(at, [point[key] for point in curve["points"]], marker="o", color="#4c72b0")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(at, [f"{x:,}" for x in at], rotation=30)
        axis.minorticks_off()
        axis.set_xlabel(curve["what"])
        axis.set_ylabel(label)
    save(figure, path)


def main():
    folder = Path(sys.argv[1])
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    rows = [result for result in found if "speed_ratio" in result.get("figures", {})]
    if rows:
        table(rows, folder / "table.svg")
    for result in found:
        if "points" in result:
            growth(result, folder / f"{result['name']}.svg")


if __name__ == "__main__":
    main()
