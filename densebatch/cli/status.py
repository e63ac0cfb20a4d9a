"""`densebatch status`: how a run stands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.names import count_of
from densebatch.cli.logs import LoggedCommand
from densebatch.cli.options import check_writable, write_text

if TYPE_CHECKING:
    from densebatch.cohorts.status import CohortStatus
    from densebatch.run.status import RunStatus

_WATCH_S = 2.0
_STATES = {
    "empty": "nothing yet",
    "running": "running",
    "interrupted": "interrupted; the same command continues the run",
    "partial": "done except for what is missing; the same command tries it again",
    "damaged": "done, but run.json is damaged and so is its copy; the same command does it again",
    "complete": "complete",
    "flows": "its flow field is stored, which is all that was asked for",
}


@click.command(cls=LoggedCommand)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Say it again every two seconds, as long as it runs.")
@click.option(
    "--json",
    "as_json",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE|-",
    help="Write JSON: with --watch a line each time, or FILE anew.",
)
def status(out: Path, watch: bool, as_json: Path | None) -> None:
    """Say how the run in OUT stands: stages, tasks, rate, time left, and who drives it.

    Of several slides in OUT it says what became of each, and how those stand that are under way.
    Reads files and writes none in OUT; works on any machine that sees them.
    """
    from densebatch.cohorts.status import read_cohort
    from densebatch.run.folder import OutputFolder
    from densebatch.run.status import read_status

    check_writable(as_json)
    folder = OutputFolder(out.absolute())
    while True:
        found = read_cohort(folder.path) or read_status(folder)
        if as_json is None:
            _print(found)
        else:
            is_line = watch and as_json == Path("-")
            write_text(as_json, json.dumps(found.to_dict(), indent=None if is_line else 1) + "\n")
        if not watch or found.state != "running":
            return
        time.sleep(_WATCH_S)
        if as_json is None:
            click.echo()


def _print(found: RunStatus | CohortStatus) -> None:
    from densebatch.cli.terminal import print_cohort
    from densebatch.run.status import RunStatus

    if isinstance(found, RunStatus):
        click.echo("\n".join(_describe(found)))
        return
    click.echo(f"out        {found.out}")
    click.echo(f"run        {_STATES[found.state]}")
    if found.driver is not None:
        click.echo(f"driver     {found.driver_state}: {found.driver}")
    print_cohort(found.entries, list(found.running))
    for sample, run in found.running.items():
        for stage in run.stages:
            click.echo(f"{sample}: {_describe_stage(stage)}")


def _describe(found: RunStatus) -> list[str]:
    lines = [f"out        {found.out}"]
    if found.slide is not None:
        lines.append(f"slide      {found.slide}")
    said = _STATES[found.state]
    if found.state == "running" and found.seconds_left is not None:
        said += f", {_tell_time(found.seconds_left)} left in the stages under way"
    lines.append(f"run        {said}")
    if found.reason:
        lines.append(f"           ended by: {found.reason}")
    if found.driver is not None:
        workers = f", {count_of(found.workers, 'worker')}" if found.workers else ""
        lines.append(f"driver     {found.driver_state}: {found.driver}{workers}")
    if found.cells is not None:
        lines.append(f"cells      {found.cells}")
    missing = [
        (count_of(n, what) + more)
        for n, what, more in (
            (found.failed_tiles, "tile", ""),
            (found.failed_groups, "group", " of patches"),
            (found.unread, "piece", " of the slide"),
            (found.missing_px, "pixel", " without a result"),
        )
        if n
    ]
    if missing:
        lines.append(f"missing    {', '.join(missing)}")
    lines += [_describe_stage(stage) for stage in found.stages]
    return lines


def _describe_stage(stage: Any) -> str:  # noqa: ANN401
    total = "? tasks" if stage.tasks is None else count_of(stage.tasks, "task")
    parts = [f"{stage.done}/{total}"]
    if stage.running:
        parts.append(f"{stage.running} running")
    if stage.failed:
        parts.append(f"{stage.failed} failed")
    if stage.tasks_per_s is not None:
        parts.append(f"{stage.tasks_per_s:.3g} tasks/s, {stage.mpx_per_s:.3g} Mpx/s")
    if stage.seconds_left:
        parts.append(f"{_tell_time(stage.seconds_left)} left")
    return f"{stage.stage:<10} {', '.join(parts)}"


def _tell_time(seconds: float) -> str:
    """Seconds as a person says them.

    Examples
    --------
    >>> _tell_time(75), _tell_time(8000)
    ('1 min 15 s', '2 h 13 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
