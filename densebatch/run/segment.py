"""The story from top to bottom: plan, predict, trace, number, tell. Read `segment` first."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import refuse_address, sentences_for_disk, write_atomic
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.base.process import Meter
from densebatch.cells import labels
from densebatch.cells.faults import find_fault
from densebatch.cells.kept import forget, keep, keep_work
from densebatch.cells.pyramid_spec import COMPARTMENT_LABELS
from densebatch.engines.quantization import write_quantised
from densebatch.planning.measured import describe_measures, is_measured
from densebatch.planning.pace import recall_pace, remember_pace
from densebatch.planning.plan import FlowPlan, LabelPlan
from densebatch.planning.settings import load_settings
from densebatch.run.driver import Driver
from densebatch.run.flow_steps import predict_and_trace
from densebatch.run.folder import OutputFolder
from densebatch.run.join_steps import InnerProgress, match_and_join
from densebatch.run.label_steps import label_and_merge
from densebatch.run.prepare import Prepared, prepare
from densebatch.run.report import (
    Progress,
    SegmentResult,
    describe_costs,
    describe_gaps,
    describe_run,
    keep_tracebacks,
)
from densebatch.run.session import Session
from densebatch.run.start import ExecutorStart
from densebatch.run.steps import number_cells
from densebatch.slides.slide import check_unchanged, reopen_slide
from densebatch.stages.number import NumberShard, find_changed_pixels, list_channels_read
from densebatch.stages.output import describe_origin, label_specs
from densebatch.stages.predict import create_flows
from densebatch.stages.tile_labels import create_tile_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from densebatch.planning.plan import Plan
    from densebatch.planning.planner import Limits
    from densebatch.planning.settings import SegmentSettings
    from densebatch.remote.tree import Place
    from densebatch.run.start import Starting
    from densebatch.run.steps import Labelled
    from densebatch.workers.executors import Executor

__all__ = ["Progress", "SegmentResult", "run_slide", "segment"]

log = logging.getLogger(__name__)


def segment(
    slide: str | Place,
    out: str | Path,
    settings: SegmentSettings | None = None,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    shuffle: int | None = None,
    **options: Any,  # noqa: ANN401
) -> SegmentResult:
    """Segment a slide and write labels, cell table and report.

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
        If no tile could be segmented, the result could not be written, the slide changed meanwhile,
        or another process took the output over.
    KeyboardInterrupt
        For Ctrl-C and SIGTERM, after the tasks that were under way; for a second Ctrl-C at once.
        The same call continues.
    """
    if settings is not None and options:
        raise TypeError(f"give settings or keyword arguments, not both: {', '.join(options)}")
    settings = settings or load_settings(None, **options)
    progress = progress or Progress()
    refuse_address(Path(out))
    folder = OutputFolder(Path(out).absolute())
    # The output is owned until no worker is left that could write to it.
    with Driver(progress) as driver, ExecutorStart(settings, progress.note) as starting:
        return run_slide(
            slide, folder, settings, driver, starting, progress, restart=restart, shuffle=shuffle
        )


def run_slide(
    slide: str | Place,
    folder: OutputFolder,
    settings: SegmentSettings,
    driver: Driver,
    starting: Starting,
    progress: Progress,
    *,
    limits: Sequence[Limits | None] | None = None,
    restart: bool = False,
    shuffle: int | None = None,
) -> SegmentResult:
    """Do what `segment` does, with a driver and workers that its caller has.

    Parameters
    ----------
    slide, settings, progress, restart, shuffle
        As of `segment`.
    folder
        Where the output goes.
    driver
        Owns it from now on.
    starting
        The way to the workers.
    limits
        As of `survey_plan`.

    Returns and errors as for `segment`.
    """
    started, meter = time.monotonic(), Meter()
    driver.refuse_living(folder)
    [prepared] = prepare(
        [(slide, folder)], settings, restart=restart, starting=starting, limits=limits,
        note=progress.note, progress=progress,
    )  # fmt: skip
    planned_s = time.monotonic() - started - starting.waited_s
    start = cache(lambda: starting.finish(prepared.workers, prepared.own_plans, folder.work))
    conduct = _Conduct(driver, start, starting, restart=restart, shuffle=shuffle)
    return _carry_out(prepared, conduct, progress, started, planned_s, meter)


@dataclass(frozen=True)
class _Conduct:
    """How a run is carried out, and the runs that it joins.

    Attributes
    ----------
    driver : owns folders and hears signals
    start : starts the executor that all of them share
    starting : the way to it
    restart, shuffle : as of `segment`
    """

    driver: Driver
    start: Callable[[], Executor]
    starting: Starting
    restart: bool
    shuffle: int | None


def _carry_out(
    prepared: Prepared,
    conduct: _Conduct,
    progress: Progress,
    started: float,
    planned_s: float,
    meter: Meter,
) -> SegmentResult:
    """Do what is prepared, or what an earlier session has left of it."""
    folder, settings, driver = prepared.folder, prepared.settings, conduct.driver
    _tell_plan(prepared, progress)
    if not conduct.restart:
        for run in (*prepared.inner.values(), prepared):
            run.folder.compare(run.plan)
        folder.mend_marker()
        report = folder.read_complete(prepared.plan)
        if report is not None and _is_intact(prepared, progress):
            _check_slide(folder, prepared.plan, report)
            _check_measures(folder, prepared.plan, settings, report)
            progress.note(f"{folder.path}: this run is already complete")
            driver.remove_dead(folder)  # killed as it ended
            if not settings.keep_flows:
                for run in (*prepared.inner.values(), prepared):
                    run.folder.remove_work()
            return _result(folder, prepared.plan, report)
    session = Session(
        prepared.plan,
        settings,
        prepared.choice,
        folder,
        driver,
        conduct.start,
        prepared.workers,
        progress,
        conduct.shuffle,
    )
    session.seconds |= {"plan": round(planned_s, 3)}
    has_own = not conduct.starting.is_shared  # workers, that nobody else keeps waiting
    if isinstance(prepared.plan, FlowPlan) and has_own:
        pace = recall_pace(prepared.plan, settings, prepared.workers)
        if pace is not None:
            progress.note(f"expected: {pace.tell(prepared.plan, settings)}")
    with sentences_for_disk(folder.path):
        _open_output(session, restart=conduct.restart)
        if isinstance(prepared.plan, FlowPlan):
            labelled = predict_and_trace(session)
        elif isinstance(prepared.plan, LabelPlan):
            labelled = label_and_merge(session)
        else:
            reports = {
                role: _carry_out(
                    run, conduct, InnerProgress(progress, role), time.monotonic(), 0.0, Meter()
                ).report
                for role, run in prepared.inner.items()
            }
            labelled = match_and_join(session, reports)
        n_cells = number_cells(session, labelled)
        session.seconds["start"] = round(conduct.starting.waited_s, 3)
        result = _finish(session, n_cells, labelled, started, meter)
    if isinstance(prepared.plan, FlowPlan) and not result.is_partial and has_own:
        remember_pace(prepared.plan, settings, prepared.workers, result.report)
    driver.check()
    driver.unwatch(folder)
    if not settings.keep_flows and not result.is_partial:
        folder.remove_work()
    return result


def _check_slide(folder: OutputFolder, plan: Plan, report: dict[str, Any]) -> None:
    """Refuse a finished run if its slide was touched and not all its pixels are what they were.

    Raises
    ------
    InputError
        With where they are not.
    """
    if report["plan"]["slide"]["identity"] == plan.slide.identity:
        return
    changed = find_changed_pixels(plan, str(folder.root(plan)), report)
    if changed is not None:
        raise InputError(
            f"{folder.path}: holds another run: the slide {plan.slide.path} has changed since, or "
            f"was replaced (its pixels differ in rows {changed.y0} to {changed.y1}, columns "
            f"{changed.x0} to {changed.x1}); choose another folder or give --restart"
        )


def _check_measures(
    folder: OutputFolder, plan: Plan, settings: SegmentSettings, report: dict[str, Any]
) -> None:
    """Refuse to take a finished run for one that measured something else.

    Raises
    ------
    InputError
        With the command that does it.
    """
    if not is_measured(reopen_slide(plan.slide), settings, report, plan.region):
        raise InputError(
            f"{folder.path}: this run is complete, and measured other channels, quantiles, "
            "neighbours or markers than are asked for; `densebatch measure OUT` measures again "
            "without segmenting"
        )


def _is_intact(prepared: Prepared, progress: Progress) -> bool:
    """Whether every file of a finished run is as it was written; tells the user if not."""
    folder = prepared.folder
    fault = find_fault(folder.trees(prepared.plan), count_cores())
    if fault is not None:
        progress.note(
            f"{folder.path}: this run was complete, and {fault}; it is done again (`densebatch "
            "verify --repair` does no more than it must)"
        )
    return fault is None


def _tell_plan(prepared: Prepared, progress: Progress) -> None:
    """Tell the user how settings were taken, and what evaluates the network if that was chosen."""
    for note in prepared.plan.notes:
        progress.note(note)
    plan, choice = prepared.plan, prepared.choice
    if choice is not None and choice.reason != "default":
        engine = choice.engine
        progress.note(f"engine: {engine.backend} on {engine.device} ({choice.reason})")
    told: dict[str, Any] = {}
    if isinstance(plan, FlowPlan):
        told = {
            "model": plan.model.name, "backend": plan.engine.backend, "device": plan.engine.device,
            "patches": plan.network_patches,
        }  # fmt: skip
    elif isinstance(plan, LabelPlan):
        told = {"segmenter": plan.segmenter, "tiles": len(plan.layout.regions)}
    log_event(
        log,
        "run planned",
        slide=plan.slide.path,
        out=str(prepared.folder.path),
        fingerprint=plan.fingerprint,
        workers=prepared.workers,
        **told,
    )


def _open_output(session: Session, *, restart: bool) -> None:
    """Make the output folder this run's and create all arrays; or leave nothing behind."""
    session.driver.own(session.folder, Path(session.root) if session.plan.in_place else None)
    specs = label_specs(session.plan, session.root)
    identity = {"fingerprint": session.plan.fingerprint}
    for spec in specs:
        labels.check_place(spec, label_attrs=identity, restart=restart)
    session.folder.claim(session.plan, restart=restart)
    try:
        if session.folder.is_fresh:  # workers that cannot work leave nothing behind
            session.open_executor()
        # What says that all is there goes before anything changes.
        session.folder.report.unlink(missing_ok=True)
        forget(session.folder.path)
        _remove_unfinished(session, specs)
        if session.plan.in_place:  # of a run of cells and nuclei together, perhaps half removed
            kept = set() if restart else {spec.label_name for spec in specs}
            for name in set(COMPARTMENT_LABELS.values()) - kept:
                labels.remove(replace(specs[0], label_name=name))
        for spec in specs:
            labels.create(spec, label_attrs=identity, restart=restart and spec is specs[0])
        if session.choice is not None and session.choice.packed is not None:
            write_quantised(session.work.folder, session.choice.packed)
        if isinstance(session.plan, FlowPlan):
            create_flows(session.plan, session.work.flows)
        create_tile_labels(session.work)
    except InputError:
        session.folder.release()
        raise


