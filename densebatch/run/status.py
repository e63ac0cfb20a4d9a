"""How a run stands, told by its files alone: on any machine that sees them, and without writing.

The driver of a run writes its state into the work folder every few seconds; the journal's names
tell what was done when nobody drives it any more. Records are listed and not read: whether they
hold is for the run that continues to find out.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan
from densebatch.run.owner import Holder, look_for_driver
from densebatch.run.report import is_partial, read_report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from densebatch.planning.plan import Plan
    from densebatch.run.folder import OutputFolder
    from densebatch.workers.executors import Executor

_NAMED = 20  # running tasks that are told by name
_RECORD = re.compile(
    r"(?P<kind>predict|trace|label|compare|paint|match|join|number)(?:-(?P<tile>\d+))?(?P<place>(?:-\d+)+)\.json"
)
_OF_ANY_TILE = ("predict", "label", "compare")  # whose names do not tell a size of tiles


@dataclass
class StageState:
    """Tasks of a stage, as the driver counts them.

    Attributes
    ----------
    tasks, done, kept, failed : how many there are, are done, were done by an earlier session (they
        count as done), and failed
    px : of the slide that the tasks of this session covered
    began : by this process's own clock, seconds
    """

    tasks: int
    done: int
    kept: int
    failed: int = 0
    px: int = 0
    began: float = field(default_factory=time.monotonic)


class RunState:
    """How a session stands; the driver fills it, and its thread writes it."""

    def __init__(self, tile_px: int) -> None:
        self._tile_px = tile_px
        self._began = time.monotonic()
        self._started = _utc_now()
        self._stages: dict[str, StageState] = {}
        self._state, self._reason = "running", ""
        self.executor: Executor | None = None

    def begin_stage(self, name: str, tasks: int, done: int) -> None:
        """Begin a stage, some tasks of which an earlier session had done."""
        self._stages[name] = StageState(tasks, done, done)

    def advance(self, name: str, px: int, *, failed: bool) -> None:
        """Count a task that has ended."""
        stage = self._stages[name]
        stage.done += not failed
        stage.failed += failed
        stage.px += px

    def end(self, error: BaseException | None) -> None:
        """Note that the session ends, and by what unless by itself."""
        self._state = "ended" if error is None else "interrupted"
        self._reason = "" if error is None else " ".join(str(error).split()) or type(error).__name__

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the state file."""
        now, executor = time.monotonic(), self.executor
        running = [] if executor is None else sorted(job.name for job in executor.running)
        return {
            "state": self._state,
            "reason": self._reason,
            "started": self._started,
            "written": _utc_now(),
            "seconds": round(now - self._began, 1),
            "tile_px": self._tile_px,
            "workers": 0 if executor is None else executor.workers,
            "n_running": len(running),
            "running": running[:_NAMED],
            "stages": {
                name: {
                    "tasks": stage.tasks,
                    "done": stage.done,
                    "kept": stage.kept,
                    "failed": stage.failed,
                    "mpx": round(stage.px / 1e6, 3),
                    "seconds": round(now - stage.began, 1),
                }
                for name, stage in list(self._stages.items())
            },
        }


def write_state(work: Path, state: RunState) -> None:
    """Write the state into a work folder, if there is one."""
    if work.is_dir():
        write_atomic(work / "state.json", json.dumps(state.to_dict(), indent=1).encode())


