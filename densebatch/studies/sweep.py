"""Try thresholds on stored flow fields and score each: the network runs once per image.

Flow and cell-probability threshold decide which cells are traced, so each pair of them is traced
anew, by the same function as in a run, over tiles with their halos. The minimum size is that of
Han et al. 2024: it acts at scoring, on truth and prediction alike, so every minimum size comes
from one table of overlaps. A score here is the score of `densebatch segment` with these
thresholds, to the last digit.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores, measure_memory
from densebatch.cells.components import check_masks, settle_masks
from densebatch.cells.pairs import AnnotatedFile, find_annotated, name_label_image
from densebatch.cells.pixels import as_labels
from densebatch.cells.read import open_labels
from densebatch.cells.read_zarr import is_zarr
from densebatch.planning.capacity import TRACE_BYTES_PER_PX
from densebatch.planning.planner import LARGEST_SIZE_PX
from densebatch.run.segment import Progress
from densebatch.scoring.contingency import Contingency
from densebatch.scoring.results import summarize_images
from densebatch.scoring.score import score_table
from densebatch.scoring.settings import ScoreSettings
from densebatch.slides.slide import open_slide
from densebatch.stages.trace import read_flows
from densebatch.studies.flows import collect_notes, store_flows
from densebatch.tracing.tile import halo_for_travel, trace_tile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.cells.pixels import PixelSource
    from densebatch.planning.settings import SegmentSettings
    from densebatch.scoring.results import ImageScore
    from densebatch.studies.flows import FlowField
    from densebatch.studies.sweep_settings import SweepSettings

log = logging.getLogger(__name__)

_STAGE = "trace and score"
_MEMORY_SHARE = 0.5  # of what is free, for all threads


class Thresholds(NamedTuple):
    """Of tracing."""

    flow: float
    cellprob: float


class Setting(NamedTuple):
    """One combination of a sweep; the minimum size is in px."""

    flow_threshold: float
    cellprob_threshold: float
    min_size: int


@dataclass(frozen=True)
class SweepResult:
    """Scores of all combinations.

    Attributes
    ----------
    scores : by combination, an `ImageScore` per image, in the order of names
    evaluated : patches that the network was evaluated on in this call; 0 if all flows were there
    notes : what a user should know of how images and settings were taken
    labelled : names of images whose truth was a yes/no mask whose pieces became cells
    """

    scores: dict[Setting, tuple[ImageScore, ...]]
    evaluated: int
    notes: list[str]
    labelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Counted:
    """Overlaps of a tile's cells with the truth; `keys` tells what its local ids stand for."""

    table: Contingency
    keys: NDArray[np.int64]
    max_travel_px: float


def find_images(
    images: Path,
    truth: Path | None,
    *,
    label_components: bool | None = None,
    **chosen: str | None,
) -> list[AnnotatedFile]:
    """What is to be segmented, and the labels that it is to be compared with.

    Parameters
    ----------
    images
        A folder of annotated images, or one slide.
    truth
        Label image of the one slide; not needed where it lies inside.
    label_components
        What becomes of yes/no masks, as `settle_masks` takes it.
    **chosen
        Which image of a file is meant: scene, axes, z, t and panel, as `open_slide` takes them; the
        scene is that of the labels too.

    Returns
    -------
    list of AnnotatedFile
        In the order of names.

    Raises
    ------
    InputError
        If an image has no labels, labels have no image, or either cannot be opened, their
        shapes differ, or labels are a mask that is not to be labelled.
    """
    if truth is not None or is_zarr(images):
        files = [AnnotatedFile(name_label_image(images), images, truth or images)]
    elif images.is_dir():
        files = find_annotated(images)
    else:
        open_slide(images, **chosen)  # A file that is no slide at all is refused as such.
        raise InputError(f"{images}: one slide needs its label image; give it with --truth")
    for file in files:
        info = open_slide(file.image, **chosen).info
        labels = open_labels(file.labels, chosen.get("scene"), masks=bool(label_components))
        _ = labels[0:1, 0:1]  # Pixels that are no labels are refused before the network runs.
        if labels.shape != (info.height, info.width):
            raise InputError(
                f"{file.labels}: labels of {labels.shape[0]} x {labels.shape[1]} px for an image "
                f"of {info.height} x {info.width} px"
            )
        check_masks(labels, label_components, labels.where)
    return files


