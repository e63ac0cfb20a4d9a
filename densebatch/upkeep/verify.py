"""Whether a result is what a run wrote, and whether what it wrote is right: `verify`.

First every file is compared with its checksum (`cells.kept`). Then what the files say is compared
with itself (`upkeep.consistency`): levels with their reductions, ids with 1..N, the table with
labels and pixels, metadata with the NGFF schema. The slide is needed for intensities alone, and not
where its image was copied.
"""

from __future__ import annotations

import logging
import re
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.checksums import fits_checksum, list_files, map_in_threads
from densebatch.base.errors import InputError, describe_cause
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.cells.faults import Fault, find_faults
from densebatch.cells.groups import find_stale
from densebatch.cells.kept import RECORDS, list_lists, list_trees, read_list
from densebatch.cells.pyramid_spec import LABEL_NAME, MISSING_NAME
from densebatch.cells.verify import Finding, read_spec
from densebatch.planning.plan import JoinPlan
from densebatch.run.folder import OutputFolder
from densebatch.run.owner import look_for_driver
from densebatch.run.report import Progress, is_partial, read_report
from densebatch.stages.journal import Journal
from densebatch.upkeep.consistency import check_content
from densebatch.upkeep.content import Content

if TYPE_CHECKING:
    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.planning.plan import Plan
    from densebatch.run.owner import Holder

log = logging.getLogger(__name__)

# Level, row and column in the name of a chunk or shard: of labels or of a channel of the image.
_CHUNK = re.compile(
    r"(?:.*/)?labels/[^/]+/(\d+)/(?:c/)?(\d+)/(\d+)|(?:[^/]+/)?(\d+)/(?:c/)?\d+/(\d+)/(\d+)"
)


