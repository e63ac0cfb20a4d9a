"""Jobs that are in Dask's hands: submitted, and collected as they come back or are lost.

A job goes to workers that were able when it was submitted. If all of these are gone, Dask would
keep it for ever, so it is taken back here.

Dask carries bytes both ways, see `carry`. So whatever goes wrong with a call or a result is told by
the job that it belongs to, and all that Dask itself reports is about the cluster.
"""

from __future__ import annotations

import asyncio
import pickle
import queue
import uuid
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.workers.carry import call_pickled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from densebatch.workers.pool import WorkerPool
    from densebatch.workers.schedule import Job


@dataclass(frozen=True)
class Landing:
    """What became of a submitted job.

    Attributes
    ----------
    job : the job
    result : what it returned
    error : what it raised, if it cannot be pickled too, or Dask in its place; None if it returned
    is_lost : whether it went with its workers, or was taken back from one that does nothing
    is_cut_off : whether the cluster could not do it, or hand its result over, for which no job is
        to blame
    """

    job: Job
    result: Any = None
    error: BaseException | None = None
    is_lost: bool = False
    is_cut_off: bool = False


@dataclass(frozen=True)
class _Collected:
    """Results of finished jobs, or why they cannot be had."""

    futures: Sequence[Any]
    results: Sequence[Any] = ()
    error: BaseException | None = None


class Flight:
    """Jobs in flight.

    Parameters
    ----------
    client
        Of the scheduler.
    pool
        Its workers.
    """

    def __init__(self, client: Any, pool: WorkerPool) -> None:  # noqa: ANN401
        self._client = client
        self._pool = pool
        self._jobs: dict[Any, Job] = {}
        self._allowed: dict[Any, frozenset[str]] = {}
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._generation = pool.generation

    @property
    def jobs(self) -> list[Job]:
        """The jobs in flight."""
        return list(self._jobs.values())

    def submit(self, job: Job, *, alone: bool = False, **options: Any) -> None:  # noqa: ANN401
        """Submit a job to the workers that are able now.

        Parameters
        ----------
        job
            The job.
        alone
            To one of them only, so that it takes no other with it.
        **options
            Of `distributed.Client.submit`.
        """
        if self._pool.is_checked:
            able = self._pool.able[:1] if alone else self._pool.able
            options |= {"workers": able, "allow_other_workers": False}
        try:
            call = pickle.dumps((job.function, job.args))
        except Exception as error:  # of any class, as objects have their own ways to be pickled
            self._news.put(Landing(job, error=error))
            return
        key = f"{job.name}-{uuid.uuid4().hex}"  # Dask learns from it how long its like take
        future = self._client.submit(call_pickled, call, key=key, retries=0, **options)
        self._jobs[future] = job
        if self._pool.is_checked:
            self._allowed[future] = frozenset(options["workers"])
        # Asking for each future by itself would cost a call to the scheduler's thread each time.
        future.add_done_callback(self._news.put)

    def nudge(self) -> None:
        """End the `wait` that is under way in another thread, as if something had come back."""
        self._news.put(None)

    def wait(self, timeout_s: float) -> Iterator[Landing]:
        """Jobs that have come back.

        Parameters
        ----------
        timeout_s
            How long something is waited for.

        Yields
        ------
        Landing
        """
        finished, collected = [], []
        with suppress(queue.Empty):
            item = self._news.get(timeout=timeout_s)
            while True:
                if isinstance(item, Landing):
                    yield item
                elif isinstance(item, _Collected):
                    collected.append(item)
                elif item in self._jobs and item.status == "finished":
                    finished.append(item)
                elif item in self._jobs:
                    yield self._land_failed(item)
                item = self._news.get_nowait()
        if finished:
            self._collect(finished)
        for batch in collected:
            yield from self._land_collected(batch)
        yield from self._find_lost()

    def _collect(self, futures: Sequence[Any]) -> None:
        """Ask for results of jobs that finished at one moment: together, which saves calls.

        They are not waited for here, because a result can be lost with its worker.
        """

        async def collect() -> None:
            try:
                results = await self._client.gather(list(futures), asynchronous=True)
            except (Exception, asyncio.CancelledError) as error:
                self._news.put(_Collected(futures, error=error))
            else:
                self._news.put(_Collected(futures, results))

        self._client.loop.add_callback(collect)

    def _land_collected(self, batch: _Collected) -> Iterator[Landing]:
        present = [future for future in batch.futures if future in self._jobs]
        if batch.error is None:
            for future, result in zip(batch.futures, batch.results, strict=True):
                if future in self._jobs:
                    yield self._land_read(future, result)
        elif len(batch.futures) > 1:  # nobody knows which of them it was
            for future in present:
                self._collect([future])
        else:
            for future in present:
                yield self._land_failed(future)

    def _land_read(self, future: Any, result: bytes) -> Landing:  # noqa: ANN401
        try:
            return self._land(future, result=pickle.loads(result))
        except Exception as error:  # of any class, as objects have their own ways to be read
            return self._land(future, error=error)

    def _land_failed(self, future: Any) -> Landing:  # noqa: ANN401
        """A job that ended without a result, or whose result cannot be fetched."""
        from distributed.scheduler import NoValidWorkerError, NoWorkerError

        error = future.exception() if future.status == "error" else None
        if error is None or isinstance(error, CancelledError):
            return self._land(future, is_cut_off=True)
        if self._pool.is_checked and isinstance(error, NoValidWorkerError | NoWorkerError):
            # A scheduler may be set to give up jobs sooner than the user, whom the pool asks.
            return self._land(future, is_cut_off=True)
        return self._land(future, error=error)

    def _find_lost(self) -> Iterator[Landing]:
        """Jobs whose workers are all gone, or that wait at one that does nothing."""
        if not self._pool.is_checked:
            return  # a worker of this machine that is lost has a successor, which may do its jobs
        lost = []
        if self._generation != self._pool.generation:
            self._generation = self._pool.generation
            present = self._pool.present
            lost = [future for future, allowed in self._allowed.items() if not allowed & present]
        if self._jobs and (stuck := self._pool.stuck):
            with suppress(OSError):  # of a scheduler that is gone, which the pool finds out
                waiting = self._client.processing(workers=stuck)
                keys = {key for names in waiting.values() for key in names}
                lost += [f for f in self._jobs if f.key in keys and f not in lost]
        for future in lost:
            # A scheduler that went took its workers with it; those that were told to go gave back
            # what they had.
            if future.status == "cancelled" or self._allowed[future] <= self._pool.retired:
                yield self._land(future, is_cut_off=True)
            else:
                yield self._land(future, is_lost=True)

    def _land(self, future: Any, **facts: Any) -> Landing:  # noqa: ANN401
        job = self._jobs.pop(future)
        self._allowed.pop(future, None)
        future.release()
        return Landing(job, **facts)

    def close(self) -> None:
        """Take back all that is in flight."""
        for future in list(self._jobs):
            future.release()
        self._jobs.clear()
        self._allowed.clear()
