"""`densebatch fetch`."""

from __future__ import annotations

from pathlib import Path

import click

from densebatch.cli.logs import LoggedCommand
from densebatch.training.image_sets import SetFile, fetch_set, find_set


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
    images = find_set(name)

    def tell(file: SetFile, n_done: int) -> None:
        click.echo(f"{n_done}/{len(images.files)}  {file.path}")

    fresh = fetch_set(images, folder, url, tell)
    click.echo(f"{name}  {len(images.files)} files verified in {folder}, {fresh} of them fetched")
    click.echo(f"source  {images.notice}")
