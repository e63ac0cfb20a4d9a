"""Stage 2: read a window of the flow field, trace its cells, keep the core.

Tiles may have any size. Each writes one chunk of local labels and the keys that name them
globally; what the keys mean is `dynamics`' business, what becomes of them `numbering`'s.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.files import write_atomic
from densebatch.base.geometry import Region
from densebatch.base.process import Meter, has_gpu_context
from densebatch.base.resampling import axis_weights, resample
from densebatch.planning.plan import Plan, load_plan
from densebatch.planning.work import tile_grid, trace_folder, trace_name
from densebatch.stages.journal import Journal
from densebatch.tracing.tile import TracedTile, halo_for_travel, trace_tile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


def _window(plan: Plan, core: Region, travel_px: int) -> Region:
    return core.expand(halo_for_travel(travel_px)).clip(*plan.shape)


def flows_needed(plan: Plan, core: Region, travel_px: int) -> Region:
    """Region of the flow field, at the network's scale, that tracing a core reads."""
    window = _window(plan, core, travel_px)
    rows = axis_weights(np.array([window.y0, window.y1 - 1]), plan.network_shape[0], plan.shape[0])
    cols = axis_weights(np.array([window.x0, window.x1 - 1]), plan.network_shape[1], plan.shape[1])
    return Region(rows.start, cols.start, rows.stop, cols.stop)


def groups_needed(plan: Plan, core: Region, travel_px: int) -> Iterator[tuple[int, int]]:
    """Predict tasks that must be done before a core is traced."""
    return plan.groups.overlapping(flows_needed(plan, core, travel_px))


def read_flows(plan: Plan, work: Path, window: Region) -> NDArray[np.float16 | np.float32]:
    """The flow field of a window in slide pixels, `(3, h, w)`: as stored, or float32."""
    rows = axis_weights(np.arange(window.y0, window.y1), plan.network_shape[0], plan.shape[0])
    cols = axis_weights(np.arange(window.x0, window.x1), plan.network_shape[1], plan.shape[1])
    array = zarr.open_array(str(work / "flows.zarr"), mode="r")
    stored = np.asarray(array[:, rows.start : rows.stop, cols.start : cols.stop])
    if plan.network_shape == plan.shape:
        return stored
    return resample(stored.astype(np.float32), rows, cols)


def _is_skipped(plan: Plan, region: Region) -> bool:
    """Whether no patch of a region was evaluated, so that all of it is background."""
    active = plan.active_cores
    return plan.background_logit <= plan.trace.cellprob_threshold and not any(
        active[index] for index in plan.lattice.cores.overlapping(region)
    )


def _choose_device(plan: Plan) -> str:
    """The GPU, in a process that evaluates the network there; labels are the same everywhere."""
    return plan.engine.device if has_gpu_context() else "cpu"


def _trace(
    plan: Plan,
    flows: NDArray[np.float16 | np.float32],
    window: Region,
    core: Region,
    meter: Meter,
) -> TracedTile:
    how = (flows, window, core, plan.shape, plan.trace)
    device = _choose_device(plan)
    if device != "cpu":
        try:
            with meter.timed("trace_on_device"):
                return trace_tile(*how, device)
        except MemoryError:
            pass  # others may use the device too; the CPU has memory of its own and the same bits
    with meter.timed("trace"):
        return trace_tile(*how)


def create_traces(plan: Plan, work: Path, tile: int) -> None:
    """Create the array of local labels, one chunk per tile."""
    path = trace_folder(work, tile) / "labels.zarr"
    if not (path / "zarr.json").exists():  # a folder without it is what a kill left
        zarr.create_array(
            str(path),
            shape=plan.shape,
            chunks=(min(tile, plan.shape[0]), min(tile, plan.shape[1])),
            dtype="uint32",
            fill_value=0,
            serializer=zarr.codecs.BytesCodec(endian="little"),
            compressors=[zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
        )


def trace_core(plan_path: str, tile: int, row: int, col: int, travel_px: int) -> dict[str, Any]:
    """Trace one tile and write its labels and keys.

    Parameters
    ----------
    plan_path
        The run's plan; flow field, traces and journal lie beside it.
    tile, row, col
        Tile size and place.
    travel_px
        Travel that the halo allows for.

    Returns
    -------
    dict
        Facts for the journal: cells, rejected cells, largest travel, dropped pixels, and the
        travel that was allowed for; seconds and peak memory.
    """
    meter = Meter()
    plan = load_plan(plan_path)
    work = Path(plan_path).parent
    core = tile_grid(plan, tile)[row, col]
    window = _window(plan, core, travel_px)
    if _is_skipped(plan, flows_needed(plan, core, travel_px)):
        traced = TracedTile(np.zeros(core.shape, np.uint32), np.zeros(0, np.int64), 0.0, 0, 0)
    else:
        with meter.timed("read"):
            flows = read_flows(plan, work, window)
        traced = _trace(plan, flows, window, core, meter)
    folder = trace_folder(work, tile)
    array = zarr.open_array(str(folder / "labels.zarr"), mode="r+")
    with meter.timed("write"):
        array[core.slices] = traced.labels
    buffer = io.BytesIO()
    np.save(buffer, traced.keys)
    keys = folder / f"keys-{row}-{col}.npy"
    write_atomic(keys, buffer.getvalue())
    chunk = folder / "labels.zarr" / "c" / str(row) / str(col)
    facts = {
        "cells": int(traced.keys.size),
        "rejected": traced.n_rejected,
        "max_travel_px": traced.max_travel_px,
        "dropped_px": traced.dropped_px,
        "travel_px": travel_px,
        **meter.read(),
    }
    return Journal(work / "journal").record(trace_name(tile, row, col), [chunk, keys], facts)
