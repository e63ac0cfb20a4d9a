"""Give a damaged result its bytes back: `repair`.

Each damaged file is made again beside the result, compared with the checksum that was kept, and put
in its place at once. Nothing else is touched, and a repair that is killed is gone on with by the
next. What is made from what:

| damaged | from |
|---|---|
| `run.json`, metadata, seeds, lists | their second copies |
| labels at full resolution | the slide: all tiles that damaged shards touch; ids by the seeds |
| those of cells and nuclei together | the runs that were joined, each mended before |
| nuclei, cytoplasm, membrane | the cells, and the run of the nuclei |
| those of a partial run, label image `missing` | traces in the work folder, which stays |
| flows and traces that stay | the slide, but for what no record covers, of which there are two |
| further levels | the level below |
| copied image | the slide |
| table | labels, and the copied image or the slide |
"""

from __future__ import annotations

import errno
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.checksums import ABSENT, checksum_file, fits_checksum, format_checksums
from densebatch.base.errors import DensebatchError, InputError, IntegrityError, describe_cause
from densebatch.base.files import write_atomic
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.cells import labels
from densebatch.cells.groups import refresh_consolidated
from densebatch.cells.kept import (
    RECORDS,
    is_replaced,
    read_list,
    scratch_path,
    write_list,
)
from densebatch.cells.pyramid import reduce_image, reduce_labels, unit_files
from densebatch.cells.verify import read_spec
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress, read_report
from densebatch.stages.journal import Journal
from densebatch.stages.missing import mark_missing, read_gaps
from densebatch.stages.number import number_region
from densebatch.stages.unread import read_pixels
from densebatch.stages.work import Work
from densebatch.upkeep.again import Again, require_slide, split_again, tell_other
from densebatch.upkeep.content import Content
from densebatch.upkeep.measure import make_table
from densebatch.upkeep.pixels import find_slide
from densebatch.upkeep.scratch import is_partial, list_missing, open_scratch
from densebatch.upkeep.verify import Verification, check_files, list_inner, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.cells.kept import Tree
    from densebatch.stages.missing import Gaps

log = logging.getLogger(__name__)


def repair(
    out: str | Path, *, workers: int | None = None, progress: Progress | None = None
) -> Verification:
    """Make again what is damaged in a finished result, and look at all of it.

    Parameters
    ----------
    out
        Output folder of a run.
    workers
        Processes, where the network is needed; 0 for none but this one.
    progress
        Receives stages and tasks.

    Returns
    -------
    Verification
        Of the result as it is now.

    Raises
    ------
    InputError
        If the folder is no output of densebatch.
    IntegrityError
        If something damaged cannot be made again: what, and why.
    DensebatchError
        If it cannot be written.
    """
    progress = progress or Progress()
    found, folder = check_files(out, workers or count_cores())
    repaired = []
    for inner in [] if found.plan is None else list_inner(folder, found.plan).values():
        before = repair(inner.path, workers=workers, progress=progress).repaired
        repaired += [f"{inner.path.relative_to(folder.path)}/{name}" for name in before]
    if not (found.finished and found.findings):
        result = verify(out, threads=workers, progress=progress)
        result.repaired = repaired
        return result
    mender = _Mender(found, folder, workers, progress)
    try:
        with Driver(progress) as driver:
            plan = found.plan
            root = folder.root(plan) if plan is not None and plan.in_place else None
            if root is not None and not root.is_dir():
                raise IntegrityError(
                    f"{root}: is gone, and the labels in it cannot be made again without it"
                )
            driver.own(folder, root)
            mender.mend()
    except OSError as error:
        raise DensebatchError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror}); the same "
            "command goes on with the repair"
        ) from error
    for name in mender.repaired:
        log_event(log, "file repaired", file=name)
    result = verify(out, threads=workers, progress=progress)
    result.repaired = [*repaired, *mender.repaired]
    result.notes += mender.problems
    return result


