"""`densebatch plan` and `densebatch info`: what would be done, and what a file is taken to be."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.errors import PartialRunError
from densebatch.base.names import count_of, quote_names, round_to
from densebatch.cli.logs import LoggedCommand, get_console
from densebatch.cli.options import SlidePath, add_options, check_writable, slide_options, write_text
from densebatch.cli.segment import choose_slides, settings_options, slides_arguments

if TYPE_CHECKING:
    from densebatch.cohorts.outlook import Outlook
    from densebatch.planning.plan import FlowPlan, Plan
    from densebatch.planning.settings import SegmentSettings
    from densebatch.regions.tissue import TissueSearch
    from densebatch.remote.tree import Place
    from densebatch.run.prepare import Prepared


@click.command(cls=LoggedCommand)
@slides_arguments
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--measure", is_flag=True, help="Tell how long by evaluating a few patches.")
def plan(
    slides: tuple[Place, ...],
    out: Path,
    sheet: Path | None,
    settings: SegmentSettings,
    listed: frozenset[str],
    as_json: bool,
    measure: bool,
) -> None:
    """Show what `densebatch segment SLIDE OUT` would do, without doing it.

    Of several slides, or those of a sample sheet, it is a table with their sums.
    """
    several = choose_slides(slides, sheet)
    if measure:
        _check_trial(settings, is_one=several is None)
    if several is None:
        _plan_slide(slides[0], out, settings, listed, as_json, measure)
    else:
        _plan_cohort(several, out, settings, listed, as_json)


def _check_trial(settings: SegmentSettings, *, is_one: bool) -> None:
    """Refuse a trial that would tell nothing of the run."""
    if not is_one:
        raise click.UsageError("--measure is of one slide; accepted of several is one by one")
    if settings.is_remote:
        raise click.UsageError(
            "--measure times this machine, and a scheduler's workers do the run; accepted is "
            "one of the two"
        )
    if settings.segmenter is not None and not settings.is_joined:
        raise click.UsageError(
            "--measure times a network, and --segmenter has none; accepted is one of the two"
        )


def _plan_cohort(
    slides: Path | tuple[Place, ...],
    out: Path,
    settings: SegmentSettings,
    listed: frozenset[str],
    as_json: bool,
) -> None:
    from densebatch.cli.terminal import TerminalProgress
    from densebatch.cohorts.outlook import look_ahead
    from densebatch.cohorts.sheet import list_rows

    rows = list_rows(slides, settings, listed)
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
    slide: Place,
    out: Path,
    settings: SegmentSettings,
    listed: frozenset[str],
    as_json: bool,
    measure: bool,
) -> None:
    from densebatch.cohorts.rows import split_names
    from densebatch.planning.join_planner import name_options
    from densebatch.run.folder import OutputFolder
    from densebatch.run.prepare import prepare

    folder = OutputFolder(out.absolute())
    settings = split_names(slide, settings, listed)
    [run] = prepare([(slide, folder)], settings, note=lambda text: click.echo(text, err=True))
    every = {**run.inner, "together" if run.inner else "": run}
    facts = {name: _collect_facts(each, measure=measure) for name, each in every.items()}
    if as_json:
        documents = {name: {**facts[name], "plan": _tell_plan(every[name])} for name in every}
        *inner, whole = documents.values()
        if inner:
            whole["runs"] = dict(zip(run.inner, inner, strict=True))
        click.echo(json.dumps(whole, indent=1))
    else:
        for name, each in every.items():
            for line in [f"-- {name}"] * bool(name) + _describe(each.plan, facts[name]):
                click.echo(name_options(name, line))
    sys.stdout.flush()
    # What would be refused is refused here too, with the same words.
    for each in (*run.inner.values(), run):
        each.folder.compare(each.plan)


def _tell_plan(run: Prepared) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run.plan.to_json())
    document.pop("active", None)
    (document["region"] or {}).pop("runs", None)
    return document


def _expect(run: Prepared, *, measure: bool) -> dict[str, Any]:
    """How long a run will take, if that is known or is to be measured."""
    from densebatch.planning.pace import measure_pace, recall_pace
    from densebatch.planning.plan import FlowPlan

    assert isinstance(run.plan, FlowPlan)
    assert run.choice is not None
    job = (run.plan, run.settings, run.workers)
    pace = measure_pace(*job, run.choice.packed) if measure else recall_pace(*job)
    seconds = None if pace is None else round(pace.estimate(run.plan, run.settings), 1)
    origin = None if pace is None else pace.tell_origin(run.settings)
    return {"expected_seconds": seconds, "expected_from": origin}


def _collect_facts(run: Prepared, *, measure: bool = False) -> dict[str, Any]:
    """What a run would do, in numbers."""
    from densebatch.planning.engine_trial import count_flop, estimate_seconds
    from densebatch.planning.plan import FlowPlan, LabelPlan
    from densebatch.regions.read import describe_areas

    built, settings = run.plan, run.settings
    facts: dict[str, Any] = {"slide_px": built.shape[0] * built.shape[1]}
    if built.region is not None:
        facts["region"] = describe_areas(built.region)
    if built.tissue is not None:
        facts["tissue"] = asdict(built.tissue)
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
            **_expect(run, measure=measure),
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


@click.command(cls=LoggedCommand)
@click.argument("slide", type=SlidePath())
@add_options(slide_options)
@click.option(
    "--json",
    "json_file",
    metavar="FILE|-",
    type=click.Path(path_type=Path),
    help="Write JSON instead.",
)
def info(slide: Place, json_file: Path | None, **chosen: str | None) -> None:
    """Show what is understood of SLIDE: the images in it, channels, pixel size, how it is stored.

    Reads metadata alone. Where a file holds several images and --scene chooses none, they are
    listed.
    """  # fmt: skip
    from densebatch.slides.describe import describe_slide

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
    """The slide in a few lines, of what `describe_slide` or a plan tells of it."""
    size = f"{um_per_px:g} um/px" if um_per_px else "pixel size unknown"
    if um_per_px and um_per_px == told["um_per_px"] and told["um_per_px_from"]:
        size += f" ({told['um_per_px_from']})"
    chosen = [f"{name} {told[name]}" for name in ("scene", "z", "t") if told[name] is not None]
    lines = [
        f"slide      {told['path']}",
        f"           {', '.join([told['format'], *chosen])}, {told['shape'][0]} x "
        f"{told['shape'][1]} px, {told['dtype']}, {size}, channels "
        f"{quote_names(told['channels'])}",
    ]
    if told["origin_um"] is not None:
        y, x = told["origin_um"]
        lines.append(f"origin     y {y:g} um, x {x:g} um ({told['origin_from']})")
    return lines


def _describe(built: Plan, facts: dict[str, Any]) -> list[str]:
    from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan

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
    elif isinstance(built, JoinPlan):
        lines += [
            f"joined     {' and '.join(built.runs)}; the membrane of a cell is "
            f"{built.ring_px:.3g} px wide",
        ]
        if built.grow_px:
            lines.append(
                f"           nuclei without a cell grow into one by {built.grow_px:.3g} px"
            )
    if built.region is not None:
        told = facts["region"]
        shown = f" in {quote_names(told['names'])}" if told["names"] else ""
        lines.append(
            f"region     {round_to(told['area_px'] / 1e6, 4)} Mpx{shown}, {told['share']:.1%} of "
            "the slide"
        )
    if built.tissue is not None and built.tissue.share is not None:
        lines.append(_describe_tissue(built.tissue))
    whole = "slide" if built.region is None else "region"
    named = [("membrane", b) for b in built.membrane]
    named += [("nuclei", built.nuclei)] if built.nuclei else []
    lines += [
        f"{role:<10} {b.name}: {b.low:g} to {b.high:g} becomes 0 to 1 "
        f"(tissue is {b.tissue_fraction:.0%} of the {whole})"
        for role, b in named
    ]
    if isinstance(built, FlowPlan):
        lines += _describe_network(built, facts)
    elif isinstance(built, LabelPlan):
        lines += [
            f"tiles      {facts['segmenter_tiles']} of up to {built.tile_px} px share "
            f"{built.overlap_px} px: {facts['segmenter_px'] / 1e6:.1f} Mpx, "
            f"{facts['segmenter_px'] / facts['slide_px']:.3f} x the slide's",
            f"tasks      {facts['segmenter_tiles']} label, {count_of(facts['workers'], 'worker')}",
        ]
    lines += [
        f"memory     {facts['worker_mb']} MB a worker (to {facts['worst_task']})",
        f"disk       up to {facts['disk_mb']} MB",
        *(f"note       {note}" for note in built.notes),
    ]
    return lines


def _describe_tissue(search: TissueSearch) -> str:
    told = ", ".join(
        f"{about.name} above {about.threshold:.4g}" for about in search.channels if about.counts
    )
    return (
        f"tissue     {search.share:.1%} of the slide, found by {told} on level {search.level}, "
        f"with a margin of {search.margin_px:.4g} px"
    )


def _describe_network(built: FlowPlan, facts: dict[str, Any]) -> list[str]:
    return [
        f"network    {facts['network_patches']} of {len(built.lattice.cores)} patches of "
        f"{built.lattice.y.patch} x {built.lattice.x.patch} px hold signal: "
        f"{facts['network_px'] / 1e6:.1f} Mpx, "
        f"{facts['network_px'] / max(1, facts['network_covered_px']):.3f} x the slide's",
        *_describe_cost(facts),
        f"engine     {built.engine.backend} on {built.engine.device} ({facts['engine']['reason']})",
        f"tasks      {facts['predict_tasks']} predict, {facts['trace_tiles']} trace, "
        f"{count_of(facts['workers'], 'worker')}",
    ]


def _describe_cost(facts: dict[str, Any]) -> list[str]:
    """How long it takes, as far as that can be told before."""
    if facts["expected_seconds"] is not None:
        from densebatch.planning.pace import tell_duration

        return [
            f"expected   about {tell_duration(facts['expected_seconds'])}, {facts['expected_from']}"
        ]
    if facts["network_flop"] is None:
        return []
    from densebatch.planning.pace import tell_duration

    seconds = facts["network_seconds"]
    taken = "" if seconds is None else f", about {tell_duration(seconds)} on this machine"
    return [f"           {round_to(facts['network_flop'] / 1e12, 3)} TFLOP{taken}"]
