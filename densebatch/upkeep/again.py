"""Tasks of a finished run, done again for a repair: predict and trace, then number."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from densebatch.base.errors import InputError, IntegrityError
from densebatch.base.files import digest_file, write_atomic
from densebatch.base.geometry import Region
from densebatch.cells import labels
from densebatch.cells.kept import owners_path, seeds_path
from densebatch.compartments.masks import split_cells
from densebatch.engines.quantization import write_quantised
from densebatch.planning.capacity import choose_workers, count_lanes
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.engine import recall_engine
from densebatch.run.flow_steps import list_steps_again
from densebatch.run.folder import OutputFolder
from densebatch.run.join_steps import digest_runs, find_runs
from densebatch.run.label_steps import list_label_steps, merge_labelled
from densebatch.run.session import Step
from densebatch.run.start import ExecutorStart
from densebatch.stages.join import NUCLEI, JoinTile, MatchTile
from densebatch.stages.label import LabelTile, require_segmenter
from densebatch.stages.missing import Gaps, write_gaps
from densebatch.stages.number import NumberShard
from densebatch.stages.predict import PredictGroup, create_flows
from densebatch.stages.tile_labels import create_tile_labels, write_values
from densebatch.stages.trace import TraceTile
from densebatch.stages.work import Halt, Work
from densebatch.upkeep.content import read_ring
from densebatch.upkeep.pixels import find_slide

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from densebatch.planning.plan import Plan
    from densebatch.run.report import Progress
    from densebatch.upkeep.content import Content
    from densebatch.workers.executors import Executor


class Again:
    """Tasks of a finished run, to be done again.

    Parameters
    ----------
    content
        Of the result.
    folder
        Whose work folder they use.
    is_own
        Whether that is the run's own folder, with what its tasks have left.
    workers
        Processes; 0 for none but this one.

    Raises
    ------
    IntegrityError
        If the slide, the model or what evaluated the network is not what it was.
    """

    def __init__(
        self, content: Content, folder: OutputFolder, workers: int | None, *, is_own: bool
    ) -> None:
        plan: Plan = content.plan
        if not isinstance(plan, JoinPlan):  # which looks at labels alone
            require_slide(content, "flows and traces" if is_own else "labels")
        packed, engine = None, {}
        try:
            if isinstance(plan, FlowPlan):
                plan, choice = recall_engine(plan, content.report["settings"]["model"])
                packed = choice.packed
                engine = {"backend": plan.engine.backend, "device": plan.engine.device}
            elif isinstance(plan, LabelPlan):
                require_segmenter(plan.segmenter, plan.segmenter_identity)
        except InputError as error:
            raise IntegrityError(f"labels cannot be made again: {error}") from error
        if not is_own:  # tasks shall find labels in the scratch folder, and no image there
            plan = replace(plan, in_place=False, copy_image=False)
        self.content, self.plan = content, plan
        self.settings = SegmentSettings(
            tile=int(content.report["settings"]["tile"]),
            workers=workers,
            **cast("Any", engine),
        )
        # Weights that lie elsewhere now make another plan, but not another folder.
        tasks = folder.tasks(content.plan if is_own else plan)
        self.work = Work(str(tasks / folder.plan_path(plan).name), self.settings.tile)
        write_atomic(Path(self.work.plan_path), plan.to_json().encode())
        if packed is not None:
            write_quantised(self.work.folder, packed)
        if not is_own:
            if isinstance(plan, FlowPlan):
                create_flows(plan, self.work.flows)
            create_tile_labels(self.work)
            write_atomic(self.work.all_keys, seeds_path(content.tree.out).read_bytes())
            write_gaps(self.work, Gaps())
        if isinstance(plan, JoinPlan):
            self._prepare_join(plan, is_own=is_own)

    def _prepare_join(self, plan: JoinPlan, *, is_own: bool) -> None:
        """Find the runs that were joined, and write which cell each nucleus has."""
        self._runs = find_runs(OutputFolder(self.content.tree.out), plan.runs)
        for role, run in self._runs.items():
            if not run.labels.is_dir():
                raise IntegrityError(f"labels cannot be made again without the run of the {role}")
        if not is_own:
            seeds = np.load(seeds_path(self.content.tree.out))
            owners = np.load(owners_path(self.content.tree.out)).astype(np.int64)
            keys = np.concatenate([np.full(1, -1, np.int64), seeds])[owners]
            write_values(self.work.match, keys)

    def _list_join_steps(self, tiles: Iterable[tuple[int, int]]) -> list[Step]:
        inputs, match = digest_runs(self._runs), digest_file(self.work.match)
        tasks = [JoinTile(self.work, *tile, self._runs, match, inputs) for tile in tiles]
        return [Step(task, "join again", task.region.area) for task in tasks]

    @property
    def travel_px(self) -> int:
        """That the tracing halo allows for: the furthest of the run, so that once is enough."""
        plan = self.work.flow_plan
        travel, limit = plan.travel_px, plan.trace.travel_limit_px
        while travel < limit and travel < self.content.report["max_travel_px"]:
            travel = min(2 * travel, limit)
        return travel

    def number(self, regions: Sequence[Region], root: Path, progress: Progress) -> None:
        """Do all that regions need; then number them, as units of labels below a root."""
        with ExecutorStart(self.settings) as starting:
            executor = self._start(starting)
            if isinstance(self.plan, FlowPlan):
                _drive(executor, self._list_steps(regions, executor), progress)
            elif isinstance(self.plan, JoinPlan):
                tiles = {tile for region in regions for tile in self.work.grid.overlapping(region)}
                _drive(executor, self._list_join_steps(sorted(tiles)), progress)
            else:
                self._label(executor, list_label_steps(self.work), progress)
            grid = labels.shard_grid(self.content.spec, 0)
            tasks = [
                NumberShard(
                    self.work, 0, r.y0 // grid.step_y, r.x0 // grid.step_x, str(root), "repair"
                )
                for r in regions
            ]
            steps = [
                Step(task, "number again", r.area) for task, r in zip(tasks, regions, strict=True)
            ]
            _drive(executor, steps, progress)

    def repeat(self, names: Collection[str], progress: Progress) -> None:
        """Do those tasks again that predict and trace and have these names.

        What could not be read then may not be now, as it is not for the other tasks of the run.
        """
        with ExecutorStart(self.settings) as starting:
            executor = self._start(starting)
            if isinstance(self.plan, JoinPlan):
                inputs = digest_runs(self._runs)
                counted = [MatchTile(self.work, *i, self._runs, inputs) for i in self.work.grid]
                steps = [Step(task, "match again", task.region.area) for task in counted]
                steps += self._list_join_steps(self.work.grid)
                _drive(executor, [s for s in steps if s.task.name in names], progress)
                return
            if isinstance(self.plan, LabelPlan):
                journal = self.work.journal
                steps = [
                    step
                    for step in list_label_steps(self.work)
                    if step.task.name in names or journal.done(step.task.name) is not None
                ]
                self._label(executor, steps, progress, may_miss=True)
                return
            every = self._list_steps([Region(0, 0, *self.plan.shape)], executor)
            for kind in (PredictGroup, TraceTile):
                # All that these tasks need is on disk, also of groups that were given up.
                steps = [
                    replace(step, needs=())
                    for step in every
                    if isinstance(step.task, kind) and step.task.name in names
                ]
                _drive(executor, steps, progress, may_miss=True)

    def _label(
        self,
        executor: Executor,
        steps: Sequence[Step],
        progress: Progress,
        *,
        may_miss: bool = False,
    ) -> None:
        """Label tiles and all that follows up to the labels of the output's tiles.

        What is decided of a cell may depend on tiles far away, so all are done that are not.
        """
        found = _drive(executor, steps, progress, may_miss=may_miss)
        tiles = {step.task.tile: found[step.task.name] for step in steps
                 if isinstance(step.task, LabelTile)}  # fmt: skip
        merge_labelled(self.work, tiles, lambda some: _drive(executor, some, progress))

    def _start(self, starting: ExecutorStart) -> Executor:
        workers = choose_workers(self.settings, self.plan)
        return starting.finish(workers, [self.plan], self.work.folder)

    def _list_steps(self, regions: Sequence[Region], executor: Executor) -> list[Step]:
        lanes = count_lanes(self.work.flow_plan, self.settings, executor.workers)
        return list_steps_again(self.work, regions, lanes, self.travel_px)


def _drive(
    executor: Executor, steps: Sequence[Step], progress: Progress, *, may_miss: bool = False
) -> dict[str, dict[str, Any]]:
    """Run the tasks that no record calls done, none of which may fail; facts of all, by name."""
    by_name = {step.task.name: step for step in steps}
    facts = {name: step.task.work.journal.done(name) for name, step in by_name.items()}
    done = {name: f for name, f in facts.items() if f and by_name[name].task.is_current(f)}
    for shown in dict.fromkeys(step.shown_as for step in steps):
        names = [name for name, step in by_name.items() if step.shown_as == shown]
        progress.stage(shown, len(names), len(done.keys() & set(names)))
    jobs = [step.job for name, step in by_name.items() if name not in done]
    for outcome in executor.run(jobs, frozenset(done), None):
        if outcome.error is not None:
            raise IntegrityError(f"labels cannot be made again: {outcome.error}")
        if isinstance(outcome.result, Halt):
            raise outcome.result.to_error()
        step = by_name[outcome.job.name]
        if step.task.stage in ("predict", "label") and not may_miss:
            for hole in outcome.result["unread"]:
                raise IntegrityError(f"labels cannot be made again: {hole['reason']}")
        done[outcome.job.name] = outcome.result
        progress.advance(step.shown_as, step.pixels)
    return done


def split_again(content: Content, region: Region) -> dict[str, NDArray[np.uint32]]:
    """Nuclei, cytoplasm and membrane of a unit, by compartment, from cells and the run of nuclei.

    Raises
    ------
    IntegrityError
        If either is not there, or cells are damaged.
    """
    assert isinstance(content.plan, JoinPlan)
    out = content.tree.out
    if any(content.is_damaged(0, unit, None) for unit in content.units(0)):
        raise IntegrityError("what lies within cells cannot be made while these are damaged")
    run = find_runs(OutputFolder(out), content.plan.runs)[NUCLEI]
    if not run.labels.is_dir():
        raise IntegrityError("nuclei cannot be made again without the run of the nuclei")
    owners = np.concatenate([np.zeros(1, np.uint32), np.load(owners_path(out))])
    cells, ring = read_ring(content, region)
    return split_cells(cells, owners[run.read(region)], ring)


def require_slide(content: Content, what: str) -> None:
    """Refuse to make something again without the slide.

    Raises
    ------
    IntegrityError
        If it is not there, or not what it was.
    """
    slide, reason = find_slide(content.plan, content.spec.root, content.report)
    if slide is None:
        raise IntegrityError(f"{what} cannot be made again without the slide ({reason})")


def tell_other(content: Content, name: str) -> str:
    """What to say of a file that was made again and is not what it was.

    Parameters
    ----------
    content
        Of the result.
    name
        As a user finds the file.
    """
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
