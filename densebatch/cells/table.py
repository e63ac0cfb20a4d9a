"""The per-cell table: position, size and mean intensity, as Parquet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densebatch.cells.measure import AREA, N_SHAPES, SUM_X, SUM_Y, X0, X1, Y0, Y1, CellSums

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_BOX = {"y0": Y0, "x0": X0, "y1": Y1, "x1": X1}


def write_table(
    path: Path,
    parts: Iterable[CellSums],
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
        Sums of every shard, in the order of the shards.
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
    total = add_parts(parts, n_cells, len(channels))
    shapes, area = total.shapes, total.shapes[:, AREA]
    divisor = np.maximum(area, 1)
    y, x = shapes[:, SUM_Y] / divisor, shapes[:, SUM_X] / divisor
    touches = (
        (shapes[:, Y0] == slide.y0)
        | (shapes[:, X0] == slide.x0)
        | (shapes[:, Y1] == slide.y1)
        | (shapes[:, X1] == slide.x1)
    )
    # A pixel's centre lies half a pixel from its corner; um are measured from the slide's corner.
    unknown = pa.nulls(n_cells, pa.float64())
    columns = {
        "id": _column(total.ids),
        "y_px": _column(y),
        "x_px": _column(x),
        "y_um": _column((y + 0.5) * um_per_px) if um_per_px else unknown,
        "x_um": _column((x + 0.5) * um_per_px) if um_per_px else unknown,
        "area_px": _column(area),
        **{name: _column(shapes[:, column]) for name, column in _BOX.items()},
        "touches_border": _column(touches),
        "touches_missing": _column(total.touching),
    }
    used = set(columns)
    for index, channel in enumerate(channels):
        name = f"mean_{channel}"
        while name in used:  # channel names of a slide need not be unique
            name += f"_{index}"
        used.add(name)
        counted = area - total.missing[:, index]
        mean = np.full(n_cells, np.nan)
        np.divide(total.sums[:, index], counted, out=mean, where=counted > 0)
        columns[name] = _column(mean)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table(columns), partial, compression="zstd")
    partial.replace(path)


def add_parts(parts: Iterable[CellSums], n_cells: int, n_channels: int) -> CellSums:
    """Sums over the whole slide.

    Parameters
    ----------
    parts
        Sums of every shard; float sums are added in this order, which decides their last bits.
    n_cells, n_channels
        Cells and channels of the slide.

    Returns
    -------
    CellSums
        Of the cells 1..n_cells.
    """
    shapes = np.zeros((n_cells, N_SHAPES), np.int64)
    shapes[:, [Y0, X0]] = np.iinfo(np.int64).max
    sums = np.zeros((n_cells, n_channels), np.float64)
    missing = np.zeros(sums.shape, np.int64)
    touching = np.zeros(n_cells, np.bool_)
    for part in parts:
        # Plain indexing adds once, because ids are unique within a shard.
        rows = part.ids.astype(np.int64) - 1
        shapes[rows, :Y0] += part.shapes[:, :Y0]
        shapes[rows, Y0:Y1] = np.minimum(shapes[rows, Y0:Y1], part.shapes[:, Y0:Y1])
        shapes[rows, Y1:] = np.maximum(shapes[rows, Y1:], part.shapes[:, Y1:])
        sums[rows] += part.sums
        missing[rows] += part.missing
        touching[rows] |= part.touching
    ids = np.arange(1, n_cells + 1, dtype=np.uint32)
    return CellSums(ids, shapes, sums, missing, touching)


def _column(values: NDArray[np.generic]) -> pa.Array:
    """As `pa.array`, which imports pandas where it is installed; that takes half a second."""
    packed: NDArray[np.generic] = values
    if values.dtype == bool:
        packed = np.packbits(values.view(np.uint8), bitorder="little")
    data = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, data])
