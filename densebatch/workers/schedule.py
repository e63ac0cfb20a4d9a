"""Which jobs can start, in which order, and what becomes of those that fail.

Pure data: nothing here runs a job.
"""

from __future__ import annotations

import heapq
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.log import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One task.

    Attributes
    ----------
    name : unique
    function, args : what to call; importable and small, since they travel to the worker
    needs : names of jobs that must be done before
    rank : jobs of a lower rank go first among those that are ready. On workers, the last few jobs
        of the highest rank go before all others: what needs them would otherwise run at the end,
        when nothing else is left to do beside it.
    on_device : whether the job is for a worker that may use the GPU, if only some of them may
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    rank: int = 0
    on_device: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    job : the job
    result : what its function returned; None if it failed
    error : why it failed for good, as one line; None if it did not
    """

    job: Job
    result: Any = None
    error: str | None = None


class Schedule:
    """Jobs that wait, are ready or were handed out; those whose needs failed fail with them.

    Parameters
    ----------
    jobs
        All of them, with different names.
    done
        Names that count as done in `needs`.
    shuffle
        Seed of a random order among ready jobs of one rank; None keeps the order of `jobs`.
    n_last
        How many jobs of the highest rank, of those never handed out, are the last few (see `Job`).

    Raises
    ------
    ValueError
        If a job needs itself or a job that is neither given nor done, or two have one name.
    """

    def __init__(
        self, jobs: Sequence[Job], done: frozenset[str], shuffle: int | None, n_last: int = 0
    ) -> None:
        order = list(range(len(jobs)))
        if shuffle is not None:
            random.Random(shuffle).shuffle(order)
        self._jobs = {job.name: job for job in jobs}
        if len(self._jobs) != len(jobs):
            raise ValueError("two jobs have one name")
        self._order = {jobs[index].name: place for place, index in enumerate(order)}
        self._missing = {}
        self._waiting: dict[str, list[str]] = {}
        self._n_last = n_last
        # The highest rank that jobs have; a job that is tried again is ranked above it.
        self._top = max((job.rank for job in jobs), default=0)
        self._left_of_top = {job.name for job in jobs if job.rank == self._top}
        self._ready: dict[tuple[int, bool], list[tuple[int, str]]] = {}
        self._attempts: dict[str, int] = {}
        self.unfinished = len(jobs)
        for job in jobs:
            open_needs = [need for need in job.needs if need not in done]
            unknown = [need for need in open_needs if need not in self._jobs]
            if unknown:
                raise ValueError(f"job {job.name} needs {unknown[0]}, which nobody does")
            self._missing[job.name] = len(open_needs)
            for need in open_needs:
                self._waiting.setdefault(need, []).append(job.name)
            if not open_needs:
                self._push(job)
        self._refuse_circles()

    def _refuse_circles(self) -> None:
        """Jobs that need each other would wait for ever, without an outcome."""
        missing = dict(self._missing)
        free = [name for name, n in missing.items() if n == 0]
        n_possible = 0
        while free:
            n_possible += 1
            for name in self._waiting.get(free.pop(), []):
                missing[name] -= 1
                if missing[name] == 0:
                    free.append(name)
        if n_possible < len(self._jobs):
            stuck = next(name for name, n in missing.items() if n > 0)
            raise ValueError(f"job {stuck} waits for itself through the needs of others")

    def _push(self, job: Job) -> None:
        # Failed jobs come after all others: a file system that hiccups gets time to recover, and
        # most of the work is done before a job that kills its worker is tried again.
        failures = self._attempts.get(job.name, 0)
        place = self._order[job.name] + failures * len(self._order)
        rank = self._top + 1 if failures else job.rank
        heapq.heappush(self._ready.setdefault((rank, job.on_device), []), (place, job.name))

    def next(self, on_device: bool | None = None) -> Job | None:
        """Hand out the job that goes first of those that can start now.

        Parameters
        ----------
        on_device
            Only a job that is for the device, or only one that is not; None for either.

        Returns
        -------
        Job or None
            None if there is none.
        """
        keys = sorted(
            key for key, ready in self._ready.items() if ready and on_device in (None, key[1])
        )
        if not keys:
            return None
        ends = [key for key in keys if key[0] == self._top]
        few = len(self._left_of_top) <= self._n_last
        _, name = heapq.heappop(self._ready[ends[0] if ends and few else keys[0]])
        self._left_of_top.discard(name)
        return self._jobs[name]

    def count_ready(self, on_device: bool | None = None) -> int:
        """How many jobs could be handed out now, of those that `next` would look at."""
        return sum(len(ready) for key, ready in self._ready.items() if on_device in (None, key[1]))

    def put_back(self, job: Job) -> None:
        """Undo `next`."""
        if job.rank == self._top and job.name not in self._attempts:
            self._left_of_top.add(job.name)
        self._push(job)

    def finish(self, job: Job) -> None:
        """Note that a job is done; jobs that waited for it may become ready."""
        self.unfinished -= 1
        for name in self._waiting.pop(job.name, []):
            self._missing[name] -= 1  # a job that was given up stays below 0
            if self._missing[name] == 0:
                self._push(self._jobs[name])

    def fail(self, job: Job, error: str) -> list[Outcome]:
        """Note that a job failed: it is tried again, or given up with all that wait for it.

        Parameters
        ----------
        job
            As `next` gave it.
        error
            Why it failed, as one line.

        Returns
        -------
        list of Outcome
            Of the jobs that are given up; none if it is tried again.
        """
        attempt = self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
        if attempt < _ATTEMPTS:
            log_event(log, "job failed, to be retried", job=job.name, attempt=attempt, error=error)
            self._push(job)
            return []
        lost = [Outcome(job, error=error)]
        gone = {job.name}
        queue = self._waiting.pop(job.name, [])
        while queue:
            name = queue.pop()
            if name in gone or self._missing[name] < 0:
                continue
            gone.add(name)
            lost.append(Outcome(self._jobs[name], error=f"needs {job.name}, which failed: {error}"))
            self._missing[name] = -1  # so that another need that fails does not report it again
            queue.extend(self._waiting.pop(name, []))
        log_event(log, "job given up", job=job.name, attempt=attempt, error=error, lost=len(lost))
        self._left_of_top -= gone
        self.unfinished -= len(lost)
        return lost
