"""Tracing of one flow field: ours, and stock Cellpose's masks, on one core.

    python benchmarks/tracing.py --size 1024 --foreground 0.25

The flow field is the bundled network's own, of a simulated slide whose share of stained cells is
chosen so that the wanted share of its pixels is foreground. Ours is `tracing.tile.trace_tile` on
the whole field (a run's tiles also trace their halos: that cost is told too); stock's is what
`CellposeModel.eval` (3.1.1.3) does with a flow field. Both run on one thread, and what is told is
processor time, which a busy machine disturbs less than wall time. Exactness, as the tests have it:
stock's cells found at IoU 0.9, and labels equal whatever the tile.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from cellpose import dynamics as stock

from densebatch.base.geometry import Grid, Region
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.studies.benchmark_record import describe_machine, describe_versions
from densebatch.tracing.tile import TraceSettings, halo_for_travel, trace_tile

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TRAVEL_PX = 32  # what a run allows for at the bundled model's diameter


def predict_flows(tissue: Tissue, scratch: Path) -> NDArray[np.float32]:
    """The bundled network's flow field of a simulated slide, `(3, h, w)`."""
    slide, out = scratch / "slide.ome.zarr", scratch / "out"
    write_slide(tissue, slide, threads=2)
    segment(slide, out, membrane=("membrane",), workers=0, keep_flows=True, restart=out.exists())
    return np.asarray(zarr.open_array(out / "work/flows.zarr", mode="r")[:], np.float32)


def find_field(size: int, foreground: float, scratch: Path) -> tuple[NDArray[np.float32], Tissue]:
    """A flow field with about the wanted share of foreground, found on a small piece first."""
    low, high = 0.02, 1.0
    for step in range(5):
        share = (low + high) / 2
        flows = predict_flows(_tissue(512, share), scratch / f"try-{step}")
        low, high = (share, high) if (flows[2] > 0).mean() < foreground else (low, share)
    tissue = _tissue(size, (low + high) / 2)
    return predict_flows(tissue, scratch / "whole"), tissue


def _tissue(size: int, stained: float) -> Tissue:
    # evenly spread, so that a small piece stands for the whole
    return Tissue(size, size, seed=1, stained_fraction=stained, clustering=0.2)


def trace_whole(flows: NDArray[np.float32]) -> NDArray[np.uint32]:
    whole = Region(0, 0, *flows.shape[1:])
    return trace_tile(flows, whole, whole, flows.shape[1:], TraceSettings()).labels


def trace_in_tiles(flows: NDArray[np.float32], tile: int) -> NDArray[np.int64]:
    """Every pixel's cell, named by its key plus one, traced tile by tile with halos."""
    shape = flows.shape[1:]
    named = np.zeros(shape, np.int64)
    grid = Grid(*shape, tile, tile)
    for index in grid:
        core = grid[index]
        window = core.expand(halo_for_travel(TRAVEL_PX)).clip(*shape)
        part = np.ascontiguousarray(flows[:, *window.slices])
        traced = trace_tile(part, window, core, shape, TraceSettings())
        if traced.max_travel_px > TRAVEL_PX:
            raise SystemExit(f"a pixel travels {traced.max_travel_px} px: beyond {TRAVEL_PX}")
        named[core.slices] = np.append(0, traced.keys + 1)[traced.labels]
    return named


def trace_with_stock(flows: NDArray[np.float32]) -> NDArray[np.int32]:
    """What `CellposeModel.eval` does with a flow field at its defaults."""
    masks = stock.resize_and_compute_masks(
        flows[:2], flows[2], niter=200, device=torch.device("cpu")
    )
    return masks.astype(np.int32)


def time_calls(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median of processor seconds of this process."""
    seconds = []
    result = None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return result, median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--foreground", type=float, default=0.25)
    parser.add_argument("--tile", type=int, default=2048, help="of the run that is imitated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--flows", type=Path, help="a flow field, (3, h, w) .npy, instead")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/tracing.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stained = None
    if options.flows:
        flows = np.load(options.flows).astype(np.float32)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            flows, tissue = find_field(options.size, options.foreground, Path(scratch))
            stained = tissue.stained_fraction
    mpx = flows[0].size / 1e6
    trace_whole(np.ascontiguousarray(flows[:, :64, :64]))  # compiles
    trace_with_stock(np.ascontiguousarray(flows[:, :64, :64]))
    ours, our_s = time_calls(lambda: trace_whole(flows), options.repeats)
    theirs, stock_s = time_calls(lambda: trace_with_stock(flows), max(1, options.repeats // 2))
    at = score_labels(theirs, ours, ScoreSettings(thresholds=("0.9",))).at("0.9")
    tiles = {tile: trace_in_tiles(flows, tile) for tile in (flows.shape[1], 300, 137)}
    names = list(tiles.values())
    halo = ((options.tile + 2 * halo_for_travel(TRAVEL_PX)) / options.tile) ** 2
    row = {
        "mpx": mpx,
        "foreground": round(float((flows[2] > 0).mean()), 4),
        "cells": int(ours.max()),
        "s_per_mpx": round(our_s / mpx, 4),
        f"s_per_mpx_with_the_halo_of_tiles_of_{options.tile}": round(our_s / mpx * halo, 4),
        "stock_s_per_mpx": round(stock_s / mpx, 4),
        "stock_over_ours": round(stock_s / our_s, 2),
        "stock_cells": int(theirs.max()),
        "share_of_stocks_cells_found_at_iou_0.9": round(at.tp / max(1, at.tp + at.fn), 4),
        "labels_equal_for_tiles": {
            str(tile): bool((named == names[0]).all()) for tile, named in tiles.items()
        },
    }
    document = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(),
        "versions": {**describe_versions(), "cellpose": version("cellpose")},
        "stained_fraction": stained,
        "result": row,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
