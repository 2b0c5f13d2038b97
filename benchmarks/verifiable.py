"""Policy optimisation from a reward that a program can verify: does it raise accuracy on prompts of topics never trained on?

    python -m benchmarks.verifiable [--method rloo] [--seeds 0 1 2] [--out runs/verifiable] [KEY=VALUE ...]
    python -m benchmarks.verifiable --stories ../shared/models/stories260k     # the 260K-parameter model of stories: seconds a run

Everyday questions to SmolLM2, each with one of four instructions (`benchmarks/kept.py`); or beginnings of stories, whose rest is to
have the word "happy" in it. Prints a line a seed: accuracy before, after, and gain with 95% intervals, by `truing train`; then the
mean gain over seeds. Writes benchmarks/results/verifiable.json, where runs of other methods and seeds are kept.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.kept import INSTRUCTIONS
from benchmarks.laboratory_curves import over_seeds
from benchmarks.machine import machine
from truing.statistics import shown, wilson

HERE = Path(__file__).parent
RESULT = HERE / "results" / "verifiable.json"
QUESTIONS = HERE.parent / "src" / "truing" / "recipes" / "everyday" / "preferences.csv"
HELD_OUT = ("first aid", "houseplants", "laundry", "music", "photography", "sewing", "swimming")
SETTINGS = (
    *("lora.rank=16", "optimizer.lr=3e-4", "batch_size=16", "rounds.samples=4", "max_steps=20", "answers.max_tokens=40"),
    *("kl.coefficient=0.02", "rounds.missing_end_penalty=0.5", "save_every=5", "evaluate_every=0"),
)


OF_STORIES = (
    *("data.template=continue", "dtype=fp32", "optimizer.lr=5e-4", "batch_size=16", "rounds.samples=8", "epochs=9", "max_steps=30"),
    *("answers.max_tokens=40", "kl.coefficient=0.02", "rounds.missing_end_penalty=0", "save_every=0", "evaluate_every=0"),
)
ANIMALS = ("dog", "cat", "bird", "bear", "frog", "fish", "bunny", "mouse", "duck", "horse")
WORDS = ("little", "big", "red", "small", "brave", "funny", "old", "shy", "kind", "silly")
NAMES = ("Tim", "Lily", "Max", "Sue", "Ben", "Mia", "Tom", "Amy", "Sam", "Anna")


def write_stories(path: Path) -> None:
    """Beginnings of stories; the topic is the animal."""
    with path.open("w") as out:
        for number, (animal, word) in enumerate(product(ANIMALS, WORDS)):
            name = NAMES[(number + number // 10) % 10]
            text = f"Once upon a time, there was a {word} {animal} named {name}."
            out.write(json.dumps({"prompt": text, "topic": animal, "rule": "keyword"}) + "\n")


def write_prompts(path: Path) -> None:
    """Each question with the instructions in turn."""
    with QUESTIONS.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = list(INSTRUCTIONS)
    with path.open("w") as out:
        for number, row in enumerate(rows):
            rule = names[number % len(names)]
            asked = {"prompt": f"{row['prompt']} {INSTRUCTIONS[rule]}", "topic": row["topic"], "rule": rule}
            out.write(json.dumps(asked) + "\n")


def one(method: str, seed: int, folder: Path, prompts: Path, settings: list[str]) -> dict[str, object]:
    """A run in a process of its own."""
    run = folder / f"{method}-{seed}"
    command = [sys.executable, "-m", "truing.cli", "train", method, f"data.path={prompts}", f"run={run}", f"seed={seed}"]
    command += ["data.held_out_by=topic", "reward.kept=python", f"reward.kept.file={HERE / 'kept.py'}", *settings]
    subprocess.run(command, check=True, env=dict(os.environ), stdout=subprocess.DEVNULL)
    result = json.loads((run / "result.json").read_bytes())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = sum(json.loads(text)["seconds"] for text in (run / "timing.jsonl").read_text().splitlines())
    found = {key: result[f"reward_{key}"] for key in ("before", "after", "gain")}
    for key in ("before", "after"):  # rewards of 0 and 1: their mean is a rate
        found[key] = shown(wilson(round(found[key]["value"] * found[key]["n"]), found[key]["n"]))
    return {"method": method, "seed": seed, "minutes": round(seconds / 60, 1), **found, "kl": last["kl"]}


def keep(path: Path, row: dict[str, Any]) -> None:
    """Into the file of results, in place of the same base, method, seed and settings."""
    found = json.loads(path.read_bytes())["runs"] if path.is_file() else []
    names = ("base", "method", "seed", "settings")
    others = [other for other in found if [other[name] for name in names] != [row[name] for name in names]]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine("cpu"), "runs": [*others, row]}, indent=1) + "\n")


def over(rows: Sequence[dict[str, Any]]) -> str:
    """Mean gain of the runs with its interval, in points."""
    found = over_seeds([100 * row["gain"]["value"] for row in rows])
    return f"{found.value:+.0f} [{found.low:+.0f}, {found.high:+.0f}]"


def line(row: dict[str, object]) -> str:
    def rate(key: str) -> str:
        estimate = row[key]
        assert isinstance(estimate, dict)
        return f"{100 * estimate['value']:.0f} [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"

    cells = [str(row["method"]), str(row["seed"]), *(rate(key) for key in ("before", "after", "gain"))]
    return f"| {' | '.join(cells)} | {row['kl']:.1f} | {row['minutes']} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="rloo", choices=["ppo", "rloo", "grpo", "reinforce"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/verifiable"))
    parser.add_argument("--stories", type=Path, help="the folder of stories260K.bin, to train that model")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="further settings of `truing train`")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = args.out / "prompts.jsonl"
    if args.stories:
        from benchmarks.stories260k import convert

        write_stories(prompts)
        model = convert(args.stories, args.out / "model")
        settings = [f"model={model}", f"data.held_out=[{', '.join(ANIMALS[::3])}]", *OF_STORIES, *args.settings]
    else:
        write_prompts(prompts)
        settings = [f"data.held_out=[{', '.join(HELD_OUT)}]", *SETTINGS, *args.settings]
    print(
        "| method | seed | accuracy before | after | gain | KL of the last round | minutes |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    base = "stories260k" if args.stories else "SmolLM2-135M-Instruct"
    rows = []
    for seed in args.seeds:
        row = {"base": base, **one(args.method, seed, args.out, prompts, settings), "settings": args.settings}
        rows.append(row)
        keep(RESULT, row)
        print(line(row), flush=True)
    if len(rows) > 1:
        print(f"\nGain over {len(rows)} seeds, points: {over(rows)} (Student's t over seeds, 95%)")


if __name__ == "__main__":
    main()
