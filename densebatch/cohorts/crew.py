"""The workers that the slides of a cohort share, and how many there are."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError, StoreError
from densebatch.planning.capacity import (
    choose_workers,
    count_first_tasks,
    estimate,
    fit_workers,
    weight_bytes,
)
from densebatch.planning.plan import FlowPlan
from densebatch.planning.planner import draft_plan
from densebatch.run.start import ExecutorStart
from densebatch.survey.reader import MAX_THREADS
from densebatch.workers.executors import DaskExecutor, SerialExecutor
from densebatch.workers.sharing import Lane, SharedExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from densebatch.cohorts.rows import Row
    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.workers.executors import Executor
    from densebatch.workers.schedule import Job

_READERS = 8
_LEAST_OPEN = 4


@dataclass(frozen=True)
class Size:
    """How many workers a cohort has, and what it is told from.

    Attributes
    ----------
    workers : processes of this machine; 0 for none but this one, or on a cluster
    largest : for each model or segmenter, the draft of the slide that needs most memory
    """

    workers: int
    largest: tuple[Plan, ...]


def size_crew(rows: Sequence[Row], settings: SegmentSettings) -> Size:
    """How many workers do a cohort, told by the metadata of its slides.

    No more drafts are held than there are models. Slides that cannot be opened do not count.

    Parameters
    ----------
    rows
        Of the cohort.
    settings
        Of the command.

    Raises
    ------
    InputError
        If workers are asked for where this process may not start any.
    """
    largest: dict[str, tuple[int, Plan]] = {}
    n_tasks = 0
    for _, draft in map_in_threads(_draft, rows, _READERS):
        if draft is None:
            continue
        name = draft.model.sha256 if isinstance(draft, FlowPlan) else "segmenter"
        needed = estimate(draft, settings.tile).worker_mb
        n_tasks += count_first_tasks(draft)
        if needed > largest.get(name, (0, draft))[0]:
            largest[name] = needed, draft
    drafts = tuple(draft for _, draft in largest.values())
    if settings.workers is not None or settings.is_remote or not drafts:
        return Size(choose_workers(settings, drafts[0]) if drafts else 0, drafts)
    # A worker may hold the networks of two models at once.
    weights = sorted((weight_bytes(d) for d in drafts if isinstance(d, FlowPlan)), reverse=True)
    worker_mb = max(needed for needed, _ in largest.values()) + sum(weights[1:2]) // 10**6
    chosen = choose_workers(settings, drafts[0])  # 0 where this process may not start any
    return Size(chosen and fit_workers(worker_mb, n_tasks), drafts)


def _draft(row: Row) -> Plan | None:
    """The draft of a slide; None if it cannot be made, for which its row fails in its turn."""
    try:
        return draft_plan(row.slide, row.read_settings())
    except (InputError, StoreError, OSError):
        return None


class Crew:
    """The workers of a cohort, until the context is left; they start when a slide needs them.

    Parameters
    ----------
    settings
        Of the command.
    size
        How many there are.
    note
        Is told what the user should know of them.

    Attributes
    ----------
    is_shared : whether several slides have tasks at once
    error : why there are no workers any more, so that no slide can go on; None as long as all is
        well
    """

    def __init__(self, settings: SegmentSettings, size: Size, note: Callable[[str], None]) -> None:
        self.size = size
        self.is_shared = settings.is_remote or size.workers > 0
        self._starting = ExecutorStart(settings, note)
        self._stack = ExitStack()
        self._opening = threading.Lock()  # for as long as workers take to appear
        self._ending = threading.Lock()  # so that nothing begins once the context is left
        self._has_begun = False
        self._has_executor = False
        self._shared: SharedExecutor | None = None
        self._surveying: Executor | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        self._stack.enter_context(self._starting)
        return self

    def __exit__(self, *reason: object) -> None:
        with self._ending:
            self.abort()  # for slides that are still being surveyed
        self._stack.__exit__(*reason)  # type: ignore[arg-type]

    @property
    def error(self) -> BaseException | None:
        """See the attributes."""
        return self._error or (None if self._shared is None else self._shared.error)

    @property
    def is_hungry(self) -> bool:
        """Whether workers idle, or soon will, unless another slide brings them tasks."""
        return self._shared is None or self._shared.is_hungry

    @property
    def most_slides(self) -> int:
        """How many slides may be open at once, which many workers need only if slides are small."""
        workers = self.size.workers if self._shared is None else self._shared.executor.workers
        return max(_LEAST_OPEN, workers + 2)

    def check(self) -> None:
        """Make sure that there are workers, or may be; raises what ended them."""
        if self.error is not None:
            raise self.error

    def abort(self) -> None:
        """End the tasks of all slides now, and a survey by the workers as soon as it can be."""
        self._error = self._error or KeyboardInterrupt()
        surveying = self._surveying
        if surveying is not None:
            surveying.stopping = True
        if self._shared is not None:
            self._shared.abort()

    def begin(self, plans: Sequence[Plan]) -> None:
        """Start workers of this machine beside what comes now, if that was not begun."""
        with self._opening, self._ending:
            self.check()
            if not self._has_begun:
                self._has_begun = True
                self._starting.begin(self.size.workers, (*plans, *self.size.largest))

    def wait(self) -> None:
        """Wait for what has begun."""
        with self._opening:
            self._starting.wait()

    @contextmanager
    def for_survey(self, name: str, drafts: Sequence[Plan]) -> Iterator[Executor | None]:
        """Workers that read a slide faster than this process does, before tasks of other slides.

        Parameters
        ----------
        name
            Of the slide.
        drafts
            Of its runs.

        Yields
        ------
        Executor or None
            None if there are no workers now, or too few.

        Raises
        ------
        InputError, DensebatchError, KeyboardInterrupt
            As `open_executor`.
        """
        with self._opening:
            self.check()
            shared, has_executor = self._shared, self._has_executor
        if shared is not None and shared.executor.workers > MAX_THREADS:
            with shared.open_lane(f"survey of {name}", in_front=True) as lane:
                yield lane
        elif has_executor:
            yield None
        else:  # nobody has tasks yet, and one slide is surveyed at a time
            with ExitStack() as stack:
                try:
                    executor = stack.enter_context(self._starting.for_survey(drafts))
                except BaseException as error:
                    self._error = error
                    raise
                self._surveying = executor
                try:
                    self.check()  # for an `abort` that came before
                    yield executor
                finally:
                    self._surveying = None

    def open_executor(self, name: str, plans: Sequence[Plan], folder: Path) -> Executor:
        """The executor of a slide.

        Parameters
        ----------
        name
            Of the slide.
        plans, folder
            Of its run, as of `ExecutorStart.finish`.

        Raises
        ------
        InputError, DensebatchError
            As `ExecutorStart.finish`; then for all slides.
        KeyboardInterrupt
            After `abort`, and when the context was left.
        """
        with self._opening:
            self.check()
            if not self._has_executor:
                self._has_begun = True
                try:
                    executor = self._starting.finish(
                        self.size.workers, (*plans, *self.size.largest), folder
                    )
                except BaseException as error:
                    self._error = error
                    raise
                with self._ending:
                    if self._error is not None:  # nobody else closes it any more
                        self._starting.__exit__(None, None, None)
                    self.check()
                    self._has_executor = True
                    if isinstance(executor, DaskExecutor):
                        self._shared = self._stack.enter_context(SharedExecutor(executor))
            # One that works in this process is each slide's own, which may be stopped alone.
            return SerialExecutor() if self._shared is None else self._shared.open_lane(name)


class Place:
    """A slide's way to the crew, as `run.start.Starting` says, until the context is left.

    Attributes
    ----------
    waited_s : seconds that the slide has waited for workers
    has_tasks : whether it has come so far that it needs them
    """

    def __init__(self, crew: Crew, name: str) -> None:
        self._crew = crew
        self._name = name
        self._stack = ExitStack()
        self._executor: Executor | None = None
        self.waited_s = 0.0
        self.has_tasks = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.__exit__(*reason)  # type: ignore[arg-type]

    @property
    def running(self) -> list[Job]:
        """Tasks of the slide that are handed out now."""
        return [] if self._executor is None else self._executor.running

    @property
    def is_shared(self) -> bool:
        """Whether its workers do other slides meanwhile."""
        return self._crew.is_shared

    def begin(self, workers: int, plans: Sequence[Plan]) -> None:
        """Start the crew, if nobody has yet; `workers` are the crew's."""
        del workers
        self._crew.begin(plans)

    def wait(self) -> None:
        """Wait for the crew to have started, if it does."""
        before = time.monotonic()
        self._crew.wait()
        self.waited_s += time.monotonic() - before

    def for_survey(self, drafts: Sequence[Plan]) -> AbstractContextManager[Executor | None]:
        """As `Crew.for_survey`."""
        return self._crew.for_survey(self._name, drafts)

    def finish(self, workers: int, plans: Sequence[Plan], folder: Path) -> Executor:
        """The slide's share of the crew; errors as `Crew.open_executor`."""
        del workers
        before = time.monotonic()
        try:
            executor = self._executor = self._crew.open_executor(self._name, plans, folder)
        finally:
            self.waited_s += time.monotonic() - before
            self.has_tasks = True
        if isinstance(executor, Lane):
            self._stack.enter_context(executor)
        return executor
