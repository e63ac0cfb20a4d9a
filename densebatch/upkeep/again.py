"""Tasks of a finished run, done again for a repair: predict and trace, then number."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from densebatch.base.errors import InputError, IntegrityError
from densebatch.base.files import write_atomic
from densebatch.base.geometry import Region
from densebatch.cells import labels
from densebatch.cells.kept import seeds_path
from densebatch.engines.quantization import write_quantised
from densebatch.planning.capacity import choose_workers, count_lanes
from densebatch.planning.settings import SegmentSettings
from densebatch.run.engine import recall_engine
from densebatch.run.session import Step
from densebatch.run.start import ExecutorStart
from densebatch.run.steps import list_steps_again
from densebatch.stages.consistency import find_slide
from densebatch.stages.missing import Gaps, write_gaps
from densebatch.stages.number import NumberShard
from densebatch.stages.predict import PredictGroup, create_flows
from densebatch.stages.tile_labels import create_tile_labels
from densebatch.stages.trace import TraceTile
from densebatch.stages.work import Halt, Work

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from densebatch.run.folder import OutputFolder
    from densebatch.run.report import Progress
    from densebatch.stages.consistency import Content
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
        require_slide(content, "flows and traces" if is_own else "labels")
        try:
            plan, choice = recall_engine(content.plan, content.report["settings"]["model"])
        except InputError as error:
            raise IntegrityError(f"the network cannot be evaluated again: {error}") from error
        if not is_own:  # tasks shall find labels in the scratch folder, and no image there
            plan = replace(plan, in_place=False, copy_image=False)
        self.content, self.plan = content, plan
        self.settings = SegmentSettings(
            tile=int(content.report["settings"]["tile"]),
            workers=workers,
            backend=cast("Any", plan.engine.backend),
            device=cast("Any", plan.engine.device),
        )
        # Weights that lie elsewhere now make another plan, but not another folder.
        tasks = folder.tasks(content.plan if is_own else plan)
        self.work = Work(str(tasks / folder.plan_path(plan).name), self.settings.tile)
        write_atomic(Path(self.work.plan_path), plan.to_json().encode())
        if choice.packed is not None:
            write_quantised(self.work.folder, choice.packed)
        if not is_own:
            create_flows(plan, self.work.flows)
            create_tile_labels(self.work)
            write_atomic(self.work.all_keys, seeds_path(content.tree.out).read_bytes())
            write_gaps(self.work, Gaps())

    @property
    def travel_px(self) -> int:
        """That the tracing halo allows for: the furthest of the run, so that once is enough."""
        travel, limit = self.plan.travel_px, self.plan.trace.travel_limit_px
        while travel < limit and travel < self.content.report["max_travel_px"]:
            travel = min(2 * travel, limit)
        return travel

    def number(self, regions: Sequence[Region], root: Path, progress: Progress) -> None:
        """Do all that regions need; then number them, as units of labels below a root."""
        with ExecutorStart(self.settings) as starting:
            executor = self._start(starting)
            _drive(executor, self._list_steps(regions, executor), progress)
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
            every = self._list_steps([Region(0, 0, *self.plan.shape)], executor)
            for kind in (PredictGroup, TraceTile):
                # All that these tasks need is on disk, also of groups that were given up.
                steps = [
                    replace(step, needs=())
                    for step in every
                    if isinstance(step.task, kind) and step.task.name in names
                ]
                _drive(executor, steps, progress, may_miss=True)

    def _start(self, starting: ExecutorStart) -> Executor:
        workers = choose_workers(self.settings, self.plan)
        return starting.finish(workers, [self.plan], self.work.folder)

    def _list_steps(self, regions: Sequence[Region], executor: Executor) -> list[Step]:
        lanes = count_lanes(self.plan, self.settings, executor.workers)
        return list_steps_again(self.work, regions, lanes, self.travel_px)


def _drive(
    executor: Executor, steps: Sequence[Step], progress: Progress, *, may_miss: bool = False
) -> None:
    """Run the tasks that no record calls done, none of which may fail."""
    by_name = {step.task.name: step for step in steps}
    facts = {name: step.task.work.journal.done(name) for name, step in by_name.items()}
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
        if step.task.stage == "predict" and not may_miss:
            for hole in outcome.result["unread"]:
                raise IntegrityError(f"labels cannot be made again: {hole['reason']}")
        progress.advance(step.shown_as, step.pixels)


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
