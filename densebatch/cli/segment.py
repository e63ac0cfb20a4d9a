"""`densebatch segment`, and the options that `densebatch plan` has as well."""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from densebatch.base.errors import PartialRunError
from densebatch.base.names import count_of
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import (
    SlidePath,
    add_options,
    positivity_options,
    scheduler_options,
    slide_options,
)
from densebatch.ngff.metadata import VERSIONS
from densebatch.planning.settings import DEFAULT_MODEL, BackendName, SegmentSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.remote.tree import Place


def _names(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    for text in value:
        if not text.replace(",", "").strip():
            raise click.BadParameter(f"{text!r} names no channel")
    return value or None


def _read_json(_: click.Context, __: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        options = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not JSON ({error})") from error
    if not isinstance(options, dict):
        raise click.BadParameter(f'{value!r} is not an object, such as {{"threshold": 0.3}}')
    return options


_OPTIONS = [
    click.option("--membrane", multiple=True, callback=_names, metavar="A,B,...",
                 help="Membrane or cytoplasm channels, by name or index; several are combined. "
                 "Repeatable."),
    click.option("--nuclei", metavar="NAME", help="Nuclear channel, by name or index."),
    *slide_options,
    click.option("--roi", type=click.Path(path_type=Path), metavar="FILE",
                 help="Areas that count: GeoJSON of QuPath, ImageJ ROIs, or a mask image."),
    click.option("--exclude", type=click.Path(path_type=Path), metavar="FILE",
                 help="Areas that do not count, of the same kinds."),
    click.option("--tissue", type=click.Choice(["none", "auto"]),
                 help="auto: only what looks like tissue counts, with a margin.  [none]"),
    click.option("--model", metavar="MODEL",
                 help=f"Bundled or fetched model, or a file.  [{DEFAULT_MODEL}]"),
    click.option("--segmenter", metavar="NAME",
                 help="Label segmenter instead of a model: watershed, stardist, instanseg, "
                 "MODULE:FUNCTION or command:\"PROGRAM {image} {labels}\". Tiles decide labels."),
    click.option("--segmenter-options", callback=_read_json, metavar="JSON",
                 help="Options of the segmenter."),
    click.option("--pixel-size", type=float, metavar="UM", help="um per pixel of the slide."),
    click.option("--diameter", metavar="PX|auto",
                 help="Cell diameter; sets the scale, or the overlap. auto: estimated from a few "
                 "fields."),
    click.option("--diameter-um", type=float, metavar="UM", help="The same in um."),
    click.option("--flow-threshold", type=float, help="Largest flow error; 0 keeps all.  [0.4]"),
    click.option("--cellprob-threshold", type=float, help="Foreground has a larger logit.  [0]"),
    click.option("--min-size", type=int, metavar="PX", help="Smallest cell.  [15]"),
    click.option("--max-size", type=int, metavar="PX", help="Largest cell."),
    click.option("--skip-background/--no-skip-background", default=None,
                 help="Skip patches without signal.  [skip]"),
    click.option("--compartments", is_flag=True, default=None,
                 help="Segment nuclei too; write nuclei, cytoplasm, membrane of each cell."),
    click.option("--nuclei-model", metavar="MODEL",
                 help="Of the nuclei: a model or a label segmenter.  [dense-nuclei]"),
    click.option("--nuclei-diameter", metavar="PX|auto", help="Nuclear diameter.  [auto]"),
    click.option("--expand", type=float, metavar="UM",
                 help="Grow nuclei without a cell into one; without --membrane all of them."),
    click.option("--membrane-width", type=float, metavar="UM",
                 help="Of the ring inside a cell's outline.  [1]"),
    click.option("--mask-debris/--no-mask-debris", default=None,
                 help="Leave out specks far brighter than the tissue.  [mask]"),
    click.option("--normalise", type=click.Choice(["slide", "together"]),
                 help="Whose pixels decide what becomes 0 and 1: the slide's, or those of several "
                 "together.  [slide]"),
    click.option("--ngff", type=click.Choice(VERSIONS), help="OME-Zarr version.  [0.5]"),
    click.option("--image", type=click.Choice(["auto", "copy", "none"]),
                 help="Image pyramid beside the labels.  [auto: unless the slide is OME-Zarr]"),
    click.option("--in-place", is_flag=True, default=None, help="Write into the OME-Zarr slide."),
    click.option("--channels", multiple=True, callback=_names, metavar="A,B,...",
                 help="Channels that are measured, by name or index. Repeatable.  [all]"),
    click.option("--quantiles", metavar="Q,...",
                 help="Quantiles of each cell's pixels, such as 0.5,0.9, from 0 to 1."),
    click.option("--neighbour-radius", type=float, metavar="UM",
                 help="Within which cells are neighbours, by centroids.  [30]"),
    *positivity_options,
    click.option("--tile", type=int, metavar="PX",
                 help="Side of a tile; decides labels with a segmenter only.  [2048]"),
    click.option("--overlap", type=int, metavar="PX",
                 help="Shared by a segmenter's tiles.  [4 diameters]"),
    click.option("--workers", type=int, metavar="N", help="Dask workers; 0: in this process."),
    *scheduler_options,
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Of the network."),
    click.option("--backend", type=click.Choice(get_args(BackendName)), metavar="NAME",
                 help="What evaluates the network; auto: fastest in a trial.  [torch]"),
    click.option("--config", type=click.Path(path_type=Path), help="Settings as YAML."),
]  # fmt: skip


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the settings, and which of them have commas between names of channels."""

    @wraps(command)
    def wrapper(*args: Any, config: Path | None, **options: Any) -> Any:  # noqa: ANN401
        known = {k: options.pop(k) for k in list(options) if k in SegmentSettings.model_fields}
        settings = load_settings(config, **known)
        listed = frozenset(name for name in ("membrane", "channels") if known[name])
        return command(*args, settings=settings, listed=listed, **options)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def slides_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command slides, as arguments or in a sheet, and where their output goes."""
    path = click.Path(path_type=Path)
    decorated: Callable[..., Any] = add_options([
        click.argument("slides", nargs=-1, metavar="SLIDE...", type=SlidePath()),
        click.argument("out", metavar="OUT", type=path),
        click.option("--sheet", type=path, metavar="CSV",
                     help="Sample sheet instead of SLIDE: columns sample, slide, and settings of "
                     "each."),
    ])(command)  # fmt: skip
    return decorated


@click.command(cls=LoggedCommand)
@slides_arguments
@settings_options
@click.option("--keep-flows", is_flag=True, default=None, help="Leave the flow field in OUT/work.")
@click.option("--restart", is_flag=True, help="Remove an earlier run's results from OUT first.")
@click.option("--allow-partial", is_flag=True, help="Exit with 0 also where tiles failed.")
def segment(
    slides: tuple[Place, ...],
    out: Path,
    sheet: Path | None,
    settings: SegmentSettings,
    listed: frozenset[str],
    restart: bool,
    allow_partial: bool,
    **kept: Any,  # noqa: ANN401
) -> None:
    """Segment SLIDE (OME-Zarr, TIFF, PNG or a microscope's file) and write results to OUT.

    An OME-Zarr may be an address: s3://, gs:// or https:// (docs/object-storage.md).

    Several slides, or those of a sample sheet, share the workers, and each gets a folder in OUT
    by its name; OUT/cohort.json tells what became of them.

    The same command continues an interrupted run. Ctrl-C (or SIGTERM) finishes the tasks under way
    and stops; a second Ctrl-C stops at once.
    """
    if kept.get("keep_flows"):
        settings = settings.model_copy(update={"keep_flows": True})
    several = choose_slides(slides, sheet)
    if several is None:
        _segment_slide(slides[0], out, settings, listed, restart, allow_partial)
    else:
        _segment_cohort(several, out, settings, listed, restart, allow_partial)


def choose_slides(slides: tuple[Place, ...], sheet: Path | None) -> Path | tuple[Place, ...] | None:
    """The sheet or the slides of a cohort; None for one slide, which is none."""
    if sheet is not None and slides:
        raise click.UsageError(
            f"--sheet {sheet} names the slides, and so does {slides[0]}; accepted is one of them"
        )
    if sheet is None and not slides:
        raise click.UsageError("Missing argument 'SLIDE...' or 'OUT': accepted are both")
    if sheet is not None:
        return sheet
    return None if len(slides) == 1 else slides


def _segment_slide(
    slide: Place,
    out: Path,
    settings: SegmentSettings,
    listed: frozenset[str],
    restart: bool,
    allow_partial: bool,
) -> None:
    from densebatch.cli.terminal import TerminalProgress, print_summary
    from densebatch.cohorts.rows import split_names
    from densebatch.run.segment import segment as run_segment

    settings = split_names(slide, settings, listed)
    with TerminalProgress(get_console()) as progress:
        result = run_segment(slide, out, settings, restart=restart, progress=progress)
    print_summary(result)
    if result.is_partial and not allow_partial:
        raise PartialRunError(result.tell_missing())
    if result.is_partial:
        click.echo(f"partial: {result.tell_missing()}", err=True)


def _segment_cohort(
    slides: Path | tuple[Place, ...],
    out: Path,
    settings: SegmentSettings,
    listed: frozenset[str],
    restart: bool,
    allow_partial: bool,
) -> None:
    from densebatch.cli.terminal import TerminalProgress, print_cohort
    from densebatch.cohorts.rows import RECORD
    from densebatch.cohorts.segment import segment_cohort

    with TerminalProgress(get_console()) as progress:
        result = segment_cohort(
            slides, out, settings, restart=restart, progress=progress, listed=listed
        )
    print_cohort(result.entries)
    click.echo(f"record  {result.out / RECORD}")
    n_failed, n_partial = result.count("failed"), result.count("partial")
    told = [
        *([f"{n_failed} failed"] if n_failed else []),
        *([f"{n_partial} partial"] if n_partial else []),
    ]
    if n_failed or (n_partial and not allow_partial):
        raise PartialRunError(
            f"of {count_of(len(result.entries), 'slide')} {' and '.join(told)}; the same command "
            "tries them again"
        )
