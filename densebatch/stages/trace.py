"""Stage 2: read a window of the flow field, trace its cells, keep the core.

Tiles may have any size. Each writes one chunk of local labels and the keys that name them
globally: `tracing.tile` says what a key means, `stages.number` what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr

from densebatch.base.geometry import Region
from densebatch.base.process import Meter, has_gpu_context
from densebatch.base.resampling import axis_weights, resample
from densebatch.stages.predict import UNKNOWN, name_prediction
from densebatch.stages.tile_labels import leave_inside, write_tile_labels, write_values
from densebatch.stages.work import TileTask
from densebatch.tracing.foreground import Unknown
from densebatch.tracing.tile import TracedTile, halo_for_travel, trace_tile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.planning.plan import FlowPlan


def _window(plan: FlowPlan, core: Region, travel_px: int) -> Region:
    return core.expand(halo_for_travel(travel_px)).clip(*plan.shape)


def flows_needed(plan: FlowPlan, core: Region, travel_px: int) -> Region:
    """Region of the flow field, at the network's scale, that tracing a core reads."""
    window = _window(plan, core, travel_px)
    rows = axis_weights(np.array([window.y0, window.y1 - 1]), plan.network_shape[0], plan.shape[0])
    cols = axis_weights(np.array([window.x0, window.x1 - 1]), plan.network_shape[1], plan.shape[1])
    return Region(rows.start, cols.start, rows.stop, cols.stop)


def read_flows(
    plan: FlowPlan, path: Path, window: Region
) -> tuple[NDArray[np.float16 | np.float32], NDArray[np.bool_] | None]:
    """Read the flow field of a window in slide pixels.

    Parameters
    ----------
    plan
        Of the run.
    path
        The flow field.
    window
        Inside the slide.

    Returns
    -------
    flows : `(3, h, w)`
        As stored, or float32; NaN where nothing was written.
    unknown : `(h, w)` bool, or None if there is no such pixel
        Where no patch could be evaluated; flows are 0 there.
    """
    rows = axis_weights(np.arange(window.y0, window.y1), plan.network_shape[0], plan.shape[0])
    cols = axis_weights(np.arange(window.x0, window.x1), plan.network_shape[1], plan.shape[1])
    array = zarr.open_array(path, mode="r")
    stored = np.asarray(array[:, rows.start : rows.stop, cols.start : cols.stop])
    unknown = stored[2].view(np.uint16) == UNKNOWN.view(np.uint16)  # faster than as numbers
    is_known = not unknown.any()
    if not is_known:
        stored = np.where(unknown, np.float16(0), stored)
    if plan.network_shape == plan.shape:
        return stored, None if is_known else unknown
    flows = resample(stored.astype(np.float32), rows, cols)
    if is_known:
        return flows, None
    return flows, resample(unknown.astype(np.float32), rows, cols) > 0


def _is_skipped(plan: FlowPlan, region: Region) -> bool:
    """Whether no patch of a region was evaluated, so that all of it is background."""
    active = plan.active_cores
    return plan.background_logit <= plan.trace.cellprob_threshold and not any(
        active[index] for index in plan.lattice.cores.overlapping(region)
    )


def _choose_device(plan: FlowPlan) -> str:
    """The GPU, in a process that evaluates the network there; labels are the same everywhere."""
    return plan.engine.device if has_gpu_context() else "cpu"


def _trace(
    plan: FlowPlan,
    flows: NDArray[np.float16 | np.float32],
    window: Region,
    core: Region,
    unknown: Unknown | None,
    meter: Meter,
) -> TracedTile:
    how = (flows, window, core, plan.shape, plan.trace)
    device = _choose_device(plan)
    if device != "cpu":
        try:
            with meter.timed("trace_on_device"):
                return trace_tile(*how, device, unknown)
        except MemoryError:
            pass  # others may have filled the device; the CPU makes the same bits
    with meter.timed("trace"):
        return trace_tile(*how, "cpu", unknown)


@dataclass(frozen=True)
class TraceTile(TileTask):
    """Trace one tile and write its labels and keys.

    Attributes
    ----------
    row, col : as of `TileTask`
    travel_px : travel that the halo allows for
    """

    travel_px: int = field(compare=False)
    stage: ClassVar[str] = "trace"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the tasks that predict what the tile reads."""
        plan = self.work.flow_plan
        if not plan.counts_in(self.region):
            return ()
        groups = plan.groups.overlapping(flows_needed(plan, self.region, self.travel_px))
        return tuple(name_prediction(*group) for group in groups)

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether the tile was traced with as much halo as is wanted now, and all flows known."""
        return bool(facts["travel_px"] >= self.travel_px and not facts.get("unknown"))

    def run(self) -> dict[str, Any]:
        """Facts: cells, rejected cells, travel, dropped and missing pixels, seconds, peak memory.

        `unknown` says whether a flow was that the tile's halo reaches to.
        """
        meter = Meter()
        work, plan, core = self.work, self.work.flow_plan, self.region
        window = _window(plan, core, self.travel_px)
        unknown = None
        if not plan.counts_in(core) or _is_skipped(plan, flows_needed(plan, core, self.travel_px)):
            traced = TracedTile(np.zeros(core.shape, np.uint32), np.zeros(0, np.int64), 0.0, 0, 0)
        else:
            with meter.timed("read"):
                flows, holes = read_flows(plan, work.flows, window)
            unknown = None if holes is None else Unknown(holes, self.travel_px)
            traced = self._cut(_trace(plan, flows, window, core, unknown, meter))
        with meter.timed("write"):
            files = self._write(traced)
        facts = {
            "cells": int(traced.keys.size),
            "rejected": traced.n_rejected,
            "max_travel_px": traced.max_travel_px,
            "dropped_px": traced.dropped_px,
            "travel_px": self.travel_px,
            "unknown": unknown is not None,
            "missing_px": 0 if traced.missing is None else int(traced.missing.sum()),
            **meter.read(),
        }
        return work.record(self.name, files, facts)

    def _cut(self, traced: TracedTile) -> TracedTile:
        """What lies in the part of the slide that counts."""
        labels, kept, missing = leave_inside(self.work, self.region, traced.labels, traced.missing)
        return replace(traced, labels=labels, keys=traced.keys[kept], missing=missing)

    def _write(self, traced: TracedTile) -> list[Path]:
        """Write labels, keys and what is missing; returns the files."""
        work, row, col = self.work, self.row, self.col
        files = write_tile_labels(work, row, col, traced.labels, traced.missing)
        return [*files, write_values(work.tile_keys(row, col), traced.keys)]
