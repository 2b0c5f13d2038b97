"""Files and folders are whole under their final name: killed at every call, with every errno, damaged in every bit."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truing.runs import canonical, durable
from truing.runs.durable import AppendLog, BrokenFolderError, StorageError, inspect_folder, verify_folder, write_file, write_folder
from truing.runs.lock import RunBusyError, RunLock, owner_of

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "ftruncate")
OLD, NEW = {"a.bin": b"old" * 50}, {"a.bin": b"new" * 60, "b.bin": b"", "c.json": b"{}"}
SRC = str(Path(__file__).parents[1] / "src")


def in_child(work: Callable[[], None]) -> int:
    """Runs work in a forked child; its exit code, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except SystemExit as stop:
            os._exit(int(str(stop.code)))
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_call(k: int, act: Callable[..., None], replace: Callable[[str, Any], None]) -> Callable[[], int]:
    """Counts the calls of os that change the disk; before the k-th, `act(real, args)` happens. Returns the count so far."""
    count = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == k:
                act(real, args)
            return real(*args, **more)

        return call

    for name in CALLS:
        replace(name, wrapped(getattr(os, name)))
    return lambda: count


def kill_at(k: int) -> None:
    """In a child: SIGKILL before the k-th call; a write goes half way first, as torn writes do."""
    write = os.write

    def die(real: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if real is write:
            real(args[0], args[1][: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    at_call(k, die, lambda name, call: setattr(os, name, call))


def every_kill_point(work: Callable[[], None], prepare: Callable[[], None], check: Callable[[int], None]) -> int:
    """Kills work at its first call, its second, and so on, until it comes through; returns how many points there were."""
    for k in range(1, 1000):
        prepare()

        def child(k: int = k) -> None:
            kill_at(k)
            work()

        code = in_child(child)
        assert code in (0, -signal.SIGKILL)
        check(k)
        if code == 0:
            return k - 1
    raise AssertionError("it never comes through")


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    write_file(tmp_path / "x", b"one")
    write_file(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["x"]


def test_the_manifest_of_a_folder_by_hand(tmp_path: Path) -> None:
    write_folder(tmp_path / "deep" / "f", {"a": b"abc"})
    assert json.loads((tmp_path / "deep" / "f" / "manifest.json").read_text()) == {
        "version": 1,
        "files": [{"name": "a", "bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}],
    }


def test_synced_before_named_and_manifest_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut can undo is everything not yet synced: the order of the calls is the guarantee."""
    trace: list[str] = []
    paths: dict[int, str] = {}
    real_open, real_write, real_fsync, real_rename = os.open, os.write, os.fsync, os.rename

    def opened(path: Any, *args: Any, **more: Any) -> int:
        fd = real_open(path, *args, **more)
        paths[fd] = Path(path).name
        return fd

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "write", lambda fd, data: (trace.append(f"write {paths[fd]}"), real_write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (trace.append(f"fsync {paths[fd]}"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (trace.append(f"rename {a.name} {b.name}"), real_rename(a, b))[1])
    write_folder(tmp_path / "f", {"a": b"1", "b": b"2"})
    assert trace == [
        *("write a", "fsync a", "write b", "fsync b", "write manifest.json", "fsync manifest.json"),
        *("fsync .tmp-f", "rename .tmp-f f", f"fsync {tmp_path.name}"),
    ]


def test_killed_at_every_call_a_file_is_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def check(k: int) -> None:
        assert path.read_bytes() in (b"old", b"new"), k

    points = every_kill_point(lambda: write_file(path, b"new"), lambda: write_file(path, b"old"), check)
    assert points == 6  # open write fsync rename, open fsync
    assert path.read_bytes() == b"new"


def test_killed_at_every_call_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    final = tmp_path / "f"

    def check(k: int) -> None:
        assert not final.exists() or verify_folder(final) is not None, k

    def prepare() -> None:
        durable.remove(final)

    assert every_kill_point(lambda: write_folder(final, NEW), prepare, check) >= 14
    assert (final / "a.bin").read_bytes() == NEW["a.bin"]
    assert os.listdir(tmp_path) == ["f"], "what the killed ones had staged is gone"


def test_a_broken_folder_is_replaced_and_a_whole_one_is_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", OLD)
    with pytest.raises(ValueError, match="already written"):
        write_folder(tmp_path / "f", NEW)
    (tmp_path / "f" / "a.bin").write_bytes(b"torn")
    write_folder(tmp_path / "f", NEW)
    assert verify_folder(tmp_path / "f") is not None
    assert os.listdir(tmp_path) == ["f"]


def test_pairs_from_a_generator_are_written_one_by_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", ((name, name.encode()) for name in ("a", "b")))
    assert [(e.name, e.size) for e in inspect_folder(tmp_path / "f").entries] == [("a", 1), ("b", 1)]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_refusing_disk_leaves_the_old_and_says_what_to_do(number: int, tmp_path: Path) -> None:
    for k in range(1, 100):
        final = tmp_path / f"f{k}"

        def refuse(real: Callable[..., Any], args: tuple[Any, ...]) -> None:
            raise OSError(number, os.strerror(number), str(args[0]))

        said = ""
        with pytest.MonkeyPatch.context() as patch:
            count = at_call(k, refuse, lambda name, call, patch=patch: patch.setattr(os, name, call))
            try:
                write_folder(final, NEW)
            except StorageError as error:
                said = str(error)
        if said:
            assert f"bytes free; {durable.REMEDIES[number]}" in said
            assert said.startswith(str(tmp_path))
        else:
            assert count() < k or k == 1, "only the look for an older folder of that name may go wrong without a word"
        assert not final.exists() or verify_folder(final) is not None
        if count() < k:
            return
    raise AssertionError("it never comes through")


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from truing.runs.durable import AppendLog, StorageError, verify_folder, write_folder, write_file
root = Path(sys.argv[1])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(root)]).returncode:
    sys.exit(77)
write_folder(root / "step-1", {"a": bytes(100_000)})
log = AppendLog(root / "log")
log.append(b"one\\n")
try:
    write_folder(root / "step-2", {"a": bytes(50_000), "b": bytes(300_000)})
except StorageError as error:
    print(error)
assert verify_folder(root / "step-1")
assert sorted(p.name for p in root.iterdir()) == ["log", "step-1"], list(root.iterdir())
try:
    log.append(bytes(300_000) + b"\\n")
except StorageError as error:
    print(error)
log.append(b"two\\n")
assert (root / "log").read_bytes() == b"one\\ntwo\\n"
try:
    write_file(root / "log", bytes(300_000))
except StorageError as error:
    print(error)
assert (root / "log").read_bytes() == b"one\\ntwo\\n"
assert sorted(p.name for p in root.iterdir()) == ["log", "step-1"]
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to mount a small disk")
def test_a_really_full_disk(tmp_path: Path) -> None:
    command = ["unshare", "-Urm", sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(
        command, env={"PYTHONPATH": SRC, "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    if result.returncode == 77 or "unshare:" in result.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all("No space left" in line and "bytes free; the disk is full: free some space" in line for line in lines)


def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    def refused() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(StorageError, match="permission is missing"):
            write_folder(tmp_path / "f", NEW)
        with pytest.raises(StorageError, match="permission is missing"):
            durable.make_folder(tmp_path / "deep" / "f")

    assert in_child(refused) == 0
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


STRACED = """
import os, sys
from pathlib import Path
from truing.runs.durable import write_folder
os.fsync(os.open("/", os.O_RDONLY))
os.mkdir(sys.argv[1] + "/begin")
write_folder(Path(sys.argv[1]) / "new", {"a": b"x" * 9000, "b": b"y"})
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_killed_by_the_kernel_at_every_system_call(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": SRC, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}

    def straced(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
        folder.mkdir()
        command = ["strace", "-f", "-o", str(tmp_path / "trace"), *options, sys.executable, "-c", STRACED, str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    first = straced(tmp_path / "0", "-e", "trace=openat,mkdir,write,fsync,rename")
    if first.returncode:
        pytest.skip("this machine lets nobody trace")
    calls = [line.split(None, 1)[1].split("(")[0] for line in (tmp_path / "trace").read_text().splitlines() if "(" in line]
    begin = next(i for i, line in enumerate((tmp_path / "trace").read_text().splitlines()) if "/begin" in line)
    points = [(call, calls[: i + 1].count(call)) for i, call in enumerate(calls) if i > begin]
    assert {"write", "fsync", "rename", "mkdir"} <= {call for call, _ in points}
    for number, (call, nth) in enumerate(points, 1):
        folder = tmp_path / str(number)
        straced(folder, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={nth}")
        assert (folder / "begin").exists(), f"killed before the save at {call} {nth}"
        assert not (folder / "new").exists() or verify_folder(folder / "new") is not None, (call, nth)


def test_every_bit_of_a_folder_counts(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write_folder(folder, {"a": b"weights", "b": b""})
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert verify_folder(folder) is None, (path.name, bit)
        path.write_bytes(whole)
    assert verify_folder(folder) is not None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "a").unlink(), "a is missing"),
        (lambda f: (f / "a").write_bytes(b"1234567"), "a has 7 bytes, 8 were written"),
        (lambda f: (f / "a").write_bytes(b"12345679"), "a is damaged"),
        (lambda f: ((f / "a").rename(f / "x"), (f / "b").rename(f / "a"), (f / "x").rename(f / "b")), "a is damaged"),
        (lambda f: ((f / "a").unlink(), (f / "a").mkdir()), "a is no plain file"),
        (lambda f: ((f / "a").rename(f / "x"), (f / "a").symlink_to(f / "x")), "a is a link"),
        (lambda f: ((f / "a").unlink(), os.mkfifo(f / "a")), "a is no plain file"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_bytes(b""), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"[" * 100_000), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"[]"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b" " * (5 << 20)), "manifest.json is larger"),
        (lambda f: (f / "manifest.json").write_text('{"version":2,"files":[]}'), "unknown version"),
        (
            lambda f: (f / "manifest.json").write_text('{"version":1,"files":[{"name":"../a","bytes":1,"sha256":""}]}'),
            "not an entry",
        ),
    ],
)
def test_damage_is_named(damage: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "f", {"a": b"12345678", "b": b"87654321"})
    damage(tmp_path / "f")
    with pytest.raises(BrokenFolderError, match=reason):
        inspect_folder(tmp_path / "f")
    assert verify_folder(tmp_path / "f") is None


def test_keys_that_json_would_change_are_refused() -> None:
    with pytest.raises(AssertionError, match="no string: 0"):
        canonical.to_json({"state": [{0: "step"}]})


def test_a_line_is_the_same_bytes_each_time() -> None:
    assert canonical.to_json_line({"b": 0.1, "a": float("nan"), "c": [float("-inf")]}) == b'{"a":"nan","b":0.1,"c":["-inf"]}\n'


def test_a_log_loses_its_torn_line_and_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n" + b"x" * 200_000)
    log = AppendLog(path)
    log.append(b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert log.cut(4) == 0
    log.append(b"2\n")
    assert path.read_bytes() == b"one\n2\n"
    assert log.cut(10) == 4, "four of the ten bytes were never there"
    assert path.read_bytes() == b"one\n2\n"
    log.close()


def contend(folder: Path, racers: int) -> list[str]:
    """All at once for one lock; what each said: `won <takeover>` and then killed without release, or `busy <pid>`."""
    ready, go = os.pipe()
    answers, answer = os.pipe()
    children = []
    for _ in range(racers):
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(ready, 1)
            try:
                lock = RunLock.acquire(folder)
                os.close(os.open(folder / "busy", os.O_CREAT | os.O_EXCL))
                os.write(answer, f"won {lock.previous is not None}\n".encode())
                signal.pause()
            except RunBusyError as busy:
                os.write(answer, f"busy {busy}\n".encode())
            except FileExistsError:
                os.write(answer, b"won beside another\n")
            finally:
                os._exit(0)
        children.append(pid)
    os.close(ready)
    os.close(go)
    said = b""
    while said.count(b"\n") < racers:
        said += os.read(answers, 1 << 16)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    (folder / "busy").unlink()
    os.close(answers)
    os.close(answer)
    return said.decode().splitlines()


def test_twenty_start_at_once_and_one_wins(tmp_path: Path) -> None:
    for attempt in range(12):
        said = contend(tmp_path, 20)
        assert [line for line in said if line.startswith("won")] == [f"won {attempt > 0}"], said
        dead = owner_of(tmp_path)
        assert dead is not None
        assert dead.alive() is False
        busy = [line for line in said if line.startswith("busy")]
        assert len(busy) == 19
        assert all(f"is being written by process {dead.pid} on {dead.host}" in line and f"kill {dead.pid}" in line for line in busy)


def test_a_released_lock_is_taken_without_a_word(tmp_path: Path) -> None:
    RunLock.acquire(tmp_path).release()
    assert owner_of(tmp_path) is None
    lock = RunLock.acquire(tmp_path)
    assert lock.previous is None
    with pytest.raises(RunBusyError, match=f"process {os.getpid()} on"):
        RunLock.acquire(tmp_path)
    lock.release()


def test_a_forked_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def parent() -> None:
        RunLock.acquire(tmp_path)
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(writer, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(parent) == -signal.SIGKILL
    worker = int(os.read(reader, 20))
    try:
        lock = RunLock.acquire(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert lock.previous is not None
    lock.release()


def test_a_removed_folder_is_noticed(tmp_path: Path) -> None:
    lock = RunLock.acquire(tmp_path)
    assert lock.held()
    (tmp_path / "lock").unlink()
    assert not lock.held()
    again = RunLock.acquire(tmp_path)
    assert again.held()
    assert not lock.held()
