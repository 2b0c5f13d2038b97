"""The process that a rule runs in: `python -m truing.rewards.worker FD`. It imports no torch, and is there in half a second."""

import json
import math
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from truing.config import load
from truing.records import Completion, Message, Origin, Prompt, Rollout
from truing.rewards.rules import RULES, PythonFunction, Rule

GRACE = 5.0
"""Seconds beyond its time after which a rule looks whether its parent is gone, and then ends by itself."""


def rollout_of(raw: dict[str, Any]) -> Rollout:
    """The inverse of `truing.rewards.outside.as_json`."""
    messages = tuple(Message(role=role, content=content) for role, content in raw["messages"])
    origin = Origin(file=raw["origin"][0], row=raw["origin"][1]) if raw["origin"] else None
    return Rollout(
        prompt=Prompt(messages=messages, origin=origin, tags=raw["tags"]),
        trunk=tuple(raw["trunk"]),
        completion=Completion(tokens=tuple(raw["tokens"]), stop=raw["stop"]),
        response=raw["response"],
        version=raw["version"],
    )


def main(descriptor: int) -> None:
    """Answers until the other end is closed."""
    line = Connection(descriptor)
    os.dup2(2, 1)  # what a user's function prints goes where errors go
    task = json.loads(line.recv_bytes())
    parent, longest = os.getppid(), task["seconds"] + GRACE
    signal.signal(signal.SIGALRM, lambda *_: None if os.getppid() == parent else os._exit(1))
    try:
        rule: Rule = load(RULES[task["rule"]], base=task["fields"]).value
        if isinstance(rule, PythonFunction):
            _ = rule.loaded
    except BaseException as error:
        line.send_bytes(json.dumps({"problem": f"{error}" if isinstance(error, ValueError) else described(error)}).encode())
        return
    line.send_bytes(json.dumps({"problem": ""}).encode())
    while True:
        try:
            rollout = rollout_of(json.loads(line.recv_bytes()))
        except EOFError:
            return
        # Nobody else would end it. One that computes is ended by the system, even inside a function that asks for no signals; the
        # processor's time is counted over all threads of a function. One that sleeps looks itself.
        signal.setitimer(signal.ITIMER_PROF, longest * (os.cpu_count() or 1))
        signal.setitimer(signal.ITIMER_REAL, longest, longest)
        try:
            value = float(rule.score(rollout))
            answer: dict[str, object] = {"value": value if math.isfinite(value) else str(value)}
        except Exception as error:
            answer = {"raised": described(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        line.send_bytes(json.dumps(answer).encode())


def described(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main(int(sys.argv[1]))
