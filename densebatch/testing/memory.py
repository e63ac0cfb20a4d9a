"""Memory that a call takes at its peak."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measure_call(call: Callable[[], object]) -> int:
    """Bytes that this process takes at most while it makes a call; that of others is not counted.

    Two measures miss different things, and the larger counts. What Python and NumPy allocate is
    exact, but not that of other libraries; the growth of the process, which Linux tells, is all of
    it but for what lay free in the process before.
    """
    try:
        _RESET.write_text("5")  # the peak starts anew from what is resident now
        before = psutil.Process().memory_info().rss
    except OSError:
        before = None
    tracemalloc.start()
    try:
        call()
        traced = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if before is None:
        return traced
    status = _STATUS.read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return max(1024 * peak - int(before), traced)
