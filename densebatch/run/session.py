"""One session of a run: its tasks, what their records say, and what the user sees of them."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from densebatch.base.log import log_event
from densebatch.planning.measured import choose_measures
from densebatch.slides.slide import reopen_slide
from densebatch.slides.watch import watch_slide
from densebatch.stages.work import Halt, Work, run_task
from densebatch.workers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from densebatch.measuring.schema import Measures
    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.driver import Driver
    from densebatch.run.folder import OutputFolder
    from densebatch.run.report import Progress
    from densebatch.run.status import RunState
    from densebatch.stages.work import Task
    from densebatch.workers.executors import Executor
    from densebatch.workers.schedule import Outcome

log = logging.getLogger(__name__)

_READERS = 8


@dataclass(frozen=True)
class Step:
    """A task, and when and where it is done.

    Attributes
    ----------
    task : what to do
    shown_as : the stage that the user sees it under
    pixels : of the slide that it covers
    needs : names of tasks that must be done before
    rank, on_device : as of `Job`
    """

    task: Task
    shown_as: str
    pixels: int
    needs: tuple[str, ...] = ()
    rank: int = 0
    on_device: bool = False

    @property
    def job(self) -> Job:
        """What an executor gets."""
        return Job(self.task.name, run_task, (self.task,), self.needs, self.rank, self.on_device)


@dataclass
class Session:
    """A run under way.

    Attributes
    ----------
    plan, settings, choice, folder, progress : of the run
    driver : owns the folder and hears signals
    start : starts the executor, which happens when a task needs it
    workers : that there are or will be on this machine; 0 if this process works, or a cluster
    shuffle : seed of a random task order
    seconds : by stage
    facts : of all finished tasks, from their records; a key that was there stays when its task is
        done again, so how it was done last is told by its facts alone
    kept : tasks that an earlier session had finished
    lost : tasks of this session that failed for good and leave a gap, with the reason
    positivity : which cells are positive, as the report has it
    """

    plan: Plan
    settings: SegmentSettings
    choice: EngineChoice | None
    folder: OutputFolder
    driver: Driver
    start: Callable[[], Executor]
    workers: int
    progress: Progress
    shuffle: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[Task, dict[str, Any]] = field(default_factory=dict)
    kept: set[Task] = field(default_factory=set)
    lost: dict[Task, str] = field(default_factory=dict)
    positivity: dict[str, Any] = field(default_factory=dict)
    executor: Executor | None = field(default=None, init=False)

    @cached_property
    def work(self) -> Work:
        """What its tasks are told."""
        path = str(self.folder.plan_path(self.plan))
        return Work(path, self.settings.tile, watch_slide(self.plan.slide))

    @cached_property
    def measures(self) -> Measures:
        """What is measured of the cells."""
        return choose_measures(reopen_slide(self.plan.slide), self.settings, self.plan.region)

    @cached_property
    def state(self) -> RunState:
        """What the driver tells of the session."""
        return self.driver.watch(self.folder, self.settings.tile)

    @property
    def root(self) -> str:
        """The OME-Zarr image group that gets the labels."""
        return str(self.folder.root(self.plan))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        start = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - start, 3)
        log_event(log, "stage done", stage=stage, seconds=self.seconds[stage])

    def open_executor(self) -> Executor:
        """The executor, started now if it is not yet.

        Raises
        ------
        InputError, DensebatchError
            As `start`.
        """
        if self.executor is None:
            self.executor = self.state.executor = self.start()
        return self.executor

    def drive(self, steps: Sequence[Step]) -> dict[Task, str]:
        """Run the tasks that no record calls done, and tell progress.

        Parameters
        ----------
        steps
            What to do.

        Returns
        -------
        dict
            Why each task failed that failed.

        Raises
        ------
        InterruptedRunError, DensebatchError
            As `Driver.drive`, after the tasks that were under way.
        SlideChangedError, UnreachableError, WriteError
            If a task says that no other can be done either.
        """
        done = self._recall(steps)
        for shown in dict.fromkeys(step.shown_as for step in steps):
            tasks = [step.task for step in steps if step.shown_as == shown]
            n_done = sum(task in done for task in tasks)
            self.state.begin_stage(shown, len(tasks), n_done)
            self.progress.stage(shown, len(tasks), n_done)
            log_event(log, "stage begun", stage=shown, tasks=len(tasks), done=n_done)
        by_name = {step.task.name: step for step in steps}
        jobs = [step.job for step in steps if step.task not in done]
        done_names = frozenset(task.name for task in done)
        failures: dict[Task, str] = {}
        if not jobs:
            return failures
        executor = self.open_executor()
        with self.driver.drive(executor):
            for outcome in executor.run(jobs, done_names, self.shuffle):
                if isinstance(outcome.result, Halt):
                    raise outcome.result.to_error()
                self._take(by_name[outcome.job.name], outcome, failures)
        return failures

    def _take(self, step: Step, outcome: Outcome, failures: dict[Task, str]) -> None:
        """Note how a task ended."""
        if outcome.error is not None:
            failures[step.task] = outcome.error
            self.facts.pop(step.task, None)
            self.progress.note(f"{step.task.name} failed: {outcome.error}")
            log_event(
                log, "task failed", logging.WARNING, task=step.task.name, reason=outcome.error
            )
        else:
            self.facts[step.task] = outcome.result
            self.kept.discard(step.task)  # a tile that is traced again is this session's
        self.state.advance(step.shown_as, step.pixels, failed=outcome.error is not None)
        self.progress.advance(step.shown_as, step.pixels)

    def _recall(self, steps: Sequence[Step]) -> set[Task]:
        """The tasks that are done already; what their records say joins `facts`."""
        done = set()
        for step, facts in zip(steps, read_records(steps), strict=True):
            if facts is None:
                continue
            done.add(step.task)
            if step.task not in self.facts:
                self.kept.add(step.task)
            self.facts[step.task] = facts
        return done


def read_records(steps: Sequence[Step]) -> Iterator[dict[str, Any] | None]:
    """Facts of each task that is done, None for one that must be run (again)."""
    # Threads wait for a disk, which on a network takes longer than all the rest.
    pool = ThreadPoolExecutor(_READERS)
    try:
        yield from pool.map(_read_record, steps)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_record(step: Step) -> dict[str, Any] | None:
    """Facts of a task that is done, None if it must be run (again)."""
    facts = step.task.work.journal.done(step.task.name)
    return facts if facts is not None and step.task.is_current(facts) else None
