"""Which of a tile's cells are kept, and what their holes become.

Cellpose's quality control (cellpose 3.1.1.3 `dynamics.remove_bad_flow_masks` and
`utils.fill_holes_and_remove_small_masks`), decided from each cell alone: see `dynamics` for what
differs.

Cells are named by their place in a table `(n, 5)` int32 of area and bounding box (area, y0, x0, y1,
x1; half-open), plus one; a verdict is 1 for a cell that is kept, -1 for one that is rejected, 0 for
one that nobody asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.tracing.diffusion import diffuse_cell

if TYPE_CHECKING:
    from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure_error(
    labels: NDArray[np.int32],
    label: int,
    box: tuple[int, int, int, int],
    flows: NDArray[np.float32],
) -> float:
    """Mean squared difference between the network's unit flows and the shape's own."""
    y0, x0, y1, x1 = box
    inside = labels[y0:y1, x0:x1] == label
    shape_y = np.zeros(inside.shape, np.float32)
    shape_x = np.zeros(inside.shape, np.float32)
    diffuse_cell(inside, shape_y, shape_x)
    total = 0.0
    n = 0
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            if inside[y, x]:
                error_y = shape_y[y, x] - flows[y0 + y, x0 + x, 0]
                error_x = shape_x[y, x] - flows[y0 + y, x0 + x, 1]
                total += error_y * error_y + error_x * error_x
                n += 1
    return total / n


def check_sizes(
    cells: NDArray[np.int32], core: tuple[int, int, int, int], limits: tuple[int, int]
) -> NDArray[np.int8]:
    """Verdict per seed: 0 no pixels or far from the core, 1 of a size to be kept, -1 rejected."""
    area, y0, x0, y1, x1 = cells.T
    near = (area > 0) & (y1 > core[0]) & (x1 > core[1]) & (y0 < core[2]) & (x0 < core[3])
    fits = (area >= limits[0]) & (area <= limits[1])
    return np.where(near, np.where(fits, 1, -1), 0).astype(np.int8)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure_errors(
    labels: NDArray[np.int32],
    cells: NDArray[np.int32],
    verdicts: NDArray[np.int8],
    order: NDArray[np.int64],
    flows: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Flow error per seed, of those with verdict 1; else 0.

    Neighbours find what they need in a cache if `order` is by position.
    """
    errors = np.zeros(cells.shape[0], np.float64)
    for index in order:
        if verdicts[index] == 1:
            _, y0, x0, y1, x1 = cells[index]
            errors[index] = measure_error(labels, index + 1, (y0, x0, y1, x1), flows)
    return errors


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def keep_cells(labels: NDArray[np.int32], verdicts: NDArray[np.int8]) -> NDArray[np.int32]:
    """Labels of those with verdict 1; else 0."""
    kept = np.zeros_like(labels)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label > 0 and verdicts[label - 1] == 1:
                kept[y, x] = label
    return kept


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def average_errors(
    labels: NDArray[np.int32], cells: NDArray[np.int32], errors: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean per seed of errors that are given for all labelled pixels in raster order."""
    means = np.zeros(cells.shape[0], np.float64)
    n = 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0:
                means[labels[y, x] - 1] += errors[n]
                n += 1
    for index in range(cells.shape[0]):
        if cells[index, 0] > 0:
            means[index] /= cells[index, 0]
    return means


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _has_gaps(
    labels: NDArray[np.int32], label: int, box: tuple[np.int32, np.int32, np.int32, np.int32]
) -> bool:
    """Whether some row of a cell is not one run: a pixel of a hole has the cell on both sides."""
    y0, x0, y1, x1 = box
    for y in range(y0, y1):
        runs = 0
        before = False
        for x in range(x0, x1):
            here = labels[y, x] == label
            runs += here and not before
            before = here
        if runs > 1:
            return True
    return False


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def fill_holes(
    labels: NDArray[np.int32],
    cells: NDArray[np.int32],
    verdicts: NDArray[np.int8],
    order: NDArray[np.int64],
    out: NDArray[np.int32],
) -> None:
    """Fill holes of the kept cells, which `out` holds, where no kept cell is.

    A hole is a set of pixels that 4-connected steps cannot lead out of the cell's bounding box.
    `order` is by position; of two cells around one hole the first wins.
    """
    for index in order:
        if verdicts[index] != 1:
            continue
        _, y0, x0, y1, x1 = cells[index]
        label = index + 1
        if not _has_gaps(labels, label, (y0, x0, y1, x1)):
            continue
        h = y1 - y0 + 2
        w = x1 - x0 + 2
        outside = np.zeros((h, w), np.bool_)
        stack = np.empty(h * w, np.int32)
        stack[0] = 0
        outside[0, 0] = True
        top = 1
        while top > 0:
            top -= 1
            at = stack[top]
            j = at // w
            i = at % w
            for side in range(4):
                nj = j + (side == 0) - (side == 1)
                ni = i + (side == 2) - (side == 3)
                if nj < 0 or ni < 0 or nj >= h or ni >= w or outside[nj, ni]:
                    continue
                y = y0 + nj - 1
                x = x0 + ni - 1
                inner = nj > 0 and ni > 0 and nj < h - 1 and ni < w - 1
                if inner and labels[y, x] == label:
                    continue
                outside[nj, ni] = True
                stack[top] = nj * w + ni
                top += 1
        for y in range(y0, y1):
            for x in range(x0, x1):
                if not outside[y - y0 + 1, x - x0 + 1] and out[y, x] == 0:
                    out[y, x] = label
