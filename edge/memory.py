"""How the heap behaves: what is kept for the next read, and what is given back after many connections at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_FREE = 16 << 20  # octets at the top of the heap that stay ours
_LARGE = 4 << 20  # blocks from this size on get pages of their own


def _find_trim() -> Callable[[int], object] | None:
    """Find glibc's `malloc_trim`; other C libraries have none and, some of them, no need."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes = [ctypes.c_size_t]
    trim.restype = ctypes.c_int
    return trim


def keep_buffers() -> None:
    """Have buffers of the size of a read come from pages that are there, instead of faulting in new ones each time.

    A relayed file takes two blocks of 256 KiB for each read, which glibc by itself takes from the system and gives
    back each time: a fifth of the work. Memory that stays free this way is at most 16 MiB; other C libraries have no
    `mallopt`, and are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_FREE)


_TRIM = _find_trim()


def release_unused() -> None:
    """Return the free pages between the blocks of the heap to the system.

    A TLS session needs 50 KiB and more in blocks of all sizes, so after a thousand of them most pages are free, and
    the allocator keeps them. Takes up to some 30 ms; the interpreter is not held meanwhile, so call it in a thread.
    """
    if _TRIM is not None:
        _TRIM(0)
