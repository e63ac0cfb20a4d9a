"""What is summed over the pixels of each cell; sums add up over shards.

Sums are taken shard by shard of the *output*, in raster order, and added in the order of the
shards; neither depends on tiles or workers, so the table of cells is bit-identical too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Columns of `measure_shapes`.
AREA, SUM_Y, SUM_X, Y0, X0, Y1, X1 = range(7)
N_SHAPES = 7


@dataclass(frozen=True)
class CellSums:
    """Sums over the pixels of a shard, for each of the `k` cells that have one there.

    Attributes
    ----------
    ids
        `(k,)` uint32, ascending.
    shapes
        `(k, 7)` int64, as of `measure_shapes`.
    sums
        `(k, channels)` float64: finite pixel values.
    missing
        `(k, channels)` int64: pixels left out of the sums.
    touching
        `(k,)` bool: whether a pixel of the cell lies beside one that has no result.
    """

    ids: NDArray[np.uint32]
    shapes: NDArray[np.int64]
    sums: NDArray[np.float64]
    missing: NDArray[np.int64]
    touching: NDArray[np.bool_]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure_shapes(
    labels: NDArray[np.uint32], n_cells: int, y_start: int, x_start: int
) -> NDArray[np.int64]:
    """Area, coordinate sums and bounding box of each label of a shard.

    Parameters
    ----------
    labels
        `(h, w)` uint32; 0 background, else 1..n_cells.
    n_cells
        Largest label.
    y_start, x_start
        Position of the shard in the slide, px.

    Returns
    -------
    ndarray
        `(n_cells, 7)` int64, pixels of the slide: area, sum of y, sum of x, y0, x0, y1, x1
        (half-open). A label without a pixel has area 0 and an empty box.
    """
    shapes = np.zeros((n_cells, N_SHAPES), np.int64)
    shapes[:, Y0 : X0 + 1] = np.iinfo(np.int64).max
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label == 0:
                continue
            row = shapes[label - 1]
            slide_y = y + y_start
            slide_x = x + x_start
            row[AREA] += 1
            row[SUM_Y] += slide_y
            row[SUM_X] += slide_x
            row[Y0] = min(row[Y0], slide_y)
            row[X0] = min(row[X0], slide_x)
            row[Y1] = max(row[Y1], slide_y + 1)
            row[X1] = max(row[X1], slide_x + 1)
    return shapes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def add_intensities(
    labels: NDArray[np.uint32],
    pixels: NDArray[np.generic],
    sums: NDArray[np.float64],
    missing: NDArray[np.int64],
) -> None:
    """Add pixel values to the sums of their cells, in raster order.

    Parameters
    ----------
    labels
        `(h, w)` uint32; 0 background, else 1..k.
    pixels
        `(h, w)` of one channel, any type but float16, which numba does not have.
    sums
        `(k,)` float64, changed in place. Integer sums are exact up to 2^53, beyond any cell of
        16-bit pixels.
    missing
        `(k,)` int64, changed in place: pixels left out, because they are NaN or infinite.
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
