"""`densebatch verify`: whether a result is what a run wrote, and mending it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from densebatch.base.errors import InputError, IntegrityError
from densebatch.base.names import count_of
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import check_writable, write_text

if TYPE_CHECKING:
    from densebatch.upkeep.verify import Verification

_N_SHOWN = 50


@click.command("verify", cls=LoggedCommand)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="Make again what is damaged, and nothing else.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    metavar="FILE|-",
    help="Write all that was found as JSON; - for stdout.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    metavar="N",
    help="Threads; for labels that are made again, workers.",
)
def verify(out: Path, repair: bool, json_path: Path | None, workers: int | None) -> None:
    """Check every file of OUT, and that labels, pyramid, table and metadata fit together.

    Works from OUT alone; without the slide, mean intensities are left out unless OUT has its image.
    Exit code 0 if all is right, 4 if not.
    """
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.upkeep.repair import repair as run_repair
    from densebatch.upkeep.verify import verify as run_verify

    check_writable(json_path)
    with TerminalProgress(get_console()) as progress:
        if repair:
            result = run_repair(out, workers=workers, progress=progress)
        else:
            result = run_verify(out, threads=workers or None, progress=progress)
    text = json.dumps(result.to_dict(), indent=1) + "\n"
    if json_path != Path("-"):
        _print(result)
    try:
        if json_path is not None:
            write_text(json_path, text)
    except InputError as error:
        if result.is_right:
            raise
        click.echo(f"note: {error}", err=True)
    if not result.is_right:
        raise IntegrityError(_sum_up(result, repaired=repair))


def _print(result: Verification) -> None:
    for name in result.repaired[:_N_SHOWN]:
        click.echo(f"mended  {name}")
    for finding in result.findings[:_N_SHOWN]:
        click.echo(str(finding))
    more = len(result.findings) - _N_SHOWN
    if more > 0:
        click.echo(f"and {more} more (--json FILE has all)")
    for note in result.notes:
        click.echo(f"note: {note}")
    if result.is_right:
        mended = f"; {len(result.repaired)} were mended" if result.repaired else ""
        click.echo(
            f"{result.out}: {result.n_files} files, {result.n_cells} cells: all right{mended}"
        )


def _sum_up(result: Verification, *, repaired: bool) -> str:
    n = len(result.findings)
    wrong = f"{result.out}: {count_of(n, 'thing')} {'is' if n == 1 else 'are'} wrong"
    if result.driver is not None:
        return f"{result.out}: is being written by {result.driver}; look again when it has ended"
    if not result.finished:
        if n:
            return f"{wrong}; the run's own command does again what is damaged"
        return f"{result.out}: is no finished result; the run's own command continues it"
    return wrong if repaired else f"{wrong}; `densebatch verify --repair` makes again what it can"
