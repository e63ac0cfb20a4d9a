"""The tasks of each stage, and when each of them still counts as done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError
from densebatch.base.geometry import Region
from densebatch.cells import labels
from densebatch.cells.table import write_table
from densebatch.planning.capacity import count_lanes
from densebatch.planning.work import number_name, predict_name, trace_name
from densebatch.run.session import Session, Step
from densebatch.stages.number import (
    collect_keys,
    digest_texts,
    group_levels,
    number_shard,
    output_spec,
    read_parts,
    reduce_shard,
    verify_shard,
)
from densebatch.stages.predict import predict_group
from densebatch.stages.trace import groups_needed, trace_core
from densebatch.tracing.tile import halo_for_travel
from densebatch.workers.schedule import Job

if TYPE_CHECKING:
    from collections.abc import Mapping


def _trace_step(run: Session, index: tuple[int, int], travel_px: int) -> Step:
    tile, core = run.tile, run.grid[index]
    job = Job(
        trace_name(tile, *index),
        trace_core,
        (run.plan_path, tile, *index, travel_px),
        tuple(predict_name(*group) for group in groups_needed(run.plan, core, travel_px)),
    )
    return Step(job, "trace", core.area)


def predict_steps(run: Session) -> list[Step]:
    """Stage 1: a task for each group of patches."""
    plan, settings = run.plan, run.settings
    lanes = count_lanes(plan, settings, run.executor.workers)
    return [
        Step(
            Job(
                predict_name(*group),
                predict_group,
                (run.plan_path, *group, lanes),
                rank=1,
                on_device=True,
            ),
            "predict",
            plan.groups[group].area,
        )
        for group in plan.groups
    ]


def predict_and_trace(run: Session) -> dict[tuple[int, int], str]:
    """Stages 1 and 2 together: a tile is traced as soon as the flows around it are on disk.

    Returns the tiles that have no result, with the reason.
    """
    steps = predict_steps(run)
    steps += [_trace_step(run, index, run.plan.travel_px) for index in run.grid]
    with run.timed("predict_and_trace"):
        failed = _failed_tiles(run, run.drive(steps))
        _trace_far_travellers(run, failed)
    return failed


def _failed_tiles(run: Session, failures: Mapping[str, str]) -> dict[tuple[int, int], str]:
    names = {trace_name(run.tile, *index): index for index in run.grid}
    return {names[name]: reason for name, reason in failures.items() if name in names}


def _trace_far_travellers(run: Session, failed: dict[tuple[int, int], str]) -> None:
    """Trace again, with more halo, wherever a pixel went further than the halo allowed for.

    Which tiles that concerns depends on the tiling; their labels are then exact, as all others'
    are, so the result does not. Tiles that fail now are added to `failed`.
    """
    grid = run.grid
    limit = run.plan.trace.travel_limit_px
    travel = run.plan.travel_px
    while travel < limit:
        reach = {
            index: run.facts[trace_name(run.tile, *index)]["max_travel_px"]
            for index in grid
            if index not in failed
        }
        far = [index for index, px in reach.items() if px > travel]
        if not far:
            return
        # the smallest doubling that holds the furthest pixel
        while travel < limit and travel < max(reach[index] for index in far):
            travel = min(2 * travel, limit)
        halo = halo_for_travel(travel)
        near = {i for f in far for i in grid.overlapping(grid[f].expand(halo))} - set(failed)
        steps = [
            Step(
                Job(step.job.name, step.job.function, step.job.args),  # all flows are there
                f"trace again, travel up to {travel} px",
                step.pixels,
            )
            for step in (_trace_step(run, index, travel) for index in sorted(near))
        ]
        failures = run.drive(steps, lambda job, facts: bool(facts["travel_px"] >= job.args[-1]))
        failed.update(_failed_tiles(run, failures))


def number_cells(run: Session, failed: Mapping[tuple[int, int], str]) -> int:
    """Stage 3: ids, label shards, pyramid, cell table; returns the number of cells."""
    plan = run.plan

    def is_current(job: Job, facts: Mapping[str, Any]) -> bool:
        # A shard is done if it holds what its record says and was made from what there is now:
        # other lost tiles mean other ids, and a shard written again changes those above it.
        *_, row, col, inputs = job.args
        level = 0 if job.function is number_shard else job.args[3]
        return (
            facts["inputs"] == inputs
            and not facts.get("unread")
            and verify_shard(plan, run.root, level, row, col, facts["digests"])
        )

    def drive(levels: range) -> None:
        failures = run.drive(_number_steps(run, spec, levels[0], edition), is_current)
        if failures:
            # without a shard the label image is not whole
            name, reason = next(iter(failures.items()))
            raise DensebatchError(
                f"{run.root}: {name} failed ({reason}); the same command continues the run"
            )

    with run.timed("number"):
        n_cells, edition = collect_keys(plan, run.work, run.tile, failed)
        spec = output_spec(plan, run.root)
        first, *above = group_levels(spec)
        with ThreadPoolExecutor(1) as pool:  # the table beside the pyramid
            drive(first)
            table = pool.submit(
                write_table,
                run.folder.table,
                read_parts(run.work, run.tile, labels.shard_grid(spec, 0)),
                n_cells,
                Region(0, 0, *plan.shape),
                plan.um_per_px,
                plan.slide.channels,
            )
            for levels in above:
                drive(levels)
                if table.done():
                    table.result()  # if it failed, the rest is not worth waiting for
            table.result()
    return n_cells


def _number_steps(run: Session, spec: labels.PyramidSpec, level: int, edition: str) -> list[Step]:
    """Tasks of a group of levels, named after its first; each knows a digest of what it is from."""
    tile = run.tile
    grid = labels.shard_grid(spec, level)
    steps = []
    for index in grid:
        name = number_name(tile, level, *index)
        if level == 0:
            job = Job(name, number_shard, (run.plan_path, tile, run.root, *index, edition))
        else:
            source = labels.source_region(spec, level, grid[index])
            below = labels.shard_grid(spec, level - 1).overlapping(source)
            inputs = digest_texts(
                digest
                for shard in below
                for digest in run.facts[number_name(tile, level - 1, *shard)]["digests"]
            )
            job = Job(name, reduce_shard, (run.plan_path, tile, run.root, level, *index, inputs))
        stage = "number" if level == 0 else f"pyramid level {level}"
        steps.append(Step(job, stage, grid[index].area))
    return steps
