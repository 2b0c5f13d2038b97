"""A rule in a process of its own, so that one that hangs, raises or dies costs one reward and is named.

The worker is `truing.rewards.worker`; both talk JSON over a socket. A rule that takes longer than its time is killed and started
anew for the next rollout. What counts is the time that it was given (`OwnTime`): on the clock, a busy machine would make rewards
depend on what else runs there, and a continued run another one than the undisturbed.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from truing.config import resolved_of
from truing.records import Rollout
from truing.rewards.base import Failure
from truing.rewards.rules import RULES, Rule

START = 60.0
"""Seconds that a worker may take until it is there."""
LEAST, GLANCE = 0.01, 0.25
"""Shortest and longest time between two looks at what a worker is doing, in seconds."""
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
            if not self._worker.answers_within(self.seconds):
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
            there = worker.answers_within(START)
            answer = json.loads(worker.line.recv_bytes()) if there else {"problem": "its process does not start"}
        except (EOFError, OSError):
            answer = {"problem": f"its process ended with status {process.wait()}"}
        if answer["problem"]:
            worker.end()
            raise ValueError(f"reward {name}: {answer['problem']}")
        return worker

    def answers_within(self, seconds: float) -> bool:
        """Whether there is an answer, or an end of the line, before the worker has had so many seconds of its own."""
        had = OwnTime(self.process.pid)
        while not self.line.poll(min(GLANCE, max(seconds - had.seconds, LEAST))):
            had.look()
            if had.seconds >= seconds:
                return self.line.poll(0)
        return True

    def end(self) -> None:
        self.line.close()
        self.process.kill()
        self.process.wait()


class OwnTime:
    """Seconds that a process has run, slept or waited for something, but not those in which it waited for a processor.

    Where the system does not tell (no /proc), all that the clock says.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seconds = 0.0
        """Had since the beginning."""
        self._clock, (_, self._computed) = time.monotonic(), self._state()

    def look(self) -> None:
        """Counts what has passed since the last look; at most `GLANCE`, because this process too may have had to wait."""
        clock, (ready, computed) = time.monotonic(), self._state()
        passed = min(clock - self._clock, GLANCE)
        self.seconds += min(passed, computed - self._computed) if ready else passed
        self._clock, self._computed = clock, computed

    def _state(self) -> tuple[bool, float]:
        """Whether it runs, could run or was stopped from outside, and the processor's seconds that it has had."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            return False, 0.0
        return fields[0] in "RTt", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
