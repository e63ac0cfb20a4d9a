"""Slides and labels, of other tools and for them: `convert`, `merge` and `export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.names import count_of
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import SlidePath, add_options, scheduler_options, slide_options
from densebatch.ngff.metadata import VERSIONS

if TYPE_CHECKING:
    from densebatch.remote.tree import Place

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


@click.command("convert", cls=LoggedCommand)
@click.argument("slide", type=SlidePath())
@click.argument("out", type=_PATH, metavar="OUT.ome.zarr")
@add_options([
    click.option("--ngff", type=click.Choice(VERSIONS), help="OME-Zarr version.  [0.5]"),
    *slide_options,
    click.option("--pixel-size", type=float, metavar="UM", help="um per pixel of the slide."),
    click.option("--roi", type=_PATH, metavar="FILE",
                 help="Areas that count, as of segment; all else becomes 0."),
    click.option("--exclude", type=_PATH, metavar="FILE", help="Areas that become 0."),
    click.option("--workers", type=int, metavar="N", help="Dask workers; 0: in this process."),
    *scheduler_options,
    click.option("--restart", is_flag=True, help="Begin an unfinished conversion anew."),
])  # fmt: skip
def convert(slide: Place, out: Path, restart: bool, **options: Any) -> None:  # noqa: ANN401
    """Write SLIDE as a pyramidal OME-Zarr with all channels, their names and the pixel size.

    OUT.ome.zarr appears whole, when every pixel has been read back and compared with the slide. The
    same command continues an interrupted conversion.
    """
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.converting.convert import convert as run_convert
    from densebatch.planning.settings import load_settings

    settings = load_settings(None, **options)
    with TerminalProgress(get_console()) as progress:
        made = run_convert(slide, out, settings, restart=restart, progress=progress)
    plan = made.plan
    size = f"{plan.um_per_px:g} um/px" if plan.um_per_px else "pixel size unknown"
    click.echo(
        f"{count_of(len(plan.slide.channels), 'channel')} of {plan.shape[0]} x {plan.shape[1]} px "
        f"in {count_of(plan.n_levels, 'level')}, {size}, OME-Zarr {plan.ngff}"
        + (" (was complete)" if made.was_there else "")
    )
    click.echo(f"image   {made.out}")
    where = ", or 0 where nothing counts" if plan.region is not None else ""
    click.echo(f"pixels  equal to the slide's{where}; digest {made.pixels}")


# As `densebatch.exporting.export` has them, which `--help` does not wait for.
_KINDS = (
    "csv", "mcmicro-csv", "anndata", "spatialdata", "geojson", "geoparquet", "imagej-rois",
    "ome-tiff",
)  # fmt: skip


@click.command("export", cls=LoggedCommand)
@click.argument("out", type=_PATH)
@click.option("--to", "kind", type=click.Choice(_KINDS), required=True, help="What to write.")
@click.option(
    "-o", "path", type=_PATH, metavar="PATH", help="Where; by default in OUT, named by the kind."
)
@click.option(
    "--simplify",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    metavar="PX",
    help="How far outlines may move to have fewer corners; 0 keeps the edges of pixels.",
)
@click.option(
    "--label-dtype",
    type=click.Choice(("uint32", "int32")),
    default="uint32",
    show_default=True,
    help="Of ome-tiff; QuPath wants int32.",
)
def export(out: Path, kind: Any, path: Path | None, simplify: float, label_dtype: Any) -> None:  # noqa: ANN401
    """Write the finished result in OUT in the format of another tool.

    The export appears whole or not at all, and replaces nothing. Memory does not grow with the
    slide. docs/exports.md tells what each kind holds.
    """
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.exporting.export import export as run_export

    with TerminalProgress(get_console()) as progress:
        made = run_export(
            out, kind, path, simplify=simplify, label_dtype=label_dtype, progress=progress
        )
    click.echo(f"{made.n_cells} cells")
    click.echo(f"export  {made.path}")
