"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.remote.address import is_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

label_components_option = click.option(
    "--label-components/--no-label-components",
    default=None,
    help="What becomes of a yes/no mask (0 and 1, 0 and 255, bool) given for labels: its "
    "8-connected pieces become cells, so that cells that touch become one; or each label is one "
    "cell, in however many pieces. Without either, masks are refused.",
)

_PATH = click.Path(path_type=Path)


class SlidePath(click.Path):
    """A path, or the address of an OME-Zarr."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401
        """A `Path` or a `RemotePath`."""
        if not is_address(value):
            return super().convert(value, param, ctx)
        from densebatch.remote.tree import RemotePath

        return RemotePath(value)


# Which image of a file is meant; the names are those of the settings.
image_options = [
    click.option("--scene", metavar="NAME|INDEX", help="Image of a file that holds several."),
    click.option("--axes", metavar="CYX", help="Dimensions of the pixels, if misnamed."),
    click.option("--z", metavar="INDEX|max", help="Focal plane of several, or the largest value."),
    click.option("--t", metavar="INDEX", help="Point in time of several."),
]
slide_options = [
    *image_options,
    click.option(
        "--panel", metavar="CSV", help="Names the channels of imaging mass cytometry (steinbock)."
    ),
]

# Of a running cluster; the names are those of the settings.
scheduler_options = [
    click.option("--scheduler-address", metavar="ADDRESS", help="A running Dask scheduler."),
    click.option("--scheduler-file", type=_PATH, help="Its scheduler file."),
    click.option(
        "--patience",
        metavar="TIME",
        help="How long its workers are waited for: seconds, or such as 90s, 10m, 2h.  [10m]",
    ),
    click.option(
        "--tls-ca-file", type=_PATH, help="PEM file of its authority, for tls:// addresses."
    ),
    click.option("--tls-cert", type=_PATH, help="PEM file of our certificate for it."),
    click.option("--tls-key", type=_PATH, help="PEM file of the key, if not in --tls-cert."),
]


def _or_none(
    _: click.Context, __: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...] | None:
    return value or None  # so that what is not given may stand in a file


# What makes cells positive; the names are those of the settings.
positivity_options = [
    click.option("--fraction", multiple=True, callback=_or_none, metavar="CHANNEL=VALUE",
                 help="Measure the share of each cell's pixels over a value. Repeatable."),
    click.option("--positive", multiple=True, callback=_or_none,
                 metavar="CHANNEL[:STATISTIC]=CUT",
                 help="Tell positive cells: by a value, otsu, mixture, or labels:PATH of other "
                 "cells; mean if no statistic is named. Repeatable (docs/positivity.md)."),
    click.option("--phenotype", multiple=True, callback=_or_none, metavar="[NAME=]A+ B-",
                 help='Tell cells by several --positive, such as "CD3+ CD8-". Repeatable.'),
]  # fmt: skip


def add_options(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Decorate a command with several options, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def check_writable(*paths: Path | None) -> None:
    """Refuse files in folders that are not there, before there is anything to write.

    Parameters
    ----------
    *paths
        None and `-` are accepted.

    Raises
    ------
    InputError
        Naming the file and the folder.
    """
    for path in filter(None, paths):
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path} cannot be written: there is no folder {path.parent}")


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named; `-` is standard output.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    if path == Path("-"):
        click.echo(text, nl=False)
        return
    try:
        if path.exists() and not path.is_file():  # such as a pipe
            path.write_text(text, encoding="utf-8")
        else:
            write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
