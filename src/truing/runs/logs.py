"""The logs of a run: metrics.jsonl, samples.jsonl and timing.jsonl, and how a continued run cuts them back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from truing.runs import read
from truing.runs.canonical import to_json_line
from truing.runs.durable import AppendLog


class Logs:
    """The logs, and as a part of the checkpoint the lengths to which a continued run cuts them back (timing is not among those)."""

    CUT: ClassVar[tuple[str, ...]] = (read.METRICS, read.SAMPLES)

    def __init__(self, folder: Path | None, complain: Callable[[str], None]) -> None:
        names = (*self.CUT, read.TIMING) if folder else ()
        self._logs = {name: AppendLog(folder / name) for name in names if folder}
        self._complain = complain

    def append(self, name: str, row: Mapping[str, object]) -> None:
        """Adds a line; a rank that only follows a run has no logs and adds none."""
        if name in self._logs:
            self._logs[name].append(to_json_line(row))

    def state_tensors(self) -> Mapping[str, Any]:
        """None: the logs are files."""
        return {}

    def state_dict(self) -> Mapping[str, object]:
        """The lengths in bytes."""
        return {name: self._logs[name].offset for name in self.CUT}

    def load_state(self, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Cuts the logs back to those lengths."""
        for name, log in self._logs.items():
            missing = log.cut(state[name]) if name in self.CUT else 0
            if missing:
                self._complain(f"{log.path}: {missing} bytes that the checkpoint counts on are gone; training goes on without them")

    def sync(self) -> None:
        """Returns once every line so far outlives a power cut."""
        for name in self.CUT:
            self._logs[name].sync()

    def close(self) -> None:
        """Closes the files."""
        for log in self._logs.values():
            log.close()
