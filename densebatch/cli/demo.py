"""`densebatch demo` and `densebatch fetch`: images to try it with."""

from __future__ import annotations

from pathlib import Path

import click

from densebatch.cli.logs import LoggedCommand, get_console


@click.command(cls=LoggedCommand)
@click.argument("out", type=click.Path(path_type=Path), default=Path("densebatch-demo"))
@click.option(
    "--size",
    default=2048,
    show_default=True,
    type=click.IntRange(256, 65536),
    metavar="PX",
    help="Side of the simulated slide.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the tissue.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Dask workers.")
def demo(out: Path, size: int, seed: int, workers: int | None) -> None:
    """Simulate a slide with exact truth, segment cells and nuclei, and write OUT/index.html."""
    from densebatch.cli.terminal import TerminalProgress, print_summary
    from densebatch.studies.demo import run_demo

    with TerminalProgress(get_console()) as progress:
        made = run_demo(out, size_px=size, seed=seed, workers=workers, progress=progress)
    for run, what in ((made.cells, "cells"), (made.nuclei, "nuclei")):
        print_summary(run.result)
        at = run.score.at("0.50")
        click.echo(
            f"score   AP {at.ap:.3f} at IoU 0.50: {at.tp} of {run.score.n_truth} {what} found, "
            f"{at.fp} spurious"
        )
    click.echo(f"page    {made.page.absolute()}")


@click.command(cls=LoggedCommand)
@click.argument("name", metavar="SET")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--url",
    metavar="URL",
    help="Fetch from a mirror that has the authors' folders, instead of their repository.",
)
def fetch(name: str, folder: Path, url: str | None) -> None:
    """Fetch the image SET hsv-dense into DIR: 49 files, sha256 verified.

    \b
    DIR/train        7 training portions and masks, for `densebatch train`
    DIR/test         7 test portions and masks, for `densebatch score`
    DIR/fields       the whole fields; they contain the test portions: never train on them
    DIR/predictions  the authors' masks of the test portions (cyto-train7)

    Interrupted? The same command continues.
    """  # noqa: D301  the backspace is click's mark for a paragraph that keeps its lines
    from densebatch.training.image_sets import SetFile, fetch_set, find_set

    images = find_set(name)

    def tell(file: SetFile, n_done: int) -> None:
        click.echo(f"{n_done}/{len(images.files)}  {file.path}")

    fresh = fetch_set(images, folder, url, tell)
    click.echo(f"{name}  {len(images.files)} files verified in {folder}, {fresh} of them fetched")
    click.echo(f"source  {images.notice}")
