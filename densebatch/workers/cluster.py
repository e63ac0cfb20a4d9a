"""Open the executor of a run: this process, worker processes of its own, or a running cluster.

Worker processes are started and set up by Dask's own settings. They keep memory that they free, use
one thread each, and leave Ctrl-C to the main process.
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
from densebatch.workers.executors import DEVICE, DaskExecutor, SerialExecutor
from densebatch.workers.scheduler import find_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from densebatch.workers.executors import Executor
    from densebatch.workers.scheduler import Scheduler

log = logging.getLogger(__name__)

_PATIENCE_S = 30.0  # for a running scheduler's answer, and for its first worker
_NO_WORKERS_S = 60.0
_LOST_WORKER_S = 120.0

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


@contextmanager
def open_executor(
    workers: int,
    scheduler: Scheduler | None = None,
    *,
    device_workers: int = 0,
) -> Iterator[Executor]:
    """Open the executor that the settings ask for; it is closed at the end.

    Parameters
    ----------
    workers
        Processes of a local cluster; 0 works in this process.
    scheduler
        A running scheduler, which then decides instead of `workers`.
    device_workers
        Of a local cluster, how many workers get the jobs that are for a device; 0 for all.

    Yields
    ------
    SerialExecutor or DaskExecutor

    Raises
    ------
    InputError
        If the scheduler cannot be reached, or has no workers within half a minute.
    DensebatchError
        If worker processes cannot be started.
    """
    with ExitStack() as stack:
        executor: Executor
        if scheduler is not None:
            executor = _join_cluster(stack, scheduler)
        elif workers:
            executor = _start_cluster(stack, workers, device_workers)
        else:
            executor = SerialExecutor()
        facts: dict[str, Any] = {
            "scheduler": None if scheduler is None else str(scheduler),
            "workers": executor.workers,
            "device_workers": executor.device_workers,
        }
        log_event(log, "executor opened", **facts)
        try:
            yield executor
        finally:
            stack.close()
            log_event(log, "executor closed", **facts)


def ask_worker(
    scheduler: Scheduler,
    function: Callable[..., Any],
    *args: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Call a function on one worker of a running scheduler.

    Raises
    ------
    InputError
        As `open_executor`, and for an `OSError` of the function; else what the function raises.
    """
    with ExitStack() as stack:
        client = _join_cluster(stack, scheduler).client
        try:
            return client.submit(function, *args, pure=False).result()
        except OSError as error:
            raise _unusable(scheduler, error) from error


def _join_cluster(stack: ExitStack, scheduler: Scheduler) -> DaskExecutor:
    from distributed import Client

    address = find_address(scheduler)
    try:
        client = stack.enter_context(Client(address=address, timeout=_PATIENCE_S))
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_S)
        except TimeoutError as error:
            raise OSError("the scheduler has no workers; start some and try again") from error
    except OSError as error:
        raise _unusable(scheduler, error) from error
    return DaskExecutor(client, len(client.nthreads()))


def _unusable(scheduler: Scheduler, error: OSError) -> InputError:
    return InputError(
        f"scheduler {scheduler}: cannot be used ({' '.join(str(error).split())}); "
        "accepted is a running Dask scheduler with workers"
    )


def _start_cluster(stack: ExitStack, workers: int, device_workers: int) -> DaskExecutor:
    import dask.config
    from distributed import Client, LocalCluster, Nanny

    def make_nanny(*args: Any, name: int, **options: Any) -> Nanny:  # noqa: ANN401
        # The process that replaces a killed worker is given the same resources.
        resources = {DEVICE: 1.0} if name < device_workers else None
        return Nanny(*args, name=name, resources=resources, env=_ONE_THREAD, **options)

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
    try:
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
    except OSError as error:
        raise DensebatchError(f"{workers} workers could not be started: {error}") from error
    except RuntimeError as error:  # of Dask, when a worker's process ends at once
        raise DensebatchError(
            f"{workers} workers could not be started ({' '.join(str(error).split())}); a script "
            'calls segment under `if __name__ == "__main__":`, or gives workers=0'
        ) from error
    return DaskExecutor(client, workers, device_workers)


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
