"""Gives back to the system what many connections at once have left behind in the heap."""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _find_trim() -> Callable[[int], object] | None:
    """Find glibc's `malloc_trim`; other C libraries have none and, some of them, no need."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes = [ctypes.c_size_t]
    trim.restype = ctypes.c_int
    return trim


_TRIM = _find_trim()


def release_unused() -> None:
    """Return the free pages between the blocks of the heap to the system.

    A TLS session needs 50 KiB and more in blocks of all sizes, so after a thousand of them most pages are free, and
    the allocator keeps them. Takes up to some 30 ms; the interpreter is not held meanwhile, so call it in a thread.
    """
    if _TRIM is not None:
        _TRIM(0)
