"""Durable bytes: a file or a folder is whole under its final name, whatever moment the machine stops.

Every byte that a run must not lose goes through here. A folder is staged as `.tmp-<name>`, its manifest (name, bytes, SHA-256) is
written last, and it appears by one rename. What the bytes mean is for the callers. POSIX only: folders are synced too.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from truing.runs.canonical import to_json

MANIFEST = "manifest.json"
STAGING = ".tmp-"
MANIFEST_LIMIT = 4 << 20
BLOCK = 1 << 16

REMEDIES: Mapping[int, str] = {
    errno.ENOSPC: "the disk is full: free some space, or choose a run folder on another disk",
    errno.EDQUOT: "your disk quota is used up: free some space, or choose a run folder on another disk",
    errno.EROFS: "the file system is read-only: choose another run folder",
    errno.EACCES: "permission is missing: choose another run folder, or have its rights changed",
    errno.EPERM: "permission is missing: choose another run folder, or have its rights changed",
    errno.EIO: "the disk reports errors: choose a run folder on another disk",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another run folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENOLCK: "this file system keeps no locks: choose a run folder on a local disk",
    errno.EOPNOTSUPP: "this file system keeps no locks: choose a run folder on a local disk",
}

# A checkpoint with one of these is damaged and the one before it is taken; any other error says nothing about the checkpoint.
DAMAGE: Mapping[int, str] = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is missing",
    errno.ELOOP: "is a link",
    errno.EIO: "is unreadable",
}


class StorageError(ValueError):
    """The disk refused: the text names the path, the free bytes and the remedy."""


class BrokenFolderError(ValueError):
    """A folder does not match its manifest: the text names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a folder. Example: `Entry(name="state.json", size=2, sha256="44136fa3...")`."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of a folder as they were written, in that order."""

    entries: tuple[Entry, ...]

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise BrokenFolderError(f"{MANIFEST} does not list {name}")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what a user can act on into a StorageError; anything else propagates as it is."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise StorageError(f"{path}: {error.strerror}; {_free(path)} bytes free; {remedy}") from error


def _free(path: Path) -> str:
    for place in (path, *path.parents):
        with suppress(OSError):
            return str(shutil.disk_usage(place).free)
    return "unknown"


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, each synced into its own parent."""
    with storage_errors(path):
        if path.is_dir():
            return
        make_folder(path.parent)
        with suppress(FileExistsError):
            os.mkdir(path)
        _sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replaces a file as a whole: a reader sees the old bytes or the new ones, never a mixture."""
    with staged(path) as put:
        put(data)


