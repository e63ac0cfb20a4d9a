"""Events of a run for the standard `logging`, under the name `densebatch`.

A module keeps `log = logging.getLogger(__name__)` and calls `log_event(log, "tile traced",
cells=12, seconds=0.4)`: an event is a few words that never change, and named fields. The library
adds no handler; the command line does, for `--verbose` and `--log-json` (`cli.terminal`).
"""

from __future__ import annotations

import logging
from typing import Any


def log_event(logger: logging.Logger, event: str, level: int = logging.INFO, **fields: Any) -> None:  # noqa: ANN401
    """Log an event.

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
    """
    if not logger.isEnabledFor(level):
        return
    told = " ".join(f"{name}={value}" for name, value in fields.items())
    text = f"{event}: {told}" if told else event
    logger.log(level, "%s", text, extra={"event": event, "fields": fields}, stacklevel=2)
