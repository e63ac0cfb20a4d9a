"""What is summed over the pixels of each cell; sums add up over shards.

Sums are taken shard by shard of the *output*, in raster order, and added in the order of the
shards; neither depends on tiles or workers, so the table of cells is bit-identical too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
