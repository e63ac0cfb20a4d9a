"""The steps that both roads end with: ids, shards of labels, pyramid and cell table.

Those before, which lead to the labels of tiles, are in `flow_steps` and `label_steps`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import DensebatchError
from densebatch.base.geometry import Region
from densebatch.base.machine import count_cores
from densebatch.cells import labels
from densebatch.measuring.table import write_table
from densebatch.planning.measured import identify_covers
from densebatch.run.session import Session, Step
from densebatch.stages.missing import MarkShard, missing_spec
from densebatch.stages.number import (
    NumberShard,
    ReduceShard,
    collect_keys,
    digest_texts,
    read_parts,
)
from densebatch.stages.output import group_levels, output_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from densebatch.measuring.table import Nuclei
    from densebatch.stages.join import CompartmentFinder
    from densebatch.stages.missing import Gaps
    from densebatch.stages.work import Task


# What a record of a shard says beside what it cost.
_MEANT = ("inputs", "files", "unread", "pixels", "missing_px")


@dataclass(frozen=True)
class Labelled:
    """That all tiles of the output have labels, but for gaps.

    Attributes
    ----------
    gaps : tiles of the output that have no labels, or not everywhere
    failed : tiles that failed, as the report has them
    told : what else the report has of how labels were made
    gaps_before : what has no result in the runs that are joined, as their reports have it
    compartments : finds what lies within cells, where nuclei are known
    nuclei : tells of them when cells are numbered
    """

    gaps: Gaps
    failed: list[dict[str, Any]]
    told: dict[str, Any] = field(default_factory=dict)
    gaps_before: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    compartments: CompartmentFinder | None = None
    nuclei: Callable[[], Nuclei] | None = None

    def tell(self) -> dict[str, Any]:
        """What the report has of how labels were made; cells are numbered."""
        if self.nuclei is None:
            return self.told
        within = self.told["compartments"] | self.nuclei().describe()
        return {**self.told, "compartments": within}


def number_cells(session: Session, labelled: Labelled) -> int:
    """Last stage: ids, label shards, pyramid, cell table; returns the number of cells."""
    plan, gaps, compartments = session.plan, labelled.gaps, labelled.compartments
    with session.timed("number"):
        n_cells, edition = collect_keys(session.work, gaps)
        measures = session.measures
        measured = (measures.channels, measures.fractions, measures.shares)
        edition = digest_texts([edition, repr((measured, identify_covers(measures)))])
        if compartments is not None:
            edition = digest_texts([edition, compartments.match])
        spec = output_spec(plan, session.root)
        first, *above = group_levels(spec)
        written = drive_all(session, list_number_steps(session, spec, edition, compartments))
        with ThreadPoolExecutor(1) as pool:  # the table is written beside the pyramid
            table = pool.submit(
                write_table,
                session.folder.table,
                read_parts(session.work, labels.shard_grid(spec, first[0])),
                n_cells,
                Region(0, 0, *plan.shape),
                plan.um_per_px,
                plan.slide.channels,
                measures,
                nuclei=None if labelled.nuclei is None else labelled.nuclei(),
                areas=plan.region,
            )
            for levels in above:
                written += drive_all(session, list_reduce_steps(session, spec, levels[0]))
                if table.done():
                    table.result()  # a table that failed leaves nothing worth waiting for
            session.positivity = table.result()
        written += _mark_missing(session, gaps)
        _refuse_late_writes(session, written)
    return n_cells


def _refuse_late_writes(session: Session, tasks: Sequence[Task]) -> None:
    """Look whether all is still as the tasks of this run have left it.

    Those of an earlier session may outlive their driver, on a worker of a cluster that was
    suspended or cut off, and then write what is not to be numbered so any more.

    Raises
    ------
    DensebatchError
        If something is not.
    """

    def was_changed(task: Task) -> bool:
        assert isinstance(task, NumberShard | ReduceShard | MarkShard)
        told, found = session.facts[task], task.work.journal.done(task.name)
        return (
            found is None
            or any(found.get(name) != told.get(name) for name in _MEANT)
            or told["files"] != task.list_files()
        )

    for task, changed in map_in_threads(was_changed, tasks, count_cores()):
        if changed:
            raise DensebatchError(
                f"{session.root}: what {task.name} had written was changed by another process, "
                "perhaps a worker of an earlier session that had been cut off; the same command "
                "writes it again"
            )


def _mark_missing(session: Session, gaps: Gaps) -> list[Task]:
    """Write the label image `missing` beside the cells if there is a gap, else remove it."""
    spec = missing_spec(session.plan, session.root)
    labels.remove(spec)
    written: list[Task] = []
    if not gaps.any:
        return written
    labels.create(spec, label_attrs={"fingerprint": session.plan.fingerprint})
    for levels in group_levels(spec):
        grid = labels.shard_grid(spec, levels[0])
        tasks = [MarkShard(session.work, levels[0], *index, session.root) for index in grid]
        shown = f"missing level {levels[0]}"
        written += drive_all(session, (Step(t, shown, grid[t.row, t.col].area) for t in tasks))
    labels.finalize(spec, n_cells=None, provenance={"content": "pixels without a result are 1"})
    return written


def list_number_steps(
    session: Session,
    spec: labels.PyramidSpec,
    edition: str,
    compartments: CompartmentFinder | None = None,
) -> Iterator[Step]:
    """Stage 3, full resolution: a task for each shard.

    Parameters
    ----------
    session
        Whose tiles are traced.
    spec
        Of the output.
    edition
        Digest of what cells are numbered by.
    compartments
        Finds what lies within cells, if that is to be written and measured as well.
    """
    grid = labels.shard_grid(spec, 0)
    for index in grid:
        task = NumberShard(
            session.work, 0, *index, session.root, edition, session.measures, compartments
        )
        yield Step(task, "number", grid[index].area)


def list_reduce_steps(session: Session, spec: labels.PyramidSpec, level: int) -> Iterator[Step]:
    """Stage 3, the pyramid: a task for each shard of a group of levels.

    Parameters
    ----------
    session
        Whose level below is written.
    spec
        Of the output.
    level
        First of the group.
    """
    grid, below = labels.shard_grid(spec, level), labels.shard_grid(spec, level - 1)
    kind = NumberShard if level == 1 else ReduceShard
    for index in grid:
        sources = [
            kind(session.work, level - 1, *shard, session.root, "")
            for shard in below.overlapping(labels.source_region(spec, level, grid[index]))
        ]
        # A shard is made again if any that it is made from has changed.
        inputs = digest_texts(
            f"{checksum}  {name}"
            for source in sources
            for name, checksum in sorted(session.facts[source]["files"].items())
        )
        task = ReduceShard(session.work, level, *index, session.root, inputs)
        yield Step(task, f"pyramid level {level}", grid[index].area)


def drive_all(session: Session, steps: Iterable[Step]) -> list[Task]:
    """Run tasks none of which may fail, for without a shard the label image is not whole.

    Raises
    ------
    DensebatchError
        If one does.
    """
    every = list(steps)
    failures = session.drive(every)
    if failures:
        task, reason = next(iter(failures.items()))
        raise DensebatchError(
            f"{session.root}: {task.name} failed ({reason}); the same command continues the run"
        )
    return [step.task for step in every]
