"""Open the executor of a run: this process, worker processes of its own, or a running cluster."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.log import log_event
from densebatch.workers.check import Requirements, write_probe
from densebatch.workers.connect import open_client, refuse_scheduler
from densebatch.workers.executors import DaskExecutor, SerialExecutor
from densebatch.workers.local import start_cluster
from densebatch.workers.pool import WorkerPool
from densebatch.workers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from densebatch.workers.executors import Executor
    from densebatch.workers.scheduler import Scheduler

log = logging.getLogger(__name__)


def _tell_nobody(text: str) -> None:
    del text


@contextmanager
def open_executor(
    workers: int,
    scheduler: Scheduler | None = None,
    requirements: Requirements | None = None,
    *,
    folder: Path | None = None,
    device_workers: int = 0,
    note: Callable[[str], None] = _tell_nobody,
    returning: bool = False,
) -> Iterator[Executor]:
    """Open the executor that the settings ask for; it is closed at the end.

    Parameters
    ----------
    workers
        Processes of a local cluster; 0 works in this process.
    scheduler
        A running scheduler, which then decides instead of `workers`.
    requirements
        What each of its workers must have; those that lack something get no task.
    folder
        That its workers must be able to write to, as this process does; None asks for none.
    device_workers
        Of a local cluster, how many workers get the jobs that are for a device; 0 for all.
    note
        Is told, a sentence at a time, what the user should know of a running scheduler.
    returning
        Whether the scheduler has answered earlier, so that it is waited for if it does not now.

    Yields
    ------
    SerialExecutor or DaskExecutor

    Raises
    ------
    InputError
        If the scheduler cannot be reached, or none of the workers that it has can work.
    DensebatchError
        If worker processes cannot be started, a scheduler has none for as long as the user is
        patient, or one that answered earlier is gone.
    """
    with ExitStack() as stack:
        executor: Executor
        if scheduler is not None:
            needs = requirements or Requirements()
            if folder is not None:
                needs = replace(needs, probe=str(_share_probe(stack, folder)))
            executor = _join_cluster(stack, scheduler, needs, note, returning)
        elif workers:
            executor = start_cluster(stack, workers, device_workers)
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


def check_workers(
    scheduler: Scheduler | None,
    requirements: Requirements,
    note: Callable[[str], None] = _tell_nobody,
) -> None:
    """Refuse a running scheduler all of whose workers lack something; it may have none yet.

    Parameters
    ----------
    scheduler, requirements, note
        As `open_executor` takes them; without a scheduler there is nothing to check.

    Raises
    ------
    InputError
        Saying which worker lacks what.
    """
    if scheduler is None:
        return
    with open_client(scheduler) as client:
        WorkerPool(client, scheduler, requirements, note).check_present()


def ask_worker(
    scheduler: Scheduler,
    requirements: Requirements,
    function: Callable[..., Any],
    *args: Any,  # noqa: ANN401
    note: Callable[[str], None] = _tell_nobody,
    returning: bool = False,
) -> Any:  # noqa: ANN401
    """Call a function on one worker of a running scheduler.

    Parameters
    ----------
    scheduler, requirements, note, returning
        As `open_executor` takes them.
    function, args
        What to call.

    Raises
    ------
    InputError, DensebatchError
        As `open_executor`, the former for an `OSError` of the function too; else what the function
        raises.
    """
    with ExitStack() as stack:
        executor = _join_cluster(stack, scheduler, requirements, note, returning)
        (outcome,) = executor.run([Job(function.__name__, _call, (function, args))])
    if outcome.error is not None:
        raise DensebatchError(
            f"scheduler {scheduler}: no worker could be asked for {outcome.job.name} "
            f"({outcome.error})"
        )
    result, error = outcome.result
    if isinstance(error, OSError):
        raise refuse_scheduler(scheduler, error) from error
    if error is not None:
        raise error
    return result


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """What a function returns, or raises: another try would not change that."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


def _join_cluster(
    stack: ExitStack,
    scheduler: Scheduler,
    requirements: Requirements,
    note: Callable[[str], None],
    returning: bool,
) -> DaskExecutor:
    client = stack.enter_context(open_client(scheduler, note if returning else None))
    pool = WorkerPool(client, scheduler, requirements, note)
    stack.callback(pool.close)
    pool.wait()
    return DaskExecutor(client, pool, len(pool.able))


def _share_probe(stack: ExitStack, folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = write_probe(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); accepted is a folder that can"
        ) from error
    stack.callback(probe.unlink, missing_ok=True)
    return probe
