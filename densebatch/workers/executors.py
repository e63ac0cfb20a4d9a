"""Run jobs that depend on each other: in this process one by one, or on Dask workers.

On workers only a window of jobs is in Dask's hands, two for each thread and two more for each
worker that has a device; the rest wait here. So a worker that is lost takes few jobs with it, and a
job that becomes ready can go ahead of those that waited longer.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from densebatch.base.errors import DensebatchError
from densebatch.base.log import log_event
from densebatch.workers.connect import CONTINUES
from densebatch.workers.flight import Flight
from densebatch.workers.schedule import Job, Outcome, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from densebatch.workers.flight import Landing
    from densebatch.workers.pool import WorkerPool

log = logging.getLogger(__name__)

_WINDOW = 2  # jobs in flight for each thread of a worker
_TICK_S = 0.5  # how long completions are waited for before workers are looked at
_LOSSES = 2  # a job that was lost so often with its workers runs alone from then on
DEVICE = "device"
"""Dask resource of the workers that may use the GPU, if only some of them may."""


class Stoppable(Protocol):
    """Has jobs under way, and can be asked to begin no more.

    Attributes
    ----------
    stopping : set it to have no more jobs handed out
    """

    stopping: bool

    @property
    def running(self) -> list[Job]:
        """Jobs that are handed out now."""
        ...


class Executor(Stoppable, Protocol):
    """Runs jobs somewhere; what a run knows of it. Stopping, `run` ends with those under way."""

    @property
    def workers(self) -> int:
        """Processes that do jobs; 0 if this one does."""
        ...

    @property
    def device_workers(self) -> int:
        """How many of them may use a GPU, where these are some of all; else 0."""
        ...

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """Run jobs, see `SerialExecutor.run`."""
        ...


class Waiting(Protocol):
    """Jobs that wait to be handed out: of one run, see `Schedule`, or of several."""

    @property
    def unfinished(self) -> int:
        """Jobs without an outcome; above 0 as long as more may come."""
        ...

    def next(self, on_device: bool | None = None) -> Job | None:
        """Hand out a job, see `Schedule.next`."""
        ...

    def put_back(self, job: Job) -> None:
        """Undo `next`."""
        ...

    def finish(self, job: Job) -> None:
        """Note that a job is done."""
        ...

    def fail(self, job: Job, error: str) -> list[Outcome]:
        """Note that a job failed, see `Schedule.fail`."""
        ...


class SerialExecutor:
    """The reference: every job in this process, one at a time."""

    workers = 0
    device_workers = 0

    def __init__(self) -> None:
        self.running: list[Job] = []
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
            self.running = [job]
            try:
                result = job.function(*job.args)
            except Exception as error:  # becomes the outcome of a job that is given up
                yield from schedule.fail(job, _describe_error(error))
            else:
                schedule.finish(job)
                yield Outcome(job, result)
        self.running = []


class DaskExecutor:
    """Jobs on the workers of a Dask scheduler.

    Parameters
    ----------
    client
        Of the scheduler.
    pool
        Its workers.
    workers
        How many there are.
    device_workers
        How many of them have the resource `DEVICE` and get all jobs that are for a device; 0 if
        workers are all alike.
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401
        pool: WorkerPool,
        workers: int,
        device_workers: int = 0,
    ) -> None:
        self.client = client
        self.pool = pool
        self.workers = workers
        self.device_workers = device_workers
        self.stopping = False
        self._flight: Flight | None = None

    @property
    def running(self) -> list[Job]:
        """Jobs that are handed out now."""
        return [] if self._flight is None else self._flight.jobs

    def wake(self, function: Callable[[], None]) -> None:
        """Call a function on every worker that may use the device; do not wait for it."""
        from distributed import fire_and_forget

        for _ in range(self.device_workers):
            fire_and_forget(
                self.client.submit(function, pure=False, retries=0, **self._options(True))
            )

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
        InputError, DensebatchError
            As `WorkerPool.look`, of a running scheduler; the latter if all workers of this machine
            are lost for good.
        """
        yield from self.run_waiting(Schedule(jobs, done, shuffle, n_last=self.workers))

    def nudge(self) -> None:
        """Have `run_waiting`, in another thread, look for jobs that have come to wait since."""
        if self._flight is not None:
            self._flight.nudge()

    def run_waiting(self, schedule: Waiting) -> Iterator[Outcome]:
        """Run what waits in a schedule, or comes to wait there meanwhile, see `run`.

        Parameters
        ----------
        schedule
            Called in this thread only.

        Yields
        ------
        Outcome
            Of each job that is done, and of those that `schedule.fail` returns.

        Raises
        ------
        InputError, DensebatchError
            As `run`.
        """
        flight = self._flight = Flight(self.client, self.pool)
        suspects: set[str] = set()
        losses: Counter[str] = Counter()
        try:
            while schedule.unfinished and not (self.stopping and not flight.jobs):
                self.pool.look()
                self._refill(schedule, flight, suspects)
                for landing in flight.wait(_TICK_S):
                    yield from self._judge(landing, schedule, suspects, losses)
                    self._refill(schedule, flight, suspects)
            self.pool.look(at_once=True)
        finally:
            flight.close()  # those left when the caller stops listening

    def _judge(
        self, landing: Landing, schedule: Waiting, suspects: set[str], losses: Counter[str]
    ) -> Iterator[Outcome]:
        """What follows from a job's coming back; `suspects` and `losses` may grow."""
        from distributed import KilledWorker
        from distributed.scheduler import NoValidWorkerError, NoWorkerError

        job = landing.job
        if landing.is_cut_off:
            log_event(log, "job cut off by the cluster", job=job.name)
            self.pool.look(at_once=True)  # before anything is handed to workers that are gone
            schedule.put_back(job)
        elif landing.is_lost:
            was_alone = job.name in suspects
            losses[job.name] += 1
            if losses[job.name] >= _LOSSES:
                suspects.add(job.name)
            log_event(log, "job lost with its workers", job=job.name, times=losses[job.name])
            if was_alone:
                yield from schedule.fail(job, "its worker was lost while it did nothing else")
            else:
                schedule.put_back(job)
        elif isinstance(landing.error, NoValidWorkerError | NoWorkerError):
            if not (job.on_device and self.pool.threads):
                raise DensebatchError(
                    f"all workers of this machine are lost and none has taken their place; "
                    f"{CONTINUES}"
                )
            # All workers with a device are lost for good, so the others do its jobs.
            self.device_workers = 0
            log_event(log, "device workers lost", job=job.name)
            schedule.put_back(job)
        elif landing.error is not None:
            if isinstance(landing.error, KilledWorker):
                suspects.add(job.name)
                log_event(log, "job quarantined", job=job.name)
            yield from schedule.fail(job, _describe_error(landing.error))
        else:
            schedule.finish(job)
            yield Outcome(job, landing.result)

    def _refill(self, schedule: Waiting, flight: Flight, suspects: set[str]) -> None:
        """Hand out as many jobs as the windows of all workers take."""
        if self.stopping:
            return
        # A worker of this machine that is lost has a successor.
        threads = self.pool.threads if self.pool.is_checked else max(1, self.pool.threads)
        if not self.device_workers:
            self._hand_out(schedule, flight, suspects, threads, None)
            return
        self._hand_out(schedule, flight, suspects, self.device_workers, True)
        if not any(job.name in suspects for job in flight.jobs):
            self._hand_out(schedule, flight, suspects, threads, False)

    def _hand_out(
        self,
        schedule: Waiting,
        flight: Flight,
        suspects: set[str],
        threads: int,
        on_device: bool | None,
    ) -> None:
        """Fill the windows of so many threads."""
        flying = flight.jobs
        given = sum(on_device in (None, job.on_device) for job in flying)
        if any(job.name in suspects for job in flying):
            return  # a suspect runs alone
        while given < _WINDOW * threads and (job := schedule.next(on_device)) is not None:
            is_suspect = job.name in suspects
            if is_suspect and flying:
                schedule.put_back(job)
                return
            flight.submit(job, alone=is_suspect, **self._options(job.on_device))
            if is_suspect:
                return
            flying.append(job)
            given += 1

    def _options(self, on_device: bool) -> dict[str, Any]:
        if self.device_workers and on_device:
            # It goes before the worker's other jobs, because no other worker can do it.
            return {"resources": {DEVICE: 1}, "priority": 1}
        return {}


def _describe_error(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"
