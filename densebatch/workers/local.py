"""Worker processes of this machine: a Dask LocalCluster, set up by Dask's own settings.

Workers keep memory that they free, use one thread each, and leave Ctrl-C to the main process.
"""

from __future__ import annotations

import logging
import multiprocessing.resource_tracker
import os
import signal
import tempfile
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.log import log_event
from densebatch.base.process import may_start_processes
from densebatch.workers.executors import DEVICE, DaskExecutor
from densebatch.workers.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_NO_WORKERS_S = 60.0
_LOST_WORKER_S = 120.0
_STARTS = 3  # of workers one of which was killed as it started

# There is a worker for each processor, so none of them may take all processors for itself.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
KEPT_BYTES = 256 * 2**20
"""What a worker keeps at most at the end of its heap of the memory that it has freed."""

# A network takes and frees tens of megabytes for every patch. Dask has workers return to the system
# all that they free, and each page is then mapped and zeroed again for the next patch. glibc reads
# these variables when a process starts.
_KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",  # one heap; by default each thread has, and keeps, its own
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # arrays below this size lie in it; glibc's largest
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
}


def check_may_start(workers: int) -> None:
    """Refuse worker processes where this process may not have any.

    Raises
    ------
    InputError
        If this process is a daemon, which multiprocessing lets have no children.
    """
    if workers and not may_start_processes():
        raise InputError(
            f"{workers} workers: this process is a daemon, as those of multiprocessing.Pool and "
            "Dask's workers are, and may not start processes; accepted here is workers=0"
        )


def start_cluster(stack: ExitStack, workers: int, device_workers: int) -> DaskExecutor:
    """Start worker processes, which end with the stack.

    Parameters
    ----------
    stack
        Ends them.
    workers
        How many.
    device_workers
        How many of them get the jobs that are for a device; 0 for all.

    Raises
    ------
    InputError
        See `check_may_start`.
    DensebatchError
        If they do not start.
    """
    check_may_start(workers)
    for attempt in range(1, _STARTS + 1):
        exits: list[int] = []
        try:
            with ExitStack() as trial:
                executor = _start(trial, workers, device_workers, exits)
                stack.push(trial.pop_all())
        except OSError as error:
            raise DensebatchError(f"{workers} workers could not be started: {error}") from error
        except RuntimeError as error:  # of Dask, when a worker's process ends at once
            killed = [-code for code in exits if code < 0]
            if killed and attempt < _STARTS:
                log_event(
                    log, "workers started again", logging.WARNING,
                    attempt=attempt, signal=killed[0],
                )  # fmt: skip
                continue
            raise DensebatchError(_explain(workers, killed, error)) from error
        return executor
    raise AssertionError("the last attempt returns or raises")


def _explain(workers: int, killed: list[int], error: RuntimeError) -> str:
    if killed:
        name = signal.Signals(killed[0]).name
        return (
            f"{workers} workers could not be started in {_STARTS} attempts: one was killed each "
            f"time as it started (by {name}; the system does that where memory ends); choose fewer "
            "--workers"
        )
    return (
        f"{workers} workers could not be started ({' '.join(str(error).split())}); a script "
        'calls segment under `if __name__ == "__main__":`, or gives workers=0'
    )


def _start(stack: ExitStack, workers: int, device_workers: int, exits: list[int]) -> DaskExecutor:
    """Start once; `exits` gets the exit codes of processes that end while others start."""
    import dask.config
    from distributed import Client, LocalCluster, Nanny

    class TellingNanny(Nanny):  # type: ignore[misc]
        # Dask's own error does not tell a process that was killed from one whose program failed.
        def _on_worker_exit_sync(self, exitcode: int) -> None:
            exits.append(exitcode)
            super()._on_worker_exit_sync(exitcode)

    def make_nanny(*args: Any, name: int, **options: Any) -> Nanny:  # noqa: ANN401
        # The process that replaces a killed worker is given the same resources.
        resources = {DEVICE: 1.0} if name < device_workers else None
        return TellingNanny(*args, name=name, resources=resources, env=_ONE_THREAD, **options)

    settings: dict[str, Any] = {
        **{
            f"distributed.nanny.pre-spawn-environ.{name}": value
            for name, value in _KEEP_FREED_MEMORY.items()
        },
        # Once the last worker that may do a task is lost, the task fails instead of waiting.
        "distributed.scheduler.no-workers-timeout": _NO_WORKERS_S,
        # On a busy machine, a process that replaces a killed one can take longer than Dask allows.
        "distributed.deploy.lost-worker-timeout": _LOST_WORKER_S,
        # Dask looks at stacks and event loops every few hundredths of a second for its dashboard,
        # which nobody sees here. That takes a fiftieth of two processors.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
    }
    stack.enter_context(_restored_environment())
    # Workers get a folder for their scratch, because Dask would take the current one.
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="densebatch-"))
    stack.enter_context(dask.config.set(settings))
    with _interrupts_blocked():
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                # Any free port of this machine alone; None would open 8787 on all interfaces.
                dashboard_address="127.0.0.1:0",
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
                # Dask would pause a worker at four fifths of its share and wait, silently, for
                # memory that is not given back. What tasks take is estimated before the run.
                memory_limit=0,
                worker_class=make_nanny,
            )
        )
    # A client as a context of its own could be left only in the thread that entered it.
    client = stack.enter_context(closing(Client(cluster)))
    pool = WorkerPool(client)
    pool.look(at_once=True)
    return DaskExecutor(client, pool, workers, device_workers)


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Put back the variables of this process that Dask sets for its workers and leaves set."""
    names = [*_ONE_THREAD, *_KEEP_FREED_MEMORY, "PYTHONHASHSEED"]  # the last is Dask's own choice
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT in this thread, and so in the threads and processes that it starts meanwhile.

    A terminal sends Ctrl-C to all processes of a command. The main process ends its workers then;
    workers that heed it themselves would each print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):  # as on Windows
        yield
        return
    # Starting the tracker unblocks SIGINT in the thread that needs it first, so it starts here.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
