"""The running process: its memory, its bytes read and written, whether it uses the GPU."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator


def has_gpu_context() -> bool:
    """Whether this process has a context on a GPU, which takes seconds and memory to make."""
    torch: Any = sys.modules.get("torch")  # without PyTorch nobody has made one
    return torch is not None and bool(torch.cuda.is_initialized())


def measure_peak_mb() -> int:
    """Largest resident memory of this process so far, in MB (10^6 bytes).

    Where the system does not tell, it is the memory that is resident now.
    """
    # `getrusage` would not do: a new process inherits the peak of the one that started it.
    try:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 // 10**6
    except (OSError, StopIteration, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss // 10**6)


def count_io() -> tuple[int, int] | None:
    """Bytes that this process has read and written so far; None where the system does not tell.

    System calls are counted, whether their bytes come from a disk or from its cache. Files that are
    mapped into memory are not.
    """
    try:
        counters = psutil.Process().io_counters()
        return int(counters.read_chars), int(counters.write_chars)
    except (AttributeError, OSError, psutil.Error):  # only Linux counts calls
        return None


def may_start_processes() -> bool:
    """Whether this process may start others; a daemon of multiprocessing may not.

    Workers of `multiprocessing.Pool` and of Dask are daemons.
    """
    return not multiprocessing.current_process().daemon


def name_process() -> str:
    """Name of this process that no other process of a run has, on whichever machine."""
    return f"{platform.node()}:{os.getpid()}"


class Traffic:
    """Counts what this process asks of stores and servers elsewhere.

    Attributes
    ----------
    requests : answers that were asked for; those that a library repeats by itself count once
    n_bytes : of the answers
    """

    def __init__(self) -> None:
        self.requests = self.n_bytes = 0
        self._lock = threading.Lock()

    def add(self, requests: int = 0, n_bytes: int = 0) -> None:
        """Count some more, in any thread."""
        with self._lock:
            self.requests += requests
            self.n_bytes += n_bytes


traffic = Traffic()
"""Of this process."""


class Meter:
    """Measures a task, from the meter's making to its reading, for the task's record."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._io = count_io()
        self._remote = traffic.n_bytes, traffic.requests
        self._parts: dict[str, float] = {}

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time that the context lasts to the part of that name."""
        start = time.monotonic()
        yield
        self._parts[part] = self._parts.get(part, 0.0) + time.monotonic() - start

    def read(self) -> dict[str, Any]:
        """What the task has taken so far.

        Returns
        -------
        dict
            `seconds` in all and by name in `parts`; `bytes_read` and `bytes_written`, None where
            the system does not tell; `remote_bytes_read` and `remote_requests`, of stores and
            servers elsewhere; `process`, and `peak_rss_mb` of it since it began.
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
            "remote_bytes_read": traffic.n_bytes - self._remote[0],
            "remote_requests": traffic.requests - self._remote[1],
        }
