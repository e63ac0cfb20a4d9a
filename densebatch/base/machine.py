"""The machine: its processor and cores, and its GPU as the driver tells of it.

Nothing here imports CUDA or makes a context on the GPU.
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


def _find_gpu() -> tuple[Any, Any] | None:
    """NVIDIA's library and the first GPU; None if either is missing or does not answer."""
    try:
        pynvml: Any = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # no library, no driver or no device
        return None
    return pynvml, device


def make_gpu_meter() -> Callable[[], float] | None:
    """Make a function that tells how busy the first GPU is.

    Returns
    -------
    callable or None
        Gives the share of the last moments that the GPU was busy, 0..1. None if there is no GPU, or
        its driver does not tell.
    """
    found = _find_gpu()
    if found is None:
        return None
    pynvml, device = found

    def measure() -> float:
        return float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu) / 100

    try:
        measure()
    except Exception:  # the driver does not tell it of a part of a GPU, for one
        return None
    return measure


def name_gpu() -> str | None:
    """Name of the first GPU, as its driver has it; None if there is none."""
    found = _find_gpu()
    if found is None:
        return None
    pynvml, device = found
    with suppress(Exception):
        name = pynvml.nvmlDeviceGetName(device)  # older libraries give bytes
        return name.decode() if isinstance(name, bytes) else str(name)
    return None


def count_cores() -> int:
    """Processors that this process may use; batch systems limit them, which only Linux tells."""
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
