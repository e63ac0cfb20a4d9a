"""The story from top to bottom: plan, predict, trace, number, tell.

The only module that names all stages. Read `segment` first.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from densebatch import labels
from densebatch.cells import write_table
from densebatch.config import SegmentSettings
from densebatch.dynamics import halo_for_travel
from densebatch.errors import DensebatchError, InputError
from densebatch.executor import Job, open_executor
from densebatch.geometry import Region
from densebatch.inference import create_flows, predict_group
from densebatch.journal import Journal, write_atomic
from densebatch.numbering import (
    collect_keys,
    label_attributes,
    number_shard,
    output_spec,
    read_parts,
    reduce_shard,
    verify_shard,
)
from densebatch.plan import (
    Plan,
    build_plan,
    check_capacity,
    describe_difference,
    estimate,
    parse_plan,
)
from densebatch.tracing import create_traces, groups_needed, trace_core
from densebatch.work import tile_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from densebatch.executor import DaskExecutor, Outcome, SerialExecutor
    from densebatch.geometry import Grid

_MAX_WORKERS = 16


@dataclass
class Progress:
    """Receives what happens; the command line shows it. Subclass what you need."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage of `total` tasks, `done` of which were finished in an earlier run."""

    def advance(self, name: str, pixels: int) -> None:
        """One task of a stage is done; it covered `pixels` of the slide."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


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
        """Tiles without a result: region, reason."""
        return list(self.report["failed_tiles"])


@dataclass
class _Run:
    """A run under way."""

    plan: Plan
    settings: SegmentSettings
    out: Path
    work: Path
    plan_path: Path
    root: str
    executor: SerialExecutor | DaskExecutor
    progress: Progress
    journal: Journal
    shuffle: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return tile_grid(self.plan, self.settings.tile)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        spent = self.seconds.get(stage, 0.0) + time.monotonic() - start
        self.seconds[stage] = round(spent, 3)


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
        For a slide, setting or output folder that cannot be used; nothing is left behind.
    """
    settings = settings or SegmentSettings(**options)
    progress = progress or Progress()
    out = Path(out).absolute()
    started = time.monotonic()
    plan = build_plan(slide, settings)
    surveyed = time.monotonic() - started
    workers = choose_workers(settings, plan)
    check_capacity(estimate(plan, settings.tile), workers, out)
    work = out / "work"
    fresh = _claim_output(out, plan, restart)
    report_path = out / "run.json"
    if not fresh and report_path.exists():
        report = json.loads(report_path.read_bytes())
        if report.get("complete") and not report["failed_tiles"]:
            progress.note(f"{out}: this run is already complete")
            return _result(out, report)
    root = plan.slide.path if plan.in_place else str(out / "segmentation.ome.zarr")
    plan_path = work / f"plan-{plan.fingerprint}.json"
    with open_executor(workers, settings.scheduler_address, settings.scheduler_file) as executor:
        run = _Run(
            plan, settings, out, work, plan_path, root, executor, progress,
            Journal(work / "journal"), shuffle,
        )  # fmt: skip
        run.seconds["plan"] = round(surveyed, 3)
        failed = _predict_and_trace(run)
        if len(failed) == len(run.grid):
            raise DensebatchError(f"{plan.slide.path}: no tile could be segmented: "
                                  f"{next(iter(failed.values()))}")  # fmt: skip
        with run.timed("number"):
            n_cells = _number(run, failed, restart=restart)
        report = _finish(run, n_cells, failed, time.monotonic() - started)
    if not settings.keep_flows and not failed:
        shutil.rmtree(work, ignore_errors=True)
    return _result(out, report)