def _remove_unfinished(session: Session, specs: Sequence[labels.PyramidSpec]) -> None:
    """Remove the files that killed writers had not yet given their names."""
    places = [Path(session.root)]
    if session.plan.in_place:
        places = [labels.label_path(spec) for spec in specs]
    for ours in places:
        for unfinished in ours.rglob("*.partial"):
            unfinished.unlink(missing_ok=True)


def _finish(
    session: Session, n_cells: int, labelled: Labelled, started: float, meter: Meter
) -> SegmentResult:
    """Write metadata and run.json; they come last, so their presence means the run is whole."""
    plan, executor = session.plan, session.executor
    check_unchanged(plan.slide)
    session.driver.check()
    spec, *within = label_specs(plan, session.root)
    origin = describe_origin(plan, labelled.failed)
    labels.finalize(spec, n_cells=n_cells, provenance=origin, table=session.folder.table)
    for each in within:
        labels.finalize(each, n_cells=n_cells, provenance=origin)
    _remove_unfinished(session, [spec, *within])
    session.seconds["total"] = total = round(time.monotonic() - started, 3)
    workers, device_workers = session.workers, 0
    if executor is not None:
        workers, device_workers = executor.workers, executor.device_workers
    evaluating = device_workers or workers
    report = {
        "complete": True,
        **describe_run(
            plan, session.settings, session.choice, session.facts, n_cells, session.seconds
        ),
        **describe_costs(plan, session.facts, session.kept, evaluating, total, meter.read()),
        "workers": workers,
        "device_workers": device_workers,
        "tasks": len(session.facts),
        "tasks_kept": len(session.kept),
        **labelled.tell(),
        "failed_tiles": labelled.failed,
        **describe_gaps(plan, session.facts, session.lost, labelled.gaps_before),
        "tracebacks": keep_tracebacks(session.lost),
        "measured": describe_measures(session.measures, plan.slide.channels),
        "positivity": session.positivity,
        "slide_channels": list(list_channels_read(plan, session.measures)),
        "slide_pixels": {
            f"{task.row}-{task.col}": facts["pixels"]
            for task, facts in session.facts.items()
            if isinstance(task, NumberShard)
        },
        "labels": str(Path(session.root) / "labels" / spec.label_name),
        "view": str(labels.viewer_path(spec)),
        "view_image": None if spec.image or spec.in_place else _viewable(plan),
    }
    content = json.dumps(report, indent=1).encode()
    known = {
        name: checksum for facts in session.facts.values()
        for name, checksum in facts.get("files", {}).items()
    }  # fmt: skip
    trees, seeds = session.folder.trees(plan), session.work.all_keys.read_bytes()
    owners = None if labelled.nuclei is None else labelled.nuclei().pack_owners()
    keep(trees, Path(session.root), session.folder.table, known, seeds, content, owners)
    result = _result(session.folder, plan, report)
    if session.settings.keep_flows or result.is_partial:
        keep_work(session.folder.work_tree(plan), session.work.journal.list_files())
    session.driver.check()
    write_atomic(session.folder.report, content)
    return result


def _viewable(plan: Plan) -> str | None:
    """The slide, if viewers open it as they do labels: then both are looked at together."""
    return plan.slide.path if plan.slide.kind == "ome-zarr" else None


def _result(folder: OutputFolder, plan: Plan, report: dict[str, Any]) -> SegmentResult:
    # Paths in the report are rebased, because the folder may have been moved since.
    root, written = folder.root(plan), Path(report["labels"]).parents[1]
    moved = {key: str(root / Path(report[key]).relative_to(written)) for key in ("labels", "view")}
    return SegmentResult(folder.path, Path(moved["labels"]), folder.table, {**report, **moved})
