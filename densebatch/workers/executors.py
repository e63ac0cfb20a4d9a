"""Run independent tasks: here, one after the other, or on Dask workers.

Knows nothing of slides. Submission is windowed: at most about two tasks per worker, and two more
per worker that has a device, are in the scheduler's hands, the rest wait here, so that a lost
worker takes few tasks with it and a task that has become possible can go ahead of those that were
waiting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from densebatch.workers.schedule import Job, Outcome, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_WINDOW = 2  # tasks per worker in flight
DEVICE = "device"
"""Dask resource of the workers that may use the GPU, where these are some of all."""


def _explain(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


class SerialExecutor:
    """The reference: everything in this process, one task at a time."""

    workers = 0
    device_workers = 0

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """Yield an outcome per job, failures included.

        Parameters
        ----------
        jobs
            Tasks; those already done are left out by the caller.
        done
            Names that count as done in `needs`.
        shuffle
            Seed of a random order among ready jobs of one rank; results must not depend on it.
        """
        schedule = Schedule(jobs, done, shuffle)
        while (job := schedule.next()) is not None:
            try:
                result = job.function(*job.args)
            except Exception as error:  # quarantined and reported, never swallowed
                yield from schedule.fail(job, _explain(error))
            else:
                schedule.finish(job)
                yield Outcome(job, result)


class DaskExecutor:
    """Tasks on the workers of a Dask scheduler.

    Parameters
    ----------
    client
        Of the scheduler.
    workers
        Processes.
    device_workers
        How many of them have the resource `DEVICE`, and get all jobs that are for a device; 0 if
        workers are all alike.
    """

    def __init__(self, client: Any, workers: int, device_workers: int = 0) -> None:  # noqa: ANN401
        self.client = client
        self.workers = workers
        self.device_workers = device_workers

    def wake(self, function: Callable[[], None]) -> None:
        """Call a function on every worker that may use the device; do not wait for it."""
        from distributed import fire_and_forget

        for _ in range(self.device_workers):
            fire_and_forget(self._submit(Job("wake", function, (), on_device=True)))

    def _submit(self, job: Job) -> Any:  # noqa: ANN401
        how: dict[str, Any] = {}
        if self.device_workers and job.on_device:
            # before what else such a worker has been given: nobody else can do it
            how = {"resources": {DEVICE: 1}, "priority": 1}
        return self.client.submit(job.function, *job.args, pure=False, retries=0, **how)

    def run(
        self, jobs: Sequence[Job], done: frozenset[str] = frozenset(), shuffle: int | None = None
    ) -> Iterator[Outcome]:
        """As `SerialExecutor.run`, in the order of completion.

        When a worker dies, any of the jobs that it had may be to blame. Each of them is tried
        again with nothing else in flight, so that the culprit takes no other with it.
        """
        from distributed import KilledWorker, as_completed
        from distributed.scheduler import NoValidWorkerError

        schedule = Schedule(jobs, done, shuffle, n_last=self.workers)
        running: dict[Any, Job] = {}
        completed = as_completed(loop=self.client.loop)
        suspects: set[str] = set()

        def refill() -> None:
            n_workers = max(1, len(self.client.nthreads()))
            if not self.device_workers:
                hand_out(n_workers, None)
                return
            hand_out(self.device_workers, True)
            if not any(job.name in suspects for job in running.values()):
                hand_out(n_workers, False)

        def hand_out(n_workers: int, on_device: bool | None) -> None:
            """Fill the windows of so many workers."""
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
                    return  # and nothing is handed out until it is back

        try:
            refill()
            while running:
                future = next(completed)
                job = running.pop(future)
                try:
                    # a result can be lost with its worker after the task has finished
                    result = future.result()
                except Exception as error:
                    if isinstance(error, KilledWorker):
                        suspects.add(job.name)
                    elif isinstance(error, NoValidWorkerError):
                        self.device_workers = 0  # all are lost for good: whoever is left does it
                    yield from schedule.fail(job, _explain(error))
                else:
                    schedule.finish(job)
                    yield Outcome(job, result)
                future.release()
                refill()
        finally:
            for future in running:  # nobody listens any more
                future.release()