def choose_workers(settings: SegmentSettings, plan: Plan) -> int:
    """Worker processes: as asked for; else one per core, as memory allows, for enough tasks."""
    if settings.scheduler_address or settings.scheduler_file:
        return 0
    if settings.workers is not None:
        return settings.workers
    needed = estimate(plan, settings.tile).worker_mb
    by_memory = int(psutil.virtual_memory().available // 10**6 * 0.7 / needed)
    by_tasks = len(plan.groups)
    return max(1, min(os.cpu_count() or 1, by_memory, by_tasks, _MAX_WORKERS))


def _claim_output(out: Path, plan: Plan, restart: bool) -> bool:
    """Make the output folder this run's; True if nothing of it was there.

    Raises
    ------
    InputError
        If the folder is another run's or somebody's, or cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        existing = [p.name for p in out.iterdir()]
    except OSError as error:
        raise InputError(
            f"{out}: cannot be used as output folder ({error.strerror}); "
            "accepted is a folder that can be created or written"
        ) from error
    marker = out / ".densebatch.json"
    if existing and not marker.exists():
        raise InputError(
            f"{out}: holds {sorted(existing)[0]!r} and is no output of densebatch; "
            "accepted is a new or empty folder, or one of the same run"
        )
    if existing and restart:
        for name in ("segmentation.ome.zarr", "work", "cells.parquet", "run.json", marker.name):
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        existing = []
    if existing:
        earlier = parse_plan(marker.read_text())
        if earlier.fingerprint != plan.fingerprint:
            raise InputError(
                f"{out}: holds another run: {describe_difference(earlier, plan)}; "
                "choose another folder or give --restart"
            )
    work = out / "work"
    try:
        write_atomic(marker, plan.to_json().encode())
        if not (existing and (out / "run.json").exists() and not work.exists()):
            write_atomic(work / f"plan-{plan.fingerprint}.json", plan.to_json().encode())
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); accepted is a writable folder"
        ) from error
    return not existing


def _drive(
    run: _Run, jobs: list[Job], pixels: dict[str, int], stages: dict[str, str]
) -> list[Outcome]:
    """Run the jobs that no record calls done; tell progress; return the failures."""
    done = frozenset(job.name for job in jobs if run.journal.done(job.name) is not None)
    for stage in dict.fromkeys(stages.values()):
        names = [job.name for job in jobs if stages[job.name] == stage]
        run.progress.stage(stage, len(names), sum(name in done for name in names))
    failures = []
    todo = [job for job in jobs if job.name not in done]
    for outcome in run.executor.run(todo, done, run.shuffle):
        if outcome.error is not None:
            failures.append(outcome)
            run.progress.note(f"{outcome.job.name} failed: {outcome.error}")
        run.progress.advance(stages[outcome.job.name], pixels[outcome.job.name])
    return failures


def _trace_job(run: _Run, row: int, col: int, travel_px: int) -> Job:
    needs = groups_needed(run.plan, run.grid[row, col], travel_px)
    return Job(
        f"trace-{run.settings.tile}-{row}-{col}",
        trace_core,
        (str(run.plan_path), run.settings.tile, row, col, travel_px),
        tuple(f"predict-{r}-{c}" for r, c in needs),
        rank=0,
    )


def _predict_and_trace(run: _Run) -> dict[tuple[int, int], str]:
    """Stages 1 and 2 together: a tile is traced as soon as the flows around it are on disk.

    Returns the tiles that have no result, with the reason.
    """
    plan, settings = run.plan, run.settings
    create_flows(plan, run.work / "flows.zarr")
    create_traces(plan, run.work, settings.tile)
    local = settings.scheduler_address is None and settings.scheduler_file is None
    # a remote worker's cores are its scheduler's to share out, by tasks
    lanes = max(1, (os.cpu_count() or 1) // max(1, run.executor.workers)) if local else 1
    predict = [
        Job(
            f"predict-{row}-{col}",
            predict_group,
            (str(run.plan_path), row, col, settings.device, lanes),
            rank=1,
        )
        for row, col in plan.groups
    ]
    trace = [_trace_job(run, row, col, plan.travel_px) for row, col in run.grid]
    pixels = {f"predict-{r}-{c}": plan.groups[r, c].area for r, c in plan.groups}
    pixels |= {f"trace-{settings.tile}-{r}-{c}": run.grid[r, c].area for r, c in run.grid}
    stages = {job.name: "predict" for job in predict} | {job.name: "trace" for job in trace}
    place = {f"trace-{settings.tile}-{r}-{c}": (r, c) for r, c in run.grid}
    failed: dict[tuple[int, int], str] = {}
    with run.timed("predict_and_trace"):
        for outcome in _drive(run, [*predict, *trace], pixels, stages):
            if outcome.job.name in place:
                failed[place[outcome.job.name]] = outcome.error or ""
        _trace_far_travellers(run, failed)
    return failed


def _trace_far_travellers(run: _Run, failed: dict[tuple[int, int], str]) -> None:
    """Trace again, with more halo, wherever a pixel went further than the halo allowed for.

    Which tiles that concerns depends on the tiling; their labels are then exact, as all others'
    are, so the result does not.
    """
    plan, tile = run.plan, run.settings.tile
    limit = plan.trace.travel_limit_px
    travel = plan.travel_px
    while travel < limit:
        facts = {
            index: run.journal.done(f"trace-{tile}-{index[0]}-{index[1]}")
            for index in run.grid
            if index not in failed
        }
        reach = {index: f["max_travel_px"] for index, f in facts.items() if f is not None}
        far = [index for index, px in reach.items() if px > travel]
        if not far:
            return
        # the smallest doubling that holds the furthest pixel
        while travel < limit and travel < max(reach[index] for index in far):
            travel = min(2 * travel, limit)
        halo = halo_for_travel(travel)
        near = {i for f in far for i in run.grid.overlapping(run.grid[f].expand(halo))}
        redo = [
            index
            for index in sorted(near)
            if index not in failed and (facts.get(index) or {}).get("travel_px", 0) < travel
        ]
        if not redo:
            return
        for row, col in redo:
            run.journal.forget(f"trace-{tile}-{row}-{col}")
        jobs = [
            Job(job.name, job.function, job.args)
            for job in (_trace_job(run, row, col, travel) for row, col in redo)
        ]
        pixels = {
            job.name: run.grid[index].area for job, index in zip(jobs, redo, strict=True)
        }
        place = {job.name: index for job, index in zip(jobs, redo, strict=True)}
        stages = {job.name: f"trace again, travel up to {travel} px" for job in jobs}
        for outcome in _drive(run, jobs, pixels, stages):
            failed[place[outcome.job.name]] = outcome.error or ""


def _number(run: _Run, failed: dict[tuple[int, int], str], *, restart: bool) -> int:
    """Stage 3: ids, label shards, pyramid, cell table."""
    plan, tile = run.plan, run.settings.tile
    lost = frozenset(failed)
    n_cells = collect_keys(plan, run.work, tile, lost)
    spec = output_spec(plan, run.root)
    labels.create(spec, label_attrs={"fingerprint": plan.fingerprint}, restart=restart)
    for level in range(spec.n_levels):
        grid = labels.shard_grid(spec, level)
        jobs = []
        for row, col in grid:
            if level == 0:
                name = f"number-{tile}-{row}-{col}"
                args = (str(run.plan_path), tile, run.root, tuple(sorted(lost)), row, col)
                function: Callable[..., Any] = number_shard
            else:
                name = f"reduce-{tile}-{level}-{row}-{col}"
                args = (str(run.plan_path), tile, run.root, level, row, col)  # type: ignore[assignment]
                function = reduce_shard
            facts = run.journal.done(name)
            if facts is not None and (
                lost or not verify_shard(plan, run.root, level, row, col, facts["digests"])
            ):
                run.journal.forget(name)
            jobs.append(Job(name, function, args))
        pixels = {job.name: grid[index].area for job, index in zip(jobs, grid, strict=True)}
        stage = "number" if level == 0 else f"pyramid level {level}"
        failures = _drive(run, jobs, pixels, {job.name: stage for job in jobs})
        if failures:
            # without a shard the label image is not whole; the run can be continued
            raise OSError(f"{failures[0].job.name} failed: {failures[0].error}")
    height, width = plan.shape
    write_table(
        run.out / "cells.parquet",
        read_parts(run.work, tile, labels.shard_grid(spec, 0)),
        n_cells,
        Region(0, 0, height, width),
        plan.um_per_px,
        plan.slide.channels,
    )
    return n_cells


def _finish(
    run: _Run, n_cells: int, failed: dict[tuple[int, int], str], seconds: float
) -> dict[str, Any]:
    """Write metadata and run.json; they come last, so their presence means the run is whole."""
    plan = run.plan
    height, width = plan.shape
    tiles = [
        {
            "tile": list(index),
            "region": [run.grid[index].y0, run.grid[index].x0, run.grid[index].y1, run.grid[index].x1],
            "reason": reason,
        }
        for index, reason in sorted(failed.items())
    ]
    spec = output_spec(plan, run.root)
    labels.finalize(spec, n_cells=n_cells, provenance=label_attributes(plan, tiles))
    traces = [
        facts
        for r, c in run.grid
        if (facts := run.journal.done(f"trace-{run.settings.tile}-{r}-{c}")) is not None
    ]
    run.seconds["total"] = round(seconds, 3)
    document = json.loads(plan.to_json())
    document.pop("active")
    report = {
        "complete": True,
        "cells": n_cells,
        "rejected_cells": sum(facts["rejected"] for facts in traces),
        "dropped_px": sum(facts["dropped_px"] for facts in traces),
        "max_travel_px": max((facts["max_travel_px"] for facts in traces), default=0.0),
        "slide_px": height * width,
        "network_px": plan.network_px,
        "network_patches": plan.network_patches,
        "network_covered_px": plan.covered_px,
        "network_redundancy": round(plan.network_px / max(1, plan.covered_px), 4),
        "seconds": run.seconds,
        "mpx_per_second": round(height * width / 1e6 / seconds, 4),
        "cells_per_second": round(n_cells / seconds, 2),
        "peak_rss_mb": psutil.Process().memory_info().rss // 10**6,
        "workers": run.executor.workers,
        "failed_tiles": tiles,
        "model": {"name": plan.model.name, "sha256": plan.model.sha256},
        "settings": run.settings.model_dump(mode="json"),
        "plan": document,
        "fingerprint": plan.fingerprint,
        "versions": plan.versions,
        "labels": str(Path(run.root) / "labels" / spec.label_name),
        "view": str(labels.viewer_path(spec)),
    }
    write_atomic(run.out / "run.json", json.dumps(report, indent=1).encode())
    return report


def _result(out: Path, report: dict[str, Any]) -> SegmentResult:
    return SegmentResult(out, Path(report["labels"]), out / "cells.parquet", report)