def run_sweep(
    files: Sequence[AnnotatedFile],
    work: Path,
    settings: SweepSettings,
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> SweepResult:
    """Score every combination of thresholds on every image.

    Parameters
    ----------
    files
        Images and their labels, see `find_images`.
    work
        Folder for flow fields, one folder per image; what fits is used again.
    settings
        What to try.
    restart
        Compute flow fields again, also if they fit.
    progress
        Receives stages and tasks as they happen.

    Returns
    -------
    SweepResult
        Scores of all combinations.

    Raises
    ------
    InputError
        For images or settings that cannot be used, and for flow fields of other settings.
    DensebatchError
        If the network failed on an image.
    """
    progress = progress or Progress()
    folders = {work / file.name: file.image for file in files}
    # These two act in tracing only. Flow fields are planned without them, so that a sweep with
    # other sizes finds the flow fields of this one.
    plain = settings.segment.model_copy(update={"min_size": 0, "max_size": None})
    fields = store_flows(folders, plain, restart=restart, progress=progress)
    counted = _count_all(list(fields.values()), files, settings, progress)
    tables = [table for table, _ in counted]
    labelled = tuple(
        file.name for file, (_, is_labelled) in zip(files, counted, strict=True) if is_labelled
    )
    iou = tuple(Fraction(str(value)) for value in settings.iou)
    scores = {}
    for flow, cellprob, min_size in product(
        settings.flow_threshold, settings.cellprob_threshold, settings.min_size
    ):
        setting = Setting(flow, cellprob, min_size)
        options = ScoreSettings(
            thresholds=iou, min_size=min_size, label_components=settings.label_components
        )
        scores[setting] = tuple(
            score_table(table[Thresholds(flow, cellprob)], options, name=file.name)
            for table, file in zip(tables, files, strict=True)
        )
        ap = summarize_images(scores[setting]).ap_by_threshold[0]
        log_event(log, "sweep setting scored", **setting._asdict(), mean_ap=round(ap, 4))
    notes = collect_notes([field.plan for field in fields.values()])
    evaluated = sum(field.evaluated for field in fields.values())
    return SweepResult(scores, evaluated, notes, labelled)


def _count_all(
    fields: Sequence[FlowField],
    files: Sequence[AnnotatedFile],
    settings: SweepSettings,
    progress: Progress,
) -> list[tuple[dict[Thresholds, Contingency], bool]]:
    """Per image, the overlaps for each pair of thresholds, and whether its truth was a mask."""
    pairs = [
        Thresholds(*pair) for pair in product(settings.flow_threshold, settings.cellprob_threshold)
    ]
    n_tiles = sum(len(field.plan.tiles(settings.segment.tile)) for field in fields)
    progress.stage(_STAGE, n_tiles * len(pairs), 0)
    with ThreadPoolExecutor(_choose_threads(fields, settings.segment)) as pool:
        counted = []
        for field, file in zip(fields, files, strict=True):
            truth, is_labelled = _open_truth(
                file, settings.segment.scene, settings.label_components
            )
            tables = _count_image(field, truth, pairs, settings.segment, pool, progress)
            counted.append((tables, is_labelled))
        return counted


def _open_truth(
    file: AnnotatedFile, scene: str | None, label_components: bool | None
) -> tuple[PixelSource, bool]:
    """The labels, and whether they are the pieces of a mask; `find_images` has refused others."""
    if not label_components:
        return open_labels(file.labels, scene), False
    return settle_masks(open_labels(file.labels, scene, masks=True), True, str(file.labels))


def _choose_threads(fields: Sequence[FlowField], settings: SegmentSettings) -> int:
    """Threads that trace at once: as asked for, else one per processor, and as memory allows."""
    largest = max(
        core.expand(halo_for_travel(field.plan.travel_px)).clip(*field.plan.shape).area
        for field in fields
        for core in [field.plan.tiles(settings.tile)[0, 0]]
    )
    free = measure_memory().available * _MEMORY_SHARE
    wanted = settings.workers if settings.workers is not None else count_cores()
    return max(1, min(wanted, int(free / (TRACE_BYTES_PER_PX * largest))))


def _count_image(
    field: FlowField,
    truth: PixelSource,
    pairs: Sequence[Thresholds],
    settings: SegmentSettings,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> dict[Thresholds, Contingency]:
    """Overlaps of one image, traced with as much halo as the furthest pixel needs.

    Where a run traces again the tiles around a pixel that went further than the halo allowed for,
    this traces all tiles of the image again, for the thresholds concerned.
    """
    grid = field.plan.tiles(settings.tile)
    travel, limit = field.plan.travel_px, field.plan.trace.travel_limit_px
    tables: dict[Thresholds, Contingency] = {}
    pending = list(pairs)
    while pending:
        tasks = [(pair, grid[index]) for pair in pending for index in grid]
        count = partial(_count_tile, field, truth, settings, travel)
        found: dict[Thresholds, list[_Counted]] = {pair: [] for pair in pending}
        for (pair, core), counted in zip(tasks, pool.map(count, tasks), strict=True):
            found[pair].append(counted)
            if pair not in tables:
                progress.advance(_STAGE, core.area)
        tables.update({pair: _join(parts) for pair, parts in found.items()})
        # The window of an only tile is the whole slide, so that a larger halo changes nothing.
        if len(grid) == 1 or travel >= limit:
            break
        reach = {pair: max(part.max_travel_px for part in found[pair]) for pair in pending}
        pending = [pair for pair in pending if reach[pair] > travel]
        while travel < limit and any(reach[pair] > travel for pair in pending):
            travel = min(2 * travel, limit)
        if pending:
            log_event(
                log,
                "image traced again",
                image=str(field.plan.slide.path),
                thresholds=len(pending),
                travel_px=travel,
            )
    return tables


def _count_tile(
    field: FlowField,
    truth: PixelSource,
    settings: SegmentSettings,
    travel_px: int,
    task: tuple[Thresholds, Region],
) -> _Counted:
    plan, (pair, core) = field.plan, task
    window = core.expand(halo_for_travel(travel_px)).clip(*plan.shape)
    limits = replace(
        plan.trace,
        flow_threshold=pair.flow,
        cellprob_threshold=pair.cellprob,
        min_size_px=min(settings.min_size, LARGEST_SIZE_PX),
        max_size_px=min(settings.max_size or plan.trace.max_size_px, LARGEST_SIZE_PX),
    )
    flows, unknown = read_flows(plan, field.flows, window)
    if unknown is not None:
        raise DensebatchError(f"{field.flows}: is not whole; the same command completes it")
    traced = trace_tile(flows, window, core, plan.shape, limits)
    table = Contingency.from_arrays(as_labels(truth[core.slices]), traced.labels)
    return _Counted(table, traced.keys, traced.max_travel_px)


def _join(parts: Sequence[_Counted]) -> Contingency:
    """One table of all tiles, with ids in the order of keys as `densebatch segment` gives them."""
    keys = np.unique(np.concatenate([part.keys for part in parts]))
    renamed = []
    for part in parts:
        ids = np.zeros(part.keys.size + 1, np.uint32)
        ids[1:] = np.searchsorted(keys, part.keys) + 1
        renamed.append(
            Contingency.from_rows(part.table.truth, ids[part.table.pred], part.table.count)
        )
    return Contingency.sum(renamed)
