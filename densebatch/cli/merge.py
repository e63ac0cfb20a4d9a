"""`densebatch merge`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from densebatch.cli.logs import LoggedCommand, get_console

_PATH = click.Path(path_type=Path)


@click.command("merge", cls=LoggedCommand)
@click.argument("tiles", type=_PATH, nargs=-1, required=True)
@click.argument("out", type=_PATH)
@click.option("--pixel-size", type=float, metavar="UM", help="um per pixel of the slide.")
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="PX",
    help="From a tile to the next, for names that tell row and column.",
)
def merge(tiles: tuple[Path, ...], out: Path, pixel_size: float | None, step: int | None) -> None:
    """Merge label TILES that overlap, of any tool, into labels of the slide in OUT.

    TILES are PNG, TIFF or .npy files or a folder of them, whose places their names tell
    (_y123_x456, in px, or _r0_c1 with --step), or their OME metadata (PositionX, PositionY); or a
    CSV with the columns file, y, x. OUT gets labels and table as of `densebatch segment`, and
    merge.json.
    """
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.planning.settings import load_settings
    from densebatch.studies.merge import merge_label_tiles

    size = load_settings(None, pixel_size=pixel_size).pixel_size
    with TerminalProgress(get_console()) as progress:
        result = merge_label_tiles(tiles, out, pixel_size=size, step=step, progress=progress)
    told = result.report["merging"]
    click.echo(
        f"{result.report['cells']} cells of {told['labels']} labels in {told['tiles']} tiles: "
        f"{told['candidate_pairs']} pairs share pixels, {told['merged']} labels were merged"
    )
    click.echo(
        f"{len(told['larger_than_overlap'])} cells larger than the overlap, "
        f"{len(told['dropped_pieces'])} cut pieces dropped, {told['resolved_px']} pixels that "
        "several cells claimed"
    )
    click.echo(f"labels  {result.labels}")
    click.echo(f"cells   {result.table}")
    click.echo(f"record  {result.out / 'merge.json'}")
    look = shlex.join(["napari", "--plugin", "napari-ome-zarr", str(result.labels)])
    click.echo(f"look    {look}")
