"""Loops over the pixels of labels: how large each cell is, and where it has its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Columns of `measure_shapes`.
AREA, SUM_Y, SUM_X, Y0, X0, Y1, X1 = range(7)
N_SHAPES = 7


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


class Runs(NamedTuple):
    """Where cells have their pixels, as runs of pixels that lie side by side in a row.

    Attributes
    ----------
    firsts : `(r,)` uint32: linear indices into an image, those of cell 1 first, in raster order
    lengths : `(r,)` uint32, px
    starts : `(k + 1,)` int64: cell i has the runs from `starts[i - 1]` to `starts[i]`
    largest : px of the largest cell
    """

    firsts: NDArray[np.uint32]
    lengths: NDArray[np.uint32]
    starts: NDArray[np.int64]
    largest: int

    def list_places(self, cells: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Linear indices of the pixels of some cells, cell by cell and in raster order.

        Parameters
        ----------
        cells
            `(k,)` bool: which.
        """
        wanted = np.repeat(cells, np.diff(self.starts))
        lengths = self.lengths[wanted].astype(np.int64)
        before = np.cumsum(lengths) - lengths
        places: NDArray[np.int64] = np.repeat(self.firsts[wanted] - before, lengths)
        return places + np.arange(places.size)


def find_runs(labels: NDArray[np.uint32], areas: NDArray[np.int64]) -> Runs:
    """Where each label has its pixels.

    Parameters
    ----------
    labels
        `(h, w)` uint32 of fewer than 2^32 px; 0 background, else 1..k.
    areas
        `(k,)` pixels of each label.
    """
    firsts, lengths, starts = _find_runs(labels, areas.size)
    return Runs(firsts, lengths, starts, int(areas.max(initial=0)))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_runs(
    labels: NDArray[np.uint32], n_cells: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int64]]:
    height, width = labels.shape
    starts = np.zeros(n_cells + 1, np.int64)
    for y in range(height):
        before = np.uint32(0)
        for x in range(width):
            label = labels[y, x]
            if label != before and label != 0:
                starts[label] += 1
            before = label
    following = np.zeros(n_cells, np.int64)
    for k in range(n_cells):
        following[k] = starts[k]
        starts[k + 1] += starts[k]
    firsts = np.empty(starts[n_cells], np.uint32)
    lengths = np.zeros(starts[n_cells], np.uint32)
    for y in range(height):
        before = np.uint32(0)
        for x in range(width):
            label = labels[y, x]
            if label != 0:
                if label != before:
                    firsts[following[label - 1]] = y * width + x
                    following[label - 1] += 1
                lengths[following[label - 1] - 1] += np.uint32(1)
            before = label
    return firsts, lengths, starts
