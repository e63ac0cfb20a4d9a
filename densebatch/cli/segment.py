"""`densebatch segment` and `densebatch plan`."""

from __future__ import annotations

import json
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from densebatch.base.errors import PartialRunError
from densebatch.base.names import count_of, quote_names
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import add_options, positivity_options, scheduler_options
from densebatch.ngff.metadata import VERSIONS
from densebatch.planning.settings import DEFAULT_MODEL, BackendName, SegmentSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.cohorts.outlook import Outlook
    from densebatch.cohorts.rows import Row
    from densebatch.planning.plan import FlowPlan, Plan
    from densebatch.run.prepare import Prepared


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
    click.option("--scene", metavar="NAME|INDEX", help="Image of a file that holds several."),
    click.option("--axes", metavar="CYX", help="Dimensions of the pixels, if misnamed."),
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


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _slides_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command slides, as arguments or in a sheet, and where their output goes."""
    path = click.Path(path_type=Path)
    decorated: Callable[..., Any] = add_options([
        click.argument("slides", nargs=-1, metavar="SLIDE...", type=path),
        click.argument("out", metavar="OUT", type=path),
        click.option("--sheet", type=path, metavar="CSV",
                     help="Sample sheet instead of SLIDE: columns sample, slide, and settings of "
                     "each."),
    ])(command)  # fmt: skip
    return decorated


@click.command(cls=LoggedCommand)
@_slides_arguments
@_settings_options
@click.option("--keep-flows", is_flag=True, default=None, help="Leave the flow field in OUT/work.")
@click.option("--restart", is_flag=True, help="Remove an earlier run's results from OUT first.")
@click.option("--allow-partial", is_flag=True, help="Exit with 0 also where tiles failed.")
def segment(
    slides: tuple[Path, ...],
    out: Path,
    sheet: Path | None,
    settings: SegmentSettings,
    listed: frozenset[str],
    restart: bool,
    allow_partial: bool,
    **kept: Any,  # noqa: ANN401
) -> None:
    """Segment SLIDE (OME-Zarr, OME-TIFF, TIFF or PNG) and write results to OUT.

    Several slides, or those of a sample sheet, share the workers, and each gets a folder in OUT
    by its name; OUT/cohort.json tells what became of them.

    The same command continues an interrupted run. Ctrl-C (or SIGTERM) finishes the tasks under way
    and stops; a second Ctrl-C stops at once.
    """
    if kept.get("keep_flows"):
        settings = settings.model_copy(update={"keep_flows": True})
    rows = _list_rows(slides, sheet, settings, listed)
    if rows is None:
        _segment_slide(slides[0], out, settings, listed, restart, allow_partial)
    else:
        _segment_cohort(rows, out, settings, restart, allow_partial)


def _list_rows(
    slides: tuple[Path, ...],
    sheet: Path | None,
    settings: SegmentSettings,
    listed: frozenset[str],
) -> list[Row] | None:
    """Rows of a cohort; None for one slide, which is none."""
    if sheet is not None and slides:
        raise click.UsageError(
            f"--sheet {sheet} names the slides, and so does {slides[0]}; accepted is one of them"
        )
    if sheet is None and not slides:
        raise click.UsageError("Missing argument 'SLIDE...' or 'OUT': accepted are both")
    if sheet is None and len(slides) == 1:
        return None
    from densebatch.cohorts.rows import list_slides
    from densebatch.cohorts.sheet import read_sheet

    if sheet is not None:
        return read_sheet(sheet, settings, listed)
    return list_slides(slides, settings, listed)


def _segment_slide(
    slide: Path,
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
    rows: list[Row], out: Path, settings: SegmentSettings, restart: bool, allow_partial: bool
) -> None:
    from densebatch.cli.terminal import TerminalProgress, print_cohort
    from densebatch.cohorts.drive import segment_cohort
    from densebatch.cohorts.rows import RECORD

    with TerminalProgress(get_console()) as progress:
        result = segment_cohort(rows, out, settings, restart=restart, progress=progress)
    print_cohort(result.entries)
    click.echo(f"record  {result.out / RECORD}")
    n_failed, n_partial = result.count("failed"), result.count("partial")
    told = [
        *([f"{n_failed} failed"] if n_failed else []),
        *([f"{n_partial} partial"] if n_partial else []),
    ]
    if n_failed or (n_partial and not allow_partial):
        raise PartialRunError(
            f"of {count_of(len(rows), 'slide')} {' and '.join(told)}; the same command tries them "
            "again"
        )


@click.command(cls=LoggedCommand)
@_slides_arguments
@_settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    slides: tuple[Path, ...],
    out: Path,
    sheet: Path | None,
    settings: SegmentSettings,
    listed: frozenset[str],
    as_json: bool,
) -> None:
    """Show what `densebatch segment SLIDE OUT` would do, without doing it.

    Of several slides, or those of a sample sheet, it is a table with their sums.
    """
    rows = _list_rows(slides, sheet, settings, listed)
    if rows is None:
        _plan_slide(slides[0], out, settings, listed, as_json)
    else:
        _plan_cohort(rows, out, settings, as_json)


def _plan_cohort(rows: list[Row], out: Path, settings: SegmentSettings, as_json: bool) -> None:
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.cohorts.outlook import look_ahead

    with TerminalProgress(get_console()) as progress:
        found = list(look_ahead(rows, out, settings, progress))
    if as_json:
        click.echo(json.dumps({"samples": [each.to_dict() for each in found]}, indent=1))
    else:
        width = max(len("sample"), *(len(each.sample) for each in found))
        click.echo(f"{'sample':<{width}}        Mpx  network Mpx  seconds  disk MB")
        can_be = [each for each in found if each.reason is None]
        for each in found:
            told = _tell_columns([each]) if each.reason is None else f"  fails: {each.reason}"
            click.echo(f"{each.sample:<{width}}{told}")
        click.echo(f"{'sum':<{width}}{_tell_columns(can_be)}")
        worker_mb = max((each.worker_mb or 0 for each in found), default=0)
        click.echo(f"memory: {worker_mb} MB a worker")
    n_failed = sum(each.reason is not None for each in found)
    if n_failed:
        sys.stdout.flush()
        raise PartialRunError(f"of {count_of(len(rows), 'slide')} {n_failed} would fail")


def _tell_columns(some: list[Outlook]) -> str:
    """Sums of columns; nothing for one that is not known of all."""
    cells = []
    for name, width, form in (
        ("mpx", 11, ".1f"), ("network_mpx", 13, ".1f"), ("network_seconds", 9, ".0f"),
        ("disk_mb", 9, "d"),
    ):  # fmt: skip
        values = [getattr(each, name) for each in some]
        cells.append(" " * width if None in values else f"{format(sum(values), form):>{width}}")
    return "".join(cells)


def _plan_slide(
    slide: Path, out: Path, settings: SegmentSettings, listed: frozenset[str], as_json: bool
) -> None:
    from densebatch.cohorts.rows import split_names
    from densebatch.run.folder import OutputFolder
    from densebatch.run.prepare import prepare

    folder = OutputFolder(out.absolute())
    settings = split_names(slide, settings, listed)
    [run] = prepare([(slide, folder)], settings, note=lambda text: click.echo(text, err=True))
    if as_json:
        document = _tell_json(run)
        if run.inner:
            document["runs"] = {role: _tell_json(inner) for role, inner in run.inner.items()}
        click.echo(json.dumps(document, indent=1))
    else:
        for role, inner in run.inner.items():
            click.echo(f"-- {role}")
            for line in _describe(inner.plan, _collect_facts(inner)):
                click.echo(line)
        if run.inner:
            click.echo("-- together")
        for line in _describe(run.plan, _collect_facts(run)):
            click.echo(line)
    sys.stdout.flush()
    # What would be refused is refused here too, with the same words.
    for each in (*run.inner.values(), run):
        each.folder.compare(each.plan)


def _tell_json(run: Prepared) -> dict[str, Any]:
    document = json.loads(run.plan.to_json())
    document.pop("active", None)
    return {**_collect_facts(run), "plan": document}


def _collect_facts(run: Prepared) -> dict[str, Any]:
    """What a run would do, in numbers."""
    from densebatch.planning.engine_trial import count_flop, estimate_seconds
    from densebatch.planning.plan import FlowPlan, LabelPlan

    built, settings = run.plan, run.settings
    facts: dict[str, Any] = {"slide_px": built.shape[0] * built.shape[1]}
    if isinstance(built, FlowPlan):
        assert run.choice is not None
        facts |= {
            "network_patches": built.network_patches,
            "network_px": built.network_px,
            "network_covered_px": built.covered_px,
            "network_flop": count_flop(built),
            "network_seconds": estimate_seconds(built, settings, run.workers),
            "predict_tasks": len(built.groups),
            "trace_tiles": len(built.tiles(settings.tile)),
            "engine": run.choice.to_dict(),
        }
    elif isinstance(built, LabelPlan):
        facts |= {
            "segmenter_tiles": len(built.layout.regions),
            "segmenter_px": sum(region.area for region in built.layout.regions),
        }
    return facts | {
        "workers": run.workers,
        "worker_mb": run.needs.worker_mb,
        "worst_task": run.needs.worst_task,
        "disk_mb": run.needs.disk_mb,
        "fingerprint": built.fingerprint,
    }


def _describe(built: Plan, facts: dict[str, Any]) -> list[str]:
    from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan

    info = built.slide
    size = f"{built.um_per_px:g} um/px" if built.um_per_px else "pixel size unknown"
    lines = [
        f"slide      {info.path}",
        f"           {info.kind}, {info.height} x {info.width} px, {info.dtype}, {size}, "
        f"channels {quote_names(info.channels)}",
    ]
    if isinstance(built, FlowPlan):
        lines += [
            f"model      {built.model.name} (sha256 {built.model.sha256[:12]})",
            f"scale      {built.rescale:.4g} ({built.rescale_reason})",
        ]
    elif isinstance(built, LabelPlan):
        lines += [
            f"segmenter  {built.segmenter} (code {built.segmenter_identity[:12]})",
            f"options    {json.dumps(built.options)}",
        ]
    elif isinstance(built, JoinPlan):
        lines += [
            f"joined     {' and '.join(built.runs)}; the membrane of a cell is "
            f"{built.ring_px:.3g} px wide",
        ]
        if built.grow_px:
            lines.append(
                f"           nuclei without a cell grow into one by {built.grow_px:.3g} px"
            )
    named = [("membrane", b) for b in built.membrane]
    named += [("nuclei", built.nuclei)] if built.nuclei else []
    lines += [
        f"{role:<10} {b.name}: {b.low:g} to {b.high:g} becomes 0 to 1 "
        f"(tissue is {b.tissue_fraction:.0%} of the slide)"
        for role, b in named
    ]
    if isinstance(built, FlowPlan):
        lines += _describe_network(built, facts)
    elif isinstance(built, LabelPlan):
        lines += [
            f"tiles      {facts['segmenter_tiles']} of up to {built.tile_px} px share "
            f"{built.overlap_px} px: {facts['segmenter_px'] / 1e6:.1f} Mpx, "
            f"{facts['segmenter_px'] / facts['slide_px']:.3f} x the slide's",
            f"tasks      {facts['segmenter_tiles']} label, {facts['workers']} workers",
        ]
    lines += [
        f"memory     {facts['worker_mb']} MB a worker (to {facts['worst_task']})",
        f"disk       up to {facts['disk_mb']} MB",
        *(f"note       {note}" for note in built.notes),
    ]
    return lines


def _describe_network(built: FlowPlan, facts: dict[str, Any]) -> list[str]:
    return [
        f"network    {facts['network_patches']} of {len(built.lattice.cores)} patches of "
        f"{built.lattice.y.patch} x {built.lattice.x.patch} px hold signal: "
        f"{facts['network_px'] / 1e6:.1f} Mpx, "
        f"{facts['network_px'] / max(1, facts['network_covered_px']):.3f} x the slide's",
        *_describe_cost(facts),
        f"engine     {built.engine.backend} on {built.engine.device} ({facts['engine']['reason']})",
        f"tasks      {facts['predict_tasks']} predict, {facts['trace_tiles']} trace, "
        f"{facts['workers']} workers",
    ]


def _describe_cost(facts: dict[str, Any]) -> list[str]:
    """What evaluating the network takes, of a kind that can be told before."""
    if facts["network_flop"] is None:
        return []
    seconds = facts["network_seconds"]
    taken = "" if seconds is None else f", about {_tell_duration(seconds)} on this machine"
    return [f"           {facts['network_flop'] / 1e12:.3g} TFLOP{taken}"]


def _tell_duration(seconds: float) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
