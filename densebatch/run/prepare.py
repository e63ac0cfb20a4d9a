"""Decide and check everything about a run before it begins: `prepare` is its only way to a plan."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.planning.capacity import (
    Estimate,
    check_capacity,
    choose_workers,
    count_lanes,
    estimate,
)
from densebatch.planning.join_planner import join_plans, name_options
from densebatch.planning.plan import FlowPlan
from densebatch.planning.planner import (
    draft_plan,
    keep_survey,
    refine_draft,
    survey_plan,
)
from densebatch.regions.tissue import SlideTissue
from densebatch.run.engine import add_engine, check_engine, list_requirements
from densebatch.run.report import Progress
from densebatch.survey.reader import count_regions
from densebatch.workers.cluster import check_workers
from densebatch.workers.schedule import Job
from densebatch.workers.scheduler import check_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.plan import Plan
    from densebatch.planning.planner import Limits
    from densebatch.planning.settings import SegmentSettings
    from densebatch.remote.tree import Place
    from densebatch.run.folder import OutputFolder
    from densebatch.run.start import Starting
    from densebatch.survey.reader import BandMap
    from densebatch.workers.executors import Executor


_SURVEY = "survey"
MANY_READS = 32  # regions that a survey reads, from which workers do it


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
    slides: Sequence[tuple[str | Place, OutputFolder]],
    settings: SegmentSettings,
    *,
    restart: bool = False,
    starting: Starting | None = None,
    limits: Sequence[Limits | None] | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Progress | None = None,
    tissue: SlideTissue | None = None,
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
    progress
        Receives the survey, where workers do it.
    tissue
        Of the only slide, if it is known already.

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
            _prepare_joined(
                slide,
                folder,
                settings,
                restart=restart,
                starting=starting,
                note=note,
                progress=progress,
            )
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
    if settings.diameter == "auto" or settings.tissue == "auto":
        # Scale and area decide what a run needs, so that this is asked again.
        drafts = [
            refine_draft(slide, settings, draft, old, tissue)
            for (slide, _), draft, old in zip(slides, drafts, earlier, strict=True)
        ]
        workers, needs = _size_runs(drafts, folders, settings, restart=restart)
    if settings.is_remote and not finished:
        check_workers(settings.scheduler, list_requirements(drafts, settings), note)
    if starting is not None and (restart or any(f.may_need_workers() for _, f in slides)):
        starting.begin(workers, drafts)
    with ExitStack() as stack:
        elsewhere = None
        if starting is not None and not finished and sum(map(count_reads, drafts)) >= MANY_READS:
            executor = stack.enter_context(starting.for_survey(drafts))
            if executor is not None:
                elsewhere = map_bands(executor, progress or Progress())
        each = zip(drafts, earlier, strict=True)
        surveyed = [survey_plan(draft, old, limits, elsewhere) for draft, old in each]
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
    slide: str | Place,
    folder: OutputFolder,
    settings: SegmentSettings,
    *,
    restart: bool,
    starting: Starting | None,
    note: Callable[[str], None],
    progress: Progress | None,
) -> Prepared:
    """Prepare a run of nuclei, and one of cells if there is one, and what joins them."""
    inner: dict[str, Prepared] = {}
    tissue = None
    for role, own in settings.split_runs().items():
        try:
            [inner[role]] = prepare(
                [(slide, folder.inner(role))], own, restart=restart,
                # Workers are started beside one survey, the last.
                starting=starting if role == "nuclei" else None, note=note, progress=progress,
                tissue=tissue,
            )  # fmt: skip
        except InputError as error:
            raise type(error)(name_options(role, str(error))) from error
        first = inner[role].plan
        if first.tissue is not None:  # by the channels of cells and of nuclei, for both
            tissue = SlideTissue(first.tissue, first.region)
    plan = join_plans({role: run.plan for role, run in inner.items()}, settings)
    workers = max(run.workers for run in inner.values())
    needs = estimate(plan, settings.tile)
    # The runs stay beside what is made of them.
    left = [run.needs for run in inner.values() if restart or not run.folder.report.exists()]
    needs = replace(needs, disk_mb=needs.disk_mb + sum(each.disk_mb for each in left))
    if restart or folder.read_complete(plan) is None:
        check_capacity(needs, workers, folder.path, remote=settings.is_remote)
    return Prepared(folder, plan, None, workers, needs, settings, inner)


def count_reads(draft: Plan) -> int:
    """Regions that a survey reads, of all channels."""
    return count_regions(draft.slide) * len(draft.seen_channels)


def map_bands(executor: Executor, progress: Progress) -> BandMap:
    """Have workers do the bands of a pass over a channel.

    Parameters
    ----------
    executor
        Of the workers.
    progress
        Is told of the bands.
    """

    def do_all(function: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> list[Any]:
        progress.stage(_SURVEY, len(items), 0)
        jobs = [Job(f"survey-{k}", function, item) for k, item in enumerate(items)]
        found = {}
        for outcome in executor.run(jobs):
            if outcome.error is not None:
                raise DensebatchError(
                    f"the slide could not be surveyed by the workers: {outcome.error}"
                )
            found[outcome.job.name] = outcome.result
            progress.advance(_SURVEY, 1)
        if len(found) < len(jobs):  # because somebody has stopped the executor
            raise KeyboardInterrupt
        return [found[job.name] for job in jobs]

    return do_all


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
