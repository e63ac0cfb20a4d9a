"""The story from top to bottom: plan, predict, trace, number, tell.

The only module that names all stages. Read `segment` first.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.geometry import Region
from densebatch.cells import labels
from densebatch.cells.table import write_table
from densebatch.engines.backend import wake_device
from densebatch.engines.quantization import write_quantised
from densebatch.planning.capacity import (
    Meter,
    check_capacity,
    choose_workers,
    count_lanes,
    estimate,
)
from densebatch.planning.engine_choice import check_engine, count_device_workers, settle_engine
from densebatch.planning.plan import Plan, draft_plan, survey_plan
from densebatch.planning.settings import load_settings
from densebatch.planning.work import number_name, predict_name, trace_name
from densebatch.run.folder import OutputFolder
from densebatch.run.record import describe_costs, describe_lost, describe_run
from densebatch.run.session import Progress, Session, Step
from densebatch.stages.journal import write_atomic
from densebatch.stages.number import (
    collect_keys,
    digest_texts,
    group_levels,
    label_attributes,
    number_shard,
    output_spec,
    read_parts,
    reduce_shard,
    verify_shard,
)
from densebatch.stages.predict import create_flows, predict_group
from densebatch.stages.trace import create_traces, groups_needed, trace_core
from densebatch.tracing.tile import halo_for_travel
from densebatch.workers.cluster import check_scheduler
from densebatch.workers.executors import DaskExecutor, Job, open_executor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.workers.executors import SerialExecutor

__all__ = ["Progress", "SegmentResult", "predict_steps", "segment", "start_executor"]


@dataclass(frozen=True)
class SegmentResult:
    """What a run produced.

    Attributes
    ----------
    out : output folder
    labels : path of the multiscale label image
    table : path of the cell table
    report : the content of run.json
    """

    out: Path
    labels: Path
    table: Path
    report: dict[str, Any]

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.report["cells"])

    @property
    def failed_tiles(self) -> list[dict[str, Any]]:
        """Tiles without labels: region, reason."""
        return list(self.report["failed_tiles"])

    @property
    def unread(self) -> list[dict[str, Any]]:
        """Pixels that could not be read after the labels were made: channel, region, reason.

        Cells there have no mean intensity in that channel, and a copied image is 0 there.
        """
        return list(self.report["unread"])

    @property
    def is_partial(self) -> bool:
        """Whether anything is missing; the same command tries it again."""
        return bool(self.failed_tiles or self.unread)


def segment(
    slide: str | Path,
    out: str | Path,
    settings: SegmentSettings | None = None,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    shuffle: int | None = None,
    **options: Any,  # noqa: ANN401
) -> SegmentResult:
    """Segment a slide and write labels, cell table and record.

    Parameters
    ----------
    slide
        OME-Zarr, OME-TIFF, TIFF or PNG.
    out
        Output folder: absent, empty, or of the same run, which is then continued.
    settings
        See `SegmentSettings`; or give its fields as keyword arguments.
    restart
        Remove what an earlier run left in `out` and begin again.
    progress
        Receives stages and tasks as they happen.
    shuffle
        Seed of a random task order; for tests that the order does not matter.
    **options
        Fields of `SegmentSettings`.

    Returns
    -------
    SegmentResult
        With `failed_tiles` if some area could not be segmented.

    Raises
    ------
    InputError
        For a slide, setting, scheduler or output folder that cannot be used; nothing is left
        behind.
    DensebatchError
        If no tile could be segmented, or the result could not be written.
    """
    if settings is not None and options:
        raise TypeError(f"give settings or keyword arguments, not both: {', '.join(options)}")
    settings = settings or load_settings(None, **options)
    progress = progress or Progress()
    folder = OutputFolder(Path(out).absolute())
    started = time.monotonic()
    meter = Meter()
    folder.check()
    check_scheduler(settings.scheduler_address, settings.scheduler_file)
    plan = draft_plan(slide, settings)
    workers = choose_workers(settings, plan)
    check_engine(settings)
    needs = estimate(plan, settings.tile, count_lanes(plan, settings, workers))
    check_capacity(needs, workers, folder.path, remote=settings.is_remote)
    with ExitStack() as stack:
        executor = starting = None
        if workers and not settings.is_remote and (restart or not folder.report.exists()):
            # Beside the survey, which leaves a core idle for most of the time that this takes. A
            # run that may be complete needs none, and a cluster's workers may yet have to appear.
            pool = stack.enter_context(ThreadPoolExecutor(1))
            starting = pool.submit(start_executor, stack, settings, workers, [plan])
        plan = survey_plan(plan)
        waiting = time.monotonic()
        if starting is not None:
            executor = starting.result()  # before backends are timed
        waited = time.monotonic() - waiting
        plan, choice = settle_engine(plan, settings, folder, restart=restart)
        surveyed = time.monotonic() - started - waited
        for note in plan.notes:
            progress.note(note)
        if choice.reason != "default":
            engine = choice.engine
            progress.note(f"engine: {engine.backend} on {engine.device} ({choice.reason})")
        if not restart:
            folder.compare(plan)
            report = folder.read_complete(plan)
            if report is not None:
                progress.note(f"{folder.path}: this run is already complete")
                if not settings.keep_flows:
                    shutil.rmtree(folder.work, ignore_errors=True)  # what a kill left of it
                return _result(folder, plan, report)
        waiting = time.monotonic()
        executor = executor or start_executor(stack, settings, workers, [plan])
        waited += time.monotonic() - waiting
        run = Session(plan, settings, choice, folder, executor, progress, shuffle)
        run.seconds |= {"plan": round(surveyed, 3), "start": round(waited, 3)}
        _prepare(run, restart=restart)
        failed = _predict_and_trace(run)
        if len(failed) == len(run.grid):
            raise DensebatchError(
                f"{plan.slide.path}: no tile could be segmented: {next(iter(failed.values()))}"
            )
        n_cells = _number(run, failed)
        result = _finish(run, n_cells, failed, started, meter)
    if not settings.keep_flows and not result.is_partial:
        shutil.rmtree(folder.work, ignore_errors=True)
    return result


def start_executor(
    stack: ExitStack, settings: SegmentSettings, workers: int, plans: Sequence[Plan]
) -> SerialExecutor | DaskExecutor:
    """The executor that the settings ask for, until the stack is closed; errors in words."""
    address, file = settings.scheduler_address, settings.scheduler_file
    device_workers = count_device_workers(plans, settings, workers)
    try:
        executor = stack.enter_context(open_executor(workers, address, file, device_workers))
    except OSError as error:
        if address is None and file is None:
            raise DensebatchError(f"{workers} workers could not be started: {error}") from error
        raise InputError(
            f"scheduler {address or file}: cannot be used ({' '.join(str(error).split())}); "
            "accepted is a running Dask scheduler with workers"
        ) from error
    except RuntimeError as error:  # of Dask, when a worker's process ends at once
        raise DensebatchError(
            f"{workers} workers could not be started ({' '.join(str(error).split())}); a script "
            'calls segment under `if __name__ == "__main__":`, or gives workers=0'
        ) from error
    if isinstance(executor, DaskExecutor):
        executor.wake(wake_device)
    return executor


def _prepare(run: Session, *, restart: bool) -> None:
    """Make the output folder this run's and create all arrays; or leave nothing behind."""
    spec = output_spec(run.plan, run.root)
    identity = {"fingerprint": run.plan.fingerprint}
    labels.check_place(spec, label_attrs=identity, restart=restart)
    run.folder.claim(run.plan, restart=restart)
    try:
        _remove_unfinished(run, spec)
        labels.create(spec, label_attrs=identity, restart=restart)
        if run.choice.packed is not None:
            write_quantised(run.work, run.choice.packed)
        create_flows(run.plan, run.work / "flows.zarr")
        create_traces(run.plan, run.work, run.tile)
    except InputError:
        run.folder.release()
        raise


