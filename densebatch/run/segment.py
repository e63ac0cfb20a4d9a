"""The story from top to bottom: plan, predict, trace, number, tell. Read `segment` first."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.files import write_atomic
from densebatch.base.log import log_event
from densebatch.base.process import Meter
from densebatch.cells import labels
from densebatch.engines.quantization import write_quantised
from densebatch.planning.settings import load_settings
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import Prepared, prepare
from densebatch.run.report import (
    describe_costs,
    describe_gaps,
    describe_lost,
    describe_run,
    keep_tracebacks,
    tell_missing,
)
from densebatch.run.session import Progress, Session
from densebatch.run.start import ExecutorStart
from densebatch.run.steps import number_cells, predict_and_trace
from densebatch.stages.output import describe_origin, output_spec
from densebatch.stages.predict import create_flows
from densebatch.stages.trace import create_traces

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings

__all__ = ["Progress", "SegmentResult", "segment"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentResult:
    """What a run produced.

    Attributes
    ----------
    out : output folder
    labels : path of the multiscale label image
    table : path of the cell table
    report : the content of `run.json`
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
        """Pieces of the slide that cannot be read: channel, region, reason.

        Cells there have no mean intensity in that channel, and a copied image is 0 there. If the
        network sees the channel, pixels whose cells depend on them are missing.
        """
        return list(self.report["unread"])

    @property
    def missing_px(self) -> int:
        """Pixels without a result, which are 1 in the label image `missing` beside the cells."""
        return int(self.report["missing_px"])

    @property
    def is_partial(self) -> bool:
        """Whether anything is missing; the same command tries it again."""
        return bool(self.failed_tiles or self.unread or self.missing_px)

    def tell_missing(self) -> str:
        """One sentence on what is missing."""
        return tell_missing(self.report)


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
        If no tile could be segmented, or the result could not be written.
    """
    if settings is not None and options:
        raise TypeError(f"give settings or keyword arguments, not both: {', '.join(options)}")
    settings = settings or load_settings(None, **options)
    progress = progress or Progress()
    folder = OutputFolder(Path(out).absolute())
    started, meter = time.monotonic(), Meter()
    with ExecutorStart(settings) as starting:
        [prepared] = prepare([(slide, folder)], settings, restart=restart, starting=starting)
        planned_s = time.monotonic() - started - starting.waited_s
        _tell_plan(prepared, progress)
        if not restart:
            folder.compare(prepared.plan)
            report = folder.read_complete(prepared.plan)
            if report is not None:
                progress.note(f"{folder.path}: this run is already complete")
                if not settings.keep_flows:
                    shutil.rmtree(folder.work, ignore_errors=True)  # killed as it ended
                return _result(folder, prepared.plan, report)
        executor = starting.finish(prepared.workers, [prepared.plan])
        session = Session(
            prepared.plan, settings, prepared.choice, folder, executor, progress, shuffle
        )
        session.seconds |= {"plan": round(planned_s, 3), "start": round(starting.waited_s, 3)}
        _open_output(session, restart=restart)
        failed = predict_and_trace(session)
        if len(failed) == len(session.work.grid):
            reason = next(iter(failed.values()))
            raise DensebatchError(
                f"{prepared.plan.slide.path}: no tile could be segmented: {reason}"
            )
        n_cells = number_cells(session, failed)
        result = _finish(session, n_cells, failed, started, meter)
    if not settings.keep_flows and not result.is_partial:
        shutil.rmtree(folder.work, ignore_errors=True)
    return result


def _tell_plan(prepared: Prepared, progress: Progress) -> None:
    """Tell the user how settings were taken, and what evaluates the network if that was chosen."""
    for note in prepared.plan.notes:
        progress.note(note)
    engine = prepared.choice.engine
    if prepared.choice.reason != "default":
        progress.note(f"engine: {engine.backend} on {engine.device} ({prepared.choice.reason})")
    log_event(
        log,
        "run planned",
        slide=prepared.plan.slide.path,
        out=str(prepared.folder.path),
        fingerprint=prepared.plan.fingerprint,
        model=prepared.plan.model.name,
        backend=engine.backend,
        device=engine.device,
        patches=prepared.plan.network_patches,
        workers=prepared.workers,
    )


def _open_output(session: Session, *, restart: bool) -> None:
    """Make the output folder this run's and create all arrays; or leave nothing behind."""
    spec = output_spec(session.plan, session.root)
    identity = {"fingerprint": session.plan.fingerprint}
    labels.check_place(spec, label_attrs=identity, restart=restart)
    session.folder.claim(session.plan, restart=restart)
    try:
        _remove_unfinished(session, spec)
        labels.create(spec, label_attrs=identity, restart=restart)
        if session.choice.packed is not None:
            write_quantised(session.folder.work, session.choice.packed)
        create_flows(session.plan, session.work.flows)
        create_traces(session.work)
    except InputError:
        session.folder.release()
        raise


def _remove_unfinished(session: Session, spec: labels.PyramidSpec) -> None:
    """Remove the files that killed writers had not yet given their names."""
    ours = Path(session.root) / "labels" / spec.label_name if spec.in_place else Path(session.root)
    for unfinished in ours.rglob("*.partial"):
        unfinished.unlink(missing_ok=True)


def _finish(
    session: Session,
    n_cells: int,
    failed: Mapping[tuple[int, int], str],
    started: float,
    meter: Meter,
) -> SegmentResult:
    """Write metadata and run.json; they come last, so their presence means the run is whole."""
    plan = session.plan
    spec = output_spec(plan, session.root)
    tiles = describe_lost(session.work.grid, failed)
    labels.finalize(spec, n_cells=n_cells, provenance=describe_origin(plan, tiles))
    _remove_unfinished(session, spec)
    total = time.monotonic() - started
    session.seconds["total"] = round(total, 3)
    evaluating = session.executor.device_workers or session.executor.workers
    report = {
        "complete": True,
        **describe_run(
            plan, session.settings, session.choice, session.facts, n_cells, session.seconds
        ),
        **describe_costs(plan, session.facts, session.kept, evaluating, total, meter.read()),
        "workers": session.executor.workers,
        "device_workers": session.executor.device_workers,
        "tasks": len(session.facts),
        "tasks_kept": len(session.kept),
        "failed_tiles": tiles,
        **describe_gaps(plan, session.facts, session.lost),
        "tracebacks": keep_tracebacks(session.lost),
        "labels": str(Path(session.root) / "labels" / spec.label_name),
        "view": str(labels.viewer_path(spec)),
        "view_image": None if spec.image or spec.in_place else _viewable(plan),
    }
    write_atomic(session.folder.report, json.dumps(report, indent=1).encode())
    return _result(session.folder, plan, report)


def _viewable(plan: Plan) -> str | None:
    """The slide, if viewers open it as they do labels: then both are looked at together."""
    return plan.slide.path if plan.slide.kind == "ome-zarr" else None


def _result(folder: OutputFolder, plan: Plan, report: dict[str, Any]) -> SegmentResult:
    # Paths in the report are rebased, because the folder may have been moved since.
    root, written = folder.root(plan), Path(report["labels"]).parents[1]
    moved = {key: str(root / Path(report[key]).relative_to(written)) for key in ("labels", "view")}
    return SegmentResult(folder.path, Path(moved["labels"]), folder.table, {**report, **moved})
