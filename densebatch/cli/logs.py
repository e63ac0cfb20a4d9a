"""`--verbose` and `--log-json` on every command: who hears the events of the package.

Every module may log events (`densebatch.base.log`), and nobody hears them unless one of these
options is given. Handlers belong to this process: the records of tasks that worker processes do
are in run.json.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.errors import InputError
from densebatch.base.files import hide_secrets, refuse_address
from densebatch.base.log import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

log = logging.getLogger(__name__)

_PACKAGE = logging.getLogger("densebatch")
_VERBOSE, _LOG_JSON = f"{__name__}.verbose", f"{__name__}.log_json"


@lru_cache(maxsize=1)
def get_console() -> Console:
    """Standard error of this process: one console, so that lines go above the bars it shows."""
    from rich.console import Console

    return Console(stderr=True)


class LoggedCommand(click.Command):
    """A command that takes `--verbose` and `--log-json`, and logs its own beginning and end.

    A group takes them too, for the command that follows.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(
                ["--verbose"],
                is_flag=True,
                expose_value=False,
                callback=_keep(_VERBOSE),
                help="Print events of this process, not of its workers, to standard error.",
            ),
            click.Option(
                ["--log-json"],
                type=click.Path(path_type=Path),
                metavar="FILE",
                expose_value=False,
                callback=_keep(_LOG_JSON),
                help="Append the same events to FILE, one JSON object a line.",
            ),
        ]

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command, heard by those who were asked for."""
        from importlib.metadata import version

        with show_events(verbose=_VERBOSE in ctx.meta, file=ctx.meta.get(_LOG_JSON)):
            start = time.monotonic()
            log_event(
                log, "command started", command=ctx.command_path, options=_list_given(ctx),
                version=version("densebatch"),
            )  # fmt: skip
            try:
                for value in ctx.params.values():
                    for path in value if isinstance(value, tuple) else (value,):
                        if isinstance(path, Path):
                            refuse_address(path)
                result = super().invoke(ctx)
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"
                log_event(log, "command failed", logging.ERROR, reason=reason)
                raise
            log_event(log, "command ended", seconds=round(time.monotonic() - start, 3))
            return result


class LoggedGroup(LoggedCommand, click.Group):
    """A group of logged commands; the one that is called does the logging."""

    command_class = LoggedCommand

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command that was named, or what the group does without one."""
        return click.Group.invoke(self, ctx)


def _keep(key: str) -> Callable[[click.Context, click.Parameter, object], None]:
    """A callback of an option of a group or command, which leaves its value to the command."""

    def keep(ctx: click.Context, _: click.Parameter, value: object) -> None:
        if value:
            ctx.meta[key] = value  # shared by a group's context and its command's

    return keep


def _list_given(ctx: click.Context) -> dict[str, Any]:
    """Arguments and options that have a value."""
    return {
        name: _tell(value)
        for name, value in ctx.params.items()
        if value is not None and value is not False and value != ()
    }


def _tell(value: object) -> object:
    """A value as a log has it; of an address that is none of a slide, without what is secret."""
    if isinstance(value, tuple):
        return [_tell(each) for each in value]
    is_address = isinstance(value, str) and "://" in value
    return hide_secrets(Path(str(value))) if is_address or isinstance(value, Path) else value


@contextmanager
def show_events(*, verbose: bool, file: Path | None) -> Iterator[None]:
    """Within this context, events of the package are printed, written to a file, or both.

    Parameters
    ----------
    verbose
        Print a line an event to standard error.
    file
        To append a line of JSON an event to; None for none.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    handlers: list[logging.Handler] = []
    if verbose:
        handlers.append(_ConsoleHandler())
    if file is not None:
        try:
            handlers.append(_JsonHandler(file, encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror})") from error
    level = _PACKAGE.level
    pid = os.getpid()
    for handler in handlers:
        # A process that is forked from this one inherits handlers, whose files it may have closed.
        handler.addFilter(lambda record: record.process == pid)
        _PACKAGE.addHandler(handler)
        _PACKAGE.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _PACKAGE.setLevel(level)
        for handler in handlers:
            _PACKAGE.removeHandler(handler)
            with suppress(OSError):  # of a full disk, which was told when an event was written
                handler.close()


class _ConsoleHandler(logging.Handler):
    """Prints a line an event, above the bars that the console shows."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        get_console().print(self.format(record), soft_wrap=True, highlight=False, markup=False)


class _JsonHandler(logging.FileHandler):
    """Writes an event as a line of JSON; of what cannot be written it tells once."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": getattr(record, "event", record.getMessage()),
        }
        return json.dumps({**told, **getattr(record, "fields", {})}, default=str)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on without the log: a full disk there is no reason to end a run."""
        del record
        _PACKAGE.removeHandler(self)
        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or error
        click.echo(f"{self.baseFilename}: cannot be written any more ({reason})", err=True)
