"""The command line: thin commands; errors become one sentence and an exit code."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import Any

import click

from densebatch.base.errors import DensebatchError, PartialRunError
from densebatch.cli.logs import LoggedGroup

# Commands in modules of their own, imported when they are called: `score` must start without
# torch, and `--help` without anything.
_COMMANDS = {
    "segment": ("densebatch.cli.segment", "Segment a slide into OME-Zarr labels."),
    "verify": ("densebatch.cli.verify", "Check a result, and mend what is damaged."),
    "plan": ("densebatch.cli.segment", "Show what a segmentation would do, and do nothing."),
    "demo": ("densebatch.cli.demo", "Simulate a slide, segment it, score it, show it."),
    "score": ("densebatch.cli.score", "Compare label images with ground truth."),
    "sweep": ("densebatch.cli.sweep", "Score many thresholds; the network runs once."),
    "train": ("densebatch.cli.train", "Train a network on annotated images."),
    "models": ("densebatch.cli.models", "List, show, import or fetch models."),
    "fetch": ("densebatch.cli.fetch", "Fetch the image set that the paper's figures are from."),
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
@click.version_option(package_name="densebatch")
def cli() -> None:
    """Whole-slide cell segmentation of dense, multiplexed tissue.

    \b
    Exit codes: 0 done; 1 unexpected failure; 2 input or settings that cannot work;
    3 done except for tiles that failed.
    """  # noqa: D301  the backspace is click's mark for a paragraph that keeps its lines


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        result: Any = cli.main(args=arguments, standalone_mode=False)
    except DensebatchError as error:
        kind = "partial" if isinstance(error, PartialRunError) else "error"
        click.echo(f"{kind}: {str(error).rstrip('.')}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        hint = f"; see '{where.command_path} --help'" if where is not None else ""
        click.echo(f"error: {error.format_message().rstrip('.')}{hint}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command continues the run", err=True)
        sys.exit(130)
    except Exception as error:
        click.echo(traceback.format_exc(), err=True)
        click.echo(f"unexpected failure: {type(error).__name__}: {error}", err=True)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
