"""Run independent tasks: here, one after the other, or on Dask workers.

Knows nothing of slides. Submission is windowed: at most about two tasks per worker, and two more
per worker that has a device, are in the scheduler's hands, the rest wait here, so that a lost
worker takes few tasks with it and a task that has become possible can go ahead of those that were
waiting.
"""

from __future__ import annotations

import heapq
import json
import logging
import random
import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from densebatch.workers.fork_server import is_started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_WINDOW = 2  # tasks per worker in flight
_ATTEMPTS = 3
_PATIENCE_S = 30.0  # for a scheduler and its first worker to appear
_NO_WORKERS_S = 60.0
_LOST_WORKER_S = 120.0
DEVICE = "device"
"""Dask resource of the workers that may use the GPU, where these are some of all."""


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


def _await_scheduler_file(path: Path) -> str:
    """Address in a scheduler file, which may be about to be written."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return str(json.loads(path.read_text())["address"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            if time.monotonic() > deadline:
                reason = "is missing" if isinstance(error, FileNotFoundError) else "has no address"
                raise OSError(f"{path}: {reason}; is the scheduler running?") from error
        time.sleep(0.1)


def ask_worker(
    scheduler_address: str | None,
    scheduler_file: Path | None,
    function: Callable[..., Any],
    *args: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Call a function on one worker of a running scheduler.

    Raises
    ------
    OSError
        As `open_executor`; else what the function raises.
    """
    with open_executor(0, scheduler_address, scheduler_file) as executor:
        client = cast("DaskExecutor", executor).client
        return client.submit(function, *args, pure=False).result()


@contextmanager
def open_executor(
    workers: int,
    scheduler_address: str | None,
    scheduler_file: Path | None,
    device_workers: int = 0,
) -> Iterator[SerialExecutor | DaskExecutor]:
    """The executor that the settings ask for, closed at the end.

    Parameters
    ----------
    workers
        Processes of a local cluster; 0 works in this process.
    scheduler_address, scheduler_file
        A running scheduler, which decides instead.
    device_workers
        Of a local cluster, how many get the jobs that are for a device; 0 for all.

    Raises
    ------
    OSError
        If the scheduler or its file cannot be reached within half a minute, or has no workers
        then.
    """
    if scheduler_address is None and scheduler_file is None and workers == 0:
        yield SerialExecutor()
        return
    import dask.config
    import distributed.utils
    from distributed import Client, LocalCluster, Nanny

    if scheduler_address is not None or scheduler_file is not None:
        # Client's own wait for the file has no end
        where = scheduler_address or _await_scheduler_file(cast("Path", scheduler_file))
        with Client(address=where, timeout=_PATIENCE_S) as client:
            try:
                client.wait_for_workers(1, timeout=_PATIENCE_S)
            except TimeoutError as error:
                raise OSError("the scheduler has no workers; start some and try again") from error
            yield DaskExecutor(client, len(client.nthreads()))
        return

    def nanny(*args: Any, name: int, **options: Any) -> Nanny:  # noqa: ANN401
        # a process that replaces a killed one gets them too
        resources = {DEVICE: 1.0} if name < device_workers else None
        return Nanny(*args, name=name, resources=resources, **options)

    how: dict[str, Any] = {
        # rather than to wait for ever for a worker that may do a task, once the last is lost
        "distributed.scheduler.no-workers-timeout": _NO_WORKERS_S,
        # on a busy machine, a process that replaces a killed one can take longer than Dask allows
        "distributed.deploy.lost-worker-timeout": _LOST_WORKER_S,
        # looking at stacks and event loops each few hundredths of a second is for a dashboard,
        # which nobody sees here, and takes a fiftieth of two cores
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
    }
    if is_started():
        how["distributed.worker.multiprocessing-method"] = "forkserver"
        # or it imports pandas now, for a fork server that it would start
        distributed.utils._forkserver_preload_set = True
    with (
        # workers' scratch must not land in the user's current folder
        tempfile.TemporaryDirectory(prefix="densebatch-") as scratch,
        dask.config.set(how),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # None means port 8787 on all interfaces
            dashboard_address="127.0.0.1:0",
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
            # Dask would pause a worker at four fifths of its share and wait, silently, for memory
            # that is not given back; what tasks take is estimated before the run
            memory_limit=0,
            worker_class=nanny,
        ) as cluster,
        # not as its own context, which can be left only in the thread that entered it
        closing(Client(cluster)) as client,
    ):
        yield DaskExecutor(client, workers, device_workers)
