"""`densebatch segment` and `densebatch plan`."""

from __future__ import annotations

import json
import sys
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from densebatch.base.errors import PartialRunError
from densebatch.base.names import quote_names
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import (
    add_options,
    check_writable,
    scheduler_options,
    slide_options,
    write_text,
)
from densebatch.planning.settings import DEFAULT_MODEL, BackendName, SegmentSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.planning.plan import FlowPlan, Plan


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
    click.option("--mask-debris/--no-mask-debris", default=None,
                 help="Leave out specks far brighter than the tissue.  [mask]"),
    click.option("--ngff", type=click.Choice(["0.4", "0.5"]), help="OME-Zarr version.  [0.5]"),
    click.option("--image", type=click.Choice(["auto", "copy", "none"]),
                 help="Image pyramid beside the labels.  [auto: unless the slide is OME-Zarr]"),
    click.option("--in-place", is_flag=True, default=None, help="Write into the OME-Zarr slide."),
    click.option("--channels", multiple=True, callback=_names, metavar="A,B,...",
                 help="Channels that are measured, by name or index. Repeatable.  [all]"),
    click.option("--quantiles", metavar="Q,...",
                 help="Quantiles of each cell's pixels, such as 0.5,0.9, from 0 to 1."),
    click.option("--neighbour-radius", type=float, metavar="UM",
                 help="Within which cells are neighbours, by centroids.  [30]"),
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
    @wraps(command)
    def wrapper(*args: Any, config: Path | None, **options: Any) -> Any:  # noqa: ANN401
        known = {k: options.pop(k) for k in list(options) if k in SegmentSettings.model_fields}
        settings = load_settings(config, **known)
        for name in ("membrane", "channels"):
            if any("," in text for text in known[name] or ()):
                settings = _split_names(options["slide"], settings, name)
        return command(*args, settings=settings, **options)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def _split_names(path: Path, settings: SegmentSettings, option: str) -> SegmentSettings:
    """Read commas in names of channels, which only the slide's names tell from those between."""
    from densebatch.slides.slide import open_slide

    slide = open_slide(
        path, settings.scene, settings.axes, z=settings.z, t=settings.t, panel=settings.panel
    )
    names = [name for text in getattr(settings, option) for name in slide.split_channels(text)]
    return settings.model_copy(update={option: tuple(names)})


