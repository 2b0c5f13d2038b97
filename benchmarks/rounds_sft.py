"""LoRA SFT beside a row of `benchmarks.rounds`: `truing train sft` on the same prompts, as many tokens at once.

    python -m benchmarks.rounds_sft SPEC.json RESULT.json

What is timed is the loop; loading, encoding and saving are not. The peak is that of the process.
"""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.truing_side import Stopwatch, peak_gb


def settings(spec: Mapping[str, Any]) -> list[str]:
    """What `truing train sft` is told."""
    row, folder = spec["row"], Path(spec["folder"])
    return [
        *(f"data.path={folder / 'demonstrations.jsonl'}", "data.held_out_share=0", f"model={spec['start']}"),
        *(f"run={folder / 'sft'}", f"dtype={row['dtype']}", f"batch_size={row['prompts']}", f"max_steps={row['rounds']}"),
        *(f"micro_tokens={spec['micro_tokens']}", "recompute=never", "seed=0", "save_every=0", "evaluate_every=0"),
        *("measure_before=false", f"optimizer.lr={spec['lr']}", "optimizer.schedule=constant", *row["settings"]),
    ]


def main() -> None:
    from truing.recipes import commands, fit

    spec = json.loads(Path(sys.argv[1]).read_text())
    folder, loop = Path(spec["folder"]), Stopwatch(time.perf_counter)
    shutil.rmtree(folder / "sft", ignore_errors=True)
    fit.train = loop.timed("loop", fit.train)
    commands.train("sft", settings(spec), [])
    answers = spec["row"]["prompts"] * spec["row"]["rounds"]
    report = {
        "seconds": loop.seconds["loop"],
        "tokens": answers * spec["row"]["new_tokens"],
        "parts": {},
        "peak_gb_trained": peak_gb(),
    }
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
