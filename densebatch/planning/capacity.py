"""Memory, disk and time: what a run needs, what there is, and what a task took."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import psutil

from densebatch.base.errors import CapacityError, InputError
from densebatch.base.machine import count_cores
from densebatch.cells.ngff import SHARD_PX
from densebatch.slides.slide import decoded_bytes
from densebatch.tracing.tile import halo_for_travel
from densebatch.workers.cluster import KEPT_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings

_TORCH_MB = 420  # interpreter, torch and weights, measured
_MAX_WORKERS = 16
_MEMORY_SHARE = 0.7  # of what is free, for workers that nobody asked for


@dataclass(frozen=True)
class Estimate:
    """What a run will need, in MB (10^6 bytes), and the task that needs most memory."""

    worker_mb: int
    worst_task: str
    disk_mb: int


def estimate(plan: Plan, tile: int, lanes: int = 1) -> Estimate:
    """Memory of the largest task and disk of work folder and output, upper bounds.

    Parameters
    ----------
    plan
        The run.
    tile
        Side of a tracing tile in pixels.
    lanes
        Patches that a worker evaluates at once.
    """
    height, width = plan.shape
    window = trace_window_px(plan, tile)
    group = min(plan.groups.step_y, plan.network_shape[0]) * min(
        plan.groups.step_x, plan.network_shape[1]
    )
    shard = min(height, SHARD_PX) * min(width, SHARD_PX)
    n_inputs = len(plan.membrane) + (plan.nuclei is not None)
    patches = lanes * patch_bytes(plan)
    kept = min(patches, KEPT_BYTES)
    item = np.dtype(plan.slide.dtype).itemsize
    seen = [math.ceil(step / plan.rescale) for step in (plan.groups.step_y, plan.groups.step_x)]
    # a PNG is one chunk, and not let go
    held = decoded_bytes(plan.slide, 0, 0) if plan.slide.kind == "png" else 0
    tasks = {
        f"predict a group of {group} px": (
            group * (4 * (n_inputs + 4) + 6)
            + patches
            + math.prod(seen) * (item + 4)
            + decoded_bytes(plan.slide, *seen)
        ),
        f"trace a window of {window} px": window * 48 + kept + held,
        f"number a shard of {shard} px": (
            shard * (4 * 4 + 2 * item) + decoded_bytes(plan.slide, SHARD_PX, SHARD_PX)
        ),
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


def trace_window_px(plan: Plan, tile: int) -> int:
    """Pixels of the largest window that a tile of that size is traced in, halo included."""
    side = tile + 2 * halo_for_travel(plan.travel_px)
    return min(plan.shape[0], side) * min(plan.shape[1], side)


def patch_bytes(plan: Plan) -> int:
    """Of a patch's activations: about 20 of the first width are alive at once."""
    return plan.lattice.patch_area * plan.model.widths[1] * 4 * 20


def count_lanes(plan: Plan, settings: SegmentSettings, workers: int) -> int:
    """Patches that each of so many workers evaluates at once: one per core, as memory allows."""
    if settings.is_remote:
        return 1  # a remote worker's cores are its scheduler's to share out, by tasks
    workers = max(1, workers)
    share = psutil.virtual_memory().available * _MEMORY_SHARE / workers
    spare = share - 1e6 * estimate(plan, settings.tile).worker_mb
    return max(1, min(count_cores() // workers, 1 + int(spare // patch_bytes(plan))))


def choose_workers(settings: SegmentSettings, plan: Plan) -> int:
    """Worker processes: as asked for; else one per core, as memory allows, for enough tasks."""
    if settings.is_remote:
        return 0
    if settings.workers is not None:
        return settings.workers
    needed = estimate(plan, settings.tile).worker_mb
    by_memory = int(psutil.virtual_memory().available // 10**6 * _MEMORY_SHARE / needed)
    by_tasks = len(plan.groups)
    return max(1, min(count_cores(), by_memory, by_tasks, _MAX_WORKERS))


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
