"""Run a program of unknown intent in a process that can compute and say how it ended, and nothing else.

The child (`truing.evals.sandbox.child`) gives up its rights before the program starts, as any user can, without root and without
namespaces: Landlock leaves reading Python's own library and no other file, seccomp leaves some sixty system calls (none that makes
sockets, processes, signals or files), limits bound processor time, memory and open files. Where the kernel lacks one of the two the
program is not run. What is not prevented: seeing whether a path exists, and a program that lies about its own verdict.
"""

import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

CHILD = Path(__file__).with_name("child.py")
REPORT_BYTES = 16384
WALL = 6.0
"""Seconds on the clock for each second of processor time, for machines that do other work too."""

TRIAL = """
try:
    open("/etc/passwd")
except PermissionError:
    pass
else:
    raise SystemError("files stay readable")
"""
"""Passes only where the file system is closed."""

Outcome = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a program may use. Example: `Limits(cpu_seconds=3)`, the time that HumanEval gives."""

    cpu_seconds: int = 3
    """Processor time."""
    memory_bytes: int = 1 << 30
    """Address space, with the interpreter's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a program ended. Example: `Verdict(outcome="failed", detail="AssertionError: ")`."""

    outcome: Outcome
    detail: str
    """The exception of a failed program, or what stopped it."""


class SandboxUnavailableError(ValueError):
    """This machine cannot confine a program; the text says what it lacks."""


def execute(program: str, limits: Limits | None = None) -> Verdict:
    """Run the program; it has passed when it came to its end without an exception. Raises SandboxUnavailableError."""
    missing = unavailable()
    if missing:
        raise SandboxUnavailableError(
            f"programs that a model wrote are not run on this machine: {missing}. Take Linux 5.13 or later with Landlock and "
            "seccomp, on x86-64 or ARM64, outside containers that forbid them"
        )
    return _run(program, limits or Limits())


@functools.cache
def unavailable() -> str:
    """What the machine lacks to confine a program, found by confining one; empty where it lacks nothing."""
    if not sys.platform.startswith("linux"):
        return f"confinement needs Linux, and this is {sys.platform}"
    verdict = _run(TRIAL, Limits())
    return "" if verdict.outcome == "passed" else verdict.detail


def _run(program: str, limits: Limits) -> Verdict:
    token = secrets.token_hex(16)
    library = sorted({*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")), "/lib", "/lib64", "/usr/lib", "/usr/lib64"})
    order = {"token": token, "program": program, "read": library, "cpu": limits.cpu_seconds, "memory": limits.memory_bytes}
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={},
        start_new_session=True,
    )
    try:
        said = _exchange(child, json.dumps(order).encode(), time.monotonic() + WALL * limits.cpu_seconds)
    except subprocess.TimeoutExpired:
        return Verdict(outcome="timed out", detail=f"stopped after {WALL * limits.cpu_seconds:.0f} s on the clock")
    finally:
        _kill(child)
    if len(said) > REPORT_BYTES:
        return Verdict(outcome="failed", detail=f"stopped: it said more than the {REPORT_BYTES} bytes of a report")
    if child.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Verdict(outcome="timed out", detail=f"stopped after {limits.cpu_seconds} s of processor time")
    return _read(said, token, child.returncode)


def _exchange(child: subprocess.Popen[bytes], order: bytes, deadline: float) -> bytes:
    """Hands over the order and returns what the child says until it ends, or the first bytes that are more than a report has.

    Not `communicate`, which keeps in this process's memory whatever a program writes. Raises TimeoutExpired at the deadline.
    """
    assert child.stdin
    assert child.stdout
    said = b""
    with selectors.DefaultSelector() as ready:
        for stream, event in ((child.stdin, selectors.EVENT_WRITE), (child.stdout, selectors.EVENT_READ)):
            os.set_blocking(stream.fileno(), False)
            ready.register(stream, event)
        while len(said) <= REPORT_BYTES:
            events = ready.select(max(0.0, deadline - time.monotonic()))
            if not events:
                raise subprocess.TimeoutExpired(child.args, 0)
            if any(key.fileobj is child.stdin for key, _ in events):
                try:
                    order = order[os.write(child.stdin.fileno(), order) :]
                except BrokenPipeError:
                    order = b""
                if not order:
                    ready.unregister(child.stdin)
                    child.stdin.close()
            if any(key.fileobj is child.stdout for key, _ in events):
                piece = os.read(child.stdout.fileno(), REPORT_BYTES + 1 - len(said))
                if not piece:
                    child.wait(max(0.0, deadline - time.monotonic()))
                    return said
                said += piece
    return said


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and all of its session, and wait for it."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    for stream in (child.stdin, child.stdout):
        if stream:
            stream.close()
    child.wait()


def _read(said: bytes, token: str, code: int) -> Verdict:
    """The child's report, which only counts with the token that it was given."""
    try:
        report: object = json.loads(said)
    except ValueError:
        report = None
    if not isinstance(report, Mapping) or report.get("token") != token:
        return Verdict(outcome="failed", detail=f"ended without a verdict (exit status {code})")
    return Verdict(outcome="passed" if report.get("passed") is True else "failed", detail=str(report.get("detail", ""))[:500])
