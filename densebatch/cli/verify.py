"""`densebatch verify` and `densebatch measure`: a finished result is checked, or measured again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from densebatch.base.errors import InputError, IntegrityError, PartialRunError
from densebatch.base.names import count_of
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import (
    SlidePath,
    add_options,
    check_writable,
    positivity_options,
    slide_options,
    write_text,
)

if TYPE_CHECKING:
    from densebatch.cohorts.check import CohortVerification
    from densebatch.remote.tree import Place
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
    Of several slides in OUT all are looked at. Exit code 0 if all is right, 4 if not.
    """
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.cohorts.check import CohortVerification, verify_cohort
    from densebatch.cohorts.record import read_record
    from densebatch.upkeep.repair import repair as run_repair
    from densebatch.upkeep.verify import verify as run_verify

    check_writable(json_path)
    entries = read_record(out)
    result: Verification | CohortVerification
    with TerminalProgress(get_console()) as progress:
        if entries is not None:
            result = verify_cohort(out, entries, progress, mend=repair, workers=workers)
        elif repair:
            result = run_repair(out, workers=workers, progress=progress)
        else:
            result = run_verify(out, threads=workers or None, progress=progress)
    text = json.dumps(result.to_dict(), indent=1) + "\n"
    if json_path != Path("-"):
        if isinstance(result, CohortVerification):
            _print_cohort(result)
        else:
            _print(result)
    try:
        if json_path is not None:
            write_text(json_path, text)
    except InputError as error:
        if result.is_right:
            raise
        click.echo(f"note: {error}", err=True)
    if not result.is_right:
        if isinstance(result, CohortVerification):
            raise IntegrityError(_sum_up_cohort(result))
        raise IntegrityError(_sum_up(result, repaired=repair))


def _print_cohort(result: CohortVerification) -> None:
    for found in result.looked_at.values():
        if not found.is_right:
            click.echo(f"{found.out}:")
        _print(found)
    for sample, reason in result.unread.items():
        click.echo(f"{result.out / sample}: {reason}")
    if result.failed:
        click.echo(f"note: without a result, as cohort.json says: {', '.join(result.failed)}")


def _sum_up_cohort(result: CohortVerification) -> str:
    wrong = [name for name, found in result.looked_at.items() if not found.is_right]
    wrong += result.unread
    told = [f"something is wrong with {', '.join(wrong)}"] if wrong else []
    if result.unfinished:
        told.append(f"{', '.join(result.unfinished)} yet to be done by the cohort's own command")
    return f"{result.out}: {'; '.join(told)}"


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
        mended = f"; {count_of(len(result.repaired), 'file')} mended" if result.repaired else ""
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


@click.command("measure", cls=LoggedCommand)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "source",
    type=SlidePath(),
    metavar="OTHER",
    help="Measure this image, on the grid of the labels, and not the slide of the run.",
)
@add_options(slide_options)
@click.option(
    "--channels",
    multiple=True,
    metavar="A,B,...",
    help="Channels that are measured, by name or index. Repeatable.  [all]",
)
@click.option(
    "--quantiles",
    default="",
    metavar="Q,...",
    help="Quantiles of each cell's pixels, such as 0.5,0.9, from 0 to 1.",
)
@click.option(
    "--neighbour-radius",
    type=float,
    metavar="UM",
    help="Within which cells are neighbours, by centroids.  [30]",
)
@add_options(positivity_options)
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Threads.")
def measure(
    out: Path,
    source: Place | None,
    channels: tuple[str, ...],
    quantiles: str,
    neighbour_radius: float | None,
    workers: int | None,
    fraction: tuple[str, ...],
    positive: tuple[str, ...],
    phenotype: tuple[str, ...],
    **chosen: str | None,
) -> None:
    """Measure the cells in OUT again, without segmenting: its cells.parquet is written anew.

    What is not given is as by default, not as it was measured before. The table is written whole or
    not at all, and what was measured is in run.json.
    """
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.measuring.positivity import tell_positivity
    from densebatch.measuring.schema import RADIUS_UM
    from densebatch.upkeep.measure import measure as run_measure

    for name, value in chosen.items():
        if value is not None and source is None:
            raise click.UsageError(f"--{name} is of the image of --from, which is not given")
    with TerminalProgress(get_console()) as progress:
        result = run_measure(
            out, source=source, chosen=chosen, channels=channels, quantiles=quantiles,
            neighbour_radius=RADIUS_UM if neighbour_radius is None else neighbour_radius,
            threads=workers or None, progress=progress, fraction=fraction,
            positive=positive, phenotype=phenotype,
        )  # fmt: skip
    measured = count_of(len(result.measured["channels"]), "channel")
    click.echo(f"{result.n_cells} cells measured in {measured}")
    for line in tell_positivity(result.positivity):
        click.echo(line)
    click.echo(f"cells   {result.table}")
    told = result.tell_unread()
    if told is not None:
        raise PartialRunError(told)
