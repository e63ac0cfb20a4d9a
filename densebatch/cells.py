"""The per-cell table: position, size and mean intensity, from sums that add up over shards.

Sums are taken shard by shard of the *output*, in raster order, and added in the order of the
shards; neither depends on tiles or workers, so the table is bit-identical too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.geometry import Region


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure_shapes(
    labels: NDArray[np.uint32], n_cells: int, y_start: int, x_start: int
) -> NDArray[np.int64]:
    """Area, coordinate sums and bounding box of each label of a shard.

    Parameters
    ----------
    labels
        `(h, w)`; 0 background, else 1..n_cells.
    n_cells
        Largest label.
    y_start, x_start
        Global position of the shard.

    Returns
    -------
    ndarray
        `(n_cells, 7)` int64: area, sum of y, sum of x, y0, x0, y1, x1 (half-open), global pixels.
    """
    shapes = np.zeros((n_cells, 7), np.int64)
    shapes[:, 3:5] = np.iinfo(np.int64).max
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label == 0:
                continue
            row = shapes[label - 1]
            gy = y + y_start
            gx = x + x_start
            row[0] += 1
            row[1] += gy
            row[2] += gx
            row[3] = min(row[3], gy)
            row[4] = min(row[4], gx)
            row[5] = max(row[5], gy + 1)
            row[6] = max(row[6], gx + 1)
    return shapes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def add_intensities(
    labels: NDArray[np.uint32],
    pixels: NDArray[np.generic],
    sums: NDArray[np.float64],
    missing: NDArray[np.int64],
) -> None:
    """Add a stripe's pixel values to the sums of their cells, in raster order.

    Pixels that are NaN or infinite are left out and counted in `missing`. float64 holds integer
    sums exactly up to 2^53, beyond any cell of 16-bit pixels.
    """
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label != 0:
                value = np.float64(pixels[y, x])
                if np.isfinite(value):
                    sums[label - 1] += value
                else:
                    missing[label - 1] += 1


def write_table(
    path: Path,
    parts: Iterable[
        tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]
    ],
    n_cells: int,
    slide: Region,
    um_per_px: float | None,
    channels: Sequence[str],
) -> None:
    """Add the shards' sums and write the table as Parquet.

    Parameters
    ----------
    path
        Output file.
    parts
        Per shard: ids `(k,)`, shapes `(k, 7)`, intensity sums `(k, channels)`, and the numbers of
        pixels left out of them; in the order of the shards.
    n_cells
        Cells of the slide; the table has one row each, by ascending id.
    slide
        The slide's extent, for the border flag.
    um_per_px
        Pixel size; the columns in um hold nulls if it is unknown.
    channels
        Names of all channels; a column `mean_<name>` each, over the cell's finite pixels; NaN if
        there is none, or a pixel could not be read.
    """
    shapes = np.zeros((n_cells, 7), np.int64)
    shapes[:, 3:5] = np.iinfo(np.int64).max
    sums = np.zeros((n_cells, len(channels)), np.float64)
    missing = np.zeros(sums.shape, np.int64)
    for ids, part, intensities, left_out in parts:
        rows = ids.astype(np.int64) - 1  # unique within a shard, so plain indexing adds once
        shapes[rows, :3] += part[:, :3]
        shapes[rows, 3:5] = np.minimum(shapes[rows, 3:5], part[:, 3:5])
        shapes[rows, 5:] = np.maximum(shapes[rows, 5:], part[:, 5:])
        sums[rows] += intensities
        missing[rows] += left_out
    area = shapes[:, 0]
    divisor = np.maximum(area, 1)
    y, x = shapes[:, 1] / divisor, shapes[:, 2] / divisor
    touches = (
        (shapes[:, 3] == slide.y0)
        | (shapes[:, 4] == slide.x0)
        | (shapes[:, 5] == slide.y1)
        | (shapes[:, 6] == slide.x1)
    )
    # A pixel's centre lies half a pixel from its corner; um are measured from the slide's corner.
    unknown = pa.nulls(n_cells, pa.float64())
    columns = {
        "id": pa.array(np.arange(1, n_cells + 1, dtype=np.uint32)),
        "y_px": pa.array(y),
        "x_px": pa.array(x),
        "y_um": pa.array((y + 0.5) * um_per_px) if um_per_px else unknown,
        "x_um": pa.array((x + 0.5) * um_per_px) if um_per_px else unknown,
        "area_px": pa.array(area),
        **{name: pa.array(shapes[:, 3 + k]) for k, name in enumerate(("y0", "x0", "y1", "x1"))},
        "touches_border": pa.array(touches),
    }
    used = set(columns)
    for index, channel in enumerate(channels):
        name = f"mean_{channel}"
        while name in used:  # channel names of a slide need not be unique
            name += f"_{index}"
        used.add(name)
        counted = area - missing[:, index]
        mean = np.full(n_cells, np.nan)
        np.divide(sums[:, index], counted, out=mean, where=counted > 0)
        columns[name] = pa.array(mean)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), partial, compression="zstd")
    partial.replace(path)
