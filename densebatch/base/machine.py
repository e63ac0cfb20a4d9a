"""The machine: its processor and cores, and its GPU as the driver tells of it.

Imports nothing of CUDA.
"""

from __future__ import annotations

import importlib
import os
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def _find() -> tuple[Any, Any] | None:
    """NVIDIA's library and the first GPU; None if either is missing or does not answer."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # no library, no driver or no device
        return None
    return pynvml, device


def make_gpu_meter() -> Callable[[], float] | None:
    """Share of time that the first GPU is busy, 0..1, if there is one and a library that tells."""
    found = _find()
    if found is None:
        return None
    pynvml, device = found

    def measure() -> float:
        return float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100

    try:
        measure()
    except Exception:  # a part of a GPU, for one, does not tell
        return None
    return measure


def name_gpu() -> str | None:
    """Name of the first GPU, as its driver has it; None if nobody knows of one."""
    found = _find()
    if found is None:
        return None
    pynvml, device = found
    with suppress(Exception):
        name = pynvml.nvmlDeviceGetName(device)  # bytes, of older libraries
        return name.decode() if isinstance(name, bytes) else str(name)
    return None


def count_cores() -> int:
    """Processors that this process may use; only Linux tells a limit, as batch systems set."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@lru_cache(maxsize=1)
def name_processor() -> str:
    """Name of the processor, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
