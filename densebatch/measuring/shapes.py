"""Shapes of cells, as scikit-image's `regionprops` defines them, from whole numbers.

A cell is all pixels of its label, in however many pieces. What is summed over its pixels are whole
numbers, so that features do not depend on how they were added; only the last step rounds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from densebatch.measuring.kernels import AREA, SUM_X, SUM_Y, X0, X1, Y0, Y1

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.measuring.kernels import Runs

# Columns of `measure_forms`.
YY, XX, XY, STRAIGHT, DIAGONAL, BENT, CONVEX = range(7)
N_FORMS = 7

_DIAGONAL_PX, _BENT_PX = math.sqrt(2), (1 + math.sqrt(2)) / 2


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_outlines(labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """1 where one of the four neighbours of a pixel of a cell is not of that cell."""
    height, width = labels.shape
    outlines = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label != 0 and (
                y == 0
                or x == 0
                or y == height - 1
                or x == width - 1
                or labels[y - 1, x] != label
                or labels[y + 1, x] != label
                or labels[y, x - 1] != label
                or labels[y, x + 1] != label
            ):
                outlines[y, x] = 1
    return outlines


def measure_forms(
    labels: NDArray[np.uint32], boxes: NDArray[np.int64], runs: Runs
) -> NDArray[np.int64]:
    """What shapes are computed from, of labels that are whole within this image.

    Parameters
    ----------
    labels
        `(h, w)` uint32; 0 background, else 1..k. What is beyond is of no label.
    boxes
        `(k, 4)` y0, x0, y1, x1 in this image.
    runs
        Where each label has its pixels.

    Returns
    -------
    ndarray
        `(k, 7)` int64: sums of y², x² and xy from the corner of the box; pixels of the outline by
        the way it takes there (straight, diagonal, bent), which the perimeter counts as Benkrid et
        al. 2000 do, see `skimage.measure.perimeter` with neighborhood 4; pixels of the convex
        hull, see `skimage.morphology.convex_hull_image`.
    """
    forms: NDArray[np.int64] = _measure_forms(
        labels, np.ascontiguousarray(boxes), runs.firsts, runs.lengths, runs.starts
    )
    return forms


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _measure_forms(
    labels: NDArray[np.uint32],
    boxes: NDArray[np.int64],
    firsts: NDArray[np.uint32],
    lengths: NDArray[np.uint32],
    starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    height, width = labels.shape
    n_cells = starts.size - 1
    forms = np.zeros((n_cells, N_FORMS), np.int64)
    outlines = _find_outlines(labels)
    tallest = 0
    for cell in range(n_cells):
        if starts[cell + 1] > starts[cell]:
            tallest = max(tallest, boxes[cell, 2] - boxes[cell, 0])
    hull = np.empty((2, 2, 3 * tallest + 1), np.int64)
    for cell in range(n_cells):
        row = forms[cell]
        y0, x0 = boxes[cell, 0], boxes[cell, 1]
        for run in range(starts[cell], starts[cell + 1]):
            first, length = np.int64(firsts[run]), np.int64(lengths[run])
            y = first // width
            left = first - y * width
            for x in range(left, left + length):
                row[YY] += (y - y0) * (y - y0)
                row[XX] += (x - x0) * (x - x0)
                row[XY] += (y - y0) * (x - x0)
                if not outlines[y, x]:
                    continue
                beside, across = 0, 0
                for near_y in range(y - 1 if y else 0, y + 2 if y + 1 < height else height):
                    for near_x in range(x - 1 if x else 0, x + 2 if x + 1 < width else width):
                        if labels[near_y, near_x] != cell + 1 or not outlines[near_y, near_x]:
                            continue
                        if near_y != y and near_x != x:
                            across += 1
                        elif near_y != y or near_x != x:
                            beside += 1
                _count_outline(row, beside, across)
        if starts[cell + 1] > starts[cell]:
            some = slice(starts[cell], starts[cell + 1])
            row[CONVEX] = _count_convex(firsts[some], lengths[some], width, hull)
    return forms


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_outline(row: NDArray[np.int64], beside: int, across: int) -> None:
    """Count a pixel of an outline by how many of the outline lie beside it and across from it.

    Kinds are those of `skimage.measure.perimeter`, where they are 1 + 2 beside + 10 across; what is
    none of them, such as a single pixel, has no length there.
    """
    if 2 <= beside <= 3 and across <= 2:
        row[STRAIGHT] += 1
    elif (beside == 0 and across == 2) or (beside == 1 and across == 3):
        row[DIAGONAL] += 1
    elif beside == 1 and 1 <= across <= 2:
        row[BENT] += 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_convex(
    firsts: NDArray[np.uint32], lengths: NDArray[np.uint32], width: int, hull: NDArray[np.int64]
) -> np.signedinteger[Any]:
    """Pixels whose centre is in the convex hull of the middles of the edges of a cell's pixels.

    In half pixels all of it is whole numbers. Both sides of the hull are convex functions of y: the
    left one of the first pixels of the rows, the right one of the last ones, mirrored.
    """
    sizes = np.zeros(2, np.int64)
    n = firsts.size
    k = 0
    while k < n:
        y = np.int64(firsts[k]) // width
        first = np.int64(firsts[k]) - y * width
        while k + 1 < n and np.int64(firsts[k + 1]) < (y + 1) * width:
            k += 1
        last = np.int64(firsts[k]) + np.int64(lengths[k]) - 1 - y * width
        k += 1
        for side in range(2):
            x = 2 * first if side == 0 else -2 * last
            for step in range(-1, 2):
                _extend(hull[side], sizes, side, 2 * y + step, x - (step == 0))
    top, bottom = np.int64(firsts[0]) // width, np.int64(firsts[n - 1]) // width
    count = bottom - top + 1
    at = np.zeros(2, np.int64)
    for row in range(top, bottom + 1):
        for side in range(2):
            ys, xs = hull[side]
            while ys[at[side] + 1] < 2 * row:
                at[side] += 1
            k = at[side]
            length = ys[k + 1] - ys[k]
            numerator = xs[k] * length + (xs[k + 1] - xs[k]) * (2 * row - ys[k])
            count += (-numerator) // (2 * length)  # minus the first pixel that is not left of it
    return count


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _extend(hull: NDArray[np.int64], sizes: NDArray[np.int64], side: int, y: int, x: int) -> None:
    """Add a point, further down than all others or as far, to a side of a hull."""
    ys, xs = hull
    n = sizes[side]
    if n and ys[n - 1] == y:
        if xs[n - 1] <= x:
            return
        n -= 1
    # The last point stays if the side bends at it to the right.
    while n > 1 and (xs[n - 1] - xs[n - 2]) * (y - ys[n - 1]) >= (x - xs[n - 1]) * (
        ys[n - 1] - ys[n - 2]
    ):
        n -= 1
    ys[n], xs[n] = y, x
    sizes[side] = n + 1


def describe_shapes(
    shapes: NDArray[np.int64], forms: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Features of shapes, as `skimage.measure.regionprops` gives them for spacing 1.

    Parameters
    ----------
    shapes
        `(n, 7)` as of `kernels.measure_shapes`.
    forms
        `(n, 7)` as of `measure_forms`.

    Returns
    -------
    dict
        By name of the column, `(n,)` float64. Where there is no direction, because a cell is as
        wide in all, `orientation` is -π/4.
    """
    area = np.maximum(shapes[:, AREA], 1)
    y_var, x_var, covariance = _find_moments(shapes, forms, area)
    half_sum, half_difference = (y_var + x_var) / 2, (y_var - x_var) / 2
    root = np.hypot(half_difference, covariance)
    major = half_sum + root
    # The smaller one from the product of both, because the difference would cancel.
    product = np.maximum(y_var * x_var - covariance**2, 0)
    minor = np.divide(product, major, out=np.zeros_like(major), where=major > 0)
    minor = np.minimum(minor, major)
    ratio = np.divide(minor, major, out=np.ones_like(major), where=major > 0)
    turned = 0.5 * np.arctan2(2 * covariance, y_var - x_var)
    diagonal = np.where(covariance > 0, np.pi / 4, -np.pi / 4)
    box = np.maximum((shapes[:, Y1] - shapes[:, Y0]) * (shapes[:, X1] - shapes[:, X0]), 1)
    perimeter = forms[:, STRAIGHT] + forms[:, DIAGONAL] * _DIAGONAL_PX + forms[:, BENT] * _BENT_PX
    return {
        "perimeter_px": perimeter,
        "eccentricity": np.sqrt(1 - ratio),
        "solidity": shapes[:, AREA] / np.maximum(forms[:, CONVEX], 1),
        "orientation": np.where(y_var == x_var, diagonal, turned),
        "major_axis_px": 4 * np.sqrt(major),
        "minor_axis_px": 4 * np.sqrt(minor),
        "extent": shapes[:, AREA] / box,
    }


def _find_moments(
    shapes: NDArray[np.int64], forms: NDArray[np.int64], area: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Variances of y and x and their covariance, over the pixels of each cell.

    Whole numbers are first brought to within half a pixel of the centroid, so that nothing cancels.
    """
    y = shapes[:, SUM_Y] - shapes[:, AREA] * shapes[:, Y0]
    x = shapes[:, SUM_X] - shapes[:, AREA] * shapes[:, X0]
    y_near, x_near = (2 * y + area) // (2 * area), (2 * x + area) // (2 * area)
    y_rest, x_rest = y - area * y_near, x - area * x_near

    def reduce(second: NDArray[np.int64], rest: NDArray[np.int64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = second / area - rest / area * (rest / area)
        return found

    y_var = reduce(forms[:, YY] - 2 * y_near * y + area * y_near**2, y_rest)
    x_var = reduce(forms[:, XX] - 2 * x_near * x + area * x_near**2, x_rest)
    mixed = forms[:, XY] - y_near * x - x_near * y + area * y_near * x_near
    covariance = mixed / area - (y_rest / area) * (x_rest / area)
    return y_var, x_var, covariance
