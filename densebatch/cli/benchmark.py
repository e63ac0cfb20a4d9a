"""`densebatch benchmark`: how fast this machine does what."""

from __future__ import annotations

import shlex
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.machine import count_cores
from densebatch.cli.logs import LoggedGroup, get_console
from densebatch.cli.options import check_writable, write_text
from densebatch.planning.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.studies.benchmark_record import BenchmarkRecord, Row

_PATH = click.Path(path_type=Path)
_PIPE_WIDTH = 160  # without a terminal rich would fold the table at 80 characters


@click.group(cls=LoggedGroup)
def benchmark() -> None:
    """Measure how fast this machine segments and scores, and what the time goes to.

    Each command prints a table, writes a record as JSON and draws a picture beside it.
    """


def _numbers(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r}; accepted are numbers such as 1,2,4") from error
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise click.BadParameter(f"{value!r}; accepted are different numbers from 1 on")
    return numbers


_SIZE = click.option(
    "--size", default=4096, show_default=True, type=click.IntRange(256, 65536), metavar="PX",
    help="Side of the simulated slide.",
)  # fmt: skip
_SLIDE = click.option(
    "--slide", type=_PATH, help="A slide of your own, instead of a simulated one."
)
_SEGMENT_OPTIONS = click.argument(
    "segment_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SEGMENT OPTIONS]"
)


def _measured(kind: str) -> Callable[[Callable[..., list[Row]]], Callable[..., None]]:
    """What all measurements share: repeats, where the record goes, and what it is compared with.

    The command's own options become the settings of the record.
    """

    def decorate(measure: Callable[..., list[Row]]) -> Callable[..., None]:
        @wraps(measure)
        def command(
            out: Path | None,
            compare_with: Path | None,
            repeats: int,
            **options: Any,  # noqa: ANN401
        ) -> None:
            from densebatch.studies.benchmark_record import (
                BenchmarkRecord,
                describe_machine,
                describe_versions,
                read_record,
            )

            target = out or Path(f"densebatch-benchmark-{kind}.json")
            check_writable(target)
            old = read_record(compare_with, kind) if compare_with is not None else None
            machine, versions = describe_machine(), describe_versions()
            console = get_console()

            def note(text: str) -> None:
                console.print(text, soft_wrap=True, highlight=False, markup=False)

            rows = measure(repeats=repeats, note=note, **options)
            settings = {
                name: str(value) if isinstance(value, Path) else value
                for name, value in {**options, "repeats": repeats}.items()
            }
            typed = shlex.join(["densebatch", *sys.argv[1:]])
            _tell(BenchmarkRecord(kind, typed, settings, rows, machine, versions), target, old)

        for option in (
            click.option("--repeats", default=3, show_default=True, type=click.IntRange(1),
                         metavar="N", help="Medians of so many are told."),
            click.option("--compare", "compare_with", type=_PATH, metavar="OLD.json",
                         help="Also print ratios to an earlier record."),
            click.option("-o", "--out", type=_PATH, metavar="NEW.json",
                         help=f"Record; the picture lies beside it.  "
                         f"[densebatch-benchmark-{kind}.json]"),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


def _tell(record: BenchmarkRecord, target: Path, old: BenchmarkRecord | None) -> None:
    from rich.console import Console

    from densebatch.studies.benchmark_record import (
        compare_records,
        tell_differences,
        write_record,
    )
    from densebatch.studies.benchmark_report import build_table, draw_record

    write_record(target, record)
    picture = target.with_suffix(".svg")
    write_text(picture, draw_record(record))
    ratios = None
    if old is not None:
        ratios = compare_records(old, record)
        for difference in tell_differences(old, record):
            click.echo(difference, err=True)
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=width).print(build_table(record, ratios))
    click.echo(f"record  {target}\npicture {picture}")


@benchmark.command()
@_SLIDE
@_SIZE
@_SEGMENT_OPTIONS
@_measured("throughput")
def throughput(
    slide: Path | None,
    size: int,
    segment_options: tuple[str, ...],
    repeats: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Segment a slide, end to end: speed, where the time goes, memory, bytes.

    What follows `--` goes to `densebatch segment`, as in

        densebatch benchmark throughput --size 8192 -- --model dense-tiny --workers 4
    """
    from densebatch.studies.benchmark_segment import measure_throughput

    return measure_throughput(slide, size, segment_options, repeats, note)


@benchmark.command()
@_SLIDE
@_SIZE
@click.option("--workers", callback=_numbers, default="1,2", show_default=True, metavar="N,N,...",
              help="Numbers of workers, a core each.")  # fmt: skip
@_SEGMENT_OPTIONS
@_measured("scaling")
def scaling(
    slide: Path | None,
    size: int,
    workers: tuple[int, ...],
    segment_options: tuple[str, ...],
    repeats: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Segment a slide with 1, 2, 4, ... workers and as many cores: speedup and efficiency."""
    from densebatch.studies.benchmark_segment import measure_scaling

    return measure_scaling(slide, size, workers, segment_options, repeats, note)


@benchmark.command()
@_SIZE
@click.option("--workers", default=count_cores(), type=click.IntRange(1), metavar="N",
              help="Threads.  [one for each core]")  # fmt: skip
@_measured("score")
def score(size: int, workers: int, repeats: int, note: Callable[[str], None]) -> list[Row]:
    """Score a simulated pair of label images."""
    from densebatch.studies.benchmark_score import measure_scoring

    return measure_scoring(size, workers, repeats, note)


@benchmark.command()
@click.option("--backend", "names", multiple=True, metavar="NAME",
              help="Of the network. Repeatable.  [all]")  # fmt: skip
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, help="Bundled model or checkpoint."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="Of the network.")  # fmt: skip
@click.option("--lanes", default=count_cores(), type=click.IntRange(1), metavar="N",
              help="Patches that a CPU evaluates at once.  [one for each core]")  # fmt: skip
@click.option("--patches", default=16, show_default=True, type=click.IntRange(1), metavar="N",
              help="Patches of one pass.")  # fmt: skip
@_measured("backends")
def backends(
    names: tuple[str, ...],
    model: str,
    device: str,
    lanes: int,
    patches: int,
    repeats: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Evaluate the network alone, with each backend."""
    from densebatch.studies.benchmark_backends import measure_backends

    return measure_backends(names, model, device, lanes, patches, repeats, note)
