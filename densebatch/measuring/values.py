"""Intensities of cells: sums, deviations and order statistics of their pixels.

Sums are taken in raster order of a shard, and added in the order of the shards; neither depends on
tiles or workers, so the table of cells is bit-identical too. Values of up to 16 bits, as of most
slides, go another way than others, which is faster and as exact.

A quantile of these is found by trying values; of others it is looked for in buckets of equal width:
how many there are in each tells which has the wanted rank, and only those in it are put in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.measuring.kernels import Runs

_BUCKETS = 256
_BLOCK = 2**20  # values that are counted at once
_PAD = 64  # a multiple of how many any processor takes at once
_BEYOND = 2**30  # larger than any value of 16 bits


def measure_values(
    pixels: NDArray[Any], runs: Runs, fractions: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Intensities of one channel, cell by cell.

    Parameters
    ----------
    pixels
        `(n,)` of one channel, any type but float16, which numba does not have.
    runs
        Where each of the k cells has its pixels.
    fractions
        `(q,)` of the quantiles, ascending, from 0 to 1.

    Returns
    -------
    sums : ndarray
        `(k,)` float64, added in the order of the runs. Of integers exact up to 2^53, beyond any
        cell of 16-bit pixels.
    missing : ndarray
        `(k,)` int64: pixels left out of everything, because they are NaN or infinite.
    deviations : ndarray
        `(k,)` float64: root of the mean squared distance from the mean. Of integers of up to 16
        bits from exact sums, rounded at the end; else in two passes, so that the relative error is
        that of as many float64 additions. NaN without a finite pixel.
    quantiles : ndarray
        `(q, k)` float64: exact order statistics, linear between two of them as `numpy.quantile`;
        NaN without a finite pixel.
    """
    small = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2
    function = _measure_small if small else _measure_any
    found: tuple[
        NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]
    ] = function(pixels, *runs, fractions)
    return found