def _remove_unfinished(run: Session, spec: labels.PyramidSpec) -> None:
    """Remove the files that killed writers had not yet given their names."""
    ours = Path(run.root) / "labels" / spec.label_name if spec.in_place else Path(run.root)
    for unfinished in ours.rglob("*.partial"):
        unfinished.unlink(missing_ok=True)


def _trace_step(run: Session, index: tuple[int, int], travel_px: int) -> Step:
    tile, core = run.tile, run.grid[index]
    job = Job(
        trace_name(tile, *index),
        trace_core,
        (run.plan_path, tile, *index, travel_px),
        tuple(predict_name(*group) for group in groups_needed(run.plan, core, travel_px)),
    )
    return Step(job, "trace", core.area)


def predict_steps(run: Session) -> list[Step]:
    """Stage 1: a task for each group of patches."""
    plan, settings = run.plan, run.settings
    lanes = count_lanes(plan, settings, run.executor.workers)
    return [
        Step(
            Job(
                predict_name(*group),
                predict_group,
                (run.plan_path, *group, lanes),
                rank=1,
                on_device=True,
            ),
            "predict",
            plan.groups[group].area,
        )
        for group in plan.groups
    ]


def _predict_and_trace(run: Session) -> dict[tuple[int, int], str]:
    """Stages 1 and 2 together: a tile is traced as soon as the flows around it are on disk.

    Returns the tiles that have no result, with the reason.
    """
    steps = predict_steps(run)
    steps += [_trace_step(run, index, run.plan.travel_px) for index in run.grid]
    with run.timed("predict_and_trace"):
        failed = _failed_tiles(run, run.drive(steps))
        _trace_far_travellers(run, failed)
    return failed


