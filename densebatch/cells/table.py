"""The per-cell table: position, size and mean intensity, as Parquet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from densebatch.cells.measure import AREA, N_SHAPES, SUM_X, SUM_Y, X0, X1, Y0, Y1, CellSums

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
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
    """Add the shards' sums and write the table as Parquet, whose pages carry checksums.

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
    columns = shape_columns(total, slide, um_per_px)
    for index, name in enumerate(name_means(channels)):
        columns[name] = mean_column(total, index)
    save_table(path, columns)


def save_table(path: Path, columns: Mapping[str, pa.Array]) -> None:
    """Write columns as Parquet, so that the file is either absent, old or whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        # Readers that look at them (pyarrow: `page_checksum_verification`) find a damaged page.
        pq.write_table(pa.table(dict(columns)), file, compression="zstd", write_page_checksum=True)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def shape_columns(total: CellSums, slide: Region, um_per_px: float | None) -> dict[str, pa.Array]:
    """Columns that labels alone decide: id, centroid, area, bounding box, border flag.

    Parameters
    ----------
    total
        Sums over the whole slide, of the cells 1..N.
    slide, um_per_px
        As for `write_table`.
    """
    n_cells = total.ids.size
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
    return {
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


def name_means(channels: Sequence[str]) -> list[str]:
    """Names of the columns of mean intensities; channel names of a slide need not be unique.

    Examples
    --------
    >>> name_means(["CD3", "CD3"])
    ['mean_CD3', 'mean_CD3_1']
    """
    names: list[str] = []
    for index, channel in enumerate(channels):
        name = f"mean_{channel}"
        while name in names:
            name += f"_{index}"
        names.append(name)
    return names


def mean_column(total: CellSums, channel: int) -> pa.Array:
    """Mean intensity of each cell in a channel, by its place in the sums."""
    counted = total.shapes[:, AREA] - total.missing[:, channel]
    mean = np.full(total.ids.size, np.nan)
    np.divide(total.sums[:, channel], counted, out=mean, where=counted > 0)
    return _column(mean)


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
