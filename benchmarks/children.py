"""Runs one side in a process of its own and reports what it cost; the harness itself imports nothing heavy.

Peak memory is `ru_maxrss` of the child. A child's figure starts at what its parent held, so the parent must stay small.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a child reported, and what it cost from its start to its end."""

    report: dict[str, Any]
    seconds: float
    peak_gb: float


def run(command: Sequence[str], spec: Mapping[str, Any], folder: Path, name: str, *, env: Mapping[str, str]) -> Outcome:
    """Run `command SPEC RESULT` and wait. Raises SystemExit with the end of the child's output when it fails."""
    given, result, log = (folder / f"{name}.{what}" for what in ("spec.json", "result.json", "log"))
    given.write_text(json.dumps(spec, indent=1))
    result.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as stream:
        actions = [(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)]
        words = [*command, str(given), str(result)]
        pid = os.posix_spawn(words[0], words, env, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{' '.join(words)} ended with status {code}:\n{tail}")
    return Outcome(
        report=json.loads(result.read_text()),
        seconds=round(time.monotonic() - began, 2),
        peak_gb=usage.ru_maxrss / 1e6,
    )
