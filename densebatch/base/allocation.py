"""Memory that a process frees: returned, or kept where it is needed again at once.

Dask lets workers return all that is free to the system (`MALLOC_TRIM_THRESHOLD_=65536`). But a
network's evaluation takes and gives back tens of megabytes for every patch, and each page is then
handed out, zeroed and mapped anew: 35 000 page faults for a patch of 224 px, 40 % of the time that
the half-width network takes.
"""

from __future__ import annotations

import ctypes

# of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = 32 * 2**20  # one allocation; the most that glibc takes
_KEPT = 256 * 2**20  # by the main thread
_RETURNED = 2**16  # Dask's choice for workers
KEPT_BYTES = 64 * 2**20  # by every other thread: what glibc's heap for one holds


def keep_freed_memory() -> None:
    """Let this process keep what it has freed, where its allocator is glibc's.

    That is up to `KEPT_BYTES` for each thread that evaluates patches.
    """
    _set({_M_MMAP_THRESHOLD: _LARGEST_KEPT, _M_TRIM_THRESHOLD: _KEPT})


def return_freed_memory() -> None:
    """Let this process, and those forked from it, return what they have freed, as Dask asks."""
    _set({_M_TRIM_THRESHOLD: _RETURNED})


def _set(options: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another allocator, or no such library
        return
    for option, value in options.items():
        mallopt(option, value)
