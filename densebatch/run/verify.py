"""Whether a result is what a run wrote, and whether what it wrote is right: `verify`.

First every file is compared with its checksum (`cells.kept`). Then what the files say is compared
with itself (`stages.consistency`): levels with their reductions, ids with 1..N, the table with
labels and pixels, metadata with the NGFF schema. The slide is needed for intensities alone, and not
where its image was copied.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.checksums import checksum_file, map_in_threads
from densebatch.base.errors import InputError, describe_cause
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.cells.kept import (
    Fault,
    find_faults,
    list_lists,
    list_trees,
    read_list,
)
from densebatch.cells.verify import Finding, read_spec
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress
from densebatch.stages.consistency import Content, check_content
from densebatch.stages.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.planning.plan import Plan

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
    log_event(
        log, "result verified", out=str(folder.path), files=result.n_files, cells=result.n_cells,
        findings=len(result.findings),
    )  # fmt: skip
    return result


def check_files(out: str | Path, threads: int) -> tuple[Verification, OutputFolder]:
    """Compare a result with its checksums alone; as `verify`."""
    folder = OutputFolder(Path(out).absolute())
    result = Verification(folder.path)
    if not any(p.exists() for p in (folder.marker, folder.report, *list_lists(folder.path))):
        raise InputError(
            f"{out}: is no output of densebatch; accepted is the folder OUT of a `segment`"
        )
    result.plan = read_plan(folder)
    if result.plan is None:
        result.findings.append(Finding(folder.marker.name, "cannot be read, nor can its copy"))
    _check_trees(result, folder, threads)
    _check_records(result, folder, threads)
    return result, folder


def read_plan(folder: OutputFolder) -> Plan | None:
    """The plan of a result, from its marker or the marker's copy, whichever is whole."""
    for path in _whole_copies(folder, folder.marker):
        plan = _MarkedBy(folder.path, path).read_marker()
        if plan is not None:
            return plan
    return None


class _MarkedBy(OutputFolder):
    """An output folder whose marker is another file."""

    def __init__(self, path: Path, marker: Path) -> None:
        super().__init__(path)
        self._marker = marker

    @property
    def marker(self) -> Path:
        """The other file."""
        return self._marker


def _whole_copies(folder: OutputFolder, path: Path) -> Iterator[Path]:
    """A document of OUT and its copy, as far as they fit the checksum that was kept."""
    tree = list_trees(folder.path, folder.path, in_place=False)[0]
    listed, _ = read_list(tree)
    for each in (path, tree.copy_of(path.name)):
        if each is not None and (listed is None or checksum_file(each) == listed.get(path.name)):
            yield each


def read_report(folder: OutputFolder) -> dict[str, Any] | None:
    """Content of `run.json` or of its copy, whichever is whole."""
    for path in _whole_copies(folder, folder.report):
        try:
            report = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(report, dict) and "cells" in report:
            return report
    return None


def _check_trees(result: Verification, folder: OutputFolder, threads: int) -> None:
    """Every file of the result against its checksum."""
    if not any(path.exists() for path in list_lists(folder.path)):
        if folder.report.exists() and not folder.work.exists():
            result.findings.append(Finding("digests.sha256", "is missing, and so is its copy"))
        else:
            result.notes.append("the run is not finished; its command continues it")
        return
    result.finished = True
    plan = result.plan
    trees = list_trees(folder.path, folder.path, in_place=False) if plan is None else (
        folder.trees(plan)
    )  # fmt: skip
    if plan is not None and folder.tasks(plan).exists():
        work = folder.work_tree(plan)
        trees += [work] if any(path.exists() for path in work.lists) else []
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


def _check_records(result: Verification, folder: OutputFolder, threads: int) -> None:
    """Records of tasks and the files that they cover, where a work folder is there."""
    if result.plan is None:
        return
    journal = Journal(folder.tasks(result.plan) / "journal")
    told = {fault.path for fault in result.faults}
    names = sorted(path.stem for path in journal.folder.glob("*.json") if path not in told)
    root = None if result.finished else folder.root(result.plan)

    def look(name: str) -> str | None:
        facts = journal.done(name)
        if facts is None:
            return "the record, or a file that it covers, is damaged"
        files = facts.get("files", {}) if root is not None else {}
        wrong = [f for f in files if root and checksum_file(root / f) != files[f]]
        return f"is not true of {', '.join(wrong)}" if wrong else None

    for name, what in map_in_threads(look, names, threads):
        result.n_files += 1
        if what is not None:
            shown = (journal.folder / f"{name}.json").relative_to(folder.path).as_posix()
            result.findings.append(Finding(shown, what))


def _check_content(
    result: Verification, folder: OutputFolder, plan: Plan, threads: int, progress: Progress
) -> None:
    """What the files say against each other."""
    report = read_report(folder)
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
