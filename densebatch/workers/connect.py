"""The one way to a running Dask scheduler: a client of it, closed at the end."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.workers.scheduler import check_scheduler, find_address, read_security

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from densebatch.workers.scheduler import Scheduler

GONE_S = 60.0
"""How long a scheduler that is gone is waited for, in seconds."""

CONTINUES = "the same command continues"

_AGAIN_S = 0.3
_CLOSE_S = 5.0
# What these tell of a connection that is lost, a run tells in one sentence.
_LOUD = ("distributed.client", "distributed.core", "distributed.batched", "distributed.comm.core")


@contextmanager
def open_client(
    scheduler: Scheduler, returning: Callable[[str], None] | None = None
) -> Iterator[Any]:
    """Connect with a running scheduler.

    Parameters
    ----------
    scheduler
        Which.
    returning
        Is told that the scheduler is waited for, because it has answered earlier; None refuses at
        once one that does not answer.

    Yields
    ------
    distributed.Client
        Which looks for a scheduler that is gone for a minute, and is closed after that.

    Raises
    ------
    InputError
        As `check_scheduler`, or if the scheduler does not answer as one of Dask does.
    DensebatchError
        If one that is waited for does not come back.
    """
    from distributed import Client

    if returning is None:
        check_scheduler(scheduler)  # Dask itself would try for a minute
    else:
        _await_scheduler(scheduler, returning)
    address = find_address(scheduler)
    security = read_security(scheduler) if address.startswith("tls://") else None
    with _quiet():
        try:
            client = Client(
                address=address, timeout=GONE_S, security=security, set_as_default=False
            )
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            raise refuse_scheduler(scheduler, error) from error
        try:
            yield client
        finally:
            client.close(timeout=_CLOSE_S)


def _await_scheduler(scheduler: Scheduler, note: Callable[[str], None]) -> None:
    deadline = None
    while True:
        try:
            return check_scheduler(scheduler)
        except InputError as error:
            if deadline is None:
                deadline = time.monotonic() + GONE_S
                note(f"scheduler {scheduler}: is gone; waiting {GONE_S:.0f} s for it to come back")
            if time.monotonic() > deadline:
                raise DensebatchError(
                    f"scheduler {scheduler}: is gone and did not come back within {GONE_S:.0f} s; "
                    f"{CONTINUES} when it runs"
                ) from error
        time.sleep(_AGAIN_S)


def refuse_scheduler(scheduler: Scheduler, error: BaseException | str) -> InputError:
    """Say that a scheduler cannot be used, and why."""
    return InputError(
        f"scheduler {scheduler}: cannot be used ({' '.join(str(error).split())}); "
        "accepted is a running Dask scheduler with workers"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Dask's own reports of a lost connection go, and put its settings back."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
