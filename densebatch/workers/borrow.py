"""A cluster's workers as an executor of `concurrent.futures`, for work that is not a run's.

What is submitted is done by workers that were checked, is tried again if its workers are lost, and
fails with one sentence where the cluster cannot go on.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError
from densebatch.workers.connect import open_client
from densebatch.workers.flight import Flight
from densebatch.workers.pool import WorkerPool
from densebatch.workers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from densebatch.workers.check import Requirements
    from densebatch.workers.scheduler import Scheduler

_TICK_S = 0.05
_LOSSES = 3


@contextmanager
def borrow_workers(
    scheduler: Scheduler, requirements: Requirements, note: Callable[[str], None]
) -> Iterator[Executor]:
    """Lend the workers of a running scheduler.

    Parameters
    ----------
    scheduler
        Whose they are.
    requirements
        What each of them must have.
    note
        Is told, a sentence at a time, what the user should know of them.

    Yields
    ------
    concurrent.futures.Executor
        Takes functions that workers can import. Its futures raise what the function raises, or a
        `DensebatchError` if there are no workers any more.

    Raises
    ------
    InputError, DensebatchError
        As `open_executor` of `workers.cluster`.
    """
    with open_client(scheduler) as client:
        pool = WorkerPool(client, scheduler, requirements, note)
        pool.wait()
        executor = _BorrowedWorkers(client, pool)
        try:
            yield executor
        finally:
            executor.shutdown()
            pool.close()


class _BorrowedWorkers(Executor):
    """Jobs on checked workers; a thread of its own hands them out and collects them."""

    def __init__(self, client: Any, pool: WorkerPool) -> None:  # noqa: ANN401
        self._pool = pool
        self._flight = Flight(client, pool)
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._futures: dict[str, Future[Any]] = {}
        self._losses: dict[str, int] = {}
        self._ended = threading.Event()
        self._count = 0
        self._max_workers = max(1, pool.threads)  # as the executors of concurrent.futures have it
        self._thread = threading.Thread(target=self._drive, name="densebatch-borrow", daemon=True)
        self._thread.start()

    def submit(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Future[Any]:
        """Submit a call; keyword arguments are not taken."""
        if kwargs:
            raise TypeError("functions get positional arguments only")
        self._count += 1
        job = Job(str(self._count), fn, args)
        future: Future[Any] = Future()
        self._futures[job.name] = future
        self._inbox.put(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop; what has not been done is not done any more."""
        del cancel_futures
        self._ended.set()
        if wait:
            self._thread.join()

    def _drive(self) -> None:
        from distributed import KilledWorker

        waiting: list[Job] = []
        try:
            while not self._ended.is_set():
                self._pool.look()
                while not self._inbox.empty():
                    waiting.append(self._inbox.get())
                if self._pool.able:
                    for job in waiting:
                        self._flight.submit(job)
                    waiting.clear()
                for landing in self._flight.wait(_TICK_S):
                    job = landing.job
                    self._losses[job.name] = self._losses.get(job.name, 0) + landing.is_lost
                    if landing.is_cut_off:
                        self._pool.look(at_once=True)
                    if landing.is_cut_off or (landing.is_lost and self._losses[job.name] < _LOSSES):
                        waiting.append(job)
                        continue
                    future = self._futures.pop(job.name)
                    if landing.is_lost or isinstance(landing.error, KilledWorker):
                        future.set_exception(DensebatchError("a task lost its workers every time"))
                    elif landing.error is not None:
                        future.set_exception(landing.error)
                    else:
                        future.set_result(landing.result)
        except Exception as error:
            for future in self._futures.values():
                future.set_exception(error)
        finally:
            self._flight.close()
            for future in self._futures.values():
                future.cancel()
