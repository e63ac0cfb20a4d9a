"""What a run says at its end."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from densebatch.run.segment import SegmentResult


def print_summary(result: SegmentResult) -> None:
    """Say what was found, where it is and how to look at it."""
    report = result.report
    seconds = report["seconds"]
    click.echo(
        f"{result.cells} cells in {report['slide_px'] / 1e6:.2f} Mpx, {seconds['total']:.1f} s "
        f"({report['mpx_per_second']:.3g} Mpx/s); network on {report['network_patches']} patches, "
        f"{report['network_redundancy']:.2f} x the pixels that were not skipped"
    )
    engine = report["engine"]
    click.echo(f"engine  {engine['backend']} on {engine['device']} ({engine['reason']})")
    click.echo(f"labels  {result.labels}")
    click.echo(f"cells   {result.table}")
    click.echo(f"record  {result.out / 'run.json'}")
    paths = [path for path in (report["view_image"], report["view"]) if path is not None]
    click.echo(f"look    {shlex.join(['napari', '--plugin', 'napari-ome-zarr', *paths])}")
    click.echo("        (labels open hidden: click their eye)")
