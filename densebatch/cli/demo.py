"""`densebatch demo`."""

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
    """Simulate a slide with exact truth, segment it, score it, and write OUT/index.html."""
    from densebatch.cli.terminal import TerminalProgress, print_summary
    from densebatch.studies.demo import run_demo

    with TerminalProgress(get_console()) as progress:
        made = run_demo(out, size_px=size, seed=seed, workers=workers, progress=progress)
    print_summary(made.result)
    at = made.score.at("0.50")
    click.echo(
        f"score   AP {at.ap:.3f} at IoU 0.50: {at.tp} of {made.score.n_truth} cells found, "
        f"{at.fp} spurious"
    )
    click.echo(f"page    {made.page.absolute()}")
