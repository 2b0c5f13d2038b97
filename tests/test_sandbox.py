"""Programs that a model wrote can compute and nothing else: hostile ones are tried."""

import os
import socket
import time
from pathlib import Path

import pytest

from truing.evals.sandbox import run as sandbox
from truing.evals.sandbox.run import Limits, SandboxUnavailableError, execute, unavailable

QUICK = Limits(cpu_seconds=1, memory_bytes=512 << 20)

can = pytest.mark.skipif(bool(unavailable()), reason=f"this machine cannot confine programs: {unavailable()}")


@can
def test_an_honest_program_passes_and_a_wrong_one_fails_with_its_reason() -> None:
    honest = "import math, re, collections, itertools, hashlib, typing, heapq, random\n"
    assert execute(honest + "assert hashlib.md5(b'a').hexdigest().startswith('0cc1') and math.gcd(4, 6) == 2").outcome == "passed"
    verdict = execute("assert 1 + 1 == 3, 'sum'")
    assert (verdict.outcome, verdict.detail) == ("failed", "AssertionError: sum")
    assert execute("def f(:").detail.startswith("SyntaxError")


ATTEMPTS = {
    "read the home folder": "import os; os.listdir(HOME)",
    "read a file of the user": "open(SECRET).read()",
    "read it by its descriptor's path": "import os; open(f'/proc/self/fd/{os.open(SECRET, os.O_PATH)}').read()",
    "read it through a link": "import os; os.symlink(SECRET, '/tmp/link'); open('/tmp/link').read()",
    "read the environment of its parent": "open(f'/proc/{PARENT}/environ').read()",
    "read the memory of its parent": "open(f'/proc/{PARENT}/mem', 'rb').read(1)",
    "write into the temporary folder": "open('/tmp/written', 'w').write('x')",
    "write where it stands": "open('written', 'w').write('x')",
    "overwrite a file of the user": "open(SECRET, 'w')",
    "remove a file of the user": "import os; os.remove(SECRET)",
    "rename a file of the user": "import os; os.rename(SECRET, SECRET + '.gone')",
    "empty a file of the user": "import os; os.truncate(SECRET, 0)",
    "change the rights of a file": "import os; os.chmod(SECRET, 0)",
    "change the times of a file": "import os; os.utime(SECRET, (0, 0))",
    "make a folder": "import os; os.mkdir('/tmp/made-by-a-program')",
    "reach a server": "import socket; socket.create_connection(('127.0.0.1', PORT), 1)",
    "listen": "import socket; socket.socket().bind(('127.0.0.1', 0))",
    "reach a server by a socket of another kind": "import socket; socket.socket(socket.AF_UNIX).connect('/run/x')",
    "fork": "import os; os.fork()",
    "start a thread": "import threading; threading.Thread(target=print).start()",
    "start a program": "import subprocess; subprocess.run(['true'], check=True)",
    "become another program": "import os; os.execv('/bin/true', ['true'])",
    "kill its parent": "import os; os.kill(PARENT, 9)",
    "trace its parent": "import ctypes, os; assert ctypes.CDLL(None).ptrace(16, PARENT, 0, 0) == 0",
    "raise its limits": "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "make a new name space": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "take more memory": "b'x' * (4 << 30)",
    "use io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 8, None) >= 0",
    "make signals arrive at its parent": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, PARENT)",
    "write memory of its parent": "import ctypes, os; assert ctypes.CDLL(None).syscall(311, PARENT, 0, 0, 0, 0, 0) >= 0",
}
"""What a program tries; each must fail with an error inside the program."""
REFUSALS = ("PermissionError", "RuntimeError", "MemoryError", "AssertionError", "ValueError", "OSError")


@can
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_hostile_programs_get_nowhere(attempt: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    before = secret.stat()
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    names = f"HOME, SECRET, PORT, PARENT = {str(Path.home())!r}, {str(secret)!r}, {port}, {os.getpid()}\n"
    verdict = execute(names + ATTEMPTS[attempt], QUICK)
    server.close()
    assert verdict.outcome == "failed"
    assert verdict.detail.split(":")[0] in REFUSALS
    assert secret.read_text() == "mine"
    assert (secret.stat().st_mode, secret.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert not any(Path(path).exists() for path in ("/tmp/written", "/written", "/tmp/link", "/tmp/made-by-a-program"))


@can
@pytest.mark.parametrize(
    "program", ["while True: pass", "import time\nwhile True: time.sleep(9)", "while True: print('x' * 10**6)"]
)
def test_a_program_without_end_is_stopped_and_nothing_of_it_is_left(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL", 2.0)
    began, before = time.monotonic(), children()
    assert execute(program, QUICK).outcome == "timed out"
    assert time.monotonic() - began < 30
    assert children() == before


def children() -> set[str]:
    """Processes that this one has begun and that have not been waited for; other tests may have some."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@can
@pytest.mark.parametrize(
    "program",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise KeyboardInterrupt",
        "import os; os.write(3, b'{\"passed\": true}'); os._exit(0)",
        "import os, json; os.write(3, json.dumps({'token': '0' * 32, 'passed': True}).encode()); os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "def f(): f()\nf()",
    ],
)
def test_a_program_that_leaves_early_has_not_passed(program: str) -> None:
    assert execute(program, QUICK).outcome == "failed"


@can
@pytest.mark.parametrize("bytes_at_once", [65536, 1])
def test_a_program_that_floods_the_report_is_stopped_at_its_size(bytes_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes must not become this process's memory, nor may it write on until its time is up."""
    kept: list[int] = []
    read = os.read

    def counting(descriptor: int, most: int) -> bytes:
        piece = read(descriptor, most)
        kept.append(len(piece))
        return piece

    monkeypatch.setattr(os, "read", counting)
    before = children()
    verdict = execute(f"import os\nwhile True: os.write(3, b'x' * {bytes_at_once})", Limits(cpu_seconds=2))
    assert verdict.outcome == "failed"
    assert verdict.detail == "stopped: it said more than the 16384 bytes of a report"
    assert sum(kept) == sandbox.REPORT_BYTES + 1
    assert children() == before


@can
def test_a_program_that_closes_its_report_and_goes_on_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL", 2.0)
    assert execute("import os, time\nos.close(3)\nwhile True: time.sleep(9)", QUICK).outcome == "timed out"


def test_where_a_machine_cannot_confine_programs_they_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "unavailable", lambda: "the kernel has no Landlock (Function not implemented)")
    with pytest.raises(SandboxUnavailableError, match="not run on this machine: the kernel has no Landlock"):
        execute("pass")


def test_a_right_that_the_kernel_will_not_take_is_a_reason_not_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "child.py"
    broken.write_text(sandbox.CHILD.read_text().replace("LANDLOCK_RESTRICT = 444,", "LANDLOCK_RESTRICT = 9444,"))
    monkeypatch.setattr(sandbox, "CHILD", broken)
    unavailable.cache_clear()
    try:
        assert "Landlock" in unavailable()
        with pytest.raises(SandboxUnavailableError):
            execute(f"open({str(tmp_path / 'ran')!r}, 'w')")
        assert not (tmp_path / "ran").exists()
    finally:
        unavailable.cache_clear()
