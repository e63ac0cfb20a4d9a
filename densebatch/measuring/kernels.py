"""Loops over the pixels of labels: where each cell has its pixels, and sums over them.

Sums of intensities are taken in raster order of a shard, and added in the order of the shards;
neither depends on tiles or workers, so the table of cells is bit-identical too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Columns of `measure_shapes`.
AREA, SUM_Y, SUM_X, Y0, X0, Y1, X1 = range(7)
N_SHAPES = 7

_BUCKETS = 256  # that a cell's values are sorted into before one is looked for


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
def group_pixels(
    labels: NDArray[np.uint32], areas: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Where each label has its pixels.

    Parameters
    ----------
    labels
        `(h, w)` uint32 of fewer than 2^32 px; 0 background, else 1..k.
    areas
        `(k,)` pixels of each label.

    Returns
    -------
    places : ndarray
        `(areas.sum(),)` uint32: linear indices into `labels`, those of label 1 first, each label's
        in raster order.
    starts : ndarray
        `(k + 1,)` int64: label i has the places from `starts[i - 1]` to `starts[i]`.
    """
    starts = np.zeros(areas.size + 1, np.int64)
    starts[1:] = np.cumsum(areas)
    places = np.empty(starts[-1], np.uint32)
    following = starts[:-1].copy()
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label != 0:
                places[following[label - 1]] = y * width + x
                following[label - 1] += 1
    return places, starts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def measure_values(
    pixels: NDArray[np.generic],
    places: NDArray[np.uint32],
    starts: NDArray[np.int64],
    fractions: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Intensities of one channel, cell by cell.

    Parameters
    ----------
    pixels
        `(n,)` of one channel, any type but float16, which numba does not have.
    places, starts
        Of the pixels of each of the k cells, as of `group_pixels`.
    fractions
        `(q,)` of the quantiles, ascending, from 0 to 1.

    Returns
    -------
    sums : ndarray
        `(k,)` float64, added in the order of the places. Of integers exact up to 2^53, beyond any
        cell of 16-bit pixels.
    missing : ndarray
        `(k,)` int64: pixels left out of everything, because they are NaN or infinite.
    deviations : ndarray
        `(k,)` float64: root of the mean squared distance from the mean, in two passes, so that its
        relative error is that of as many float64 additions; NaN without a finite pixel.
    quantiles : ndarray
        `(q, k)` float64: exact order statistics, linear between two of them as `numpy.quantile`;
        NaN without a finite pixel.
    """
    n_cells, n_fractions = starts.size - 1, fractions.size
    sums = np.zeros(n_cells, np.float64)
    missing = np.zeros(n_cells, np.int64)
    deviations = np.full(n_cells, np.nan)
    quantiles = np.full((n_fractions, n_cells), np.nan)
    largest = 0
    for cell in range(n_cells):
        largest = max(largest, starts[cell + 1] - starts[cell])
    values, scratch = np.empty(largest), np.empty(largest)
    counts = np.empty(_BUCKETS + 1, np.int64)
    for cell in range(n_cells):
        n, total = 0, 0.0
        least, greatest = np.inf, -np.inf
        for k in range(starts[cell], starts[cell + 1]):
            value = np.float64(pixels[places[k]])
            if np.isfinite(value):
                values[n] = value
                n += 1
                total += value
                least = min(least, value)
                greatest = max(greatest, value)
        sums[cell] = total
        missing[cell] = starts[cell + 1] - starts[cell] - n
        if n == 0:
            continue
        mean, squares = total / n, 0.0
        for k in range(n):
            distance = values[k] - mean
            squares += distance * distance
        deviations[cell] = np.sqrt(squares / n)
        if n_fractions:
            scale = _fill_buckets(values[:n], least, greatest, counts)
        for q in range(n_fractions):
            place = fractions[q] * (n - 1)
            rank = int(np.floor(place))
            low = _find_ranked(values[:n], rank, least, scale, counts, scratch)
            share = place - rank
            quantiles[q, cell] = low
            if share > 0:
                high = _find_ranked(values[:n], rank + 1, least, scale, counts, scratch)
                # As `numpy.quantile` has it, which is exact at both ends.
                if share < 0.5:
                    quantiles[q, cell] = low + (high - low) * share
                else:
                    quantiles[q, cell] = high - (high - low) * (1 - share)
    return sums, missing, deviations, quantiles


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fill_buckets(
    values: NDArray[np.float64], least: float, greatest: float, counts: NDArray[np.int64]
) -> float:
    """Count values by buckets of equal width, as the numbers of values below each bucket.

    Returns
    -------
    float
        Buckets per unit. 0 if all values are in the first one, because they are few, or equal, or
        too far from each other for a float.
    """
    counts[:] = 0
    scale = (_BUCKETS - 1) / (greatest - least) if greatest > least else 0.0
    if values.size < _BUCKETS // 2 or not np.isfinite(scale) or np.isinf(greatest - least):
        scale = 0.0
    if scale == 0:
        counts[1:] = values.size
        return scale
    for value in values:
        counts[int((value - least) * scale) + 1] += 1
    for k in range(_BUCKETS):
        counts[k + 1] += counts[k]
    return scale


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_ranked(
    values: NDArray[np.float64],
    rank: int,
    least: float,
    scale: float,
    counts: NDArray[np.int64],
    scratch: NDArray[np.float64],
) -> float:
    """The value of a rank, which is looked for in its bucket alone."""
    bucket = np.searchsorted(counts, rank, side="right") - 1
    if scale == 0:
        n = values.size
        scratch[:n] = values
    else:
        n = 0
        for value in values:
            scratch[n] = value
            n += int((value - least) * scale) == bucket
    _select(scratch, 0, n - 1, rank - counts[bucket])
    found: float = scratch[rank - counts[bucket]]
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _select(values: NDArray[np.float64], first: int, last: int, rank: int) -> None:
    """Bring the value of a rank to its place, smaller ones before it and larger ones behind.

    Hoare's selection, with the median of three as pivot: the ends and, because an order of values
    may be unkind to any place between them, another place in each round.
    """
    step = 0
    while first < last:
        step += 7919
        a, b, c = values[first], values[first + step % (last - first + 1)], values[last]
        pivot = max(min(a, b), min(max(a, b), c))
        low, high = first, last
        while low <= high:
            while values[low] < pivot:
                low += 1
            while values[high] > pivot:
                high -= 1
            if low <= high:
                values[low], values[high] = values[high], values[low]
                low += 1
                high -= 1
        if rank <= high:
            last = high
        elif rank >= low:
            first = low
        else:
            return
