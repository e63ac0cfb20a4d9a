"""Decide and check everything about a run before it begins: `prepare` is its only way to a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from densebatch.planning.capacity import (
    Estimate,
    check_capacity,
    choose_workers,
    count_lanes,
    estimate,
)
from densebatch.planning.plan import FlowPlan
from densebatch.planning.planner import (
    draft_plan,
    estimate_scale,
    join_plans,
    keep_survey,
    survey_plan,
)
from densebatch.run.engine import add_engine, check_engine, list_requirements
from densebatch.workers.cluster import check_workers
from densebatch.workers.scheduler import check_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.plan import Plan
    from densebatch.planning.planner import Limits
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.folder import OutputFolder
    from densebatch.run.start import Starting


@dataclass(frozen=True)
class Prepared:
    """A run that may begin.

    Attributes
    ----------
    folder : where it goes
    plan : what it does
    choice : what evaluates its network, and why; None with a segmenter
    workers : processes of this machine that do it; 0 if this one does, or a cluster
    needs : memory and disk
    settings : of the run
    inner : runs that it joins, by what they segment, if it does
    """

    folder: OutputFolder
    plan: Plan
    choice: EngineChoice | None
    workers: int
    needs: Estimate
    settings: SegmentSettings
    inner: Mapping[str, Prepared] = field(default_factory=dict)

    @property
    def own_plans(self) -> list[Plan]:
        """Plans of the runs that evaluate something."""
        return [run.plan for run in self.inner.values()] or [self.plan]


def prepare(
    slides: Sequence[tuple[str | Path, OutputFolder]],
    settings: SegmentSettings,
    *,
    restart: bool = False,
    starting: Starting | None = None,
    limits: Sequence[Limits | None] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Prepared]:
    """Plan runs, and refuse what this machine can tell cannot work before any pixel is read.

    Nothing is written. Whether a folder holds another run is for its caller to ask
    (`OutputFolder.compare`).

    Parameters
    ----------
    slides
        Each with the folder that its run goes to; the same workers do all of them.
    settings
        Of all runs.
    restart
        What the folders hold does not count.
    starting
        Is begun beside the survey, which leaves a processor idle for most of the time that starting
        workers takes; unless an earlier session may have left them nothing to do.
    limits
        As of `survey_plan`, of all slides.
    note
        Is told what the user should know of a running scheduler and its workers.

    Returns
    -------
    list
        In the order of the slides.

    Raises
    ------
    InputError
        For a slide, setting, backend, scheduler or output folder that cannot be used.
    CapacityError
        If memory or disk do not suffice.
    DensebatchError
        If a running scheduler has no workers for as long as the user is patient.
    """
    for _, folder in slides:
        folder.check()
    if settings.is_joined:
        return [
            _prepare_joined(slide, folder, settings, restart=restart, starting=starting, note=note)
            for slide, folder in slides
        ]
    finished = not restart and all(
        folder.marker.exists() and folder.report.exists() for _, folder in slides
    )
    if not finished:  # else no worker may be needed; if one is, all of this is asked then
        check_scheduler(settings.scheduler, note)
    drafts = [draft_plan(slide, settings) for slide, _ in slides]
    check_engine(settings, drafts)
    folders = [folder for _, folder in slides]
    workers, needs = _size_runs(drafts, folders, settings, restart=restart)
    earlier = [None if restart else folder.read_marker() for folder in folders]
    if settings.diameter == "auto":
        # The scale decides what a run needs, so that this is asked again.
        drafts = [
            draft_plan(slide, settings, estimate_scale(draft, settings, old))
            for (slide, _), draft, old in zip(slides, drafts, earlier, strict=True)
            if isinstance(draft, FlowPlan)  # as they all are with a model
        ]
        workers, needs = _size_runs(drafts, folders, settings, restart=restart)
    if settings.is_remote and not finished:
        check_workers(settings.scheduler, list_requirements(drafts, settings), note)
    if starting is not None and (restart or any(f.may_need_workers() for _, f in slides)):
        starting.begin(workers, drafts)
    surveyed = [survey_plan(*each, limits) for each in zip(drafts, earlier, strict=True)]
    if starting is not None:
        starting.wait()  # so that a trial of backends has the machine to itself
    prepared = []
    for new, old, need, (_, folder) in zip(surveyed, earlier, needs, slides, strict=True):
        plan = keep_survey(new, old)
        complete, choice = plan, None
        if isinstance(plan, FlowPlan):
            complete, choice = add_engine(plan, settings, folder, restart=restart, note=note)
        if folder.report.exists() and not restart and folder.read_complete(complete) is None:
            check_capacity(need, workers, folder.path, remote=settings.is_remote)
        prepared.append(Prepared(folder, complete, choice, workers, need, settings))
    return prepared


def _prepare_joined(
    slide: str | Path,
    folder: OutputFolder,
    settings: SegmentSettings,
    *,
    restart: bool,
    starting: Starting | None,
    note: Callable[[str], None],
) -> Prepared:
    """Prepare a run of nuclei, and one of cells if there is one, and what joins them."""
    inner: dict[str, Prepared] = {}
    for role, own in settings.split_runs().items():
        [inner[role]] = prepare(
            [(slide, folder.inner(role))], own, restart=restart,
            # Workers are started beside one survey, the last.
            starting=starting if role == "nuclei" else None, note=note,
        )  # fmt: skip
    plan = join_plans({role: run.plan for role, run in inner.items()}, settings)
    workers = max(run.workers for run in inner.values())
    needs = estimate(plan, settings.tile)
    if restart or folder.read_complete(plan) is None:
        check_capacity(needs, workers, folder.path, remote=settings.is_remote)
    return Prepared(folder, plan, None, workers, needs, settings, inner)


def _size_runs(
    drafts: Sequence[Plan],
    folders: Sequence[OutputFolder],
    settings: SegmentSettings,
    *,
    restart: bool,
) -> tuple[int, list[Estimate]]:
    """How many workers do the runs, and what each run needs; refuses what does not fit."""
    workers = max(choose_workers(settings, draft) for draft in drafts)
    needs = []
    for draft, folder in zip(drafts, folders, strict=True):
        lanes = count_lanes(draft, settings, workers) if isinstance(draft, FlowPlan) else 1
        needs.append(estimate(draft, settings.tile, lanes))
        if restart or not folder.report.exists():  # else it may be complete, on a full disk
            check_capacity(needs[-1], workers, folder.path, remote=settings.is_remote)
    return workers, needs
