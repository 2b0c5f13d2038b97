"""A rule in a process of its own, so that one that hangs, raises or dies costs one reward and is named.

The worker is `truing.rewards.worker`; both talk JSON over a socket. A rule that takes longer than its time is killed and started
anew for the next rollout.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from truing.config import resolved_of
from truing.records import Rollout
from truing.rewards.base import Failure
from truing.rewards.rules import RULES, Rule

START = 60.0
"""Seconds that a worker may take until it is there."""
EXCERPT = 300
"""Characters of what a rule raised that are kept."""


class OutsideRule:
    """Example: `OutsideRule(RegularExpression(pattern="tea"), seconds=5.0)(rollouts)`; close it when done."""

    def __init__(self, rule: Rule, *, seconds: float) -> None:
        self.rule = rule
        self.seconds = seconds
        self._worker: _Worker | None = None

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | Failure]:
        return [self._score(rollout) for rollout in rollouts]

    def start(self) -> None:
        """Starts the worker. Raises ValueError, naming file and remedy, when the rule cannot be made there."""
        if self._worker is None:
            self._worker = _Worker.start(self.rule, self.seconds)

    def close(self) -> None:
        """Ends the worker; scoring again starts a new one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _score(self, rollout: Rollout) -> float | Failure:
        self.start()
        assert self._worker is not None
        try:
            self._worker.line.send_bytes(json.dumps(as_json(rollout)).encode())
            if not self._worker.line.poll(self.seconds):
                self.close()
                return Failure(fault="timed out", text=f"after {self.seconds:g} s")
            answer = json.loads(self._worker.line.recv_bytes())
        except (EOFError, OSError):
            code = self._worker.process.wait()
            self.close()
            return Failure(fault="died", text=f"its process ended with status {code}")
        if "raised" in answer:
            return Failure(fault="raised", text=str(answer["raised"])[:EXCERPT])
        return float(answer["value"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    process: "subprocess.Popen[bytes]"
    line: Connection

    @classmethod
    def start(cls, rule: Rule, seconds: float) -> "_Worker":
        mine, theirs = socket.socketpair()
        with theirs:
            # a session of its own: Ctrl-C is for this process, which finishes its step with the worker's help
            process = subprocess.Popen(
                [sys.executable, "-m", "truing.rewards.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        worker = cls(process=process, line=Connection(mine.detach()))
        (name,) = [name for name, kind in RULES.items() if type(rule) is kind]
        worker.line.send_bytes(json.dumps({"rule": name, "fields": resolved_of(rule), "seconds": seconds}).encode())
        try:
            answer = json.loads(worker.line.recv_bytes()) if worker.line.poll(START) else {"problem": "its process does not start"}
        except (EOFError, OSError):
            answer = {"problem": f"its process ended with status {process.wait()}"}
        if answer["problem"]:
            worker.end()
            raise ValueError(f"reward {name}: {answer['problem']}")
        return worker

    def end(self) -> None:
        self.line.close()
        self.process.kill()
        self.process.wait()


def as_json(rollout: Rollout) -> Mapping[str, object]:
    """A rollout as it crosses to the worker."""
    origin = rollout.prompt.origin
    return {
        "messages": [[message.role, message.content] for message in rollout.prompt.messages],
        "origin": None if origin is None else [origin.file, origin.row],
        "tags": dict(rollout.prompt.tags),
        "trunk": rollout.trunk,
        "tokens": rollout.completion.tokens,
        "stop": rollout.completion.stop,
        "response": rollout.response,
        "version": rollout.version,
    }
