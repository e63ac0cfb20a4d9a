"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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


def add_options(options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Decorate a command with several options, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