@dataclass
class Verification:
    """What `verify` found.

    Attributes
    ----------
    out : output folder
    plan : of the run; None if nothing tells it any more
    finished : whether the run had come to its end
    findings : what is wrong
    notes : what the user should know, such as what was left out
    faults : the files among the findings that do not fit their checksums
    lists : checksums of all files, by the name of their tree
    stale : documents with consolidated metadata that are not true of the result
    driver : who writes the result now, if it is not finished
    n_files, n_cells : that were looked at
    repaired : files that `--repair` wrote
    """

    out: Path
    plan: Plan | None = None
    finished: bool = False
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lists: dict[str, dict[str, str]] = field(default_factory=dict)
    stale: list[Path] = field(default_factory=list)
    driver: Holder | None = None
    n_files: int = 0
    n_cells: int | None = None
    repaired: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether a finished result is there and nothing is wrong with it."""
        return self.finished and not self.findings

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "out": str(self.out),
            "ok": self.is_right,
            "finished": self.finished,
            "files": self.n_files,
            "cells": self.n_cells,
            "findings": [
                {
                    "file": file,
                    "what": what,
                    "place": None if place is None else list(astuple(place)),
                }
                for file, what, place in self.findings
            ],
            "notes": self.notes,
            "repaired": self.repaired,
        }


def verify(
    out: str | Path, *, threads: int | None = None, progress: Progress | None = None
) -> Verification:
    """Compare a result with its checksums and with itself.

    Parameters
    ----------
    out
        Output folder of a run.
    threads
        That read and compute at once; by default one for each processor.
    progress
        Receives stages and units as they are looked at.

    Returns
    -------
    Verification

    Raises
    ------
    InputError
        If the folder is no output of densebatch.
    """
    threads = threads or count_cores()
    result, folder = check_files(out, threads)
    if result.finished and result.plan is not None:
        _check_content(result, folder, result.plan, threads, progress or Progress())
        _check_inner(result, folder, result.plan, threads, progress)
    log_event(
        log, "result verified", out=str(folder.path), files=result.n_files, cells=result.n_cells,
        findings=len(result.findings),
    )  # fmt: skip
    return result


def list_inner(folder: OutputFolder, plan: Plan) -> dict[str, OutputFolder]:
    """Folders of the runs that a result was joined from, as far as they are there."""
    roles = plan.runs if isinstance(plan, JoinPlan) else ()
    inner = {role: folder.inner(role) for role in roles}
    return {role: each for role, each in inner.items() if each.path.is_dir()}


def _check_inner(
    result: Verification,
    folder: OutputFolder,
    plan: Plan,
    threads: int,
    progress: Progress | None,
) -> None:
    """The results that this one was joined from."""
    found = list_inner(folder, plan)
    for role in plan.runs if isinstance(plan, JoinPlan) else ():
        inner = folder.inner(role)
        shown = inner.path.relative_to(folder.path).as_posix()
        if role not in found:
            result.notes.append(f"{shown} is gone: damaged labels could not be made again")
            continue
        try:
            other = verify(inner.path, threads=threads, progress=progress)
        except InputError as error:
            result.findings.append(Finding(shown, describe_cause(error)))
            continue
        if not other.finished:
            result.findings.append(Finding(shown, "is no finished result any more"))
        result.findings += [f._replace(file=f"{shown}/{f.file}") for f in other.findings]
        result.notes += [f"{shown}: {note}" for note in other.notes]
        result.n_files += other.n_files


def check_files(out: str | Path, threads: int) -> tuple[Verification, OutputFolder]:
    """Compare a result with its checksums alone; as `verify`."""
    folder = OutputFolder(Path(out).absolute())
    result = Verification(folder.path)
    if not any(p.exists() for p in (folder.marker, folder.report, *list_lists(folder.path))):
        raise InputError(
            f"{out}: is no output of densebatch; accepted is the folder OUT of a `segment`"
        )
    result.plan = plan = folder.read_marker()
    if plan is None:
        result.findings.append(Finding(folder.marker.name, "cannot be read, nor can its copy"))
    result.finished = any(path.exists() for path in list_lists(folder.path))
    if result.finished:
        _check_trees(result, folder, threads)
        if plan is not None:
            _check_stale(result, folder.root(plan), in_place=plan.in_place)
    elif folder.report.exists():
        result.findings.append(Finding("digests.sha256", "is missing, and so is its copy"))
    else:
        _look_for_driver(result, folder)
    if plan is not None and result.driver is None and (
        not result.finished or _keeps_work(folder, plan)
    ):  # fmt: skip
        _check_records(result, folder, plan, threads)
    return result, folder


def _look_for_driver(result: Verification, folder: OutputFolder) -> None:
    try:
        holder, state = look_for_driver(folder.owner)
    except OSError:
        holder, state = None, None
    if state == "alive":
        result.driver = holder
        result.notes.append(f"the run is under way: {holder}")
    else:
        result.notes.append("the run is not finished; its command continues it")


def _keeps_work(folder: OutputFolder, plan: Plan) -> bool:
    """Whether flows and traces are part of a result, and not what a kill has left of them."""
    tree = folder.work_tree(plan)
    if not tree.base.exists() or any(path.exists() for path in tree.lists):
        return tree.base.exists()
    report = read_report(folder.path)
    return report is not None and bool(is_partial(report) or report["settings"].get("keep_flows"))


def _check_trees(result: Verification, folder: OutputFolder, threads: int) -> None:
    """Every file of the result against its checksum."""
    plan = result.plan
    trees = list_trees(folder.path, folder.path, in_place=False) if plan is None else (
        folder.trees(plan)
    )  # fmt: skip
    if plan is not None:
        work = folder.work_tree(plan)
        if _keeps_work(folder, plan):
            trees.append(work)
        elif any(path.exists() for path in work.lists):  # a user may remove it
            result.notes.append("flows and traces, which the run left in work/, are gone")
    for tree in trees:
        listed, faults = read_list(tree)
        for fault in faults:
            name, _, what = fault.partition(": ")
            result.findings.append(Finding(name, what))
        result.n_files += 2
        if listed is None:
            result.notes.append(f"no copy of {tree.lists[0].name} is whole: files were not checked")
            continue
        result.lists[tree.name] = listed
        if plan is not None and tree.base == folder.root(plan) and not tree.base.is_dir():
            result.findings.append(Finding(str(tree.base), "is gone, with the labels in it"))
            continue
        result.n_files += len(listed)
        spec = None
        for found in find_faults(tree, listed, threads):
            if isinstance(found, str):
                result.notes.append(found)
                continue
            spec = spec or _try_spec(folder, plan)
            result.faults.append(found)
            shown = tree.shown(found.name)
            if found.is_copy:
                shown = found.path.relative_to(folder.path).as_posix()
            result.findings.append(Finding(shown, found.what, _find_place(found.name, spec)))


def _try_spec(folder: OutputFolder, plan: Plan | None) -> PyramidSpec | None:
    try:
        return None if plan is None else read_spec(folder.root(plan), in_place=plan.in_place)
    except Exception:
        return None


def _find_place(name: str, spec: PyramidSpec | None) -> Region | None:
    """Pixels of a chunk or shard, in its own level, from its name; None if it is none."""
    match = _CHUNK.fullmatch(name)
    if match is None or spec is None:
        return None
    level, row, col = (int(part) for part in match.groups() if part is not None)
    if level >= spec.n_levels:
        return None
    height, width = spec.level_shape(level)
    dy, dx = spec.unit_shape(level) if spec.ngff == "0.5" else spec.chunk_shape(level)
    place = Region(row * dy, col * dx, (row + 1) * dy, (col + 1) * dx)
    return place.intersect(Region(0, 0, height, width))


def _check_stale(result: Verification, root: Path, *, in_place: bool) -> None:
    """Consolidated metadata, which readers believe, against what they tell of.

    Somebody may have written them since; where labels are in a slide, they were there before.
    """
    ours = [root / "labels" / name for name in (LABEL_NAME, MISSING_NAME)]
    groups = [] if in_place else [root, root / "labels"]
    if not in_place:
        ours += [path for path in root.glob("*") if path.name.isdigit()]
    what = "has consolidated metadata that tell of the result otherwise than it is"
    try:
        stale = {path for top in ours if top.is_dir() for path in find_stale(top)}
        stale |= {path for group in groups for path in find_stale(group, deep=False)}
    except (OSError, ValueError, LookupError, TypeError) as error:
        result.notes.append(f"consolidated metadata were not looked at: {describe_cause(error)}")
        return
    result.stale = sorted(stale)
    for path in result.stale:
        is_inside = path.is_relative_to(result.out)
        shown = path.relative_to(result.out).as_posix() if is_inside else str(path)
        result.findings.append(Finding(shown, what))


def _check_records(result: Verification, folder: OutputFolder, plan: Plan, threads: int) -> None:
    """Records of tasks and the files that they cover, where a work folder is there."""
    tree = folder.work_tree(plan)
    journal = Journal(tree.base / RECORDS)
    told = {fault.path for fault in result.faults}
    names = sorted(path.stem for path in journal.folder.glob("*.json") if path not in told)
    root = None if result.finished else folder.root(plan)

    def look(name: str) -> str | None:
        facts = journal.done(name)
        if facts is None:
            return "the record, or a file that it covers, is damaged, or of another run"
        files = facts.get("files", {}) if root is not None else {}
        wrong = [f for f in files if root and not fits_checksum(root / f, files[f])]
        return f"is not true of {', '.join(wrong)}" if wrong else None

    n_findings = len(result.findings)
    for name, what in map_in_threads(look, names, threads):
        result.n_files += 1
        if what is not None:
            result.findings.append(Finding(tree.shown(f"{RECORDS}{name}.json"), what))
    listed = result.lists.get(tree.name)
    if listed is None or len(result.findings) > n_findings:
        return  # what a damaged record covers is no file too many
    known = {*listed, *journal.list_files()}
    for name in list_files(tree.base):
        if ".zarr/" in name and name not in known and tree.base / name not in told:
            fault = Fault(tree, name, "is not a file of the run")
            result.faults.append(fault)
            result.findings.append(Finding(tree.shown(name), fault.what))


def _check_content(
    result: Verification, folder: OutputFolder, plan: Plan, threads: int, progress: Progress
) -> None:
    """What the files say against each other."""
    report = read_report(folder.path)
    damaged = {fault.name for fault in result.faults if not fault.is_copy}
    if report is None:
        result.notes.append("nothing but checksums was compared: run.json is damaged")
        return
    result.n_cells = int(report["cells"])
    try:
        spec = read_spec(folder.root(plan), in_place=plan.in_place)
        tree = folder.trees(plan)[-1]
        content = Content(plan, tree, folder.table, spec, report, damaged, threads, progress)
        for found in check_content(content):
            if isinstance(found, Finding):
                result.findings.append(found)
            else:
                result.notes.append(found)
    except Exception as error:
        # Damaged metadata can make anything happen; undamaged ones must not.
        if not result.findings:
            raise
        result.notes.append(f"not everything could be compared: {describe_cause(error)}")