def _failed_tiles(run: Session, failures: Mapping[str, str]) -> dict[tuple[int, int], str]:
    names = {trace_name(run.tile, *index): index for index in run.grid}
    return {names[name]: reason for name, reason in failures.items() if name in names}


def _trace_far_travellers(run: Session, failed: dict[tuple[int, int], str]) -> None:
    """Trace again, with more halo, wherever a pixel went further than the halo allowed for.

    Which tiles that concerns depends on the tiling; their labels are then exact, as all others'
    are, so the result does not. Tiles that fail now are added to `failed`.
    """
    grid = run.grid
    limit = run.plan.trace.travel_limit_px
    travel = run.plan.travel_px
    while travel < limit:
        reach = {
            index: run.facts[trace_name(run.tile, *index)]["max_travel_px"]
            for index in grid
            if index not in failed
        }
        far = [index for index, px in reach.items() if px > travel]
        if not far:
            return
        # the smallest doubling that holds the furthest pixel
        while travel < limit and travel < max(reach[index] for index in far):
            travel = min(2 * travel, limit)
        halo = halo_for_travel(travel)
        near = {i for f in far for i in grid.overlapping(grid[f].expand(halo))} - set(failed)
        steps = [
            Step(
                Job(step.job.name, step.job.function, step.job.args),  # all flows are there
                f"trace again, travel up to {travel} px",
                step.pixels,
            )
            for step in (_trace_step(run, index, travel) for index in sorted(near))
        ]
        failures = run.drive(steps, lambda job, facts: bool(facts["travel_px"] >= job.args[-1]))
        failed.update(_failed_tiles(run, failures))