@click.command(cls=LoggedCommand)
@click.argument("slide", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_settings_options
@click.option("--keep-flows", is_flag=True, default=None, help="Leave the flow field in OUT/work.")
@click.option("--restart", is_flag=True, help="Remove an earlier run's results from OUT first.")
@click.option("--allow-partial", is_flag=True, help="Exit with 0 also where tiles failed.")
def segment(
    slide: Path,
    out: Path,
    settings: SegmentSettings,
    restart: bool,
    allow_partial: bool,
    **kept: Any,  # noqa: ANN401
) -> None:
    """Segment SLIDE (OME-Zarr, TIFF, PNG or a microscope's file) and write results to OUT.

    The same command continues an interrupted run. Ctrl-C (or SIGTERM) finishes the tasks under way
    and stops; a second Ctrl-C stops at once.
    """
    from densebatch.cli.terminal import TerminalProgress, print_summary
    from densebatch.run.segment import segment as run_segment

    if kept.get("keep_flows"):
        settings = settings.model_copy(update={"keep_flows": True})
    with TerminalProgress(get_console()) as progress:
        result = run_segment(slide, out, settings, restart=restart, progress=progress)
    print_summary(result)
    if result.is_partial and not allow_partial:
        raise PartialRunError(result.tell_missing())
    if result.is_partial:
        click.echo(f"partial: {result.tell_missing()}", err=True)


@click.command(cls=LoggedCommand)
@click.argument("slide", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(slide: Path, out: Path, settings: SegmentSettings, as_json: bool) -> None:
    """Show what `densebatch segment SLIDE OUT` would do, without doing it."""
    from densebatch.planning.engine_trial import count_flop, estimate_seconds
    from densebatch.planning.plan import FlowPlan, LabelPlan
    from densebatch.run.folder import OutputFolder
    from densebatch.run.prepare import prepare

    folder = OutputFolder(out.absolute())
    [run] = prepare([(slide, folder)], settings, note=lambda text: click.echo(text, err=True))
    built = run.plan
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
    facts |= {
        "workers": run.workers,
        "worker_mb": run.needs.worker_mb,
        "worst_task": run.needs.worst_task,
        "disk_mb": run.needs.disk_mb,
        "fingerprint": built.fingerprint,
    }
    if as_json:
        document = json.loads(built.to_json())
        document.pop("active", None)
        click.echo(json.dumps({**facts, "plan": document}, indent=1))
    else:
        for line in _describe(built, facts):
            click.echo(line)
    sys.stdout.flush()
    folder.compare(built)  # what would be refused is refused here too, with the same words


@click.command(cls=LoggedCommand)
@click.argument("slide", type=click.Path(path_type=Path))
@add_options(slide_options)
@click.option(
    "--json",
    "json_file",
    metavar="FILE|-",
    type=click.Path(path_type=Path),
    help="Write JSON instead.",
)
def info(slide: Path, json_file: Path | None, **chosen: str | None) -> None:
    """Show what is understood of SLIDE: the images in it, channels, pixel size, how it is stored.

    Reads metadata alone. Where a file holds several images and --scene chooses none, they are
    listed.
    """  # fmt: skip
    from densebatch.slides.slide import describe_slide

    check_writable(json_file)
    told = describe_slide(slide, **chosen)
    if json_file is not None:
        write_text(json_file, json.dumps(told, indent=1) + "\n")
        return
    if told["shape"] is None:
        click.echo(f"slide      {told['path']}")
        click.echo(f"           {told['format']}, {len(told['scenes'])} images")
    else:
        for line in _describe_slide(told, told["um_per_px"]):
            click.echo(line)
    if len(told["scenes"]) > 1:
        for scene in told["scenes"]:
            name = repr(scene["name"]) if scene["name"] else "without a name"
            click.echo(f"scene      {scene['index']}: {name}, {scene['what']}")
    if told["shape"] is None:
        click.echo("note       none of the images was chosen: choose one with --scene")
        return
    for axis, n in told["stacks"].items():
        text = f"{n} images along {axis}, of which none was chosen: choose one with --{axis} INDEX"
        click.echo(f"stack      {text}{' or --z max' if axis == 'z' else ''}")
    sizes = ", ".join(f"{height} x {width}" for height, width in told["levels"])
    rows, cols = told["chunk_px"]
    planes = f" of {told['chunk_planes']} planes" if told["chunk_planes"] > 1 else ""
    click.echo(f"levels     {sizes} px")
    click.echo(
        f"stored     in pieces of {rows} x {cols} px{planes}, compression "
        f"{told['compression'] or 'unknown'}, {told['bytes'] / 1e6:.1f} MB of pixels"
    )
    for note in told["notes"]:
        click.echo(f"note       {note}")


def _describe_slide(told: dict[str, Any], um_per_px: float | None) -> list[str]:
    """The slide in two lines, of what `describe_slide` or a plan tells of it."""
    size = f"{um_per_px:g} um/px" if um_per_px else "pixel size unknown"
    if um_per_px and um_per_px == told["um_per_px"] and told["um_per_px_from"]:
        size += f" ({told['um_per_px_from']})"
    chosen = [f"{name} {told[name]}" for name in ("scene", "z", "t") if told[name] is not None]
    return [
        f"slide      {told['path']}",
        f"           {', '.join([told['format'], *chosen])}, {told['shape'][0]} x "
        f"{told['shape'][1]} px, {told['dtype']}, {size}, channels "
        f"{quote_names(told['channels'])}",
    ]


def _describe(built: Plan, facts: dict[str, Any]) -> list[str]:
    from densebatch.planning.plan import FlowPlan, LabelPlan

    lines = _describe_slide(built.slide.describe(), built.um_per_px)
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
