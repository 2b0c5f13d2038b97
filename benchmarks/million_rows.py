"""A million pairs through reading, checking, encoding and packing: rows a second and peak memory.

    python -m benchmarks.million_rows [--rows 1000000] [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--folder runs/million]

Pairs of about 60 words and twice 60 words are made from a counter, so that anybody has the same ones. Prints one JSON object and
writes it to benchmarks/results/million_rows.json. The second reading finds everything in the store.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = Path("runs/million")
MEGABYTE = 1000  # ru_maxrss counts in kB
TRAINING = 0.05
"""Seconds that a step of training is taken to last, for what it waits for reading."""


def words(rng: random.Random, count: int) -> str:
    """So many made-up words of two or three syllables."""
    syllables = ("ka", "lo", "mi", "ren", "ta", "su", "vor", "ne", "pil", "da", "gro", "she")
    return " ".join("".join(rng.choices(syllables, k=rng.choice((2, 2, 3)))) for _ in range(count))


def generate(path: Path, rows: int) -> None:
    """Pairs as JSON lines; row i depends on i alone."""
    with path.open("w") as file:
        for i in range(rows):
            rng = random.Random(i)
            prompt, chosen, rejected = (words(rng, rng.randint(30, 90)) for _ in range(3))
            file.write(json.dumps({"prompt": f"{prompt}?", "chosen": f"{chosen}.", "rejected": f"{rejected}."}) + "\n")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def timed(batches: Iterator[object], pause: float) -> tuple[int, float]:
    """Steps and the seconds that were spent waiting for them, with a pause after each."""
    waited, steps = 0.0, 0
    while True:
        began = time.perf_counter()
        if next(batches, None) is None:
            return steps, waited
        waited += time.perf_counter() - began
        steps += 1
        time.sleep(pause)


def measure(path: Path, model: str, folder: Path) -> dict[str, float]:
    """Everything in this process, whose peak memory is the answer."""
    from truing.data.chat import ChatTokenizer
    from truing.data.packing import first_fit
    from truing.data.source import TreeSource
    from truing.models.load import load_tokenizer
    from truing.recipes.examples import examples
    from truing.recipes.settings import Data
    from truing.records import Preference

    chat = ChatTokenizer.of(load_tokenizer(model))
    shutil.rmtree(folder, ignore_errors=True)
    data = Data(path=str(path), held_out_share=0.01, cache=folder / "cache")
    found: dict[str, float] = {"peak_mb_before": peak_mb()}
    for name in ("read_check_encode", "found_in_store"):
        began, cpu = time.monotonic(), time.process_time()
        rows = examples(data, chat, (Preference,), run=folder)
        found |= {f"{name}_s": time.monotonic() - began, f"{name}_cpu_s": time.process_time() - cpu, f"{name}_peak_mb": peak_mb()}
    trees = rows.train.trees
    began = time.monotonic()
    packing = first_fit(trees.sizes, budget=4096)
    found |= {"trees": len(trees), "tokens": int(trees.sizes.sum()), "pack_all_s": time.monotonic() - began, "groups": len(packing)}
    source = TreeSource(trees, batch_size=64, micro_tokens=4096, seed=0)
    began, cpu = time.monotonic(), time.process_time()
    timed(islice(source, source.steps_per_epoch), 0.0)
    found |= {"epoch_s": time.monotonic() - began, "epoch_cpu_s": time.process_time() - cpu, "epoch_peak_mb": peak_mb()}
    steps, waited = timed(islice(source, 100), TRAINING)
    return {**found, "waited_for_a_step_ms": 1e3 * waited / steps}


def measured(rows: int = 1_000_000, model: str = MODEL, folder: Path = FOLDER) -> dict[str, float]:
    """The whole measurement, in a process of its own so that nothing else counts; writes the result."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{rows}.jsonl"
    if not path.exists():
        generate(path, rows)
    command = [sys.executable, "-m", "benchmarks.million_rows", "--measure", str(path), "--model", model, "--folder", str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = {"rows": rows, "file_mb": round(path.stat().st_size / 1e6, 1), **json.loads(said)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "million_rows.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        run_folder = args.folder / f"run-{args.measure.stem}"
        print(json.dumps({name: round(value, 3) for name, value in measure(args.measure, args.model, run_folder).items()}))
        return
    print(json.dumps(measured(args.rows, args.model, args.folder), indent=2))


if __name__ == "__main__":
    main()
