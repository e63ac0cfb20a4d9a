"""The machine: processor, cores and memory that this process may use, and the GPU its driver names.

A container may give less than the machine has; its limits are those of Linux's control groups, of
either version. Nothing here imports CUDA or makes a context on the GPU.
"""

from __future__ import annotations

import atexit
import importlib
import math
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Memory:
    """Memory that this process may use, in bytes.

    Attributes
    ----------
    total : of the machine, or the limit of the container if that is smaller
    available : of it, what can be taken now without swapping
    """

    total: int
    available: int


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
    """Processors that this process may use: batch systems and containers limit them.

    A share of a processor counts as a whole one. Only Linux tells of limits.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = []
    for group in _list_cgroups("cpu"):
        with suppress(OSError, ValueError, IndexError):  # no limit, or another version's file
            quota, period = (group / "cpu.max").read_text().split()
            quotas.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
            quotas.append(int(quota) / int(period))
    return max(1, min([cores, *(math.ceil(share) for share in quotas if share > 0)]))


def measure_memory() -> Memory:
    """Memory of the machine or of the container that this process is in, whichever is smaller."""
    import psutil  # not at the top, because every command imports this module

    host = psutil.virtual_memory()
    total, available = int(host.total), int(host.available)
    for group in _list_cgroups("memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with suppress(OSError, ValueError):  # no limit, or another version's file
                limit = int((group / limit_name).read_text())
                used = int((group / used_name).read_text()) - _count_droppable(group)
                # Without a limit, version 1 states a number that is beyond every machine.
                total, available = min(total, limit), min(available, max(0, limit - used))
    return Memory(total, available)


def _count_droppable(group: Path) -> int:
    """Bytes of a group's files that the system drops from memory when somebody needs it."""
    with suppress(OSError, ValueError):
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        values = {name: int(value) for name, value in lines}
        return values.get("total_inactive_file", values.get("inactive_file", 0))
    return 0


def _list_cgroups(controller: str) -> Iterator[Path]:
    """Folders of the control groups that limit this process, from its own up to the root.

    Inside of a container the path that the system states may be that outside, which is not there;
    its ancestors, of which the root is one, are.
    """
    try:
        lines = [line.split(":", 2) for line in _OWN_CGROUPS.read_text().splitlines()]
        for _, controllers, path in lines:
            if controllers and controller not in controllers.split(","):
                continue
            # Version 2 has one tree and names no controller.
            root = _CGROUPS / controller if controllers else _CGROUPS
            own = root / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))
    except (OSError, ValueError):  # not Linux
        return


def choose_compile_cache(package: Path) -> None:
    """Give compiled functions a folder where none of the usual ones can be written.

    numba keeps what it compiles beside the source, else in the user's cache folder, and fails if it
    can write neither, as in a container that is read-only and whose user has no home. The folder is
    temporary and this process's own, because code is loaded from it; worker processes that this
    process starts inherit it.

    Parameters
    ----------
    package
        Folder of the source.
    """
    folders = [package / "__pycache__"]
    if named := os.environ.get("NUMBA_CACHE_DIR"):
        folders.append(Path(named))
    with suppress(RuntimeError):  # an unknown user has no home, if no variable tells it
        home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        folders.append(Path(home) / "numba")
    if any(map(_can_hold_files, folders)):
        return
    try:
        folder = tempfile.mkdtemp(prefix="densebatch-compiled-")
    except OSError:  # numba will say what it lacks
        return
    os.environ["NUMBA_CACHE_DIR"] = folder
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a process that was forked from this one has it too
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)


def _can_hold_files(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if need be, as numba would."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What the system says of permissions is not true of every file system.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


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
