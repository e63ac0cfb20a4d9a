"""The running process: its memory, its bytes read and written, whether it uses the GPU."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_in_use() -> bool:
    """Whether this process has a context on a GPU, which takes seconds and memory to get."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def measure_peak_mb() -> int:
    """Largest resident memory of this process so far, in MB; the current one if nobody knows."""
    # not getrusage: a new process inherits the peak of the one that started it
    try:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 // 10**6
    except (OSError, StopIteration, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss // 10**6)


def count_io() -> tuple[int, int] | None:
    """Bytes that this process has read and written so far, cached or not; None if nobody knows.

    Counted are the system calls, not the disk; what is mapped into memory is not.
    """
    try:
        counters = psutil.Process().io_counters()
        return int(counters.read_chars), int(counters.write_chars)
    except (AttributeError, OSError, psutil.Error):  # only Linux counts calls
        return None


def name_process() -> str:
    """A name that this process shares with no other of a run, on any machine."""
    return f"{platform.node()}:{os.getpid()}"


class Meter:
    """Started at the beginning of a task; tells at its end what it took, for its record."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._io = count_io()
        self._parts: dict[str, float] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add to the time of a part of the task."""
        start = time.monotonic()
        yield
        self._parts[part] = self._parts.get(part, 0.0) + time.monotonic() - start

    def read(self) -> dict[str, Any]:
        """Seconds since the start, in all and by part; what the process has read and written.

        Returns
        -------
        dict
            `seconds`, `parts` (seconds by name), `peak_rss_mb`, `process`, and since the start
            `bytes_read` and `bytes_written`, which are None if nobody knows.
        """
        before, now = self._io, count_io()
        spent = (now[0] - before[0], now[1] - before[1]) if before and now else (None, None)
        return {
            "seconds": round(time.monotonic() - self._start, 4),
            "parts": {name: round(seconds, 4) for name, seconds in self._parts.items()},
            "peak_rss_mb": measure_peak_mb(),
            "process": name_process(),
            "bytes_read": spent[0],
            "bytes_written": spent[1],
        }
