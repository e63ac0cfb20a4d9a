"""What a run shows: progress (bars on a terminal, lines elsewhere), and a summary at its end."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from densebatch.base.names import count_of
from densebatch.cohorts.record import add_positivity
from densebatch.measuring.positivity import tell_count, tell_positivity
from densebatch.planning.pace import tell_duration
from densebatch.run.segment import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import TaskID

    from densebatch.cohorts.record import Entry
    from densebatch.run.segment import SegmentResult

_SECONDS_BETWEEN_LINES = 10.0


class _Counter:
    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = self.before = done
        self.pixels = 0
        self.start = time.monotonic()
        self.shown = self.start

    @property
    def seconds_left(self) -> float:
        """At the rate of this session."""
        passed = time.monotonic() - self.start
        new = self.done - self.before
        return passed / new * (self.total - self.done) if new else 0.0

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
            left = counter.seconds_left
            told = f", {tell_duration(left)} left" if left else ""
            self._print(f"{name}: {counter.done}/{count_of(counter.total, 'task')}, {rate}{told}")

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
            f"{found}{merging['labels']} labels of {count_of(merging['tiles'], 'tile')}, "
            f"{merging['merged']} merged, {merging['resolved_px']} pixels that several claimed"
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
            f"{found}network on {report['network_patches']} patch"
            f"{'' if report['network_patches'] == 1 else 'es'}, "
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
    for column, counts in add_positivity(entries).items():
        click.echo(f"{column}  {tell_count(counts)} of {count_of(counts['samples'], 'slide')}")
