"""Memory that a process frees and needs again at once is kept by it.

A network's evaluation takes and gives back tens of megabytes for every patch. Dask lets workers
return all that is free to the system (`MALLOC_TRIM_THRESHOLD_=65536`), and each page is then handed
out, zeroed and mapped anew: 35 000 page faults for a patch of 224 px, 40 % of the time that the
half-width network takes.
"""

from __future__ import annotations

import ctypes

# of glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = 32 * 2**20  # one allocation; the most that glibc takes
_KEPT = 256 * 2**20  # by the main thread
KEPT_BYTES = 64 * 2**20  # by every other thread: what glibc's heap for one holds


def keep_freed_memory() -> None:
    """Let this process keep what it has freed, where its allocator is glibc's.

    That is up to `KEPT_BYTES` for each thread that evaluates patches.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another allocator, or no such library
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
