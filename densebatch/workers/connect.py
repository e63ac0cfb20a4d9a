"""The one way to a running Dask scheduler: a client of it, closed at the end."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.workers.scheduler import check_scheduler, find_address, read_security

if TYPE_CHECKING:
    from collections.abc import Iterator

    from densebatch.workers.scheduler import Scheduler

GONE_S = 60.0
"""How long a scheduler that is gone is waited for, in seconds."""

_CLOSE_S = 5.0
# What these tell of a connection that is lost, a run tells in one sentence.
_LOUD = ("distributed.client", "distributed.core", "distributed.batched", "distributed.comm.core")


@contextmanager
def open_client(scheduler: Scheduler) -> Iterator[Any]:
    """Connect with a running scheduler.

    Yields
    ------
    distributed.Client
        Which looks for a scheduler that is gone for a minute, and is closed after that.

    Raises
    ------
    InputError
        As `check_scheduler`, or if the scheduler does not answer as one of Dask does.
    """
    from distributed import Client

    check_scheduler(scheduler)  # Dask itself would try for a minute
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
