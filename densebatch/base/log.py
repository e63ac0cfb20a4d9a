"""Events of a run for the standard `logging`, under the name `densebatch`.

A module keeps `log = logging.getLogger(__name__)` and calls `log_event(log, "tile traced",
cells=12, seconds=0.4)`: an event is a few words that never change, and named fields. The library
adds no handler; the command line does, for `--verbose` and `--log-json` (`cli.logs`).
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHARED: ContextVar[dict[str, Any]] = ContextVar("densebatch-log-fields", default={})  # noqa: B039


@contextmanager
def logged_with(**fields: Any) -> Iterator[None]:  # noqa: ANN401
    """Within this context, in this thread, events have these fields too.

    Examples
    --------
    >>> import sys
    >>> logger = logging.getLogger("example of fields")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> with logged_with(sample="a"):
    ...     log_event(logger, "stage done", logging.WARNING, seconds=2)
    stage done: sample=a seconds=2
    """
    token = _SHARED.set({**_SHARED.get(), **fields})
    try:
        yield
    finally:
        _SHARED.reset(token)


def log_event(logger: logging.Logger, event: str, level: int = logging.INFO, **fields: Any) -> None:  # noqa: ANN401
    """Log an event.

    Where no handler listens nothing is printed, not even a warning, which `logging` would
    otherwise write to standard error.

    Parameters
    ----------
    logger
        `logging.getLogger(__name__)` of the module that tells.
    event
        What happened, in words that are the same each time.
    level
        Of `logging`.
    **fields
        What it happened to and how, serialisable; a unit is part of a field's name. They are the
        record's attribute `fields`, and the event its attribute `event`.

    Examples
    --------
    >>> import sys
    >>> logger = logging.getLogger("example")
    >>> logger.addHandler(logging.StreamHandler(sys.stdout))
    >>> log_event(logger, "tile traced", logging.WARNING, row=3, col=0, seconds=0.4)
    tile traced: row=3 col=0 seconds=0.4
    """
    if not (logger.isEnabledFor(level) and logger.hasHandlers()):
        return
    fields = {**_SHARED.get(), **fields}
    told = " ".join(f"{name}={value}" for name, value in fields.items())
    text = f"{event}: {told}" if told else event
    logger.log(level, "%s", text, extra={"event": event, "fields": fields}, stacklevel=2)