@dataclass(frozen=True)
class StageStatus:
    """How a stage stands.

    Attributes
    ----------
    stage : `predict`, `trace`, `number`, `pyramid level 1` and so on
    tasks : how many there are; None if that is not known before it begins
    done, failed : of them; failed ones are known while the run is driven
    running : that were handed out when the driver told last
    tasks_per_s, mpx_per_s : of this session; None if nobody drives the run, or nothing is done yet
    seconds_left : at this rate
    """

    stage: str
    tasks: int | None
    done: int
    failed: int = 0
    running: int = 0
    tasks_per_s: float | None = None
    mpx_per_s: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Attributes
    ----------
    out : the output folder
    state : `empty` (no run), `running`, `interrupted` (the same command continues), `partial` (done
        but for what is missing), `complete`, `damaged` (done, and nothing tells how), or `flows`
        (all that was asked for, as by a sweep)
    slide, fingerprint : of the run
    driver : who drives it, or did last and left without a word; None if nobody
    driver_state : `alive`, `dead`, `silent` (not heard while it was watched), or None
    workers : of the driver; 0 is the driver itself
    reason : what ended the last session, if something did
    cells : of a run that is done
    failed_tiles, failed_groups, unread, missing_px : of a run that is done, how many
    seconds_left : of the stages under way
    stages : in their order
    """

    out: str
    state: str
    slide: str | None = None
    fingerprint: str | None = None
    driver: Holder | None = None
    driver_state: str | None = None
    workers: int | None = None
    reason: str = ""
    cells: int | None = None
    failed_tiles: int = 0
    failed_groups: int = 0
    unread: int = 0
    missing_px: int = 0
    seconds_left: float | None = None
    stages: tuple[StageStatus, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        document = asdict(self)
        if self.driver is not None:
            kept = ("host", "pid", "user", "since")
            document["driver"] = {name: document["driver"][name] for name in kept}
        return document


def read_status(folder: OutputFolder) -> RunStatus:
    """Look at an output folder; writes nothing.

    Parameters
    ----------
    folder
        Of a run in whatever state.

    Returns
    -------
    RunStatus
        Within seconds: a driver on another host is watched until it is heard, or should have been.

    Raises
    ------
    InputError
        If the folder is missing, cannot be read, or is no output of densebatch.
    """
    out = str(folder.path)
    try:
        if not folder.path.is_dir():
            kind = "is a file" if folder.path.exists() else "does not exist"
            raise InputError(f"{out}: {kind}; accepted is the output folder of a run")
        if not folder.check_foreign():
            holder, alive = look_for_driver(folder.owner)
            state = "running" if alive == "alive" else "empty"
            return RunStatus(out, state, driver=holder, driver_state=alive)
        plan = folder.require_marker()
        holder, alive = look_for_driver(folder.owner)
        told = _read_json(folder.state)
        report = read_report(folder.path) if folder.report.exists() else None
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({error.strerror or error})") from error
    found = RunStatus(
        out=out,
        state=_name_state(folder, told, report, live=alive == "alive"),
        slide=plan.slide.path,
        fingerprint=plan.fingerprint,
        driver=holder,
        driver_state=alive,
    )
    if report is not None and found.state in ("complete", "partial"):
        try:
            return replace(found, **_read_finished(report))
        except (LookupError, TypeError, AttributeError):  # nothing is left that tells its checksum
            return replace(found, state="damaged")
    stages = tuple(_list_stages(folder, plan, told, live=found.state == "running"))
    if isinstance(plan, JoinPlan):
        stages = (*_list_inner(folder, plan, live=found.state == "running"), *stages)
    left = [stage.seconds_left for stage in stages if stage.seconds_left is not None]
    return replace(
        found,
        workers=told.get("workers"),
        reason=told.get("reason", "") if found.state == "interrupted" else "",
        seconds_left=max(left, default=None),
        stages=stages,
    )


def _name_state(
    folder: OutputFolder, told: dict[str, Any], report: dict[str, Any] | None, *, live: bool
) -> str:
    if live:
        return "running"
    has_ended = told.get("state", "ended") == "ended"
    if report is not None and has_ended:
        return "partial" if is_partial(report) else "complete"
    if folder.report.exists():
        return "damaged" if report is None else "interrupted"
    return "flows" if told.get("state") == "ended" else "interrupted"


def _read_finished(report: dict[str, Any]) -> dict[str, Any]:
    """What the report of a finished run tells."""
    counted = ("failed_tiles", "failed_groups", "unread")
    return {
        **{name: len(report[name]) for name in counted},
        "missing_px": report["missing_px"],
        "cells": report["cells"],
        "workers": report["workers"],
        "stages": tuple(
            StageStatus(name, facts["tasks"], facts["tasks"])
            for name, facts in report["stages"].items()
        ),
    }


def _list_inner(folder: OutputFolder, plan: JoinPlan, *, live: bool) -> Iterator[StageStatus]:
    """Stages of the runs that are joined, as far as they have begun or are done."""
    for role in plan.runs:
        inner = folder.inner(role)
        try:
            inner_plan = inner.require_marker()
        except FileNotFoundError:
            continue
        report = read_report(inner.path)
        stages = report and _read_finished(report)["stages"]
        if not stages:
            stages = _list_stages(inner, inner_plan, _read_json(inner.state), live=live)
        yield from (replace(stage, stage=f"{role}: {stage.stage}") for stage in stages)


def _list_stages(
    folder: OutputFolder, plan: Plan, told: dict[str, Any], *, live: bool
) -> list[StageStatus]:
    """Stages of an unfinished run: what its driver counts, else what the journal has."""
    tile_px = told.get("tile_px")
    recorded = _count_records(folder.tasks(plan) / "journal", tile_px)
    totals: dict[str, int | None] = dict.fromkeys(plan.stages)
    if isinstance(plan, FlowPlan):
        totals["predict"] = len(plan.groups)
    elif isinstance(plan, LabelPlan):
        totals["label"] = totals["compare"] = len(plan.layout.regions)
    if tile_px is not None:
        for name in ("trace", "paint", "match", "join"):
            if name in totals:
                totals[name] = len(plan.tiles(tile_px))
    counted = told.get("stages", {})
    totals |= {name: stage["tasks"] for name, stage in counted.items()}
    stages = []
    for name in dict.fromkeys([*totals, *sorted(recorded)]):
        stage = counted.get(name, {}) if live else {}
        done = stage.get("done", recorded[name])
        new, seconds = done - stage.get("kept", done), stage.get("seconds", 0)
        rate = new / seconds if new > 0 and seconds > 0 else None
        total = totals.get(name)
        left = None if total is None else total - done - stage.get("failed", 0)
        prefix = _task_prefix(name)
        running = told.get("running", ()) if live else ()
        stages.append(
            StageStatus(
                stage=name,
                tasks=total,
                done=done,
                failed=stage.get("failed", 0),
                running=sum(task.startswith(prefix) for task in running),
                tasks_per_s=None if rate is None else round(rate, 3),
                mpx_per_s=None if rate is None else round(stage["mpx"] / seconds, 3),
                seconds_left=None if rate is None or left is None else round(left / rate, 1),
            )
        )
    return stages


def _count_records(journal: Path, tile_px: int | None) -> Counter[str]:
    """Records by stage, without those of other tile sizes; only names are read."""
    counts: Counter[str] = Counter()
    try:
        entries = os.scandir(journal)
    except FileNotFoundError:
        return counts
    with entries:
        for entry in entries:
            found = _RECORD.fullmatch(entry.name)
            if found is None:
                continue
            places = found["place"].split("-")[1:]
            if found["kind"] in _OF_ANY_TILE:
                # All numbers of its name are its place.
                counts[found["kind"]] += 1
            elif tile_px in (None, int(found["tile"])):
                level = int(places[0]) if found["kind"] == "number" else 0
                counts[f"pyramid level {level}" if level else found["kind"]] += 1
    return counts


def _task_prefix(stage: str) -> str:
    """How the names of a stage's tasks begin."""
    return "number" if stage.startswith("pyramid") else stage.split()[0]


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file, nothing if it is absent or was damaged."""
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
