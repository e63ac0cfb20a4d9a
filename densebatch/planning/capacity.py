"""Memory and disk: what a run needs, what there is, and how many workers that leaves room for."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.errors import CapacityError, InputError
from densebatch.base.machine import count_cores, measure_memory
from densebatch.base.process import may_start_processes
from densebatch.cells.pyramid_spec import SHARD_PX
from densebatch.compartments.growing import reach_of
from densebatch.compartments.names import COMPARTMENTS
from densebatch.models.flow_models import get_kind
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan
from densebatch.segmenters.find import find_segmenter
from densebatch.slides.info import decoded_bytes
from densebatch.tracing.tile import halo_for_travel
from densebatch.workers.local import KEPT_BYTES, check_may_start

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings

PROCESS_MB = 420
"""Interpreter, torch and weights of a worker, measured, with weights of `_COUNTED_WEIGHTS`."""

_COUNTED_WEIGHTS = 2**24  # Cellpose's own networks have 6.6 million

_MAX_WORKERS = 16
_MEMORY_SHARE = 0.7  # of the free memory, for workers whose number the user left open

FLOW_BYTES_PER_PX = 3 * 2  # two flows and a logit, float16
TRACE_BYTES_PER_PX = 48
"""What tracing holds at once for each pixel of a window: flows, positions, ends, counts, labels."""

# Labels as a segmenter gives them (int64), what sorting them takes, and as they are written.
_TILE_BYTES_PER_PX = 8 + 24 + 4
_PAINT_BYTES_PER_PX = 40
"""What painting holds at once for each pixel: ranks, what sorting them takes, labels, claims."""

_JOIN_BYTES_PER_PX = 48
"""What joining holds at once for each pixel: labels of both runs, grown ones, sorting, names."""

_PLANE_BYTES = 4  # float32
_LABEL_BYTES = 4  # uint32
# Labels as read, their ids, the numbered ones, and what of them is being written.
_LABEL_COPIES = 4
_PLACE_BYTES = 4 + 1  # where each cell has its pixels, and their outlines
_PIXEL_COPIES = 2  # a channel as read, and as measured or copied
_LABEL_COMPRESSION = 8  # on dense tissue; fewer cells compress further


@dataclass(frozen=True)
class Estimate:
    """What a run will need, in MB (10^6 bytes), and the task that needs most memory."""

    worker_mb: int
    worst_task: str
    disk_mb: int

    @property
    def task_mb(self) -> int:
        """Memory of the largest task by itself."""
        return self.worker_mb - PROCESS_MB


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
    kept = 0
    if isinstance(plan, FlowPlan):
        by_task, kept = _estimate_flow_tasks(plan, tile, lanes), weight_bytes(plan)
    elif isinstance(plan, LabelPlan):
        by_task = _estimate_label_tasks(plan, tile)
    elif isinstance(plan, JoinPlan):
        by_task = _estimate_join_tasks(plan, tile)
    else:  # a slide is copied, by tasks that hold less than those that number cells
        by_task = {}
    by_task |= _estimate_number(plan)
    worst = max(by_task, key=lambda task: by_task[task])
    return Estimate(
        worker_mb=PROCESS_MB + math.ceil((kept + by_task[worst]) / 1e6),
        worst_task=worst,
        disk_mb=math.ceil(_estimate_disk(plan) / 1e6),
    )


def _estimate_flow_tasks(plan: FlowPlan, tile: int, lanes: int) -> dict[str, int]:
    """Bytes that a task of each stage holds, at most, by what the task is called to the user."""
    item = np.dtype(plan.slide.dtype).itemsize
    patches = lanes * patch_bytes(plan)

    group = [
        min(step, side)
        for step, side in zip(
            (plan.groups.step_y, plan.groups.step_x), plan.network_shape, strict=True
        )
    ]
    group_px = math.prod(group)
    n_channels = len(plan.membrane) + (plan.nuclei is not None)
    # Each channel resampled, and what the network sees once whole and once cut into patches.
    planes = n_channels + 2 * len(plan.inputs)
    source = [math.ceil(step / plan.rescale) for step in (plan.groups.step_y, plan.groups.step_x)]
    predict = (
        group_px * (planes * _PLANE_BYTES + FLOW_BYTES_PER_PX)
        + patches
        # A channel as it is read and as it is normalised, at the slide's scale.
        + math.prod(source) * (item + _PLANE_BYTES)
        + decoded_bytes(plan.slide, *source)
    )

    window_px = trace_window_px(plan, tile)
    kept = min(patches, KEPT_BYTES)
    # One chunk, which stays decoded.
    held = decoded_bytes(plan.slide, 0, 0) if plan.slide.kind in ("png", "imc-txt") else 0
    trace = window_px * TRACE_BYTES_PER_PX + kept + held
    return {
        f"predict a group of {group_px} px": predict,
        f"trace a window of {window_px} px": trace,
    }


def _estimate_label_tasks(plan: LabelPlan, tile: int) -> dict[str, int]:
    """As `_estimate_flow_tasks`; what a segmenter takes is its own word."""
    item = np.dtype(plan.slide.dtype).itemsize
    sides = [min(plan.tile_px, n) for n in plan.shape]
    tile_px = math.prod(sides)
    label = (
        tile_px * (len(plan.planes) * _PLANE_BYTES + _TILE_BYTES_PER_PX)
        + tile_px * find_segmenter(plan.segmenter).bytes_per_px
        # A channel as it is read and as it is normalised.
        + tile_px * (item + _PLANE_BYTES)
        + decoded_bytes(plan.slide, *sides)
    )
    region_px = math.prod(min(tile, n) for n in plan.shape)
    return {
        f"label a tile of {tile_px} px": label,
        f"paint a region of {region_px} px": region_px * _PAINT_BYTES_PER_PX,
    }


def _estimate_join_tasks(plan: JoinPlan, tile: int) -> dict[str, int]:
    """As `_estimate_flow_tasks`."""
    side = tile + 2 * reach_of(plan.grow_px)
    window_px = math.prod(min(side, n) for n in plan.shape)
    return {f"join a window of {window_px} px": window_px * _JOIN_BYTES_PER_PX}


def _estimate_number(plan: Plan) -> dict[str, int]:
    """As `_estimate_flow_tasks`, of the stage that both roads end with."""
    item = np.dtype(plan.slide.dtype).itemsize
    shard_px = min(plan.shape[0], SHARD_PX) * min(plan.shape[1], SHARD_PX)
    per_px = _LABEL_COPIES * _LABEL_BYTES + _PLACE_BYTES + _PIXEL_COPIES * item
    if isinstance(plan, JoinPlan):
        # Each compartment by the cells' ids and by the shard's, and where it has its pixels.
        per_px += len(COMPARTMENTS) * (2 * _LABEL_BYTES + _PLACE_BYTES)
    number = shard_px * per_px + decoded_bytes(plan.slide, SHARD_PX, SHARD_PX)
    return {f"number a shard of {shard_px} px": number}


def _estimate_disk(plan: Plan) -> int:
    """Bytes of what a road leaves, the labels of tiles and of the output, and a copied image."""
    slide_px = math.prod(plan.shape)
    labels = slide_px * _LABEL_BYTES // _LABEL_COMPRESSION
    item = np.dtype(plan.slide.dtype).itemsize
    # The levels of a pyramid add a third.
    image = slide_px * item * len(plan.slide.channels) * 4 // 3 if plan.copy_image else 0
    if isinstance(plan, FlowPlan):
        left = math.prod(plan.network_shape) * FLOW_BYTES_PER_PX
    elif isinstance(plan, LabelPlan):
        left = labels * sum(each.area for each in plan.layout.regions) // slide_px
    elif isinstance(plan, JoinPlan):
        left = len(COMPARTMENTS) * labels
    else:
        return image
    return left + 2 * labels + image


def trace_window_px(plan: FlowPlan, tile: int) -> int:
    """Pixels of the largest window that a tile of that size is traced in, halo included."""
    side = tile + 2 * halo_for_travel(plan.travel_px)
    return min(plan.shape[0], side) * min(plan.shape[1], side)


def patch_bytes(plan: FlowPlan) -> int:
    """Of the feature maps that are alive at once while a patch is evaluated."""
    y, x = plan.lattice.y.patch, plan.lattice.x.patch
    return get_kind(plan.model.kind).patch_bytes(plan.model.widths, y, x)


def weight_bytes(plan: FlowPlan) -> int:
    """Of the weights that a process holds, but for what `PROCESS_MB` counts already.

    Lower precision saves nothing here, because the file's float32 is held beside it.
    """
    weights = get_kind(plan.model.kind).count_weights(plan.model.widths)
    return _PLANE_BYTES * weights * 3 // 2 if weights > _COUNTED_WEIGHTS else 0


def count_lanes(plan: FlowPlan, settings: SegmentSettings, workers: int) -> int:
    """Patches that each of so many workers evaluates at once, as processors and memory allow."""
    if settings.is_remote:
        return 1  # a remote worker's processors are its scheduler's to share out, by tasks
    workers = max(1, workers)
    share = measure_memory().available * _MEMORY_SHARE / workers
    spare = share - 1e6 * estimate(plan, settings.tile).worker_mb
    return max(1, min(count_cores() // workers, 1 + int(spare // patch_bytes(plan))))


def choose_workers(settings: SegmentSettings, plan: Plan) -> int:
    """Worker processes: as asked for; else as many as processors, memory and tasks allow.

    Raises
    ------
    InputError
        If some are asked for where this process may not start any.
    """
    if settings.is_remote:
        return 0
    if settings.workers is not None:
        check_may_start(settings.workers)
        return settings.workers
    if not may_start_processes():
        return 0
    return fit_workers(estimate(plan, settings.tile).worker_mb, count_first_tasks(plan))


def count_first_tasks(plan: Plan) -> int:
    """Tasks of the stage that a run begins with, for as many workers at most."""
    if isinstance(plan, FlowPlan):
        return len(plan.groups)
    if isinstance(plan, LabelPlan):
        return len(plan.layout.regions)
    return math.ceil(math.prod(plan.shape) / SHARD_PX**2)


def fit_workers(worker_mb: int, n_tasks: int) -> int:
    """Worker processes that memory and processors of this machine allow.

    Parameters
    ----------
    worker_mb
        That each needs.
    n_tasks
        That there are to be done at once.
    """
    by_memory = int(measure_memory().available // 10**6 * _MEMORY_SHARE / worker_mb)
    return max(1, min(count_cores(), by_memory, n_tasks, _MAX_WORKERS))


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
    memory_mb = measure_memory().total // 10**6
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
