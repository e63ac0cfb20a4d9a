"""`densebatch score` and `densebatch sweep`: compare label images with the truth."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.errors import DensebatchError, InputError
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import (
    add_options,
    check_writable,
    label_components_option,
    scheduler_options,
    slide_options,
    write_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from densebatch.scoring.blocks import Workers
    from densebatch.scoring.files import FileScores, ScoreOptions

_PATH = click.Path(path_type=Path)
_COUNT = click.IntRange(min=0)
# Without a terminal there is no width to keep to, and rich would fold columns at 80 characters.
_PIPE_WIDTH = 200
_TABLE, _TEXT, _PICTURE, _WORK = (
    "sweep.csv",
    "sweep.md",
    "sweep.svg",
    "work",
)


@click.command("score", cls=LoggedCommand)
@click.argument("pred", type=_PATH)
@click.argument("truth", type=_PATH)
@click.option(
    "--also", type=_PATH, multiple=True, help="Another prediction to compare. Repeatable."
)
@click.option("--iou", multiple=True, metavar="T", help="IoU threshold, exact. Repeatable.")
@click.option(
    "--matching",
    type=click.Choice(["any", "hungarian"]),
    default="any",
    show_default=True,
    help="Count any match as the paper does, or one-to-one.",
)
@click.option(
    "--min-size",
    type=_COUNT,
    default=0,
    metavar="PX",
    help="Remove smaller cells on both sides before matching, as the paper does.",
)
@click.option(
    "--ignore-below",
    type=_COUNT,
    default=0,
    metavar="PX",
    help="Ignore smaller cells as COCO does: neither missed nor spurious.",
)
@click.option(
    "--ignore",
    type=_PATH,
    metavar="PATH",
    help="Image (or folder), masks too, that is not zero where nothing is to be counted.",
)
@label_components_option
@click.option(
    "--boundary",
    type=click.FloatRange(0, 100),
    metavar="PX",
    help="Also score outlines, with this tolerance.",
)
@click.option(
    "--scene",
    metavar="NAME",
    help="Image, by name or index, of files that hold several.",
)
@click.option("--allow-missing", is_flag=True, help="Leave out files without a partner.")
@click.option("--json", "json_path", type=_PATH, metavar="PATH", help="Write JSON; - for stdout.")
@click.option("--csv", "csv_path", type=_PATH, metavar="PATH", help="Write CSV; - for stdout.")
@click.option("--report", type=_PATH, metavar="PATH.html", help="Write a page with pictures.")
@click.option("--image", type=_PATH, metavar="PATH", help="Image (or folder) to draw on.")
@click.option(
    "--field", type=click.IntRange(min=16), metavar="PX", help="Edge of the fields of the report."
)
@click.option(
    "--workers", type=_COUNT, metavar="N", help="Threads; by default one for each processor."
)
@add_options(scheduler_options)
def score(
    pred: Path,
    truth: Path,
    also: tuple[Path, ...],
    iou: tuple[str, ...],
    matching: str,
    min_size: int,
    ignore_below: int,
    ignore: Path | None,
    label_components: bool | None,
    boundary: float | None,
    scene: str | None,
    allow_missing: bool,
    json_path: Path | None,
    csv_path: Path | None,
    report: Path | None,
    image: Path | None,
    field: int | None,
    workers: int | None,
    **cluster: Any,  # noqa: ANN401
) -> None:
    """Compare the label image PRED with TRUTH, or two folders of them paired by name.

    PNG, TIFF, .npy, OME-Zarr labels and plain zarr arrays of any size.
    """
    from rich.console import Console

    from densebatch.base.machine import count_cores
    from densebatch.scoring.files import ScoreOptions, draw_pictures
    from densebatch.scoring.page import format_html
    from densebatch.scoring.report import format_csv, format_json, print_report
    from densebatch.scoring.settings import ScoreSettings

    if json_path == csv_path == Path("-"):
        raise InputError("--json - and --csv - both write to stdout; give one of them a path")
    settings = ScoreSettings(
        **({"thresholds": iou} if iou else {}),  # type: ignore[arg-type]
        matching=matching,  # type: ignore[arg-type]
        min_size=min_size,
        ignore_below=ignore_below,
        label_components=label_components,
    )
    options = ScoreOptions(settings, boundary, ignore, image, allow_missing, field, scene)
    check_writable(json_path, csv_path, report)
    threads = count_cores() if workers is None else workers
    files = (pred, *also, truth, *([ignore] if ignore else []))
    connection = _open_cluster(cluster, files) or nullcontext(threads)
    try:
        with connection as running:
            scores = _score_all((pred, *also), truth, options, running)
    except DensebatchError:
        # zarr leaves its other reads behind, and asyncio would report each of them at exit, on
        # top of the one sentence that matters.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise
    images = {name: found.images for name, found in scores.items()}
    pairing = next(iter(scores.values())).pairing
    if pairing.rule:
        click.echo(pairing.rule, err=True)
    for note in dict.fromkeys(note for found in scores.values() for note in found.notes):
        click.echo(note, err=True)
    if report is not None:
        pictures = {name: draw_pictures(found, options) for name, found in scores.items()}
        write_text(report, format_html(images, pictures, pairing.rule))
    if csv_path is not None:
        write_text(csv_path, format_csv(images))
    if json_path is not None:
        write_text(json_path, format_json(images))
    if Path("-") not in (json_path, csv_path):
        print_report(images, Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH))


def _open_cluster(
    given: Mapping[str, Any], files: Sequence[Path]
) -> AbstractContextManager[Workers] | None:
    """Workers of the scheduler that the options name; None if they name none."""
    if not any(given.values()):
        return None
    # Imported here, because scoring on this machine needs nothing of it.
    from importlib.metadata import version

    from densebatch.planning.settings import load_settings
    from densebatch.workers.borrow import borrow_workers
    from densebatch.workers.check import Requirements, SharedFile
    from densebatch.workers.scheduler import check_scheduler

    def note(text: str) -> None:
        click.echo(text, err=True)

    scheduler = load_settings(None, **given).scheduler
    if scheduler is None:
        return None
    check_scheduler(scheduler, note)
    shared = []
    for file in files:
        try:
            shared.append(SharedFile.look(file.absolute(), "the label image"))
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    needs = Requirements({name: version(name) for name in ("numpy", "numba")}, tuple(shared))
    return borrow_workers(scheduler, needs, note)


def _score_all(
    preds: tuple[Path, ...], truth: Path, options: ScoreOptions, workers: Workers
) -> dict[str, FileScores]:
    from rich.progress import Progress

    from densebatch.scoring.files import score_files

    names = [path.name for path in preds]
    if len(set(names)) < len(names):
        names = [str(path) for path in preds]
    if len(set(names)) < len(names):
        raise InputError("the same prediction was given twice")
    scores = {}
    with Progress(console=get_console(), transient=True) as progress:
        for name, pred in zip(names, preds, strict=True):
            task = progress.add_task(name, total=None)

            def show(done: int, total: int, task: object = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            scores[name] = score_files(pred, truth, options, workers=workers, show_progress=show)
    return scores


@click.command(cls=LoggedCommand)
@click.argument("images", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the tables, the picture and, kept for next time, the flow fields.",
)
@click.option("-c", "--config", type=click.Path(path_type=Path), help="What to try, as YAML.")
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Label image, where IMAGES is one slide."
)
@add_options(slide_options)
@label_components_option
@click.option("--restart", is_flag=True, help="Run the network again.")
def sweep(
    images: Path,
    output: Path,
    config: Path | None,
    truth: Path | None,
    label_components: bool | None,
    restart: bool,
    **chosen: str | None,
) -> None:
    """Score every combination of thresholds on annotated IMAGES.

    IMAGES is a folder of X_img with X_masks, or of OME-Zarr images with labels inside, or one
    slide. The network runs once per image; other thresholds use its stored flow field.
    """
    from densebatch.base.files import write_atomic
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.studies.sweep import find_images, run_sweep
    from densebatch.studies.sweep_report import (
        draw_sweep,
        find_best,
        format_csv,
        format_markdown,
        tell_labelled,
    )
    from densebatch.studies.sweep_settings import load_sweep

    settings = load_sweep(config, label_components=label_components, **chosen)
    output = output.absolute()
    _check_output(output)
    files = find_images(
        images,
        truth,
        label_components=settings.label_components,
        **{name: getattr(settings.segment, name) for name in chosen},
    )
    with TerminalProgress(get_console()) as progress:
        result = run_sweep(files, output / _WORK, settings, restart=restart, progress=progress)
    for name, text in (
        (_TABLE, format_csv(result.scores)),
        (_TEXT, format_markdown(result.scores, result.notes, result.labelled)),
        (_PICTURE, draw_sweep(result.scores)),
    ):
        write_atomic(output / name, text.encode())
    if told := tell_labelled(result.labelled):
        click.echo(told)
    best, ap = find_best(result.scores)
    click.echo(
        f"{len(files)} images, {len(result.scores)} combinations; network evaluated on "
        f"{result.evaluated} patches"
    )
    click.echo(
        f"best   mean AP {ap:.3f} at IoU {settings.iou[0]:g}: flow {best.flow_threshold:g}, "
        f"cell probability {best.cellprob_threshold:g}, minimum size {best.min_size} px"
    )
    for kind, name in (("table", _TABLE), ("text", _TEXT), ("plot", _PICTURE)):
        click.echo(f"{kind:<6} {output / name}")


def _check_output(folder: Path) -> None:
    """Refuse, before anything is done, a folder that holds other files or cannot be written."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        kind = "is not writable" if existing.is_dir() else "is a file"
        raise InputError(f"{folder}: cannot be used as output folder, {existing} {kind}")
    names = sorted(p.name for p in folder.iterdir()) if existing == folder else []
    foreign = [name for name in names if name not in (_TABLE, _TEXT, _PICTURE, _WORK)]
    foreign = [name for name in foreign if not name.endswith(".partial")]
    if foreign:
        raise InputError(
            f"{folder}: holds {foreign[0]!r} and is no output of densebatch sweep; accepted is a "
            "new or empty folder, or one of an earlier sweep"
        )
