"""Jobs that are in Dask's hands: submitted, and collected as they come back or are lost.

A job goes to workers that were able when it was submitted. If all of these are gone, Dask would
keep it for ever, so it is taken back here.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from densebatch.workers.pool import WorkerPool
    from densebatch.workers.schedule import Job

_COLLECT_S = 15.0  # for the results of jobs that are done to arrive


@dataclass(frozen=True)
class Landing:
    """What became of a submitted job.

    Attributes
    ----------
    job : the job
    result : what it returned
    error : what it raised, or Dask in its place; None if it returned
    is_lost : whether it went with its workers, or was taken back from one that does nothing
    is_cut_off : whether it went with the scheduler, for which no job is to blame
    """

    job: Job
    result: Any = None
    error: Exception | None = None
    is_lost: bool = False
    is_cut_off: bool = False


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
        self._landed: queue.SimpleQueue[Any] = queue.SimpleQueue()
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
        future = self._client.submit(job.function, *job.args, pure=False, retries=0, **options)
        self._jobs[future] = job
        if self._pool.is_checked:
            self._allowed[future] = frozenset(options["workers"])
        # Asking for each future by itself would cost a call to the scheduler's thread each time.
        future.add_done_callback(self._landed.put)

    def wait(self, timeout_s: float) -> Iterator[Landing]:
        """Jobs that have come back: those of one moment together, which saves calls.

        Parameters
        ----------
        timeout_s
            How long the first is waited for.

        Yields
        ------
        Landing
        """
        done = []
        try:
            done.append(self._landed.get(timeout=timeout_s))
            while True:
                done.append(self._landed.get_nowait())
        except queue.Empty:
            pass
        done = [future for future in done if future in self._jobs]
        # A result can be lost with its worker after the job has finished.
        results = self._collect([future for future in done if future.status == "finished"])
        for future in done:
            if future in results:
                yield self._land(future, result=results[future])
            elif future.status in ("cancelled", "lost"):
                yield self._land(future, is_cut_off=True)
            else:
                yield self._fetch(future)
        yield from self._find_lost()

    def _collect(self, futures: Sequence[Any]) -> dict[Any, Any]:
        """Results that can be had in one call; of none if one of them cannot be had."""
        if len(futures) < 2:
            return {}
        try:
            results = self._client.sync(
                lambda: self._client.gather(list(futures), asynchronous=True),
                callback_timeout=_COLLECT_S,
            )
        except Exception:  # each is asked for by itself then
            return {}
        return dict(zip(futures, results, strict=True))

    def _fetch(self, future: Any) -> Landing:  # noqa: ANN401
        from concurrent.futures import CancelledError

        try:
            return self._land(future, result=future.result(timeout=_COLLECT_S))
        except (CancelledError, TimeoutError):
            return self._land(future, is_cut_off=future.status in ("cancelled", "lost"),
                              is_lost=True)  # fmt: skip
        except Exception as error:
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
            waiting = self._client.processing(workers=stuck)
            keys = {key for names in waiting.values() for key in names}
            lost += [future for future in self._jobs if future.key in keys and future not in lost]
        for future in lost:
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
