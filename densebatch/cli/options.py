"""Options that several commands share."""

from __future__ import annotations

import click

label_components_option = click.option(
    "--label-components/--no-label-components",
    default=None,
    help="What becomes of a yes/no mask (0 and 1, 0 and 255, bool) given for labels: its "
    "8-connected pieces become cells, so that cells that touch become one; or each label is one "
    "cell, in however many pieces. Without either, masks are refused.",
)
