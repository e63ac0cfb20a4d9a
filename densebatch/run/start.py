"""Start the executor of a run: beside the survey of its slides, or when a task needs one."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from densebatch.engines.make import wake_device
from densebatch.planning.plan import FlowPlan
from densebatch.run.engine import count_device_workers, list_requirements
from densebatch.survey.reader import MAX_THREADS
from densebatch.workers.cluster import open_executor
from densebatch.workers.executors import DaskExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from densebatch.planning.plan import Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.workers.executors import Executor


def _tell_nobody(text: str) -> None:
    del text


class Starting(Protocol):
    """The way to an executor, as `ExecutorStart` has it; another's workers may be shared by runs.

    Attributes
    ----------
    waited_s : seconds that this thread has waited for it
    is_shared : whether its workers do other runs meanwhile
    """

    waited_s: float

    @property
    def is_shared(self) -> bool:
        """See the attributes."""
        ...

    def begin(self, workers: int, plans: Sequence[Plan]) -> None:
        """Start workers of this machine beside what comes now."""
        ...

    def wait(self) -> None:
        """Wait for what has begun."""
        ...

    def for_survey(self, drafts: Sequence[Plan]) -> AbstractContextManager[Executor | None]:
        """Workers that read slides faster than this process does; None if there are none now."""
        ...

    def finish(self, workers: int, plans: Sequence[Plan], folder: Path) -> Executor:
        """The executor, which starts now if that was not begun."""
        ...


class ExecutorStart:
    """The executor of a run, until the context is left.

    Parameters
    ----------
    settings
        Name a scheduler, if one does the work.
    note
        Is told, a sentence at a time, what the user should know of its workers.

    Attributes
    ----------
    waited_s : seconds that this thread has waited for it
    """

    is_shared = False

    def __init__(
        self, settings: SegmentSettings, note: Callable[[str], None] = _tell_nobody
    ) -> None:
        self._settings = settings
        self._note = note
        self._stack = ExitStack()
        self._begun: Future[Executor] | None = None
        self.waited_s = 0.0

    def __enter__(self) -> Self:
        self._stack.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.__exit__(*reason)  # type: ignore[arg-type]

    def begin(self, workers: int, plans: Sequence[Plan]) -> None:
        """Start workers of this machine in a thread; a cluster's may yet have to appear."""
        if workers and not self._settings.is_remote:
            pool = self._stack.enter_context(ThreadPoolExecutor(1))
            self._begun = pool.submit(
                start_executor, self._stack, self._settings, workers, plans, None, self._note
            )

    def wait(self) -> None:
        """Wait for what has begun."""
        before = time.monotonic()
        if self._begun is not None:
            self._begun.result()
        self.waited_s += time.monotonic() - before

    @contextmanager
    def for_survey(self, drafts: Sequence[Plan]) -> Iterator[Executor | None]:
        """Workers that read slides faster than this process does; None if there are none now.

        Those of a running scheduler are asked for the survey alone, because what a run needs of
        them is known in full when its backend is chosen, after it.

        Parameters
        ----------
        drafts
            Of the slides.

        Raises
        ------
        InputError, DensebatchError
            As `open_executor`.
        """
        before = time.monotonic()
        if self._settings.is_remote:
            with open_executor(
                0, self._settings.scheduler, list_requirements(drafts, self._settings),
                note=self._note, returning=True,
            ) as executor:  # fmt: skip
                self.waited_s += time.monotonic() - before
                yield executor
            return
        begun = None if self._begun is None else self._begun.result()
        self.waited_s += time.monotonic() - before
        yield begun if begun is not None and begun.workers > MAX_THREADS else None

    def finish(self, workers: int, plans: Sequence[Plan], folder: Path) -> Executor:
        """The executor, which starts now if that was not begun.

        Parameters
        ----------
        workers
            Processes of this machine; 0 works in this one.
        plans
            Of the slides; what they need decides how many workers use a GPU.
        folder
            That workers write to; made if need be when they are asked whether they can.

        Raises
        ------
        InputError, DensebatchError
            As `open_executor`.
        """
        before = time.monotonic()
        try:
            if self._begun is not None:
                return self._begun.result()
            return start_executor(self._stack, self._settings, workers, plans, folder, self._note)
        finally:
            self.waited_s += time.monotonic() - before


def start_executor(
    stack: ExitStack,
    settings: SegmentSettings,
    workers: int,
    plans: Sequence[Plan],
    folder: Path | None,
    note: Callable[[str], None],
) -> Executor:
    """The executor that the settings ask for.

    Parameters
    ----------
    stack
        Closes it.
    settings
        Name a scheduler, if one does the work.
    workers
        Processes of this machine; 0 works in this one.
    plans
        Of the slides; what they need decides how many workers use a GPU.
    folder
        That a scheduler's workers must be able to write to.
    note
        Is told, a sentence at a time, what the user should know of these.

    Raises
    ------
    InputError, DensebatchError
        As `open_executor`.
    """
    device_workers = count_device_workers(plans, settings, workers)
    needs = None
    if settings.is_remote:
        engine = plans[0].engine if isinstance(plans[0], FlowPlan) else None
        needs = list_requirements(plans, settings, engine)
    executor = stack.enter_context(
        open_executor(
            workers,
            settings.scheduler,
            needs,
            folder=folder,
            device_workers=device_workers,
            note=note,
            returning=True,  # it has answered when the run was planned
        )
    )
    if isinstance(executor, DaskExecutor) and any(isinstance(p, FlowPlan) for p in plans):
        executor.wake(wake_device)
    return executor
