"""Which of a stage's tasks can start, in which order, and what becomes of those that fail."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One task.

    Attributes
    ----------
    name : unique
    function, args : what to call; importable and small, they travel to the worker
    needs : names of jobs that must be done before
    rank : jobs of a lower rank go first among those that are ready; on workers, the last few of
        the highest go before them, so that what needs them does not wait at the end, when nothing
        else is left to do
    on_device : whether it is only for workers that may use the GPU, where these are some of all
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    rank: int = 0
    on_device: bool = False


@dataclass(frozen=True)
class Outcome:
    """A finished job: its result, or why it failed for good."""

    job: Job
    result: Any = None
    error: str | None = None


class Schedule:
    """Which jobs are ready, in which order; jobs whose needs failed fail with them.

    `n_last` is how many jobs of the highest rank that were never handed out are the last few.
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
        # retried jobs have a rank of their own, above all others
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
        """A job that can start now, if there is one; only those for the device, or all others."""
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

    def put_back(self, job: Job) -> None:
        """Undo `next`, for a job that has failed before."""
        self._push(job)

    def finish(self, job: Job) -> None:
        """Note that a job is done; what waited for it may become ready."""
        self.unfinished -= 1
        for name in self._waiting.pop(job.name, []):
            self._missing[name] -= 1  # of one that was lost it stays negative
            if self._missing[name] == 0:
                self._push(self._jobs[name])

    def fail(self, job: Job, error: str) -> list[Outcome]:
        """Try a job again later, or give it and all that wait for it up."""
        self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
        if self._attempts[job.name] < _ATTEMPTS:
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
            self._missing[name] = -1  # another need that fails later must not report it again
            queue.extend(self._waiting.pop(name, []))
        self._left_of_top -= gone
        self.unfinished -= len(lost)
        return lost
