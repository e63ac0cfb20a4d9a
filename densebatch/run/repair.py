"""Give a damaged result its bytes back: `repair`.

Each damaged file is made again beside the result, compared with the checksum that was kept, and put
in its place at once. Nothing else is touched, and a repair that is killed is gone on with by the
next. What is made from what:

| damaged | from |
|---|---|
| `run.json`, metadata, seeds, lists | their second copies |
| labels at full resolution | the slide: all tiles that damaged shards touch; ids by the seeds |
| further levels | the level below |
| copied image | the slide |
| table | labels, and the copied image or the slide |
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from densebatch.base.checksums import ABSENT, checksum_file, format_checksums
from densebatch.base.errors import DensebatchError, InputError, IntegrityError, describe_cause
from densebatch.base.files import write_atomic
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.cells import labels
from densebatch.cells.groups import find_stale, refresh_consolidated
from densebatch.cells.kept import is_replaced, keep_work, read_list, scratch_path, seeds_path
from densebatch.cells.pyramid import level_path, reduce_image, reduce_labels, unit_files
from densebatch.cells.table import save_table
from densebatch.cells.verify import read_spec
from densebatch.engines.quantization import write_quantised
from densebatch.ngff.folders import DOCUMENTS
from densebatch.planning.capacity import choose_workers, count_lanes
from densebatch.planning.settings import SegmentSettings
from densebatch.run.driver import Driver
from densebatch.run.engine import recall_engine
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress
from densebatch.run.session import Step
from densebatch.run.start import ExecutorStart
from densebatch.run.steps import list_steps_again
from densebatch.run.verify import Verification, check_files, read_plan, read_report, verify
from densebatch.stages.consistency import (
    Content,
    PixelSource,
    find_slide,
    list_columns,
    sum_shapes,
)
from densebatch.stages.missing import Gaps, write_gaps
from densebatch.stages.number import NumberShard
from densebatch.stages.predict import create_flows
from densebatch.stages.trace import create_traces
from densebatch.stages.unread import read_pixels
from densebatch.stages.work import Halt, Work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from densebatch.workers.executors import Executor

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
    if not found.finished:
        return verify(out, threads=workers, progress=progress)
    mender = _Mender(found, folder, workers, progress)
    try:
        with Driver(progress) as driver:
            driver.own(folder)
            mender.mend()
    except OSError as error:
        raise DensebatchError(
            f"{error.filename or folder.path}: cannot be written ({error.strerror}); the same "
            "command goes on with the repair"
        ) from error
    for name in mender.repaired:
        log_event(log, "file repaired", file=name)
    result = verify(out, threads=workers, progress=progress)
    result.repaired = mender.repaired
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
        plan, report = read_plan(self.folder), read_report(self.folder)
        if plan is None or report is None or self.folder.trees(plan)[-1].name not in (
            self.found.lists
        ):  # fmt: skip
            return
        tree = self.folder.trees(plan)[-1]
        damaged = {f.name for f in self.found.faults if not f.is_copy and f.tree == tree}
        damaged = {n for n in damaged if checksum_file(tree.base / n) != self._wanted(n)}
        spec = read_spec(self.folder.root(plan), in_place=plan.in_place)
        threads, table = self.workers or count_cores(), self.folder.table
        content = Content(plan, tree, table, spec, report, damaged, threads, self.progress)
        stale = find_stale(labels.label_path(spec)) if plan.in_place else []
        if stale:
            refresh_consolidated(labels.label_path(spec).parent)
            self.repaired += map(str, stale)
        for step in (
            self._mend_labels, self._mend_image, self._mend_levels, self._mend_table,
            self._mend_work,
        ):  # fmt: skip
            try:
                step(content)
            except (InputError, IntegrityError) as error:
                self.problems.append(describe_cause(error))
        for top in {self.folder.path, labels.label_path(spec)}:
            for unfinished in top.rglob("*.partial"):
                unfinished.unlink(missing_ok=True)
        shutil.rmtree(scratch_path(self.folder.path), ignore_errors=True)

    def _wanted(self, name: str) -> str:
        """Checksum of a file of the tree that has the labels."""
        last = list(self.found.lists.values())[-1]
        return last.get(name, ABSENT)

    def _put(self, path: Path, data: bytes, shown: str) -> None:
        write_atomic(path, data)
        self.repaired.append(shown)

    def _mend_lists(self) -> None:
        trees = {fault.tree.name: fault.tree for fault in self.found.faults}
        if self.found.plan is not None:
            trees |= {tree.name: tree for tree in self.folder.trees(self.found.plan)}
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
            if checksum_file(source) == self.found.lists[tree.name][name]:
                self._put(fault.path, source.read_bytes(), shown)
            elif not fault.is_copy:
                self.problems.append(f"{shown} cannot be mended: its second copy is damaged too")

    def _refuse_labels_of_others(self) -> None:
        """Refuse to write over labels that another run has put into the slide since."""
        plan = self.found.plan
        if plan is None or not plan.in_place:
            return
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
        if content.report["failed_tiles"] or content.report.get("missing_px"):
            raise IntegrityError(
                "labels of a partial run cannot be made again: what failed then need not fail now; "
                "the run's own command makes them anew"
            )
        scratch = _open_scratch(content, 0, image=False)
        again = _Again(content, OutputFolder(scratch.parent), self.workers, keep=False)
        again.run(regions, scratch, self.progress)
        for region in regions:
            self._take_unit(content, scratch, 0, region, None)

    def _mend_image(self, content: Content) -> None:
        found = [(r, c) for r, c in self._compare_units(content, 0) if c is not None]
        if not found:
            return
        _require_slide(content, "the copied image")
        scratch = _open_scratch(content, 0, image=True)
        for region, channel in found:
            pixels, _ = read_pixels(content.plan, channel, region)
            spec = replace(content.spec, root=str(scratch))
            labels.write_image_shard(spec, channel, 0, region, pixels)
            self._take_unit(content, scratch, 0, region, channel)

    def _mend_levels(self, content: Content) -> None:
        for level in range(1, content.spec.n_levels):
            for region, channel in self._compare_units(content, level):
                scratch = _open_scratch(content, level, image=channel is not None)
                spec = replace(content.spec, root=str(scratch))
                if channel is None:
                    made = reduce_labels(content.spec, level, region)
                    labels.write_label_shard(spec, level, region, made)
                else:
                    pixels = reduce_image(content.spec, channel, level, region)
                    labels.write_image_shard(spec, channel, level, region, pixels)
                self._take_unit(content, scratch, level, region, channel)

    def _take_unit(
        self, content: Content, scratch: Path, level: int, region: Region, channel: int | None
    ) -> None:
        """Put the damaged files of a unit in their places, if they are what they were."""
        for file in unit_files(content.spec, level, region, channel):
            name = content.name(file)
            if name not in content.damaged:
                continue
            made = scratch / file
            if checksum_file(made) != self._wanted(name):
                raise IntegrityError(_tell_other(content, content.tree.shown(name)))
            self._put(content.tree.base / name, made.read_bytes(), content.tree.shown(name))

    def _mend_table(self, content: Content) -> None:
        table = content.table
        wanted = self.found.lists["digests"][table.name]
        if checksum_file(table) == wanted:
            return
        whole = replace(content, damaged=self._still_damaged(content))
        if any(whole.is_damaged(0, region, None) for region in whole.units(0)):
            raise IntegrityError(f"{table.name} cannot be made again while labels are damaged")
        source = PixelSource(whole)
        if not source.is_there:
            raise IntegrityError(f"{table.name} cannot be made again: {source.reason}")
        made = scratch_path(content.tree.out) / table.name
        made.parent.mkdir(parents=True, exist_ok=True)
        save_table(made, dict(list_columns(whole, sum_shapes(whole), source)))
        if checksum_file(made) != wanted:
            raise IntegrityError(_tell_other(content, table.name))
        made.replace(table)
        self.repaired.append(table.name)

    def _mend_work(self, content: Content) -> None:
        """Flows and traces that a user has kept: what no record vouches for is done again."""
        damaged = [f.file for f in self.found.findings if f.file.startswith("work/")]
        if not damaged:
            return
        if content.report["failed_tiles"] or content.report.get("missing_px"):
            raise IntegrityError("what a partial run left in work/ is made anew by its own command")
        again = _Again(content, self.folder, self.workers, keep=True)
        for path in again.work.journal.folder.glob("number-*.json"):
            if again.work.journal.done(path.stem) is None:
                # Nobody reads these sums again, because the table is there.
                path.unlink()
                _, side, _, row, col = path.stem.split("-")
                sums = again.work.folder / f"trace-{side}" / f"cells-{row}-{col}.npz"
                sums.unlink(missing_ok=True)
        again.run([Region(0, 0, *again.plan.shape)], None, self.progress)
        keep_work(again.work.folder)
        self.repaired += damaged

    def _still_damaged(self, content: Content) -> set[str]:
        base = content.tree.base
        return {n for n in content.damaged if checksum_file(base / n) != self._wanted(n)}


def _tell_other(content: Content, name: str) -> str:
    """What to say of a file that was made again and is not what it was."""
    old = dict(content.report.get("versions", {}))
    changed = [
        f"{library} {then} is now {now}"
        for library, then in sorted(old.items())
        if library != "python" and (now := version(library)) != then
    ]
    why = f"{', '.join(changed)}" if changed else "on another kind of processor, perhaps"
    return (
        f"{name}: was made again and is not byte for byte what it was ({why}); it is left as it is"
    )


def _open_scratch(content: Content, level: int, *, image: bool) -> Path:
    """A root with an array as the result has it, to write units to."""
    scratch = scratch_path(content.tree.out) / "segmentation.ome.zarr"
    folder = level_path(content.spec, level, image=image)
    inside = scratch / folder.relative_to(content.spec.root)
    inside.mkdir(parents=True, exist_ok=True)
    for name in DOCUMENTS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, inside / name)
    return scratch


def _require_slide(content: Content, what: str) -> None:
    slide, reason = find_slide(content.plan)
    if slide is None:
        raise IntegrityError(f"{what} cannot be made again without the slide ({reason})")


class _Again:
    """Tasks of a finished run, to be done again: predict and trace, then number.

    Parameters
    ----------
    content
        Of the result.
    folder
        Gets flows and traces in its work folder.
    keep
        Whether that work folder is the run's own.
    workers
        Processes; 0 for none but this one.

    Raises
    ------
    IntegrityError
        If the slide, the model or what evaluated the network is not what it was.
    """

    def __init__(
        self, content: Content, folder: OutputFolder, workers: int | None, *, keep: bool
    ) -> None:
        _require_slide(content, "flows" if keep else "labels")
        try:
            plan, choice = recall_engine(content.plan, content.report["settings"]["model"])
        except InputError as error:
            raise IntegrityError(f"the network cannot be evaluated again: {error}") from error
        if not keep:  # tasks shall find labels that lie in the scratch folder, and no image there
            plan = replace(plan, in_place=False, copy_image=False)
        self.content, self.plan = content, plan
        self.settings = SegmentSettings(
            tile=int(content.report["settings"]["tile"]),
            workers=workers,
            backend=cast("Any", plan.engine.backend),
            device=cast("Any", plan.engine.device),
        )
        self.work = Work(str(folder.plan_path(plan)), self.settings.tile)
        write_atomic(Path(self.work.plan_path), plan.to_json().encode())
        if choice.packed is not None:
            write_quantised(self.work.folder, choice.packed)
        create_flows(plan, self.work.flows)
        create_traces(self.work)
        write_atomic(self.work.all_keys, seeds_path(content.tree.out).read_bytes())
        write_gaps(self.work, Gaps())

    @property
    def travel_px(self) -> int:
        """That the tracing halo allows for: the furthest of the run, so that once is enough."""
        travel, limit = self.plan.travel_px, self.plan.trace.travel_limit_px
        while travel < limit and travel < self.content.report["max_travel_px"]:
            travel = min(2 * travel, limit)
        return travel

    def run(self, regions: list[Region], root: Path | None, progress: Progress) -> None:
        """Do all that regions need; then number them, as units of labels below a root."""
        settings, work = self.settings, self.work
        with ExecutorStart(settings) as starting:
            executor = starting.finish(
                choose_workers(settings, self.plan), [self.plan], Path(self.work.folder)
            )
            lanes = count_lanes(self.plan, settings, executor.workers)
            steps = list_steps_again(work, regions, lanes, self.travel_px)
            _drive(executor, work, steps, progress)
            if root is None:
                return
            grid = labels.shard_grid(self.content.spec, 0)
            tasks = [
                NumberShard(work, 0, r.y0 // grid.step_y, r.x0 // grid.step_x, str(root), "repair")
                for r in regions
            ]
            steps = [
                Step(task, "number again", r.area) for task, r in zip(tasks, regions, strict=True)
            ]
            _drive(executor, work, steps, progress)


def _drive(executor: Executor, work: Work, steps: list[Step], progress: Progress) -> None:
    """Run the tasks that no record calls done, none of which may fail."""
    by_name = {step.task.name: step for step in steps}
    facts = {name: work.journal.done(name) for name in by_name}
    done = {name for name, f in facts.items() if f and by_name[name].task.is_current(f)}
    for shown in dict.fromkeys(step.shown_as for step in steps):
        names = [name for name, step in by_name.items() if step.shown_as == shown]
        progress.stage(shown, len(names), len(done.intersection(names)))
    jobs = [step.job for name, step in by_name.items() if name not in done]
    for outcome in executor.run(jobs, frozenset(done), None):
        if outcome.error is not None:
            raise IntegrityError(f"labels cannot be made again: {outcome.error}")
        if isinstance(outcome.result, Halt):
            raise outcome.result.to_error()
        step = by_name[outcome.job.name]
        for hole in outcome.result["unread"] if step.task.stage == "predict" else ():
            raise IntegrityError(f"labels cannot be made again: {hole['reason']}")
        progress.advance(step.shown_as, step.pixels)
