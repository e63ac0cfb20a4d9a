"""Time and memory of measuring cells, beside scikit-image and beside only reading the channels.

    python -m benchmarks.measuring -o measuring.json    # some minutes and 6 GB of disk
    python -m benchmarks.measuring --quick              # small, to see that it runs

The first part measures a label image of 4096² px with 10 000 cells in ten channels in memory, every
column of the table, and the same by `skimage.measure.regionprops_table`: shapes once, then mean,
standard deviation and median channel by channel (and, for who wants no more, the means alone). The
second reads the channels of an OME-Zarr slide of 8192² px in shards of 2048 px as numbering does,
measures them and writes the table, in a process of its own that tells its peak memory. Ratios are
of processor seconds, which what else runs disturbs less. Compilation is left out for all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from skimage.measure import regionprops_table

from benchmarks.scoring import draw_cells
from densebatch.base.geometry import Grid, Region
from densebatch.base.process import measure_peak_mb
from densebatch.cells.pyramid_spec import SHARD_PX
from densebatch.measuring.parts import Parts, StoredParts, pack_part
from densebatch.measuring.schema import Measures
from densebatch.measuring.shard import Shard
from densebatch.measuring.table import write_table
from densebatch.slides.slide import open_slide

CHUNK_PX = 512
FORMS = (
    "area", "bbox", "centroid", "perimeter", "eccentricity", "solidity", "orientation",
    "axis_major_length", "axis_minor_length", "extent",
)  # fmt: skip
INTENSITIES = ("intensity_mean", "intensity_std", "intensity_median")


def draw_labels(side: int, pitch: int) -> np.ndarray:
    """Cells that touch, about one for each square of `pitch` px, numbered from 1."""
    labels = draw_cells(0, 0, side, side, pitch, side, 0, 0.0)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint32) + (
        np.uint32(labels.min() > 0)
    )


def draw_channel(shape: tuple[int, int], seed: int) -> np.ndarray:
    """Counts as of a stain: most pixels dim, a long tail."""
    values = np.random.default_rng(seed).gamma(1.5, 200, (CHUNK_PX, CHUNK_PX)).astype(np.uint16)
    return np.tile(values, [-(-n // CHUNK_PX) for n in shape])[: shape[0], : shape[1]]


class Clock:
    """Adds up seconds and processor seconds by what they went into."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_seconds: dict[str, float] = {}
        self._since = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        """Count what has passed since the last lap."""
        now = time.perf_counter(), time.process_time()
        counts = (self.seconds, self.processor_seconds)
        for count, then, since in zip(counts, now, self._since, strict=True):
            count[name] = count.get(name, 0.0) + then - since
        self._since = now

    def read(self) -> dict[str, dict[str, float]]:
        """What was counted."""
        return {"seconds": self.seconds, "processor_seconds": self.processor_seconds}


def total(found: dict[str, dict[str, float]], *names: str) -> float:
    """Processor seconds of some of the laps, or of all."""
    laps = found["processor_seconds"]
    return sum(laps[name] for name in names or laps)


def measure_here(labels: np.ndarray, image: np.ndarray, path: Path) -> dict[str, Any]:
    """What everything up to the file of the table takes."""
    n_cells = int(labels.max())
    measures = Measures(tuple(range(len(image))))
    ids, none = np.arange(1, n_cells + 1, dtype=np.uint32), np.zeros(0, np.uint32)
    slide = Region(0, 0, *labels.shape)
    names = [f"c{k}" for k in range(len(image))]
    clock = Clock()
    shard = Shard(labels, ids, np.zeros(n_cells, bool), slide, slide.width, measures.fractions)
    clock.lap("shapes")
    for pixels in image:
        shard.add_channel(pixels)
    clock.lap("channels")
    write_table(path, Parts([shard.finish(none)]), n_cells, slide, 0.5, names, measures)
    clock.lap("table")
    return clock.read()


def measure_by_regionprops(labels: np.ndarray, image: np.ndarray) -> dict[str, Any]:
    """What shapes, means alone, and means, deviations and medians take."""
    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regionprops_table(labels, properties=FORMS)
    clock.lap("shapes")
    for pixels in image:
        regionprops_table(labels, pixels, properties=INTENSITIES)
    clock.lap("channels")
    for pixels in image:
        regionprops_table(labels, pixels, properties=INTENSITIES[:1])
    clock.lap("means alone")
    return clock.read()


def compare(side: int, pitch: int, n_channels: int, repeats: int, scratch: Path) -> dict[str, Any]:
    """The first part."""
    labels = draw_labels(side, pitch)
    image = np.stack([draw_channel(labels.shape, k) for k in range(n_channels)])
    small = labels[:200, :200]
    small = np.unique(small, return_inverse=True)[1].reshape(small.shape).astype(np.uint32) + 1
    measure_here(small, image[:1, :200, :200], scratch / "small.parquet")
    ours = [measure_here(labels, image, scratch / "cells.parquet") for _ in range(repeats)]
    best = min(ours, key=total)
    theirs = measure_by_regionprops(labels, image)
    return {
        "side_px": side,
        "cells": int(labels.max()),
        "channels": n_channels,
        "densebatch": best,
        "all_processor_seconds": [total(each) for each in ours],
        "regionprops_table": theirs,
        "times_faster": total(theirs, "shapes", "channels") / total(best),
        "times_faster_than_shapes_and_means": total(theirs, "shapes", "means alone") / total(best),
    }


