"""Flow fields of several slides, kept on disk to be traced with more than one setting."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.files import sentences_for_disk
from densebatch.base.names import join_notes
from densebatch.engines.quantization import write_quantised
from densebatch.planning.plan import FlowPlan
from densebatch.run.driver import Driver
from densebatch.run.flow_steps import list_predict_steps
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import prepare
from densebatch.run.report import Progress
from densebatch.run.session import Session
from densebatch.run.start import ExecutorStart
from densebatch.slides.slide import check_unchanged
from densebatch.stages.predict import create_flows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.prepare import Prepared
    from densebatch.workers.executors import Executor


@dataclass(frozen=True)
class FlowField:
    """A slide's flow field on disk.

    Attributes
    ----------
    plan : what it was made by
    flows : the field, a zarr array
    evaluated : patches that the network was evaluated on in this call
    """

    plan: FlowPlan
    flows: Path
    evaluated: int


def store_flows(
    slides: Mapping[Path, Path],
    settings: SegmentSettings,
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> dict[Path, FlowField]:
    """Evaluate the network on slides, and stop there: plan and stage 1 of `segment`.

    What an earlier call left in a folder is verified and used. The thresholds of `settings` are
    part of the plans: whoever wants to trace with others gives the same ones each time.

    Parameters
    ----------
    slides
        Slide by the folder that gets its flow field: absent, empty, or of the same run.
    settings
        See `SegmentSettings`.
    restart
        Remove what an earlier run left in the folders.
    progress
        Receives stages and tasks as they happen.

    Returns
    -------
    dict
        By folder.

    Raises
    ------
    InputError
        As `segment`; nothing is left behind.
    DensebatchError
        If a patch of a slide could not be evaluated.
    """
    progress = progress or Progress()
    folders = [OutputFolder(path.absolute()) for path in slides]
    runs = prepare(
        list(zip(slides.values(), folders, strict=True)),
        settings,
        restart=restart,
        note=progress.note,
    )
    plans = [run.plan for run in runs if isinstance(run.plan, FlowPlan)]
    if len(plans) < len(runs):
        raise InputError(
            f"segmenter {settings.segmenter}: has no flows to trace with other thresholds; try its "
            "options by `densebatch segment --segmenter-options` and compare by `densebatch score`"
        )
    for note in collect_notes(plans):
        progress.note(note)
    if not restart:
        for prepared in runs:
            prepared.folder.compare(prepared.plan)
    with ExecutorStart(settings, progress.note) as starting:
        # Workers are started when a task needs them.
        start = cache(lambda: starting.finish(runs[0].workers, plans, runs[0].folder.work))
        return {
            path: _store_field(run, settings, start, progress, restart=restart)
            for path, run in zip(slides, runs, strict=True)
        }


def _store_field(
    run: Prepared,
    settings: SegmentSettings,
    start: Callable[[], Executor],
    progress: Progress,
    *,
    restart: bool,
) -> FlowField:
    """Evaluate the network on one of the slides."""
    plan, folder = run.plan, run.folder
    assert isinstance(plan, FlowPlan)
    with Driver(progress) as driver, sentences_for_disk(folder.path):
        session = Session(plan, settings, run.choice, folder, driver, start, run.workers, progress)
        driver.own(folder)
        folder.claim(plan, restart=restart)
        if run.choice is not None and run.choice.packed is not None:
            write_quantised(session.work.folder, run.choice.packed)
        create_flows(plan, session.work.flows)
        failures = session.drive(list(list_predict_steps(session)))
        if failures:
            task, reason = next(iter(failures.items()))
            raise DensebatchError(
                f"{plan.slide.path}: {task.name} failed ({reason}); the same command continues"
            )
        check_unchanged(plan.slide)
        for facts in session.facts.values():
            if facts.get("unread"):
                raise DensebatchError(
                    f"{facts['unread'][0]['reason']}; no thresholds are tried on a part of a "
                    "slide, and the same command tries it again"
                )
    new = [f["patches"] for task, f in session.facts.items() if task not in session.kept]
    return FlowField(plan, session.work.flows, sum(new))


def collect_notes(plans: Sequence[FlowPlan]) -> list[str]:
    """Notes of several plans, each once, with the slides' names before it unless it is of all."""
    notes = [(Path(plan.slide.path).name, note) for plan in plans for note in plan.notes]
    return join_notes(notes, len(plans))
