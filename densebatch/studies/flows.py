"""Flow fields of several slides, kept on disk to be traced with more than one setting."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import DensebatchError
from densebatch.engines.quantization import write_quantised
from densebatch.planning.capacity import check_capacity, choose_workers, count_lanes, estimate
from densebatch.planning.planner import draft_plan, survey_plan
from densebatch.planning.work import predict_name
from densebatch.run.engine import check_engine, settle_engine
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import Progress, start_executor
from densebatch.run.session import Session
from densebatch.run.steps import predict_steps
from densebatch.stages.journal import Journal
from densebatch.stages.predict import create_flows
from densebatch.workers.scheduler import check_scheduler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings


@dataclass(frozen=True)
class FlowField:
    """A slide's flow field on disk.

    Attributes
    ----------
    plan : what it was made by
    work : folder with `flows.zarr` and the journal
    evaluated : patches that the network was evaluated on in this call
    """

    plan: Plan
    work: Path
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
    check_scheduler(settings.scheduler)
    folders = [OutputFolder(path.absolute()) for path in slides]
    for folder in folders:
        folder.check()
    drafts = [draft_plan(slide, settings) for slide in slides.values()]
    workers = max(choose_workers(settings, draft) for draft in drafts)
    check_engine(settings)
    for draft, folder in zip(drafts, folders, strict=True):
        check_capacity(
            estimate(draft, settings.tile, count_lanes(draft, settings, workers)),
            workers,
            folder.path,
            remote=settings.is_remote,
        )
    settled = [
        settle_engine(survey_plan(draft), settings, folder, restart=restart)
        for draft, folder in zip(drafts, folders, strict=True)
    ]
    plans = [plan for plan, _ in settled]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        progress.note(note)
    if not restart:
        for plan, folder in zip(plans, folders, strict=True):
            folder.compare(plan)
    fields = {}
    with ExitStack() as stack:
        if not restart and all(map(_has_flows, plans, folders)):
            workers = 0  # nobody need be started
        executor = start_executor(stack, settings, workers, plans)
        for path, (plan, choice), folder in zip(slides, settled, folders, strict=True):
            run = Session(plan, settings, choice, folder, executor, progress)
            folder.claim(plan, restart=restart)
            if choice.packed is not None:
                write_quantised(run.work, choice.packed)
            create_flows(plan, run.work / "flows.zarr")
            failures = run.drive(predict_steps(run))
            if failures:
                name, reason = next(iter(failures.items()))
                raise DensebatchError(
                    f"{plan.slide.path}: {name} failed ({reason}); the same command continues"
                )
            new = [facts["patches"] for name, facts in run.facts.items() if name not in run.kept]
            fields[path] = FlowField(plan, run.work, sum(new))
    return fields


def _has_flows(plan: Plan, folder: OutputFolder) -> bool:
    journal = Journal(folder.work / "journal")
    return all(journal.done(predict_name(*group)) is not None for group in plan.groups)
