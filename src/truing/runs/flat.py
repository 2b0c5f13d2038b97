"""A file of numbers that is read and written in place: as long as the disk allows, with nothing of it held in memory.

Read by `pread`, not mapped: mapped pages would count as the process's memory, and a shuffled epoch touches them all.
"""

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np

from truing.runs.durable import storage_errors

BLOCK = 1 << 20


class FlatFile:
    """Numbers of one kind. Example: `FlatFile.filled(None, np.dtype("f4"), 3, np.nan).read(0, 3)` is three NaNs.

    Reading at once from several threads is safe.
    """

    def __init__(self, path: Path, fd: int, dtype: np.dtype) -> None:
        self.path = path
        self.dtype = dtype
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    @classmethod
    def open(cls, path: Path, dtype: np.dtype, *, write: bool = False) -> "FlatFile":
        """A file that is there."""
        with storage_errors(path):
            return cls(path, os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_NOFOLLOW), dtype)

    @classmethod
    def filled(cls, path: Path | None, dtype: np.dtype, count: int, value: float) -> "FlatFile":
        """A new file that holds one value so many times, in the place of an old one; without a path it is gone with this object."""
        if path is None:
            with tempfile.TemporaryFile(prefix="truing-") as file:
                made = cls(Path("a temporary file"), os.dup(file.fileno()), dtype)
        else:
            with storage_errors(path):
                made = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666), dtype)
        for start in range(0, count, BLOCK):
            made.write(start, np.full(min(BLOCK, count - start), value, dtype))
        return made

    def __len__(self) -> int:
        return os.fstat(self._fd).st_size // self.dtype.itemsize

    def read(self, start: int, count: int) -> np.ndarray:
        """So many numbers from there on."""
        found = np.empty(count, self.dtype)
        rest, at = found.view(np.uint8).data, start * self.dtype.itemsize
        with storage_errors(self.path):
            while rest:
                got = os.preadv(self._fd, [rest], at)
                assert got, f"{self.path} ends before number {start + count}"
                rest, at = rest[got:], at + got
        return found

    def write(self, start: int, values: np.ndarray) -> None:
        """Puts numbers there; `sync` makes them last."""
        rest, at = np.ascontiguousarray(values, self.dtype).view(np.uint8).data, start * self.dtype.itemsize
        with storage_errors(self.path):
            while rest:
                put = os.pwrite(self._fd, rest, at)
                rest, at = rest[put:], at + put

    def sync(self) -> None:
        """Returns once all that was written outlives a power cut."""
        with storage_errors(self.path):
            os.fsync(self._fd)
