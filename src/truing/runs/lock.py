"""One writer per run: a lock that dies with its owner, and the owner's name for whoever comes second.

The lock is the kernel's (`flock`), so a killed process leaves nothing to clean up and two starters can never both win; what is
written in the file only says who holds it.
"""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from truing.runs.canonical import to_json
from truing.runs.durable import storage_errors

LOCK = "lock"
PATIENCE = 10
"""How often a lock that no living process owns is asked for again, 50 ms apart: its owner may be just starting or leaving."""

_held: set[int] = set()


def _let_go_in_child() -> None:
    # A forked worker inherits the descriptor, and with it the lock: it would outlive its parent.
    for fd in _held:
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class RunBusyError(ValueError):
    """Another process writes this run: the text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a run. Example: `Owner(pid=4711, host="anna", started="882734")`."""

    pid: int
    host: str
    started: str
    """The process's start time in clock ticks since boot, so that a reused pid is not taken for it; empty where unknown."""

    def alive(self) -> bool | None:
        """Whether it still runs; None for a process on another machine."""
        if self.host != socket.gethostname():
            return None
        return _start_of(self.pid) == self.started if self.started else _exists(self.pid)


def _start_of(pid: int) -> str:
    """The start time of a process; empty where it is gone (a zombie counts as gone) or the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text[text.rindex(")") + 2 :].split()
    return "" if state in "ZX" else fields[18]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def owner_of(folder: Path) -> Owner | None:
    """Who holds the run, or held it when killed; None after a clean end."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        raw = json.loads((folder / LOCK).read_bytes())
        return Owner(pid=int(raw["pid"]), host=str(raw["host"]), started=str(raw["started"]))
    return None


class RunLock:
    """The right to write one run folder, from `acquire` until `release` or the end of the process."""

    def __init__(self, folder: Path, fd: int, previous: Owner | None) -> None:
        self.folder = folder
        self.previous = previous
        """The owner that never released it: killed, or the machine went down."""
        self._fd = fd

    @classmethod
    def acquire(cls, folder: Path) -> "RunLock":
        """Takes the lock at once, or raises RunBusyError naming its owner."""
        for _ in range(PATIENCE):
            lock = cls._attempt(folder)
            if lock is not None:
                return lock
            owner = owner_of(folder)
            if owner is not None and owner.alive() is not False:
                break
            time.sleep(0.05)
        who = f"process {owner.pid} on {owner.host}" if owner else "another process"
        remedy = f"wait for it, or stop it (kill {owner.pid})" if owner else "wait for it"
        raise RunBusyError(f"{folder}: is being written by {who}; {remedy}, or take another run folder")

    @classmethod
    def _attempt(cls, folder: Path) -> "RunLock | None":
        path = folder / LOCK
        with storage_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            _held.add(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock = cls(folder, fd, owner_of(folder))
                lock._write(Owner(pid=os.getpid(), host=socket.gethostname(), started=_start_of(os.getpid())))
                if lock.held():
                    return lock
            except BlockingIOError:
                pass
            except OSError:
                _close(fd)
                raise
            _close(fd)
        return None

    def held(self) -> bool:
        """Whether the folder still has this lock: not after somebody removed or replaced the folder."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.folder / LOCK))
        except FileNotFoundError:
            return False

    def _write(self, owner: Owner) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, to_json(asdict(owner)), 0)

    def release(self) -> None:
        """Ends the right to write. The file stays: removing it would let two starters lock two different files."""
        os.ftruncate(self._fd, 0)
        _close(self._fd)


def _close(fd: int) -> None:
    _held.discard(fd)
    os.close(fd)
