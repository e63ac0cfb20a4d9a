"""One session of a run: its tasks, what their records say, and what the user sees of them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from densebatch.planning.work import tile_grid
from densebatch.stages.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from densebatch.base.geometry import Grid
    from densebatch.planning.engine_choice import EngineChoice
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.run.folder import OutputFolder
    from densebatch.workers.executors import DaskExecutor, SerialExecutor
    from densebatch.workers.schedule import Job


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
    """A task, the stage that it is shown under, and the pixels that it covers."""

    job: Job
    stage: str
    pixels: int


def _always(_job: Job, _facts: Mapping[str, Any]) -> bool:
    return True


@dataclass
class Session:
    """A run under way.

    Attributes
    ----------
    plan, settings, choice, folder, executor, progress : of the run
    shuffle : seed of a random task order
    seconds : by stage
    facts : of all finished tasks, by name, from their records
    kept : names of those that an earlier session had finished
    """

    plan: Plan
    settings: SegmentSettings
    choice: EngineChoice
    folder: OutputFolder
    executor: SerialExecutor | DaskExecutor
    progress: Progress
    shuffle: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.folder.work

    @property
    def plan_path(self) -> str:
        """Where tasks read the plan."""
        return str(self.folder.plan_path(self.plan))

    @property
    def root(self) -> str:
        """The OME-Zarr image group that gets the labels."""
        return str(self.folder.root(self.plan))

    @property
    def tile(self) -> int:
        """Side of a tracing tile in pixels."""
        return self.settings.tile

    @property
    def grid(self) -> Grid:
        """Tracing tiles."""
        return tile_grid(self.plan, self.tile)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes."""
        start = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - start, 3)

    def drive(
        self,
        steps: Sequence[Step],
        is_current: Callable[[Job, Mapping[str, Any]], bool] = _always,
    ) -> dict[str, str]:
        """Run the tasks that no record calls done, and tell progress.

        Parameters
        ----------
        steps
            What to do.
        is_current
            Whether a recorded task still counts as done; asked for those whose files verify.

        Returns
        -------
        dict
            Why each task failed that failed, by name.
        """
        journal = Journal(self.work / "journal")
        done = set()
        for step in steps:
            name = step.job.name
            facts = journal.done(name)
            if facts is not None and is_current(step.job, facts):
                done.add(name)
                if name not in self.facts:
                    self.kept.add(name)
                self.facts[name] = facts
        for stage in dict.fromkeys(step.stage for step in steps):
            names = [step.job.name for step in steps if step.stage == stage]
            self.progress.stage(stage, len(names), sum(name in done for name in names))
        by_name = {step.job.name: step for step in steps}
        todo = [step.job for step in steps if step.job.name not in done]
        failures = {}
        for outcome in self.executor.run(todo, frozenset(done), self.shuffle):
            name = outcome.job.name
            if outcome.error is not None:
                failures[name] = outcome.error
                self.facts.pop(name, None)
                self.progress.note(f"{name} failed: {outcome.error}")
            else:
                self.facts[name] = outcome.result
            self.progress.advance(by_name[name].stage, by_name[name].pixels)
        return failures