def _number(run: Session, failed: Mapping[tuple[int, int], str]) -> int:
    """Stage 3: ids, label shards, pyramid, cell table; returns the number of cells."""
    plan = run.plan

    def is_current(job: Job, facts: Mapping[str, Any]) -> bool:
        # A shard is done if it holds what its record says and was made from what there is now:
        # other lost tiles mean other ids, and a shard written again changes those above it.
        *_, row, col, inputs = job.args
        level = 0 if job.function is number_shard else job.args[3]
        return (
            facts["inputs"] == inputs
            and not facts.get("unread")
            and verify_shard(plan, run.root, level, row, col, facts["digests"])
        )

    def drive(levels: range) -> None:
        failures = run.drive(_number_steps(run, spec, levels[0], edition), is_current)
        if failures:
            # without a shard the label image is not whole
            name, reason = next(iter(failures.items()))
            raise DensebatchError(
                f"{run.root}: {name} failed ({reason}); the same command continues the run"
            )

    with run.timed("number"):
        n_cells, edition = collect_keys(plan, run.work, run.tile, failed)
        spec = output_spec(plan, run.root)
        first, *above = group_levels(spec)
        with ThreadPoolExecutor(1) as pool:  # the table beside the pyramid
            drive(first)
            table = pool.submit(
                write_table,
                run.folder.table,
                read_parts(run.work, run.tile, labels.shard_grid(spec, 0)),
                n_cells,
                Region(0, 0, *plan.shape),
                plan.um_per_px,
                plan.slide.channels,
            )
            for levels in above:
                drive(levels)
                if table.done():
                    table.result()  # if it failed, the rest is not worth waiting for
            table.result()
    return n_cells


def _number_steps(run: Session, spec: labels.PyramidSpec, level: int, edition: str) -> list[Step]:
    """Tasks of a group of levels, named after its first; each knows a digest of what it is from."""
    tile = run.tile
    grid = labels.shard_grid(spec, level)
    steps = []
    for index in grid:
        name = number_name(tile, level, *index)
        if level == 0:
            job = Job(name, number_shard, (run.plan_path, tile, run.root, *index, edition))
        else:
            source = labels.source_region(spec, level, grid[index])
            below = labels.shard_grid(spec, level - 1).overlapping(source)
            inputs = digest_texts(
                digest
                for shard in below
                for digest in run.facts[number_name(tile, level - 1, *shard)]["digests"]
            )
            job = Job(name, reduce_shard, (run.plan_path, tile, run.root, level, *index, inputs))
        stage = "number" if level == 0 else f"pyramid level {level}"
        steps.append(Step(job, stage, grid[index].area))
    return steps


def _finish(
    run: Session,
    n_cells: int,
    failed: Mapping[tuple[int, int], str],
    started: float,
    meter: Meter,
) -> SegmentResult:
    """Write metadata and run.json; they come last, so their presence means the run is whole."""
    plan = run.plan
    spec = output_spec(plan, run.root)
    tiles = describe_lost(run.grid, failed)
    labels.finalize(spec, n_cells=n_cells, provenance=label_attributes(plan, tiles))
    _remove_unfinished(run, spec)
    total = time.monotonic() - started
    run.seconds["total"] = round(total, 3)
    evaluating = run.executor.device_workers or run.executor.workers
    report = {
        "complete": True,
        **describe_run(plan, run.settings, run.choice, run.facts, n_cells, run.seconds),
        **describe_costs(plan, run.facts, run.kept, evaluating, total, meter.read()),
        "workers": run.executor.workers,
        "device_workers": run.executor.device_workers,
        "tasks": len(run.facts),
        "tasks_kept": len(run.kept),
        "failed_tiles": tiles,
        "labels": str(Path(run.root) / "labels" / spec.label_name),
        "view": str(labels.viewer_path(spec)),
        "view_image": None if spec.image or spec.in_place else _viewable(plan),
    }
    write_atomic(run.folder.report, json.dumps(report, indent=1).encode())
    return _result(run.folder, plan, report)


def _viewable(plan: Plan) -> str | None:
    """The slide, if viewers open it as they do labels: then both are looked at together."""
    return plan.slide.path if plan.slide.kind == "ome-zarr" else None


def _result(folder: OutputFolder, plan: Plan, report: dict[str, Any]) -> SegmentResult:
    # the folder may have been moved since it was written
    root, written = folder.root(plan), Path(report["labels"]).parents[1]
    moved = {key: str(root / Path(report[key]).relative_to(written)) for key in ("labels", "view")}
    return SegmentResult(folder.path, Path(moved["labels"]), folder.table, {**report, **moved})
