"""The command line: thin commands; errors become one sentence and an exit code."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.errors import DensebatchError, PartialRunError
from densebatch.base.files import is_disk_trouble
from densebatch.cli.logs import LoggedGroup

if TYPE_CHECKING:
    from collections.abc import Iterator

# Commands in modules of their own, imported when they are called: `score` must start without
# torch, and `--help` without anything.
_COMMANDS = {
    "segment": ("densebatch.cli.segment", "Segment a slide into OME-Zarr labels."),
    "status": ("densebatch.cli.status", "Say how a run stands, from its files."),
    "verify": ("densebatch.cli.verify", "Check a result, and mend what is damaged."),
    "measure": ("densebatch.cli.verify", "Measure the cells of a result again."),
    "info": ("densebatch.cli.plan", "Show what is understood of a slide."),
    "plan": ("densebatch.cli.plan", "Show what a segmentation would do, and do nothing."),
    "convert": ("densebatch.cli.exchange", "Write a slide as a pyramidal OME-Zarr."),
    "export": ("densebatch.cli.exchange", "Write a result in the format of another tool."),
    "merge": ("densebatch.cli.exchange", "Merge overlapping label tiles of any tool."),
    "demo": ("densebatch.cli.demo", "Simulate a slide, segment it, score it, show it."),
    "score": ("densebatch.cli.score", "Compare label images with ground truth."),
    "sweep": ("densebatch.cli.score", "Score many thresholds; the network runs once."),
    "train": ("densebatch.cli.train", "Train a network on annotated images."),
    "models": ("densebatch.cli.models", "List, show, import or fetch models."),
    "fetch": ("densebatch.cli.demo", "Fetch the image set that the paper's figures are from."),
    "benchmark": ("densebatch.cli.benchmark", "Measure how fast this machine does what."),
}


class _LazyGroup(LoggedGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="densebatch", message="%(version)s")
def cli() -> None:
    """Whole-slide cell segmentation of dense, multiplexed tissue.

    \b
    Exit codes: 0 done; 1 failure; 2 input or settings that cannot work;
    3 done except for tiles that failed; 4 a result is damaged; 130 interrupted.
    """  # noqa: D301  the backspace is click's mark for a paragraph that keeps its lines


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    with _terminations_as_interrupts():
        _run(arguments)


@contextmanager
def _terminations_as_interrupts() -> Iterator[None]:
    """Within this context, SIGTERM does what Ctrl-C does: batch systems send it before a kill."""
    heard = threading.current_thread() is threading.main_thread()
    if not heard or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str] | None) -> None:
    try:
        result: Any = cli.main(args=arguments, standalone_mode=False)
        sys.stdout.flush()  # a full disk there is told here, not by the interpreter as it ends
    except DensebatchError as error:
        kind = "partial" if isinstance(error, PartialRunError) else "error"
        _say(f"{kind}: {str(error).rstrip('.')}")
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        hint = f"; see '{where.command_path} --help'" if where is not None else ""
        _say(f"error: {error.format_message().rstrip('.')}{hint}")
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # of a file that is cut short, say
            _tell_unexpected(error.__cause__)
            sys.exit(1)
        _say("interrupted; the same command continues the run")
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and (is_disk_trouble(error) or error.filename is not None):
            where = f"{error.filename}: " if error.filename is not None else ""
            _say(f"error: {where}{error.strerror}")
        else:
            _tell_unexpected(error)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _tell_unexpected(error: BaseException) -> None:
    _say("".join(traceback.format_exception(error)))
    _say(f"unexpected failure: {type(error).__name__}: {error}")


def _say(text: str) -> None:
    with suppress(OSError):  # of a log file on a full disk; the exit code tells as much
        click.echo(text, err=True)
