"""What a run folder says, for dashboards, diagnostics and comparisons: read only, no lock taken, safe while the run goes on.

Writing is `truing.runs.run`. The bytes of checkpoints are not hashed here (they are large): a listed one has its files and sizes.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from truing.runs.canonical import to_json_line
from truing.runs.durable import BrokenFolderError, inspect_folder
from truing.runs.lock import owner_of
from truing.runs.sinks import figures, printable

CONFIG = "config.json"
FINGERPRINTS = "fingerprints.json"
ENVIRONMENT = "environment.json"
STATUS = "status.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
TIMING = "timing.jsonl"
CHECKPOINTS = "checkpoints"
TAIL = 1 << 16

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is. Example: `Status(state="running", step=40, max_steps=100)`."""

    state: str
    """running, finished, stopped (on request), failed (by an error). To a reader also died (it says running, but its process
    is gone) and, in a list, unreadable (a damaged file)."""
    step: int
    """The last step that status.json was written at; metrics.jsonl is ahead of it while the run goes on."""
    max_steps: int
    reason: str = ""
    """Why it stopped or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStep:
    """One checkpoint in the list. Example: `SavedStep(step=12, size=1048576, fault="")`."""

    step: int
    size: int
    """Bytes of all its files."""
    fault: str
    """What is missing or short; empty for one with all its files and sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run in a list: no log is read in full for it."""

    folder: Path
    status: Status
    last: Mapping[str, float]
    """The last whole row of metrics.jsonl, `step` included; empty before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Everything that a run folder says."""

    folder: Path
    config: Row
    fingerprints: Mapping[str, str]
    environment: Row
    status: Status
    metrics: tuple[Mapping[str, float], ...]
    """One row per `log`, in order, `step` included; NaN and infinities are floats again."""
    samples: tuple[Row, ...]
    timing: tuple[Mapping[str, float], ...]
    """Seconds per step; a step that was done again after a crash has a row for each time."""
    checkpoints: tuple[SavedStep, ...]


def read_run(folder: Path) -> RunView:
    """Reads a run folder, finished or not; a last line that is still being written is left out."""
    if not is_run(folder):
        raise ValueError(f"{folder}: is no run folder: it has no {CONFIG} and {STATUS}")
    return RunView(
        folder=folder,
        config=read_json(folder / CONFIG),
        fingerprints={name: str(value) for name, value in read_json(folder / FINGERPRINTS).items()},
        environment=read_json(folder / ENVIRONMENT),
        status=read_status(folder),
        metrics=tuple(_numbers(row) for row in read_rows(folder / METRICS)),
        samples=tuple(read_rows(folder / SAMPLES)),
        timing=tuple(_numbers(row) for row in read_rows(folder / TIMING)),
        checkpoints=_saved_steps(folder / CHECKPOINTS),
    )


def list_runs(root: Path) -> list[RunSummary]:
    """Every run below a folder, the stages of a pipeline included, by path."""
    found = []
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != CHECKPOINTS)
        folder = Path(place)
        if is_run(folder):
            found.append(_summary(folder))
    return sorted(found, key=lambda run: run.folder)


def _summary(folder: Path) -> RunSummary:
    try:
        return RunSummary(folder=folder, status=read_status(folder), last=_last_metrics(folder / METRICS))
    except ValueError as error:
        return RunSummary(folder=folder, status=Status(state="unreadable", step=0, max_steps=0, reason=str(error)), last={})


def listing(runs: Sequence[RunSummary], *, as_json: bool) -> str:
    """The runs as aligned lines for people, or as one JSON object a line for programs."""
    if as_json:
        rows = ({"folder": str(run.folder), "status": asdict(run.status), "last": run.last} for run in runs)
        return "".join(to_json_line(row).decode() for row in rows)
    steps = [round(max(run.status.step, run.last.get("step", 0))) for run in runs]
    table = [(str(run.folder), run.status.state, f"{step}/{run.status.max_steps}") for run, step in zip(runs, steps, strict=True)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for run, cells in zip(runs, table, strict=True):
        aligned = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([*aligned, run.status.reason or figures(run.last).removeprefix(", ")]).rstrip())
    return printable("\n".join(lines or ["no runs here"])) + "\n"


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run that has begun."""
    return (folder / CONFIG).is_file() and (folder / STATUS).is_file()


def read_status(folder: Path) -> Status:
    """The status as a reader should see it: a run whose process is gone without a word has died."""
    raw = read_json(folder / STATUS)
    try:
        state, step, max_steps, reason = str(raw["state"]), int(str(raw["step"])), int(str(raw["max_steps"])), str(raw["reason"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder / STATUS}: is damaged ({error}); restore it from a copy, or take another run folder") from error
    if state == "running":
        owner = owner_of(folder)
        if owner is None or owner.alive() is False:
            state, reason = "died", "its process is gone; the same command continues from the last checkpoint"
    return Status(state=state, step=step, max_steps=max_steps, reason=reason)


def read_json(path: Path) -> dict[str, object]:
    """A JSON object that a run wrote."""
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; restore it from a copy, or take another run folder") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON ({error}); restore it from a copy, or take another run folder") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: is no JSON object; restore it from a copy, or take another run folder")
    return raw


def read_rows(path: Path) -> Iterator[dict[str, object]]:
    """The whole lines of a log; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield _row(path, number, line)


def _row(path: Path, number: int, line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: is no JSON ({error}); take the line out to read the rest") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: is no JSON object; take the line out to read the rest")
    return row


def _numbers(row: Row) -> dict[str, float]:
    return {name: value if isinstance(value, int) else float(str(value)) for name, value in row.items()}


def _last_metrics(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        lines = file.read().split(b"\n")[:-1]
    return _numbers(_row(path, len(lines), lines[-1])) if lines else {}


def _saved_steps(folder: Path) -> tuple[SavedStep, ...]:
    return tuple(_saved_step(step, path) for step, path in step_folders(folder))


def _saved_step(step: int, path: Path) -> SavedStep:
    try:
        size = sum(entry.size for entry in inspect_folder(path, contents=False).entries)
    except BrokenFolderError as fault:
        return SavedStep(step=step, size=0, fault=str(fault))
    return SavedStep(step=step, size=size, fault="")


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """The `step-<number>` folders, oldest first, whole or not; staged ones do not count."""
    if not folder.is_dir():
        return []
    names = (path for path in folder.iterdir() if path.name.startswith("step-") and path.name[5:].isdecimal())
    return sorted((int(path.name[5:]), path) for path in names)


def flat(config: object, prefix: str = "") -> dict[str, object]:
    """A nested config by dotted key; a list is one value. `flat({"loss": {"beta": 0.1}})` is `{"loss.beta": 0.1}`."""
    if not isinstance(config, Mapping) or (prefix and not config):
        return {prefix: config}
    nested = (flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items())
    return {key: value for part in nested for key, value in part.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _NotSet:
    """Stands for a key that one side lacks."""

    def __repr__(self) -> str:
        return "not set"


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """What differs between two flat configs: by key, the old and the new value."""
    pairs = {key: (old.get(key, _NotSet()), new.get(key, _NotSet())) for key in sorted({*old, *new})}
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def _same(old: object, new: object) -> bool:
    if isinstance(old, bool) != isinstance(new, bool):
        return False
    return old == new
