"""Freed memory goes back to the system: with batches of ever new sizes glibc would keep it in pieces too small to use again.

Measured on DPO of a 135M model with adapters: 2.0 GB and growing after 28 micro-batches without, 1.2 GB with, at the same speed.
"""

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc
        return None


def give_back() -> None:
    """Hand what this process has freed back to the system; does nothing where the allocator cannot be asked."""
    trim = _trim()
    if trim is not None:
        trim(0)
