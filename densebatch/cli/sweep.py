"""`densebatch sweep`: score many thresholds from one flow field per image."""

from __future__ import annotations

import os
from pathlib import Path

import click

from densebatch.base.errors import InputError
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import label_components_option

_TABLE, _TEXT, _PICTURE, _WORK = "sweep.csv", "sweep.md", "sweep.svg", "work"


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
@label_components_option
@click.option("--restart", is_flag=True, help="Run the network again.")
def sweep(
    images: Path,
    output: Path,
    config: Path | None,
    truth: Path | None,
    label_components: bool | None,
    restart: bool,
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

    settings = load_sweep(config, label_components=label_components)
    output = output.absolute()
    _check_output(output)
    files = find_images(
        images,
        truth,
        settings.segment.scene,
        settings.segment.axes,
        label_components=settings.label_components,
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
