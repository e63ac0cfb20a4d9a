"""The GPU as its driver tells of it: name, and how busy it is; and whether this process uses it.

Imports nothing of CUDA.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
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


def is_in_use() -> bool:
    """Whether this process has a context on a GPU, which takes seconds and memory to get."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())
