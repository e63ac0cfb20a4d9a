"""What a run shows: progress (bars on a terminal, lines elsewhere), and a summary at its end."""

from __future__ import annotations

import json
import shlex
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from densebatch.base.names import count_of, quote_names
from densebatch.measuring.positivity import tell_positivity
from densebatch.run.segment import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import TaskID

    from densebatch.cohorts.record import Entry
    from densebatch.planning.plan import FlowPlan, Plan
    from densebatch.run.segment import SegmentResult

_SECONDS_BETWEEN_LINES = 10.0


class _Counter:
    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self.pixels = 0
        self.start = time.monotonic()
        self.shown = self.start

    @property
    def mpx_per_second(self) -> float:
        return self.pixels / 1e6 / max(1e-9, time.monotonic() - self.start)


class TerminalProgress(Progress):
    """Bars where there is a terminal, otherwise a line at a stage's end and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counters: dict[str, _Counter] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Bars | None = None
        if console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:>24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )

    def __enter__(self) -> TerminalProgress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()

    def _print(self, text: str, *, plain: bool = False) -> None:
        """Print a line; a log file that is full, or a terminal that is gone, ends no run."""
        with suppress(OSError):
            marked = None if not plain else False
            self._console.print(text, soft_wrap=True, highlight=marked, markup=marked)

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage."""
        self._counters[name] = _Counter(total, done)
        if self._bars is not None:
            self._tasks[name] = self._bars.add_task(name, total=total, completed=done, rate="")
        elif done:
            self._print(f"{name}: {done} of {count_of(total, 'task')} done before")

    def advance(self, name: str, pixels: int) -> None:
        """Count a task."""
        counter = self._counters[name]
        counter.done += 1
        counter.pixels += pixels
        rate = f"{counter.mpx_per_second:.2f} Mpx/s"
        if self._bars is not None:
            self._bars.update(self._tasks[name], completed=counter.done, rate=rate)
            return
        now = time.monotonic()
        if counter.done == counter.total or now - counter.shown > _SECONDS_BETWEEN_LINES:
            counter.shown = now
            self._print(f"{name}: {counter.done}/{count_of(counter.total, 'task')}, {rate}")

    def drop(self, name: str) -> None:
        """Take the bar of a stage away."""
        self._counters.pop(name, None)
        task = self._tasks.pop(name, None)
        if self._bars is not None and task is not None:
            self._bars.remove_task(task)

    def note(self, text: str) -> None:
        """Print a remark."""
        self._print(text, plain=True)


def print_summary(result: SegmentResult) -> None:
    """Say what was found, where it is and how to look at it."""
    report = result.report
    seconds = report["seconds"]
    found = (
        f"{result.cells} cells in {report['slide_px'] / 1e6:.2f} Mpx, {seconds['total']:.1f} s "
        f"({report['mpx_per_second']:.3g} Mpx/s); "
    )
    if "merging" in report:
        merging = report["merging"]
        click.echo(
            f"{found}{merging['labels']} labels of {merging['tiles']} tiles, {merging['merged']} "
            f"merged, {merging['resolved_px']} pixels settled"
        )
        click.echo(f"made by segmenter {report['segmenter']['name']}")
    elif "compartments" in report:
        within = report["compartments"]
        click.echo(
            f"{found}{within['nuclei']} nuclei, {within['orphans']} of them outside of cells, "
            f"{within['cells_without_nucleus']} cells without"
        )
    else:
        click.echo(
            f"{found}network on {report['network_patches']} patches, "
            f"{report['network_redundancy']:.2f} x the pixels that were not skipped"
        )
        engine = report["engine"]
        click.echo(f"engine  {engine['backend']} on {engine['device']} ({engine['reason']})")
    for line in tell_positivity(report["positivity"]):
        click.echo(line)
    click.echo(f"labels  {result.labels}")
    click.echo(f"cells   {result.table}")
    click.echo(f"record  {result.out / 'run.json'}")
    paths = [path for path in (report["view_image"], report["view"]) if path is not None]
    click.echo(f"look    {shlex.join(['napari', '--plugin', 'napari-ome-zarr', *paths])}")
    click.echo("        (labels open hidden: click their eye)")


def print_cohort(entries: Sequence[Entry], running: Sequence[str] = ()) -> None:
    """Say what became of each slide of a cohort: a line each, and a sum.

    Parameters
    ----------
    entries
        Of the slides.
    running
        Samples that are worked on now.
    """
    width = max((len(entry.sample) for entry in entries), default=0)
    width = max(width, len("sample"))
    click.echo(f"{'sample':<{width}}  state    {'cells':>9}  {'seconds':>9}  failed tiles")
    for entry in entries:
        cells = "" if entry.cells is None else str(entry.cells)
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        failed = "" if entry.failed_tiles is None else str(entry.failed_tiles)
        state = "running" if entry.sample in running else entry.state
        line = f"{entry.sample:<{width}}  {state:<7}  {cells:>9}  {seconds:>9}  {failed:>12}"
        click.echo(f"{line}  {entry.reason or ''}".rstrip())
    states = [entry.state for entry in entries]
    counted = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
    total = sum(entry.cells or 0 for entry in entries)
    click.echo(
        f"{count_of(len(entries), 'slide')}: {', '.join(counted)}; {count_of(total, 'cell')}"
    )


def describe_plan(built: Plan, facts: dict[str, Any]) -> list[str]:
    """The lines of `densebatch plan`.

    Parameters
    ----------
    built
        The plan.
    facts
        What it would do, in numbers.
    """
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
    if built.region is not None:
        told = facts["region"]
        shown = f" in {quote_names(told['names'])}" if told["names"] else ""
        lines.append(
            f"region     {told['area_px'] / 1e6:.4g} Mpx{shown}, {told['share']:.1%} of the slide"
        )
    named = [("membrane", b) for b in built.membrane]
    named += [("nuclei", built.nuclei)] if built.nuclei else []
    whole = "slide" if built.region is None else "region"
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
