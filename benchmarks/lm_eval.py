"""Truing's tasks by likelihood against lm-eval's own Hugging Face backend, on the same items, each in turn in a process of its own.

    python -m benchmarks.lm_eval [--pairs 2] [--truthfulqa 40] [--mmlu 60] [--bbq 0] [--larger 1] [--dtype bfloat16] [--threads 2]

Loading is not counted on either side, nor is lm-eval's index of its task files; reading data, tokens, likelihoods and judging are.
lm-eval's making of data sets weighs on few items: `--larger 5` takes five times as many of each task. Prints a Markdown table;
writes benchmarks/results/lm_eval.json.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import children, peers
from benchmarks.machine import machine

HERE = Path(__file__).parent
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH_SIZE = 16
"""Rows that lm-eval computes at once."""


def both(args: argparse.Namespace, folder: Path, turn: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One run of each side: what it says of the items, and the seconds of each task."""
    from benchmarks.lm_eval_items import SUBJECTS, choose
    from truing.models.resolve import resolve

    keys = choose(args.data, folder, {"truthfulqa": args.truthfulqa, "mmlu": args.mmlu, "bbq": args.bbq})
    tasks = {
        "truthfulqa": ["own_truthfulqa_mc1", "own_truthfulqa_mc2"],
        "mmlu": [f"own_mmlu_{subject}" for subject in SUBJECTS],
        "bbq": ["own_bbq"],
    }
    shared = {"model": str(resolve(MODEL)), "dtype": args.dtype, "threads": args.threads}
    env = dict(peers.environment()) | {"OMP_NUM_THREADS": str(args.threads), "HF_DATASETS_CACHE": str(folder.resolve() / "cache")}
    ours = children.run(
        [sys.executable, "-m", "benchmarks.lm_eval_ours"],
        {**shared, "data": str(args.data), "keys": keys, "budget": 8192},
        folder,
        f"ours-{turn}",
        env=env | {"PYTHONPATH": str(HERE.parent / "src")},
    )
    theirs = children.run(
        [peers.python("lm_eval"), "-P", str(HERE / "lm_eval_side.py")],
        {**shared, "folder": str(folder), "batch_size": BATCH_SIZE, "tasks": {name: tasks[name] for name in keys}},
        folder,
        f"theirs-{turn}",
        env=env,
    )
    return ours.report, theirs.report


def arguments(description: str | None, **defaults: Any) -> argparse.Namespace:
    """What both commands take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in ("truthfulqa", "mmlu", "bbq"):
        parser.add_argument(f"--{task}", type=int, default=defaults[task], help=f"items of {task}")
    parser.add_argument("--larger", type=int, default=1, help="so many times the items of every task")
    parser.add_argument("--pairs", type=int, default=2, help="how often both sides run, in turn")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=defaults["dtype"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    for task in ("truthfulqa", "mmlu", "bbq"):
        setattr(args, task, getattr(args, task) * args.larger)
    return args


def table(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], counts: Mapping[str, int]) -> str:
    """Medians of processor and clock seconds, and how many times as fast."""
    lines = [
        "| task | items | Truing, s of processor | lm-eval, s of processor | times | Truing, s | lm-eval, s | times |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in runs[0][0]["seconds"]:
        cells = [task, str(counts[task])]
        for what in ("cpu", "clock"):
            ours, theirs = (median(run[side]["seconds"][task][what] for run in runs) for side in (0, 1))
            cells += [f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    args = arguments(__doc__, truthfulqa=40, mmlu=60, bbq=0, dtype="bfloat16")
    folder = Path("runs/benchmarks/lm_eval")
    runs = [both(args, folder, turn) for turn in range(args.pairs)]
    found = {
        "machine": machine("cpu"),
        "dtype": args.dtype,
        "batch_size": BATCH_SIZE,
        "items": {"truthfulqa": args.truthfulqa, "mmlu": args.mmlu, "bbq": args.bbq},
        "seconds": [{"truing": ours["seconds"], "lm-eval": theirs["seconds"]} for ours, theirs in runs],
    }
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "lm_eval.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(runs, found["items"]))


if __name__ == "__main__":
    main()
