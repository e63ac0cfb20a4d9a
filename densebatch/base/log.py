"""Events of a run for the standard `logging`, under the name `densebatch`.

A module keeps `log = logging.getLogger(__name__)` and calls `log_event(log, "tile traced",
cells=12, seconds=0.4)`: an event is a few words that never change, and named fields. The library
adds no handler; the command line does, for `--verbose` and `--log-json` (`cli.logs`).
"""

from __future__ import annotations

import logging
from typing import Any


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
    told = " ".join(f"{name}={value}" for name, value in fields.items())
    text = f"{event}: {told}" if told else event
    logger.log(level, "%s", text, extra={"event": event, "fields": fields}, stacklevel=2)