def count_over(pixels: NDArray[Any], runs: Runs, over: float) -> NDArray[np.int64]:
    """Finite pixels of a channel with a larger value than one, cell by cell.

    Parameters
    ----------
    pixels, runs
        As of `measure_values`.
    over
        The value; pixels are compared with it as float64.

    Returns
    -------
    ndarray
        `(k,)` int64.
    """
    found: NDArray[np.int64] = _count_over(pixels, runs.firsts, runs.lengths, runs.starts, over)
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_over(
    pixels: NDArray[Any],
    firsts: NDArray[np.uint32],
    lengths: NDArray[np.uint32],
    starts: NDArray[np.int64],
    over: float,
) -> NDArray[np.int64]:
    counts = np.zeros(starts.size - 1, np.int64)
    for cell in range(counts.size):
        for run in range(starts[cell], starts[cell + 1]):
            first, length = np.int64(firsts[run]), np.int64(lengths[run])
            row = pixels[first : first + length]
            for k in range(length):
                value = float(row[k])
                counts[cell] += value > over and value < np.inf
    return counts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _measure_small(
    pixels: NDArray[Any],
    firsts: NDArray[np.uint32],
    lengths: NDArray[np.uint32],
    starts: NDArray[np.int64],
    largest: int,
    fractions: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """As `measure_values`, of integers of up to 16 bits, whose squares are summed exactly too."""
    n_cells, n_fractions = starts.size - 1, fractions.size
    sums = np.zeros(n_cells, np.float64)
    missing = np.zeros(n_cells, np.int64)
    deviations = np.full(n_cells, np.nan)
    quantiles = np.full((n_fractions, n_cells), np.nan)
    values = np.empty(largest + _PAD, np.int32)
    for cell in range(n_cells):
        n, total, squares = np.int64(0), np.int64(0), np.int64(0)
        for run in range(starts[cell], starts[cell + 1]):
            first, length = np.int64(firsts[run]), np.int64(lengths[run])
            # Slices are compiled to vector instructions, and indices into the whole are not.
            row, kept = pixels[first : first + length], values[n : n + length]
            for k in range(length):
                kept[k] = row[k]
            n += length
        if n == 0:
            continue
        least = greatest = values[0]
        for k in range(n):
            value = values[k]
            total += value
            squares += np.int64(value) * np.int64(value)
            least = min(least, value)
            greatest = max(greatest, value)
        sums[cell] = total
        # From a whole number within half a unit of the mean, so that nothing cancels.
        near = (2 * total + n) // (2 * n)
        rest = (total - n * near) / n
        deviations[cell] = np.sqrt((squares - 2 * near * total + n * near * near) / n - rest * rest)
        if n_fractions == 0:
            continue
        # What is over at the end of a vector's width costs as much as all before it.
        padded = (n + _PAD - 1) // _PAD * _PAD
        values[n:padded] = _BEYOND
        found = least
        for q in range(n_fractions):
            place = fractions[q] * (n - 1)
            rank = int(np.floor(place))
            found = _find_ranked(values[:padded], rank, found, greatest)
            following = found
            if place > rank:
                following = _find_next(values[:padded], rank, found)
            quantiles[q, cell] = _interpolate(float(found), float(following), place - rank)
    return sums, missing, deviations, quantiles


# Adding whole numbers below 2^24 rounds nothing, in whatever order the processor does it.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc"})  # type: ignore[untyped-decorator]
def _count_below(values: NDArray[np.int32], limit: np.int32) -> int:
    """How many values are no larger than a limit; in float32, of which vectors hold most."""
    below = 0
    for first in range(0, values.size, _BLOCK):
        some = values[first : first + _BLOCK]
        counted = np.float32(0)
        for k in range(some.size):
            counted += np.float32(1) if some[k] <= limit else np.float32(0)
        below += int(counted)
    return below


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_ranked(
    values: NDArray[np.int32], rank: int, least: np.int32, greatest: np.int32
) -> np.int32:
    """The value of a rank, which lies between two: their middle is tried again and again.

    The processor compares many values at once, so that this takes less time than any sorting.
    """
    while least < greatest:
        middle = np.int32((least + greatest) >> 1)
        if _count_below(values, middle) > rank:
            greatest = middle
        else:
            least = np.int32(middle + 1)
    return least


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_next(values: NDArray[np.int32], rank: int, found: np.int32) -> np.int32:
    """The value of the rank after one whose value is found."""
    if _count_below(values, found) > rank + 1:
        return found
    above = np.int32(_BEYOND)
    for k in range(values.size):
        above = min(above, values[k] if values[k] > found else np.int32(_BEYOND))
    return above


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _measure_any(
    pixels: NDArray[Any],
    firsts: NDArray[np.uint32],
    lengths: NDArray[np.uint32],
    starts: NDArray[np.int64],
    largest: int,
    fractions: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """As `measure_values`, of any numbers, taken as float64."""
    n_cells, n_fractions = starts.size - 1, fractions.size
    sums = np.zeros(n_cells, np.float64)
    missing = np.zeros(n_cells, np.int64)
    deviations = np.full(n_cells, np.nan)
    quantiles = np.full((n_fractions, n_cells), np.nan)
    values, scratch = np.empty(largest), np.empty(largest)
    counts = np.empty(_BUCKETS + 1, np.int64)
    for cell in range(n_cells):
        n, total = 0, 0.0
        least, greatest = np.inf, -np.inf
        for run in range(starts[cell], starts[cell + 1]):
            first, length = np.int64(firsts[run]), np.int64(lengths[run])
            row = pixels[first : first + length]
            for k in range(length):
                value = float(row[k])
                if np.isfinite(value):
                    values[n] = value
                    n += 1
                    total += value
                    least = min(least, value)
                    greatest = max(greatest, value)
                else:
                    missing[cell] += 1
        sums[cell] = total
        if n == 0:
            continue
        mean, squares = total / n, 0.0
        for k in range(n):
            distance = values[k] - mean
            squares += distance * distance
        deviations[cell] = np.sqrt(squares / n)
        if n_fractions == 0:
            continue
        # All are in the first bucket if they are few, equal, or too far apart for a float.
        width = greatest - least
        scale = (_BUCKETS - 1) / width if n >= _BUCKETS // 2 and 0 < width < np.inf else 0.0
        if scale == np.inf:
            scale = 0.0
        counts[:] = 0
        for k in range(n):
            counts[int((values[k] - least) * scale) + 1 if scale else 1] += 1
        _accumulate(counts)
        for q in range(n_fractions):
            place = fractions[q] * (n - 1)
            rank = int(np.floor(place))
            bucket = _find_bucket(counts, rank)
            m = 0
            for k in range(n):
                scratch[m] = values[k]
                m += not scale or int((values[k] - least) * scale) == bucket
            _select(scratch, 0, m - 1, rank - counts[bucket])
            low = high = scratch[rank - counts[bucket]]
            if counts[bucket + 1] > rank + 1:
                high = _find_least(scratch, rank - counts[bucket] + 1, m)
            elif place > rank:
                high = np.inf
                following = _find_bucket(counts, rank + 1)
                for k in range(n):
                    if int((values[k] - least) * scale) == following:
                        high = min(high, values[k])
            quantiles[q, cell] = _interpolate(low, high, place - rank)
    return sums, missing, deviations, quantiles


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _accumulate(counts: NDArray[np.int64]) -> None:
    """Turn how many values each bucket has, one place further on, into how many lie before it."""
    for k in range(counts.size - 1):
        counts[k + 1] += counts[k]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_bucket(counts: NDArray[np.int64], rank: int) -> int:
    """The bucket that has the value of a rank, by how many lie before each."""
    first, last = 0, counts.size - 2
    while first < last:
        middle = (first + last) // 2
        if counts[middle + 1] > rank:
            last = middle
        else:
            first = middle + 1
    return first


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_least(values: NDArray[Any], first: int, stop: int) -> Any:  # noqa: ANN401
    found = values[first]
    for k in range(first + 1, stop):
        found = min(found, values[k])
    return found


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _interpolate(low: float, high: float, share: float) -> float:
    """Between two values, exact at both, as `numpy.quantile` has it."""
    if share == 0:
        return low
    if share < 0.5:
        return low + (high - low) * share
    return high - (high - low) * (1 - share)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _select(values: NDArray[Any], first: int, last: int, rank: int) -> None:
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
