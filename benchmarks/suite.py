"""How long the full native suite takes: a share of each task's items is measured, and the rest is estimated from it.

    python -m benchmarks.suite [--share 0.02] [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--data ../shared/data] [--threads 2]

The estimate is seconds an item times all items, so what is done once (reading, tokens of shared shots) is counted as often as it is
not: it is, if anything, too high. Prints a Markdown table with what the share measured; writes benchmarks/results/suite.json.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from truing.evals.tasks.evaluate import Manner, Measured, Model, evaluate
from truing.evals.tasks.files import Files
from truing.evals.tasks.table import SUITES, TASKS
from truing.evals.tasks.task import ChoiceTask
from truing.recipes.fit import model_folder
from truing.recipes.settings import torch_dtype
from truing.statistics import shown

RESULTS = Path(__file__).parent / "results" / "suite.json"


def measured(name: str, model: Model, data: Path, share: float, folder: Path) -> tuple[dict[str, Any], Measured]:
    """One task on its share of items: how many, of how many, and the seconds."""
    task = TASKS[name]()
    files = Files(root=data, hub=False)
    items = len(task.questions(files) if isinstance(task, ChoiceTask) else task.prompts(files))
    limit = max(1, math.ceil(share * items))
    clock, processor = time.monotonic(), time.process_time()
    found = evaluate(
        name,
        task,
        model,
        Files(root=data, hub=False),
        Manner(limit=limit),
        folder,
        options={},
        bar=lambda what: lambda done, of: None,
    )
    seconds = {"clock": time.monotonic() - clock, "processor": time.process_time() - processor}
    return {"items": items, "measured": min(limit, items), **seconds}, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=list(SUITES["full"]))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Model(
        name=options.model, path=model_folder(options.model), dtype=torch_dtype("auto"), device=torch.device("cpu"), template="auto"
    )
    assert model.policy.model is not None  # loaded before the first task is timed
    print("| task | items | measured | headline on the share | processor s, measured | estimate for all, min of processor |")
    print("|---|---|---|---|---|---|")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tasks:
            row, found = measured(name, model, options.data, options.share, Path(folder))
            title, figure = next(iter(found.evaluation.figures.items()))
            row["minutes"] = row["processor"] / row["measured"] * row["items"] / 60
            rows[name] = {**row, "headline": {"name": title, **shown(figure)}}
            cells = [f"`{name}`", str(row["items"]), str(row["measured"]), f"{title} {figure}"]
            cells += [f"{row['processor']:.1f}", f"{row['minutes']:.1f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
    total = sum(row["minutes"] for row in rows.values())
    print(
        f"\nall: {total:.0f} min of processor on {options.threads} threads, an estimate from {100 * options.share:g}% of the items"
    )
    found_all = {
        "machine": machine("cpu"),
        "model": options.model,
        "share": options.share,
        "threads": options.threads,
        "tasks": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**found_all, "minutes_of_processor": total}, indent=2) + "\n")


if __name__ == "__main__":
    main()