@dataclass
class _Mender:
    """A repair under way."""

    found: Verification
    folder: OutputFolder
    workers: int | None
    progress: Progress

    def __post_init__(self) -> None:
        self.repaired: list[str] = []
        self.problems: list[str] = []

    def mend(self) -> None:
        """Make again what can be; what cannot joins `problems`."""
        self._mend_lists()
        self._mend_documents()
        plan, report = self.folder.read_marker(), read_report(self.folder.path)
        if plan is None or report is None or self.folder.trees(plan)[-1].name not in (
            self.found.lists
        ):  # fmt: skip
            return
        tree = self.folder.trees(plan)[-1]
        damaged = {f.name for f in self.found.faults if not f.is_copy and f.tree == tree}
        damaged = {n for n in damaged if not fits_checksum(tree.base / n, self._wanted(n))}
        try:
            spec = read_spec(self.folder.root(plan), in_place=plan.in_place)
        except InputError as error:  # of documents that could not be mended
            self.problems.append(describe_cause(error))
            return
        threads, table = self.workers or count_cores(), self.folder.table
        content = Content(plan, tree, table, spec, report, damaged, threads, self.progress)
        if self.found.stale:
            root = Path(spec.root)
            refresh_consolidated(root / "labels" if plan.in_place else root)
            self.repaired += map(str, self.found.stale)
        for step in (
            self._mend_work, self._mend_labels, self._mend_within, self._mend_image,
            self._mend_levels, self._mend_levels_within,
            self._mend_missing, self._mend_missing_levels, self._mend_table,
        ):  # fmt: skip
            try:
                step(content)
            except (InputError, IntegrityError) as error:
                self.problems.append(describe_cause(error))
        images = [content, *content.within.values()]
        for top in {self.folder.path, *(labels.label_path(each.spec) for each in images)}:
            for unfinished in top.rglob("*.partial"):
                unfinished.unlink(missing_ok=True)
        shutil.rmtree(scratch_path(self.folder.path), ignore_errors=True)

    def _wanted(self, name: str) -> str:
        """Checksum of a file of the tree that has the labels."""
        plan = self.found.plan or self.folder.read_marker()
        assert plan is not None
        return self.found.lists[self.folder.trees(plan)[-1].name].get(name, ABSENT)

    def _put(self, path: Path, data: bytes, shown: str) -> None:
        self._replace(path, partial(write_atomic, path, data), shown)

    def _replace(self, path: Path, put: Callable[[], object], shown: str) -> None:
        """Put a file in its place, unless something else that is not empty is there."""
        try:
            if path.is_dir():
                path.rmdir()
            put()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                raise
            self.problems.append(f"{shown} cannot be mended: something else is in its place")
        else:
            self.repaired.append(shown)

    def _mend_lists(self) -> None:
        trees = {fault.tree.name: fault.tree for fault in self.found.faults}
        if self.found.plan is not None:
            plan = self.found.plan
            every = [*self.folder.trees(plan), self.folder.work_tree(plan)]
            trees |= {tree.name: tree for tree in every if tree.name in self.found.lists}
        for tree in trees.values():
            listed, faults = read_list(tree)
            if listed is None or not faults:
                continue
            text = format_checksums(listed)
            for path in tree.lists:
                if not path.is_file() or path.read_bytes() != text:
                    self._put(path, text, path.relative_to(self.folder.path).as_posix())

    def _mend_documents(self) -> None:
        """What there are two of, from whichever is whole; and files that are none of the run's."""
        self._refuse_labels_of_others()
        for fault in self.found.faults:
            tree, name = fault.tree, fault.name
            shown = fault.path.relative_to(self.folder.path).as_posix() if (
                fault.is_copy
            ) else tree.shown(name)  # fmt: skip
            if name not in self.found.lists[tree.name]:
                fault.path.unlink(missing_ok=True)
                self.repaired.append(f"{shown} (removed)")
                continue
            copy = tree.copy_of(name)
            if copy is None:
                continue
            source = tree.base / name if fault.is_copy else copy
            if fits_checksum(source, self.found.lists[tree.name][name]):
                self._put(fault.path, source.read_bytes(), shown)
            elif not fault.is_copy:
                self.problems.append(f"{shown} cannot be mended: its second copy is damaged too")

    def _refuse_labels_of_others(self) -> None:
        """Refuse to write into another slide, or over labels that another run has put there."""
        plan = self.found.plan
        if plan is None or not plan.in_place:
            return
        root, report = self.folder.root(plan), read_report(self.folder.path)
        if any(fault.path.is_relative_to(root) for fault in self.found.faults):
            slide, reason = find_slide(
                plan, root, report or {"slide_pixels": {}, "slide_channels": []}
            )
            if slide is None:
                raise IntegrityError(f"labels are not written into another slide: {reason}")
        if is_replaced(self.folder.trees(plan)[-1]):
            raise IntegrityError(
                f"{self.folder.root(plan)}: holds labels of another run now, and those of "
                f"{self.folder.path} do not replace them"
            )

    def _compare_units(self, content: Content, level: int) -> Iterator[tuple[Region, int | None]]:
        """Damaged units of a level: of the labels, then of each channel of the image."""
        for channel in (None, *content.channels):
            for region in content.units(level):
                if content.is_damaged(level, region, channel):
                    yield region, channel

    def _mend_labels(self, content: Content) -> None:
        regions = [r for r, channel in self._compare_units(content, 0) if channel is None]
        if not regions:
            return
        if is_partial(content):
            self._number_kept(content, regions, number_region)
            return
        scratch = open_scratch(content, 0, image=False)
        again = Again(content, OutputFolder(scratch.parent), self.workers, is_own=False)
        again.number(regions, scratch, self.progress)
        for region in regions:
            self._take_unit(content, scratch, 0, region, None)

    def _mend_within(self, content: Content) -> None:
        """Nuclei, cytoplasm and membrane, from the cells and the run of the nuclei."""
        whole = replace(content, damaged=self._still_damaged(content))
        for name, image in content.within.items():
            for region, _ in self._compare_units(image, 0):
                made = split_again(whole, region)[name]
                scratch = open_scratch(image, 0, image=False)
                labels.write_label_shard(replace(image.spec, root=str(scratch)), 0, region, made)
                self._take_unit(image, scratch, 0, region, None)

    def _mend_levels_within(self, content: Content) -> None:
        for image in content.within.values():
            self._mend_levels(image)

    def _mend_missing(self, content: Content) -> None:
        for marked in list_missing(content):
            regions = [region for region, _ in self._compare_units(marked, 0)]
            if regions:
                self._number_kept(marked, regions, mark_missing)

    def _mend_missing_levels(self, content: Content) -> None:
        for marked in list_missing(content):
            self._mend_levels(marked)

    def _number_kept(
        self,
        content: Content,
        regions: Sequence[Region],
        make: Callable[[Work, Gaps, Region], NDArray[np.uint32]],
    ) -> None:
        """Make labels from the traces of a partial run: what failed then need not fail now."""
        tree = self.folder.work_tree(content.plan)
        listed = self.found.lists.get(tree.name, {})
        work = Work(
            str(self.folder.plan_path(content.plan)), int(content.report["settings"]["tile"])
        )
        wanted = [p.relative_to(tree.base).as_posix() for p in (work.all_keys, work.gaps)]
        is_whole = all(
            name in listed and fits_checksum(tree.base / name, listed[name]) for name in wanted
        )
        if not is_whole or self._list_lost(tree):
            raise IntegrityError(
                f"labels/{content.spec.label_name} of a partial run cannot be made again without "
                "the traces in its work folder; the run's own command makes them anew"
            )
        scratch = open_scratch(content, 0, image=False)
        spec, gaps = replace(content.spec, root=str(scratch)), read_gaps(work)
        for region in regions:
            labels.write_label_shard(spec, 0, region, make(work, gaps, region))
            self._take_unit(content, scratch, 0, region, None)

    def _mend_image(self, content: Content) -> None:
        found = [(r, c) for r, c in self._compare_units(content, 0) if c is not None]
        if not found:
            return
        require_slide(content, "the copied image")
        scratch = open_scratch(content, 0, image=True)
        for region, channel in found:
            pixels, _ = read_pixels(content.plan.slide, channel, region)
            spec = replace(content.spec, root=str(scratch))
            labels.write_image_shard(spec, channel, 0, region, pixels)
            self._take_unit(content, scratch, 0, region, channel)

    def _mend_levels(self, content: Content) -> None:
        for level in range(1, content.spec.n_levels):
            left = replace(content, damaged=self._still_damaged(content))
            for region, channel in self._compare_units(left, level):
                if not self._has_below(left, level, region, channel):
                    continue
                scratch = open_scratch(content, level, image=channel is not None)
                spec = replace(content.spec, root=str(scratch))
                if channel is None:
                    made = reduce_labels(content.spec, level, region)
                    labels.write_label_shard(spec, level, region, made)
                else:
                    pixels = reduce_image(content.spec, channel, level, region)
                    labels.write_image_shard(spec, channel, level, region, pixels)
                self._take_unit(content, scratch, level, region, channel)

    def _has_below(self, content: Content, level: int, region: Region, channel: int | None) -> bool:
        """Whether all that a unit of a level is made from is whole; else that is a problem."""
        below = labels.shard_grid(content.spec, level - 1)
        sources = below.overlapping(labels.source_region(content.spec, level, region))
        if not any(content.is_damaged(level - 1, below[index], channel) for index in sources):
            return True
        name = content.name(unit_files(content.spec, level, region, channel)[0])
        self.problems.append(
            f"{content.tree.shown(name)} cannot be made again while the level below is damaged"
        )
        return False

    def _take_unit(
        self, content: Content, scratch: Path, level: int, region: Region, channel: int | None
    ) -> None:
        """Put the damaged files of a unit in their places, if they are what they were."""
        for file in unit_files(content.spec, level, region, channel):
            name = content.name(file)
            if name not in content.damaged:
                continue
            made = scratch / file
            if not fits_checksum(made, self._wanted(name)):
                raise IntegrityError(tell_other(content, content.tree.shown(name)))
            self._put(content.tree.base / name, made.read_bytes(), content.tree.shown(name))

    def _mend_table(self, content: Content) -> None:
        table = content.table
        wanted = self.found.lists["digests"][table.name]
        if fits_checksum(table, wanted):
            return
        whole = replace(content, damaged=self._still_damaged(content))
        images = [whole, *whole.within.values()]
        if any(image.is_damaged(0, region, None) for image in images for region in image.units(0)):
            raise IntegrityError(f"{table.name} cannot be made again while labels are damaged")
        source = whole.open_pixels()
        if not source.is_there:
            raise IntegrityError(f"{table.name} cannot be made again: {source.reason}")
        made = scratch_path(content.tree.out) / table.name
        make_table(whole, source, made)
        if not fits_checksum(made, wanted):
            raise IntegrityError(tell_other(content, table.name))
        self._replace(table, partial(made.replace, table), table.name)

    def _list_lost(self, tree: Tree) -> list[str]:
        """Names of the tasks in a work folder whose record, or a file that it covers, is lost."""
        journal = Journal(tree.base / RECORDS)
        records = [n for n in self.found.lists.get(tree.name, {}) if n.startswith(RECORDS)]
        return [name for n in records if journal.done(name := Path(n).stem) is None]

    def _mend_work(self, content: Content) -> None:
        """Flows and traces that have stayed: what no record vouches for is done again."""
        tree = self.folder.work_tree(content.plan)
        lost = self._list_lost(tree)
        if not lost:
            return
        side = content.report["settings"]["tile"]
        predicted = (
            "predict-", f"trace-{side}-", "label-", "compare-", f"paint-{side}-",
            f"match-{side}-", f"join-{side}-",
        )  # fmt: skip
        repeated = {name for name in lost if name.startswith(predicted)}
        if repeated:
            again = Again(content, self.folder, self.workers, is_own=True)
            again.repeat(repeated, self.progress)
        listed = dict(self.found.lists[tree.name])
        for name in lost:
            record = f"{RECORDS}{name}.json"
            if name in repeated:
                listed[record] = checksum_file(tree.base / record)
            else:
                # Nobody reads these again, nor sums of shards, because what they led to is there.
                (tree.base / record).unlink(missing_ok=True)
                if name.startswith("number-") and name.split("-")[2] == "0":
                    _, side, _, row, col = name.split("-")
                    sums = tree.base / f"trace-{side}" / f"cells-{row}-{col}.npz"
                    sums.unlink(missing_ok=True)
                del listed[record]
            self.repaired.append(tree.shown(record))
        write_list(tree, listed)
        self.found.lists[tree.name] = listed

    def _still_damaged(self, content: Content) -> set[str]:
        base = content.tree.base
        return {n for n in content.damaged if not fits_checksum(base / n, self._wanted(n))}