def write_slide(folder: Path, side: int, n_channels: int) -> Path:
    """An OME-Zarr slide."""
    path = folder / "slide.ome.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array(
        "0", shape=(n_channels, side, side), chunks=(1, CHUNK_PX, CHUNK_PX), dtype=np.uint16
    )
    for channel in range(n_channels):
        array[channel] = draw_channel((side, side), channel)
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "yx")]
    dataset = {
        "path": "0",
        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5, 0.5]}],
    }
    names = [{"label": f"c{k}"} for k in range(n_channels)]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [dataset]}],
        "omero": {"channels": names},
    }
    return path


def write_labels(path: Path, side: int, pitch: int) -> int:
    """Labels of a slide; the number of cells."""
    labels = draw_labels(side, pitch)
    shards = (min(side, SHARD_PX),) * 2
    zarr.create_array(path, data=labels, chunks=(CHUNK_PX, CHUNK_PX), shards=shards)
    return int(labels.max())


def measure_slide(path: Path, label_path: Path, n_cells: int, folder: Path) -> dict[str, float]:
    """Seconds of reading and measuring all channels, and of the table; peak memory in MB."""
    slide, array = open_slide(path), zarr.open_array(label_path, mode="r")
    info, n_channels = slide.info, len(slide.info.channels)
    grid = Grid(info.height, info.width, SHARD_PX, SHARD_PX)
    measures = Measures(tuple(range(n_channels)))
    paths, held = [], np.zeros(n_cells + 1, np.int64)
    for index in grid:
        held[np.unique(np.asarray(array[grid[index].slices]))] += 1
    warm = Shard(np.ones((8, 8), np.uint32), np.ones(1, np.uint32), np.zeros(1, bool),
                 Region(0, 0, 8, 8), 8, measures.fractions)  # fmt: skip
    warm.add_channel(np.ones((8, 8), info.dtype))
    clock = Clock()
    for row, col in grid:
        region = grid[row, col]
        labels = np.asarray(array[region.slices])
        ids = np.unique(labels)
        local = (np.searchsorted(ids, labels) + (ids[0] != 0)).astype(np.uint32)
        ids = ids[ids > 0]
        clock.lap("labels")
        shard = Shard(local, ids, held[ids] > 1, region, info.width, measures.fractions)
        clock.lap("shapes")
        for channel in range(n_channels):
            pixels = slide.read(channel, region)
            clock.lap("read")
            shard.add_channel(pixels)
            clock.lap("measure")
        paths.append(folder / f"{row}-{col}.npz")
        paths[-1].write_bytes(pack_part(shard.finish(ids[:0])))
        clock.lap("parts")
    peak = measure_peak_mb()
    whole = Region(0, 0, info.height, info.width)
    write_table(
        folder / "cells.parquet", StoredParts(paths), n_cells, whole, 0.5, info.channels, measures
    )
    clock.lap("table")
    return {
        **clock.read(),
        "peak_mb_of_shards": peak,
        "peak_mb": measure_peak_mb(),
    }


def measure_many(path: Path, side: int, pitch: int, n_channels: int) -> dict[str, Any]:
    """The second part, with cells of one size."""
    scratch, label_path = path.parent, path.parent / f"labels-{pitch}.zarr"
    n_cells = write_labels(label_path, side, pitch)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(measure_slide, path, label_path, n_cells, scratch).result()
    work = side * side / 1e6 * n_channels
    read, both = total(found, "read"), total(found, "read", "measure")
    return {
        "side_px": side,
        "cells": n_cells,
        "channels": n_channels,
        **found,
        "read_ms_per_mpx_and_channel": 1e3 * read / work,
        "measured_ms_per_mpx_and_channel": 1e3 * (both - read) / work,
        "times_as_long_as_reading": both / read,
        "wall_times_as_long_as_reading": 1 + found["seconds"]["measure"] / found["seconds"]["read"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small")
    parser.add_argument("-o", "--out", type=Path, help="record to write, JSON")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "quick": options.quick,
        "machine": {
            "processors": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "load_before": os.getloadavg()[0],
            "versions": {n: version(n) for n in ("numpy", "numba", "scikit-image", "zarr")},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        first = (512, 41, 2, 1) if options.quick else (4096, 41, 10, 5)
        record["beside regionprops_table"] = compare(*first, scratch)
        side, n_channels = (1024, 2) if options.quick else (8192, 40)
        slide = write_slide(scratch, side, n_channels)
        for pitch in (41, 20):
            record[f"beside reading, cells of {pitch} px"] = measure_many(
                slide, side, pitch, n_channels
            )
    record["machine"]["load_after"] = os.getloadavg()[0]
    text = json.dumps(record, indent=2) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
