"""Memory, disk and time: what a run needs, what there is, and what a task took."""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from densebatch.dynamics import halo_for_travel
from densebatch.errors import CapacityError, InputError

if TYPE_CHECKING:
    from densebatch.config import SegmentSettings
    from densebatch.plan import Plan

_TORCH_MB = 420  # interpreter, torch and weights, measured
_MAX_WORKERS = 16
_MEMORY_SHARE = 0.7  # of what is free, for workers that nobody asked for


@dataclass(frozen=True)
class Estimate:
    """What a run will need, in MB (10^6 bytes), and the task that needs most memory."""

    worker_mb: int
    worst_task: str
    disk_mb: int


def estimate(plan: Plan, tile: int) -> Estimate:
    """Memory of the largest task and disk of work folder and output, upper bounds.

    Parameters
    ----------
    plan
        The run.
    tile
        Side of a tracing tile in pixels.
    """
    height, width = plan.shape
    halo = halo_for_travel(plan.travel_px)
    window = min(height, tile + 2 * halo) * min(width, tile + 2 * halo)
    group = min(plan.groups.step_y, plan.network_shape[0]) * min(
        plan.groups.step_x, plan.network_shape[1]
    )
    shard = min(height, 4096) * min(width, 4096)
    n_inputs = len(plan.membrane) + (plan.nuclei is not None)
    # widths per pixel of a patch: about 20 activations of the first width are alive at once
    patch = plan.lattice.patch_area * plan.model.widths[1] * 4 * 20
    item = np.dtype(plan.slide.dtype).itemsize
    tasks = {
        f"predict a group of {group} px": group * (4 * (n_inputs + 4) + 6) + patch,
        f"trace a window of {window} px": window * 48,
        f"number a shard of {shard} px": shard * (4 * 4 + 2 * item),
    }
    worst = max(tasks, key=lambda name: tasks[name])
    flows = plan.network_shape[0] * plan.network_shape[1] * 6
    labels = height * width * 4 // 8
    image = height * width * item * len(plan.slide.channels) * 4 // 3 if plan.copy_image else 0
    return Estimate(
        worker_mb=_TORCH_MB + math.ceil(tasks[worst] / 1e6),
        worst_task=worst,
        disk_mb=math.ceil((flows + 2 * labels + image) / 1e6),
    )


def choose_workers(settings: SegmentSettings, plan: Plan) -> int:
    """Worker processes: as asked for; else one per core, as memory allows, for enough tasks."""
    if settings.scheduler_address or settings.scheduler_file:
        return 0
    if settings.workers is not None:
        return settings.workers
    needed = estimate(plan, settings.tile).worker_mb
    by_memory = int(psutil.virtual_memory().available // 10**6 * _MEMORY_SHARE / needed)
    by_tasks = len(plan.groups)
    return max(1, min(os.cpu_count() or 1, by_memory, by_tasks, _MAX_WORKERS))


def check_capacity(needs: Estimate, workers: int, folder: Path, *, remote: bool = False) -> None:
    """Refuse a run that cannot fit before it starts.

    Parameters
    ----------
    needs
        Of the run.
    workers
        Processes on this machine; 0 for this one.
    folder
        Where the output goes; need not exist.
    remote
        The work is done elsewhere, so this machine's memory says nothing.

    Raises
    ------
    CapacityError
        Naming the worst offender, what it needs and what there is.
    """
    memory_mb = psutil.virtual_memory().total // 10**6
    wanted = needs.worker_mb * max(1, workers)
    if wanted > memory_mb and not remote:
        raise CapacityError(
            f"{max(1, workers)} workers need {wanted} MB of memory (to {needs.worst_task}) and "
            f"this machine has {memory_mb} MB: choose a smaller --tile or fewer --workers"
        )
    try:
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free_mb = shutil.disk_usage(existing).free // 10**6
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used as output folder ({error.strerror}); "
            "accepted is a folder that can be created or written"
        ) from error
    if needs.disk_mb > free_mb:
        raise CapacityError(
            f"{folder}: the run needs about {needs.disk_mb} MB of disk and {free_mb} MB are free"
        )


def measure_peak_mb() -> int:
    """Largest resident memory of this process so far, in MB; the current one if nobody knows."""
    # not getrusage: a new process inherits the peak of the one that started it
    try:
        status = Path("/proc/self/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 // 10**6
    except (OSError, StopIteration, ValueError, IndexError):
        return int(psutil.Process().memory_info().rss // 10**6)


class Meter:
    """Started at the beginning of a task; tells at its end what it took, for its record."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def read(self) -> dict[str, float]:
        """Seconds since the start, and the peak memory of the process in MB."""
        return {
            "seconds": round(time.monotonic() - self._start, 4),
            "peak_rss_mb": measure_peak_mb(),
        }
