"""The per-cell table: position, size and mean intensity, as Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region


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
        "id": _column(np.arange(1, n_cells + 1, dtype=np.uint32)),
        "y_px": _column(y),
        "x_px": _column(x),
        "y_um": _column((y + 0.5) * um_per_px) if um_per_px else unknown,
        "x_um": _column((x + 0.5) * um_per_px) if um_per_px else unknown,
        "area_px": _column(area),
        **{name: _column(shapes[:, 3 + k]) for k, name in enumerate(("y0", "x0", "y1", "x1"))},
        "touches_border": _column(touches),
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
        columns[name] = _column(mean)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), partial, compression="zstd")
    partial.replace(path)


def _column(values: NDArray[np.generic]) -> pa.Array:
    """As `pa.array`, which imports pandas where it is installed; that takes half a second."""
    packed: NDArray[np.generic] = values
    if values.dtype == bool:
        packed = np.packbits(values.view(np.uint8), bitorder="little")
    data = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, data])
