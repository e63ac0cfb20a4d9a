"""One session of a run: its tasks, what their records say, and what the user sees of them."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from densebatch.base.log import log_event
from densebatch.slides.watch import watch_slide
from densebatch.stages.work import Halt, Work, run_task
from densebatch.workers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.folder import OutputFolder
    from densebatch.stages.work import Task
    from densebatch.workers.executors import Executor

log = logging.getLogger(__name__)


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
    plan, settings, choice, folder, executor, progress : of the run
    shuffle : seed of a random task order
    seconds : by stage
    facts : of all finished tasks, from their records; a key that was there stays when its task is
        done again, so how it was done last is told by its facts alone
    kept : tasks that an earlier session had finished
    lost : tasks of this session that failed for good and leave a gap, with the reason
    """

    plan: Plan
    settings: SegmentSettings
    choice: EngineChoice
    folder: OutputFolder
    executor: Executor
    progress: Progress
    shuffle: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[Task, dict[str, Any]] = field(default_factory=dict)
    kept: set[Task] = field(default_factory=set)
    lost: dict[Task, str] = field(default_factory=dict)

    @cached_property
    def work(self) -> Work:
        """What its tasks are told."""
        path = str(self.folder.plan_path(self.plan))
        return Work(path, self.settings.tile, watch_slide(self.plan.slide))

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
        SlideChangedError, WriteError
            If a task says that no other can be done either.
        """
        done = self._recall(steps)
        for shown in dict.fromkeys(step.shown_as for step in steps):
            tasks = [step.task for step in steps if step.shown_as == shown]
            n_done = sum(task in done for task in tasks)
            self.progress.stage(shown, len(tasks), n_done)
            log_event(log, "stage begun", stage=shown, tasks=len(tasks), done=n_done)
        by_name = {step.task.name: step for step in steps}
        jobs = [step.job for step in steps if step.task not in done]
        done_names = frozenset(task.name for task in done)
        failures = {}
        for outcome in self.executor.run(jobs, done_names, self.shuffle):
            step = by_name[outcome.job.name]
            if isinstance(outcome.result, Halt):
                raise outcome.result.to_error()
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
            self.progress.advance(step.shown_as, step.pixels)
        return failures

    def _recall(self, steps: Sequence[Step]) -> set[Task]:
        """The tasks that are done already; what their records say joins `facts`."""
        journal = self.work.journal
        done = set()
        for step in steps:
            facts = journal.done(step.task.name)
            if facts is None or not step.task.is_current(facts):
                continue
            done.add(step.task)
            if step.task not in self.facts:
                self.kept.add(step.task)
            self.facts[step.task] = facts
        return done