@contextmanager
def staged(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A file that is written piece by piece and appears under its name once the block ends well; else nothing of it stays."""
    place = path.with_name(STAGING + path.name)
    with storage_errors(path):
        try:
            fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
            try:
                yield lambda data: _write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(place, path)
        except Exception:
            with suppress(OSError):
                os.unlink(place)
            raise
        _sync_folder(path.parent)


def write_folder(final: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> None:
    """Writes a folder that appears under its name only when it is whole; pairs may come from a generator, one in memory at a time.

    A whole folder of that name is never replaced (ValueError); a broken one is.
    """
    staged = final.with_name(STAGING + final.name)
    with storage_errors(final):
        make_folder(final.parent)
        if verify_folder(final) is not None:
            raise ValueError(f"{final}: is already written; remove it first to write it anew")
        remove(staged)
        os.mkdir(staged)
        try:
            entries = [_write_entry(staged, name, data) for name, data in (files.items() if isinstance(files, Mapping) else files)]
            _write_synced(staged / MANIFEST, _manifest_bytes(entries))
            _sync_folder(staged)
            discard(final)
            os.rename(staged, final)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        _sync_folder(final.parent)


def adopt_folder(scratch: Path, final: Path) -> None:
    """Makes a folder of plain files, which another library wrote beside `final`, whole and durable under that name.

    Nothing is read into memory. As with `write_folder`, a whole folder of that name is never replaced.
    """
    with storage_errors(final):
        if verify_folder(final) is not None:
            raise ValueError(f"{final}: is already written; remove it first to write it anew")
        entries = [_sync_entry(path) for path in sorted(scratch.iterdir())]
        _write_synced(scratch / MANIFEST, _manifest_bytes(entries))
        _sync_folder(scratch)
        discard(final)
        os.rename(scratch, final)
        _sync_folder(final.parent)


def _sync_entry(path: Path) -> Entry:
    assert path.is_file(), f"a folder inside a folder of files: {path.name}"
    assert _is_plain(path.name), f"not a name for a file in a folder: {path.name!r}"
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return Entry(name=path.name, size=os.fstat(file.fileno()).st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def discard(path: Path) -> None:
    """Removes a folder; it loses its name before its first file, so no half of it is ever found under that name."""
    if not os.path.lexists(path):
        return
    doomed = path.with_name(f"{STAGING}old-{path.name}")
    with storage_errors(path):
        remove(doomed)
        os.rename(path, doomed)
        _sync_folder(path.parent)
        remove(doomed)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all it holds; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_entry(folder: Path, name: str, data: bytes) -> Entry:
    assert _is_plain(name), f"not a name for a file in a folder: {name!r}"
    assert name != MANIFEST, "the manifest is written here alone"
    _write_synced(folder / name, data)
    return Entry(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _manifest_bytes(entries: Iterable[Entry]) -> bytes:
    return to_json({"version": 1, "files": [{"name": e.name, "bytes": e.size, "sha256": e.sha256} for e in entries]})


def _is_plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and "/" not in name and "\0" not in name


def _write_synced(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def verify_folder(folder: Path) -> Manifest | None:
    """The manifest of a folder whose every byte matches it, else None; `inspect_folder` says why."""
    try:
        return inspect_folder(folder)
    except BrokenFolderError:
        return None


def inspect_folder(folder: Path, *, contents: bool = True) -> Manifest:
    """As `verify_folder`, but raises BrokenFolderError with the reason. Without contents only names and sizes are compared."""
    manifest = _read_manifest(folder)
    for entry in manifest.entries:
        with _open_entry(folder, entry) as file:
            if contents:
                _match(entry, hashlib.file_digest(file, "sha256").hexdigest())
    return manifest


def read_entry(folder: Path, entry: Entry) -> bytes:
    """The bytes of one file, checked after they were read: what is returned is what was written."""
    with _open_entry(folder, entry) as file:
        data = file.read()
    _match(entry, hashlib.sha256(data).hexdigest())
    return data


def _match(entry: Entry, sha256: str) -> None:
    if sha256 != entry.sha256:
        raise BrokenFolderError(f"{entry.name} is damaged: its SHA-256 is not the one written down")


@contextmanager
def _open_entry(folder: Path, entry: Entry) -> Iterator[BufferedReader]:
    with _open_plain(folder / entry.name) as file:
        size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise BrokenFolderError(f"{entry.name} has {size} bytes, {entry.size} were written")
        yield file


@contextmanager
def _open_plain(path: Path) -> Iterator[BufferedReader]:
    """Opens a regular file, never a link, a folder or a pipe (which would block for ever)."""
    with storage_errors(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise BrokenFolderError(f"{path.name} is no plain file")
                with os.fdopen(fd, "rb", closefd=False) as file:
                    yield file
            finally:
                os.close(fd)
        except OSError as error:
            damage = DAMAGE.get(error.errno or 0)
            if damage is None:
                raise
            raise BrokenFolderError(f"{path.name} {damage}") from error


def _read_manifest(folder: Path) -> Manifest:
    with _open_plain(folder / MANIFEST) as file:
        text = file.read(MANIFEST_LIMIT + 1)
    if len(text) > MANIFEST_LIMIT:
        raise BrokenFolderError(f"{MANIFEST} is larger than {MANIFEST_LIMIT} bytes")
    try:
        raw = json.loads(text)
        if raw.keys() != {"version", "files"} or raw["version"] != 1:
            raise BrokenFolderError(f"{MANIFEST} is of an unknown version")
        entries = tuple(_entry(item) for item in raw["files"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenFolderError(f"{MANIFEST} is damaged: {error}") from error
    if _manifest_bytes(entries) != text:
        raise BrokenFolderError(f"{MANIFEST} is damaged: it is not as it was written")
    return Manifest(entries=entries)


def _entry(item: dict[str, object]) -> Entry:
    name, size, sha256 = item["name"], item["bytes"], item["sha256"]
    if not (isinstance(name, str) and _is_plain(name) and type(size) is int and isinstance(sha256, str)):
        raise BrokenFolderError(f"not an entry: {item}")
    return Entry(name=name, size=size, sha256=sha256)


class AppendLog:
    """A file of lines that grows by whole lines; what a crash left behind the last line break is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
            _sync_folder(path.parent)
            self.offset = self._whole_lines()
            os.ftruncate(self._fd, self.offset)

    def _whole_lines(self) -> int:
        end = os.fstat(self._fd).st_size
        while end:
            start = max(0, end - BLOCK)
            newline = os.pread(self._fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def append(self, line: bytes) -> None:
        """Adds one line; when the disk refuses, the part that went through is taken back."""
        assert line.endswith(b"\n"), "a line ends with a line break"
        with storage_errors(self.path):
            try:
                _write_all(self._fd, line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, self.offset)
                raise
        self.offset += len(line)

    def sync(self) -> None:
        """Returns once every line so far outlives a power cut."""
        with storage_errors(self.path):
            os.fsync(self._fd)

    def cut(self, offset: int) -> int:
        """Drops everything from `offset` on; returns how many bytes were missing to reach it (0 in a healthy run)."""
        missing = max(0, offset - self.offset)
        with storage_errors(self.path):
            os.ftruncate(self._fd, offset - missing)
            os.fsync(self._fd)
        self.offset = offset - missing
        return missing

    def close(self) -> None:
        os.close(self._fd)
