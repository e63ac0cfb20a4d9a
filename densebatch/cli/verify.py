"""`densebatch verify`: whether a result is what a run wrote, and mending it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from densebatch.base.errors import InputError, IntegrityError
from densebatch.base.files import write_atomic
from densebatch.cli.logs import LoggedCommand, get_console

if TYPE_CHECKING:
    from densebatch.run.verify import Verification

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
    from densebatch.run.repair import repair as run_repair
    from densebatch.run.verify import verify as run_verify

    if json_path not in (None, Path("-")) and not json_path.absolute().parent.is_dir():
        raise InputError(f"{json_path} cannot be written: there is no folder {json_path.parent}")
    with TerminalProgress(get_console()) as progress:
        if repair:
            result = run_repair(out, workers=workers, progress=progress)
        else:
            result = run_verify(out, threads=workers or None, progress=progress)
    if json_path is not None:
        _write(json_path, json.dumps(result.to_dict(), indent=1) + "\n")
    if json_path != Path("-"):
        _print(result)
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
    if result.findings:
        n = len(result.findings)
        advice = "" if repaired else "; `densebatch verify --repair` makes again what it can"
        return f"{result.out}: {n} {'thing is' if n == 1 else 'things are'} wrong{advice}"
    return f"{result.out}: is no finished result; the run's own command continues it"


def _write(path: Path, text: str) -> None:
    if path == Path("-"):
        click.echo(text, nl=False)
        return
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
