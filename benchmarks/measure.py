"""One row: prepare its data, then Truing and the peer in turn, each in its own process, and the machine's rate before each pair."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import children, peers
from benchmarks.machine import machine
from benchmarks.ratios import HEADER, figures, line
from benchmarks.rows import Row

RATE = 1e-6
"""Learning rate of both sides."""
MICRO_TOKENS = 2048
GPU_MICRO_TOKENS = 16384
QUICK_ROWS = 4
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what a row is measured."""

    pairs: int
    """How often both sides run, in turn."""
    quick: bool
    """Whether a tiny random model and few rows stand in, to see that everything runs."""
    device: str
    """cpu or cuda. On cuda the model is a random one of 1.2 B parameters, with prompts brought to almost 2,048 tokens."""
    data: Path
    """The folder of data sets."""
    results: Path
    """Where JSON and plots go."""
    scratch: Path
    """Where everything else goes; emptied after each row."""


def fitted(row: Row, conditions: Conditions) -> Row:
    """The row as it is measured under the conditions."""
    if conditions.device == "cuda" and row.prompt_tokens is None and row.data == "hh":
        row = replace(row, max_tokens=2560, prompt_tokens=2048)
    if conditions.quick:
        row = replace(row, rows=QUICK_ROWS, batch=2)
    return row


def measure(name: str, row: Row, conditions: Conditions) -> dict[str, Any]:
    """Measure a row, print its line and write its JSON; returns what was written."""
    row = fitted(row, conditions)
    folder = conditions.scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cuda = conditions.device == "cuda"
    micro = GPU_MICRO_TOKENS if cuda else MICRO_TOKENS
    env = dict(os.environ) if cuda else {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    own = (sys.executable, "-m")
    spec = {
        "data": row.data,
        "data_folder": str(conditions.data),
        "rows": row.rows,
        "batch": row.batch,
        "max_tokens": row.max_tokens,
        "prompt_tokens": row.prompt_tokens,
        "micro_tokens": micro,
        "seed": 0,
        "model": "tiny" if conditions.quick else "1b" if cuda else SMOLLM2,
        "folder": str(folder),
    }
    prepared = children.run([*own, "benchmarks.prepare"], spec, folder, "prepared", env=env).report
    rates: list[float] = []
    pairs: list[dict[str, Any]] = []
    for number in range(conditions.pairs):
        say(f"{name}: {number + 1} of {conditions.pairs}")
        rate = children.run([*own, "benchmarks.floor"], _rate(row, prepared, conditions), folder, "rate", env=env)
        rates.append(rate.report["operations_per_second"])
        pair = {"ours": _outcome([*own, "benchmarks.truing_side"], _ours(row, prepared, folder, micro), folder, "ours", env)}
        if row.trainer is not None:
            script = str(Path(__file__).with_name(f"{row.program}_side.py"))
            theirs = {**peers.environment(), "CUDA_VISIBLE_DEVICES": env.get("CUDA_VISIBLE_DEVICES", "0")}
            pair["theirs"] = _outcome(
                [peers.python(row.program), script], _theirs(row, prepared, folder, conditions), folder, "theirs", theirs
            )
        pairs.append(pair)
    found = figures(row, prepared, rates, pairs)
    result = {
        "name": name,
        "row": asdict(row),
        "model": spec["model"],
        "micro_tokens": micro,
        "machine": machine(conditions.device),
        "date": datetime.now(UTC).date().isoformat(),
        "prepared": {key: value for key, value in prepared.items() if key not in ("model", "shapes")},
        "figures": found,
        "measurements": pairs,
    }
    conditions.results.mkdir(parents=True, exist_ok=True)
    (conditions.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(folder)
    return result


def show(results: list[dict[str, Any]]) -> str:
    """The table of some rows, and under it where the sides differ."""
    lines = [HEADER, *(line(r["name"], r["figures"], r["row"]["target"]) for r in results)]
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result["row"]["notes"]:
            notes.setdefault(note, []).append(result["name"])
    return "\n".join([*lines, "", *(f"- {note} ({', '.join(names)})." for note, names in notes.items())])


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _outcome(command: list[str], spec: Mapping[str, Any], folder: Path, name: str, env: Mapping[str, str]) -> dict[str, Any]:
    shutil.rmtree(folder / "run", ignore_errors=True)
    outcome = children.run(command, spec, folder, name, env=env)
    say(f"  {name}: {outcome.report['seconds']:.1f} s of {outcome.seconds:.1f} s, {outcome.peak_gb:.2f} GB")
    return asdict(outcome)


def _rate(row: Row, prepared: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
    """Shapes with the rows that a micro-batch has on average: all its tokens for the layers, its scored ones for the head."""
    rows = prepared["tree_tokens"] // prepared["micro_batches"]
    scored = max(1, prepared["scored_tokens"] // prepared["micro_batches"])
    shapes = [[*shape, rows] for shape in prepared["shapes"][:-1]]
    if row.head:
        shapes.append([*prepared["shapes"][-1], scored])
    return {"shapes": shapes, "dtype": row.dtype, "device": conditions.device}


def _ours(row: Row, prepared: Mapping[str, Any], folder: Path, micro: int) -> dict[str, Any]:
    settings = [
        f"data.path={folder / 'ours.jsonl'}",
        f"model={prepared['model']}",
        f"run={folder / 'run'}",
        f"dtype={row.dtype}",
        f"batch_size={row.batch}",
        f"epochs={row.epochs}",
        f"micro_tokens={micro}",
        f"data.max_tokens={row.max_tokens}",
        "data.held_out_share=0",
        "seed=0",
        "save_every=0",
        "evaluate_every=0",
        "measure_before=false",
        f"optimizer.lr={RATE}",
        "optimizer.schedule=constant",
        "optimizer.warmup=0",
        *row.settings,
    ]
    return {"method": row.method, "settings": settings}


def _theirs(row: Row, prepared: Mapping[str, Any], folder: Path, conditions: Conditions) -> dict[str, Any]:
    return {
        "trainer": row.trainer,
        "model": prepared["model"],
        "rows": str(folder / "theirs.jsonl"),
        "folder": str(folder / "theirs"),
        "dtype": row.dtype,
        "device": conditions.device,
        "max_tokens": row.max_tokens,
        "steps": prepared["steps"] * row.epochs,
        "epochs": row.epochs,
        "packs": -(-prepared["sequence_tokens"] // row.max_tokens),
        "lr": RATE,
        "peer": dict(row.peer),
    }
