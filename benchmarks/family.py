"""Every preference method on the demo's data from one SFT model: held-out preference accuracy before and after, time and memory.

    python -m benchmarks.family [--seeds 0 1 2] [--out runs/family] [--result benchmarks/results/family.json] [METHOD ...]

All methods get the same rows (those on manner, which a model of this size can learn), adapters, learning rate and 13 steps of 16,
and the defaults of their losses: it shows that each learns, not which is best when tuned. The SFT model of each seed is trained
first. One thread each, and the processor's seconds are counted, so that several of these may run side by side, with a folder and a
result each. Prints a table and writes the result after each run, and leaves out what is in it already.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "family.json"
TOPICS = "first aid,houseplants,laundry,music,photography,sewing,swimming"
COMMON = (
    "data.held_out_by=topic",
    f"data.held_out=[{TOPICS}]",
    "data.max_tokens=512",
    "lora.rank=16",
    "lora.top_layers=15",
    "optimizer.lr=1e-3",
    "micro_tokens=1024",
    "max_steps=13",
    "evaluate_every=0",
    "save_every=0",
)
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{
        f"f_dpo, {divergence}": ("f_dpo", (f"loss.divergence={divergence}",))
        for divergence in ("reverse_kl", "forward_kl", "jensen_shannon", "alpha")
    },
    "tr_dpo, soft": ("dpo", ("trust_region.alpha=0.5", "trust_region.every=2")),
    "tr_dpo, hard": ("dpo", ("trust_region.alpha=1", "trust_region.every=4")),
}
"""Run beside the methods at their defaults: name -> method, settings. TR-DPO's 64 and 512 steps are longer than a run."""


def manners(folder: Path) -> Path:
    """The demo's rows on manner, as a file of their own."""
    from truing.recipes.selection import PACKAGED

    path = folder / "manner.csv"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with PACKAGED["everyday"].open(newline="") as source, path.open("w", newline="") as file:
            rows = csv.DictReader(source)
            writer = csv.DictWriter(file, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows(row for row in rows if row["kind"] == "manner")
    return path


def train(method: str, settings: Sequence[str], folder: Path) -> tuple[float, float]:
    """One `truing train`; seconds of the processor and peak memory in GB."""
    rows = f"data.path={manners(folder.parents[1])}"
    command = [sys.executable, "-m", "truing.cli", "train", method, rows, *COMMON, *settings, f"run={folder}"]
    pid = os.posix_spawn(sys.executable, command, {**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return round(usage.ru_utime + usage.ru_stime, 1), round(usage.ru_maxrss / 1e6, 2)


def one(name: str, seed: int, out: Path) -> dict[str, Any]:
    start = out / str(seed) / "sft"
    if not (start / "result.json").is_file():
        train("sft", [f"seed={seed}"], start)
    folder = out / str(seed) / name.replace(", ", "-")
    method, settings = VARIANTS.get(name, (name, ()))
    seconds, peak = train(method, [*settings, f"seed={seed}", f"model={start}"], folder)
    result = json.loads((folder / "result.json").read_bytes())
    return {**result, "method": name, "seed": seed, "processor_seconds": seconds, "peak_gb": peak}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a method: each seed's accuracy and gain with their intervals, seconds and memory; and the accuracy before."""

    def points(estimate: dict[str, float]) -> str:
        return f"{100 * estimate['value']:+.1f} [{100 * estimate['low']:+.1f}, {100 * estimate['high']:+.1f}]"

    def rate(estimate: dict[str, float]) -> str:
        return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"

    heads = ("method", "accuracy after, by seed", "gain in points, by seed", "seconds of processor", "peak GB")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["seed"])
        lines.append(
            f"| {method} | {'; '.join(rate(row['accuracy_after']) for row in own)} "
            f"| {'; '.join(points(row['accuracy_gain']) for row in own)} "
            f"| {max(row['processor_seconds'] for row in own):.0f} | {max(row['peak_gb'] for row in own):.2f} |"
        )
    before = {row["seed"]: rate(row["accuracy_before"]) for row in rows}
    lines.append("\nbefore, after SFT alone: " + "; ".join(f"{before[seed]} (seed {seed})" for seed in sorted(before)))
    return "\n".join(lines)


def main() -> None:
    from truing.recipes.commands import METHODS

    family = [method for method, recipe in METHODS.items() if recipe in ("preference", "feedback") and method != "f_dpo"]
    family += VARIANTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(family)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.result.read_text()) if args.result.is_file() else []
    for seed in args.seeds:
        for method in args.methods or family:
            if not any(row["method"] == method and row["seed"] == seed for row in rows):
                rows.append(one(method, seed, args.out))
                args.result.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
