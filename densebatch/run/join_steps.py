"""The steps of a run that joins two others: match nuclei with cells, join, and what to tell of it.

The runs themselves are carried out before by `run.segment`, in folders of their own.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.files import digest_file, load_array
from densebatch.cells.kept import list_trees
from densebatch.cells.labels import shard_grid
from densebatch.compartments.growing import reach_of
from densebatch.compartments.names import COMPARTMENTS
from densebatch.measuring.table import Nuclei
from densebatch.planning.join_planner import name_options
from densebatch.run.report import Progress
from densebatch.run.session import Step
from densebatch.run.steps import Labelled, drive_all
from densebatch.stages.join import (
    CELLS,
    NUCLEI,
    CompartmentFinder,
    JoinedRun,
    JoinTile,
    MatchTile,
    decide_match,
    find_grown,
    number_nuclei,
)
from densebatch.stages.missing import collect_gaps
from densebatch.stages.number import digest_texts, read_parts
from densebatch.stages.output import output_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.compartments.matching import Match
    from densebatch.run.folder import OutputFolder
    from densebatch.run.session import Session
    from densebatch.stages.work import Work


class InnerProgress(Progress):
    """Tells of a run that is joined with another, under its name.

    Parameters
    ----------
    progress
        Is told.
    role
        What the run segments.
    """

    def __init__(self, progress: Progress, role: str) -> None:
        self._progress, self._role = progress, role

    def stage(self, name: str, total: int, done: int) -> None:
        """As of `Progress`."""
        self._progress.stage(f"{self._role}: {name}", total, done)

    def advance(self, name: str, pixels: int) -> None:
        """As of `Progress`."""
        self._progress.advance(f"{self._role}: {name}", pixels)

    def note(self, text: str) -> None:
        """As of `Progress`."""
        self._progress.note(f"{self._role}: {name_options(self._role, text)}")


def find_runs(folder: OutputFolder, roles: Mapping[str, object]) -> dict[str, JoinedRun]:
    """The runs in an output folder that are joined there, by what they segment."""
    return {role: JoinedRun(str(folder.inner(role).path)) for role in roles}


def digest_runs(runs: Mapping[str, JoinedRun]) -> str:
    """Digest of the results of runs; it changes with any file of theirs."""
    outs = [Path(run.out) for run in runs.values()]
    lists = [list_trees(out, out, in_place=False)[0].lists[0] for out in outs]
    return digest_texts([digest_file(path) for path in lists])


def match_and_join(session: Session, reports: Mapping[str, Mapping[str, Any]]) -> Labelled:
    """All stages up to the labels of the output's tiles.

    Parameters
    ----------
    session
        Of the run that joins.
    reports
        Of the runs that are joined, by what they segment.

    Raises
    ------
    DensebatchError
        If nothing of the slide has a result.
    """
    work = session.work
    runs = find_runs(session.folder, reports)
    inputs = digest_runs(runs)
    with session.timed("match"):
        if CELLS in runs:
            tasks = [MatchTile(work, *index, runs, inputs) for index in work.grid]
            drive_all(session, (Step(task, "match", task.region.area) for task in tasks))
        n_nuclei = int(reports[NUCLEI]["cells"])
        match, digest = decide_match(work, runs, n_nuclei)
    with session.timed("join"):
        joins = [JoinTile(work, *index, runs, digest, inputs) for index in work.grid]
        drive_all(session, (Step(task, "join", task.region.area) for task in joins))
    missing_px = {(task.row, task.col): session.facts[task]["missing_px"] for task in joins}
    travel = max(float(report.get("max_travel_px", 0)) for report in reports.values())
    told = {
        "runs": {role: _describe_run(session.folder, role) for role in reports},
        "max_travel_px": travel + reach_of(work.join_plan.grow_px),
        "compartments": _describe_match(work, match, n_nuclei),
    }
    return Labelled(
        collect_gaps((), missing_px),
        _gather(reports, "failed_tiles"),
        told,
        {name: _gather(reports, name) for name in ("failed_groups", "unread")},
        CompartmentFinder(runs[NUCLEI], str(work.match), digest),
        cache(partial(_collect_nuclei, session)),
    )


def _gather(reports: Mapping[str, Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """What is missing of the runs, each with what it segments."""
    return [{"run": role, **each} for role, report in reports.items() for each in report[name]]


def _describe_run(folder: OutputFolder, role: str) -> dict[str, Any]:
    return {"out": folder.inner(role).path.relative_to(folder.path).as_posix()}


def _describe_match(work: Work, match: Match | None, n_nuclei: int) -> dict[str, Any]:
    """What was found of nuclei and cells, without what numbering tells."""
    told: dict[str, Any] = {
        "grow_px": work.join_plan.grow_px,
        "ring_px": work.join_plan.ring_px,
        "nuclei": n_nuclei,
        "orphans": 0,
        "nuclei_in_several_cells": 0,
        "nuclei_px_outside_their_cells": 0,
    }
    if match is not None:
        has_cell = match.cells > 0
        told |= {
            "orphans": int(match.orphans.size),
            "nuclei_in_several_cells": int(match.several[has_cell].sum()),
            "nuclei_px_outside_their_cells": int(match.outside[has_cell].sum()),
        }
    return told


def _collect_nuclei(session: Session) -> Nuclei:
    """What is known of the nuclei when cells are numbered."""
    work = session.work
    grid = shard_grid(output_spec(work.plan, session.root), 0)
    all_keys = load_array(work.all_keys)
    return Nuclei(
        number_nuclei(load_array(work.match), all_keys),
        find_grown(work.join_plan, all_keys),
        {name: read_parts(work, grid, name) for name in COMPARTMENTS},
    )
