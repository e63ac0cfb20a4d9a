"""Run jobs that depend on each other: in this process one by one, or on Dask workers.

On workers only a window of jobs is in Dask's hands, about two for each worker and two more for each
that has a device; the rest wait here. So a worker that is lost takes few jobs with it, and a job
that becomes ready can go ahead of those that waited longer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

from densebatch.base.log import log_event
from densebatch.workers.schedule import Job, Outcome, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

log = logging.getLogger(__name__)

_WINDOW = 2  # jobs in flight for each worker
DEVICE = "device"
"""Dask resource of the workers that may use the GPU, if only some of them may."""


class Executor(Protocol):
    """Runs jobs somewhere; what a run knows of it.

    Attributes
    ----------
    workers : processes that do jobs; 0 if this one does
    device_workers : how many of them may use a GPU, where these are some of all; else 0
    running : jobs that are handed out now, by whatever
    stopping : set it to have no more jobs handed out; `run` ends once those handed out are done
    """

    workers: int
    device_workers: int
    running: dict[Any, Job]
    stopping: bool

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """Run jobs, see `SerialExecutor.run`."""
        ...


class SerialExecutor:
    """The reference: every job in this process, one at a time."""

    workers = 0
    device_workers = 0

    def __init__(self) -> None:
        self.running: dict[Any, Job] = {}
        self.stopping = False

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """Run jobs; a job that fails is tried again before it is given up.

        Parameters
        ----------
        jobs
            What to do, without what is done already.
        done
            Names that count as done in `needs`.
        shuffle
            Seed of a random order among ready jobs of one rank; results must not depend on it.

        Yields
        ------
        Outcome
            One for each job, failed or not.

        Raises
        ------
        ValueError
            If the jobs cannot be done in any order, see `Schedule`.
        """
        schedule = Schedule(jobs, done, shuffle)
        while not self.stopping and (job := schedule.next()) is not None:
            self.running = {job.name: job}
            try:
                result = job.function(*job.args)
            except Exception as error:  # becomes the outcome of a job that is given up
                yield from schedule.fail(job, _describe_error(error))
            else:
                schedule.finish(job)
                yield Outcome(job, result)
        self.running = {}


class DaskExecutor:
    """Jobs on the workers of a Dask scheduler.

    Parameters
    ----------
    client
        Of the scheduler.
    workers
        How many there are.
    device_workers
        How many of them have the resource `DEVICE` and get all jobs that are for a device; 0 if
        workers are all alike.
    """

    def __init__(self, client: Any, workers: int, device_workers: int = 0) -> None:  # noqa: ANN401
        self.client = client
        self.workers = workers
        self.device_workers = device_workers
        self.running: dict[Any, Job] = {}
        self.stopping = False

    def wake(self, function: Callable[[], None]) -> None:
        """Call a function on every worker that may use the device; do not wait for it."""
        from distributed import fire_and_forget

        for _ in range(self.device_workers):
            fire_and_forget(self._submit(Job("wake", function, (), on_device=True)))

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """Run jobs as `SerialExecutor.run` does; outcomes come in the order of completion.

        When a worker dies, any of the jobs that it had may be to blame. Each of them is tried
        again with nothing else in flight, so that the culprit takes no other with it.

        Parameters
        ----------
        jobs, done, shuffle
            As `SerialExecutor.run` has them.

        Yields
        ------
        Outcome
            One for each job, failed or not.

        Raises
        ------
        ValueError
            If the jobs cannot be done in any order, see `Schedule`.
        """
        from distributed import KilledWorker, as_completed
        from distributed.scheduler import NoValidWorkerError

        schedule = Schedule(jobs, done, shuffle, n_last=self.workers)
        running = self.running = {}
        completed = as_completed(loop=self.client.loop)
        suspects: set[str] = set()
        present = set(self.client.nthreads())

        def refill() -> None:
            nonlocal present
            now = set(self.client.nthreads())
            for address in sorted(present - now):
                log_event(log, "worker lost", worker=address, workers_left=len(now))
            present = now
            n_workers = max(1, len(now))
            if not self.device_workers:
                hand_out(n_workers, None)
                return
            hand_out(self.device_workers, True)
            if not any(job.name in suspects for job in running.values()):
                hand_out(n_workers, False)

        def hand_out(n_workers: int, on_device: bool | None) -> None:
            """Fill the windows of so many workers."""
            if self.stopping:
                return
            given = sum(on_device in (None, job.on_device) for job in running.values())
            while given < _WINDOW * n_workers and (job := schedule.next(on_device)) is not None:
                if job.name in suspects and running:
                    schedule.put_back(job)
                    return
                future = self._submit(job)
                running[future] = job
                completed.add(future)
                given += 1
                if job.name in suspects:
                    return  # a suspect runs alone

        try:
            refill()
            while running:
                future = next(completed)
                job = running.pop(future)
                try:
                    # a result can be lost with its worker after the job has finished
                    result = future.result()
                except Exception as error:
                    if isinstance(error, KilledWorker):
                        suspects.add(job.name)
                        log_event(log, "job quarantined", job=job.name)
                    elif isinstance(error, NoValidWorkerError):
                        # All workers with a device are lost for good, so the others do its jobs.
                        self.device_workers = 0
                        log_event(log, "device workers lost", job=job.name)
                    yield from schedule.fail(job, _describe_error(error))
                else:
                    schedule.finish(job)
                    yield Outcome(job, result)
                future.release()
                refill()
        finally:
            for future in running:  # those left when the caller stops listening
                future.release()

    def _submit(self, job: Job) -> Any:  # noqa: ANN401
        options: dict[str, Any] = {}
        if self.device_workers and job.on_device:
            # It goes before the worker's other jobs, because no other worker can do it.
            options = {"resources": {DEVICE: 1}, "priority": 1}
        return self.client.submit(job.function, *job.args, pure=False, retries=0, **options)


def _describe_error(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
