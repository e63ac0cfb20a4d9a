"""Which candidate cells are kept, and what their holes become.

Cellpose's quality control (cellpose 3.1.1.3 `dynamics.remove_bad_flow_masks` and
`utils.fill_holes_and_remove_small_masks`), decided from each cell alone; `tile` lists what differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.tracing.candidates import Verdict
from densebatch.tracing.diffusion import diffuse_cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.tracing.candidates import Candidates


def check_sizes(cells: Candidates, core: Region, min_size_px: int, max_size_px: int) -> Candidates:
    """Check first whether candidates are near the core, and their size.

    Parameters
    ----------
    cells
        All candidates of a window; their verdicts are not looked at.
    core
        In pixels of the window; who has no pixel, or a bounding box that misses the core, gets the
        verdict `OUTSIDE`.
    min_size_px, max_size_px
        Others with an area outside of these limits are `REJECTED`, the rest is `KEPT`.

    Returns
    -------
    Candidates
        With these verdicts.
    """
    near = (
        (cells.area > 0)
        & (cells.y1 > core.y0)
        & (cells.x1 > core.x0)
        & (cells.y0 < core.y1)
        & (cells.x0 < core.x1)
    )
    fits = (cells.area >= min_size_px) & (cells.area <= max_size_px)
    verdict = np.where(near, np.where(fits, Verdict.KEPT, Verdict.REJECTED), Verdict.OUTSIDE)
    return cells._replace(verdict=verdict.astype(np.int8))


def check_errors(cells: Candidates, errors: NDArray[np.float64], threshold: float) -> Candidates:
    """Reject, of the kept candidates, those whose flow error is above a threshold, or is NaN."""
    passes = errors <= threshold
    rejected = (cells.verdict == Verdict.KEPT) & ~passes
    return cells._replace(verdict=np.where(rejected, np.int8(Verdict.REJECTED), cells.verdict))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure_errors(
    labels: NDArray[np.int32], cells: Candidates, flows: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean squared difference between the network's unit flows and those of the cells' shapes.

    Parameters
    ----------
    labels
        `(h, w)` int32 of all candidates.
    cells
        Their table; those that are kept are measured.
    flows
        `(h, w, 2)` float32: dy, dx in pixels per step.

    Returns
    -------
    ndarray
        `(n,)` float64 per candidate; 0 for those that are not kept.
    """
    errors = np.zeros(cells.area.size, np.float64)
    for index in range(cells.area.size):
        if cells.verdict[index] != Verdict.KEPT:
            continue
        y0, x0, y1, x1 = cells.y0[index], cells.x0[index], cells.y1[index], cells.x1[index]
        inside = labels[y0:y1, x0:x1] == index + 1
        shape_y = np.zeros(inside.shape, np.float32)
        shape_x = np.zeros(inside.shape, np.float32)
        diffuse_cell(inside, shape_y, shape_x)
        total = 0.0
        for y in range(inside.shape[0]):
            for x in range(inside.shape[1]):
                if inside[y, x]:
                    error_y = shape_y[y, x] - flows[y0 + y, x0 + x, 0]
                    error_x = shape_x[y, x] - flows[y0 + y, x0 + x, 1]
                    total += error_y * error_y + error_x * error_x
        errors[index] = total / cells.area[index]
    return errors


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def average_errors(
    labels: NDArray[np.int32], cells: Candidates, errors: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Mean per candidate of errors that are given for all labelled pixels, in raster order."""
    means = np.zeros(cells.area.size, np.float64)
    n = 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x] > 0:
                means[labels[y, x] - 1] += errors[n]
                n += 1
    for index in range(means.size):
        if cells.area[index] > 0:
            means[index] /= cells.area[index]
    return means


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def keep_cells(labels: NDArray[np.int32], cells: Candidates) -> NDArray[np.int32]:
    """Labels of the kept candidates; 0 elsewhere."""
    kept = np.zeros_like(labels)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            if label > 0 and cells.verdict[label - 1] == Verdict.KEPT:
                kept[y, x] = label
    return kept


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def fill_holes(labels: NDArray[np.int32], cells: Candidates) -> NDArray[np.int32]:
    """Labels of the kept candidates, with their holes filled where no kept cell is.

    A hole is a set of pixels that 4-connected steps cannot lead out of the cell's bounding box. Of
    two cells around one hole the first of the table gets it.

    Parameters
    ----------
    labels
        `(h, w)` int32 of all candidates.
    cells
        Their table.

    Returns
    -------
    ndarray
        `(h, w)` int32; 0 elsewhere.
    """
    filled: NDArray[np.int32] = keep_cells(labels, cells)
    for index in range(cells.area.size):
        if cells.verdict[index] != Verdict.KEPT:
            continue
        y0, x0, y1, x1 = cells.y0[index], cells.x0[index], cells.y1[index], cells.x1[index]
        label = index + 1
        if not _has_gaps(labels, label, (y0, x0, y1, x1)):
            continue
        outside = _find_outside(labels, label, (y0, x0, y1, x1))
        for y in range(y0, y1):
            for x in range(x0, x1):
                if not outside[y - y0 + 1, x - x0 + 1] and filled[y, x] == 0:
                    filled[y, x] = label
    return filled


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
def _find_outside(
    labels: NDArray[np.int32], label: int, box: tuple[np.int32, np.int32, np.int32, np.int32]
) -> NDArray[np.bool_]:
    """What 4-connected steps around a cell reach from a corner of its box grown by one pixel."""
    y0, x0, y1, x1 = box
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
            inner = nj > 0 and ni > 0 and nj < h - 1 and ni < w - 1
            if inner and labels[y0 + nj - 1, x0 + ni - 1] == label:
                continue
            outside[nj, ni] = True
            stack[top] = nj * w + ni
            top += 1
    return outside
