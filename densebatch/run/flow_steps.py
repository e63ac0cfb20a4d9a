"""The steps of the flow road: predict, trace, and what becomes of those that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densebatch.base.errors import DensebatchError
from densebatch.planning.capacity import count_lanes
from densebatch.run.report import describe_lost
from densebatch.run.session import Session, Step
from densebatch.run.steps import Labelled
from densebatch.stages.missing import collect_gaps
from densebatch.stages.predict import PredictGroup, give_up_group
from densebatch.stages.trace import TraceTile, flows_needed
from densebatch.tracing.tile import halo_for_travel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from densebatch.base.geometry import Region
    from densebatch.stages.work import Task, Work


def list_predict_steps(session: Session) -> Iterator[Step]:
    """Stage 1: a task for each group of patches that a tile which counts may need."""
    lanes = count_lanes(session.work.flow_plan, session.settings, session.workers)
    for group in list_groups(session.work):
        task = PredictGroup(session.work, *group, lanes)
        yield Step(
            task, "predict", session.work.flow_plan.groups[group].area, rank=1, on_device=True
        )


def list_groups(work: Work) -> list[tuple[int, int]]:
    """The groups of patches whose flows tracing may read, however far pixels travel."""
    plan, grid = work.flow_plan, work.grid
    if plan.region is None:
        return list(plan.groups)
    travel = max(plan.travel_px, plan.trace.travel_limit_px)
    read = [flows_needed(plan, grid[i], travel) for i in grid if plan.counts_in(grid[i])]
    return sorted({group for region in read for group in plan.groups.overlapping(region)})


def list_trace_steps(session: Session) -> Iterator[Step]:
    """Stage 2: a task for each tile, which waits for the flows around it."""
    for index in session.work.grid:
        task = TraceTile(session.work, *index, session.work.flow_plan.travel_px)
        yield Step(task, "trace", task.region.area, needs=task.needs)


def predict_and_trace(session: Session) -> Labelled:
    """Stages 1 and 2 together: a tile is traced as soon as the flows around it are on disk.

    Raises
    ------
    DensebatchError
        If nothing of the slide has a result.
    """
    with session.timed("predict_and_trace"):
        failures = session.drive([*list_predict_steps(session), *list_trace_steps(session)])
        failures |= _trace_around(session, failures)
        failed = _list_tiles(failures)
        _trace_far_travellers(session, failed)
    session.lost |= {
        task: reason for task, reason in failures.items() if isinstance(task, PredictGroup)
    }
    session.lost |= {
        TraceTile(session.work, *index, session.work.flow_plan.travel_px): reason
        for index, reason in failed.items()
    }
    missing_px = _count_missing(session, failed)
    _refuse_nothing(session, failed, missing_px)
    return Labelled(collect_gaps(failed, missing_px), describe_lost(session.work.grid, failed))


def _trace_around(session: Session, failures: dict[Task, str]) -> dict[Task, str]:
    """Trace the tiles that waited for groups that failed: as far as flows are known.

    These tiles leave `failures`; those that fail now are returned.
    """
    groups = [task for task in failures if isinstance(task, PredictGroup)]
    for group in groups:
        give_up_group(session.work, group.row, group.col)
    lost = {group.name for group in groups}
    waited = [
        task for task in failures if isinstance(task, TraceTile) and not lost.isdisjoint(task.needs)
    ]
    if not waited:
        return {}
    for task in waited:
        del failures[task]
    # These steps need nothing: all flows are on disk by now.
    return session.drive([Step(task, "trace around gaps", task.region.area) for task in waited])


def _refuse_nothing(
    session: Session,
    failed: Mapping[tuple[int, int], str],
    missing_px: Mapping[tuple[int, int], int],
) -> None:
    """A slide of which nothing could be segmented has no result."""
    grid = session.work.grid
    counted = {index: session.plan.count_px(grid[index]) for index in grid}
    if all(i in failed or missing_px[i] == px for i, px in counted.items() if px):
        reasons = [
            *(reason for task, reason in session.lost.items() if isinstance(task, PredictGroup)),
            *(piece["reason"] for facts in session.facts.values()
              for piece in facts.get("unread", ())),
            *failed.values(),
        ]  # fmt: skip
        raise DensebatchError(
            f"{session.plan.slide.path}: no tile could be segmented: {reasons[0]}"
        )


def _count_missing(
    session: Session, failed: Mapping[tuple[int, int], str]
) -> dict[tuple[int, int], int]:
    """Missing pixels of each tile that has a result."""
    travel = session.work.flow_plan.travel_px
    return {
        index: session.facts[TraceTile(session.work, *index, travel)].get("missing_px", 0)
        for index in session.work.grid
        if index not in failed
    }


def _list_tiles(failures: Mapping[Task, str]) -> dict[tuple[int, int], str]:
    """Tiles among what failed, with the reason."""
    return {
        (task.row, task.col): reason
        for task, reason in failures.items()
        if isinstance(task, TraceTile)
    }


def _trace_far_travellers(session: Session, failed: dict[tuple[int, int], str]) -> None:
    """Trace again, with more halo, wherever a pixel went further than the halo allowed for.

    Which tiles that concerns depends on the tiling; their labels are then exact, as all others'
    are, so the result does not. Tiles that fail now are added to `failed`.
    """
    grid = session.work.grid
    limit = session.work.flow_plan.trace.travel_limit_px
    travel = session.work.flow_plan.travel_px
    while travel < limit:
        reach = {
            index: session.facts[TraceTile(session.work, *index, travel)]["max_travel_px"]
            for index in grid
            if index not in failed
        }
        far = [index for index, px in reach.items() if px > travel]
        if not far:
            return
        # The travel is doubled until it covers the furthest pixel.
        while travel < limit and travel < max(reach[index] for index in far):
            travel = min(2 * travel, limit)
        halo = halo_for_travel(travel)
        near = {i for f in far for i in grid.overlapping(grid[f].expand(halo))} - set(failed)
        told = f"trace again, travel up to {travel} px"
        tasks = [TraceTile(session.work, *index, travel) for index in sorted(near)]
        # These steps need nothing: all flows are on disk by now.
        failures = session.drive([Step(task, told, task.region.area) for task in tasks])
        failed.update(_list_tiles(failures))


def list_steps_again(
    work: Work, regions: Sequence[Region], lanes: int, travel_px: int
) -> list[Step]:
    """Stages 1 and 2 of a part of a slide, for a repair.

    Parameters
    ----------
    work
        Where they are done.
    regions
        Of the slide; all tiles that they touch are traced.
    lanes
        Patches that a CPU evaluates at once.
    travel_px
        Travel that the tracing halo allows for.
    """
    plan = work.flow_plan
    tiles = {tile for region in regions for tile in work.grid.overlapping(region)}
    traces = [TraceTile(work, *tile, travel_px) for tile in sorted(tiles)]
    needed = [flows_needed(plan, task.region, travel_px) for task in traces]
    groups = {group for region in needed for group in plan.groups.overlapping(region)}
    predicts = [PredictGroup(work, *group, lanes) for group in sorted(groups)]
    return [
        *(
            Step(t, "predict again", plan.groups[t.row, t.col].area, rank=1, on_device=True)
            for t in predicts
        ),
        *(Step(t, "trace again", t.region.area, needs=t.needs) for t in traces),
    ]
