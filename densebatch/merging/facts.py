"""Step 1: what is known of a tile's labels, and of those of two tiles in the band they share.

Labels become 1..k first (`number_locally`), in raster order, so that nothing that follows depends
on which ids a segmenter gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

# Columns of `BandFacts.pairs`.
FIRST, SECOND, SHARED, IN_FIRST, IN_SECOND = range(5)


@dataclass(frozen=True)
class TileFacts:
    """Labels 1..k of a tile.

    Attributes
    ----------
    areas
        `(k,)` int64, px.
    boxes
        `(k, 4)` int64: y0, x0, y1, x1, half-open, in pixels of the slide.
    """

    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]


@dataclass(frozen=True)
class BandFacts:
    """Which labels of two tiles share pixels.

    Attributes
    ----------
    first, second
        The tiles, as their layout numbers them.
    pairs
        `(n, 5)` int64, ascending: label of the first tile, label of the second, pixels that they
        share, pixels of each in the band that both tiles see.
    """

    first: int
    second: int
    pairs: NDArray[np.int64]


def number_locally(labels: NDArray[np.integer[Any]]) -> NDArray[np.uint32]:
    """Labels of any whole numbers as 1..k in raster order of their first pixels.

    Parameters
    ----------
    labels
        `(h, w)`, 0 for background; no negative ones.

    Examples
    --------
    >>> number_locally(np.array([[0, 9, 9], [4, 4, 9]]))
    array([[0, 1, 1],
           [2, 2, 1]], dtype=uint32)
    """
    flat = np.ascontiguousarray(labels).ravel()
    if flat.size == 0:
        return np.zeros(labels.shape, np.uint32)
    # Runs of equal pixels are sorted instead of pixels, because they are ten times fewer.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(np.append(starts, flat.size))
    values, seen_at, which = np.unique(flat[starts], return_index=True, return_inverse=True)
    numbers = np.zeros(values.size, np.uint32)
    order = np.argsort(seen_at)
    order = order[values[order] != 0]
    numbers[order] = np.arange(1, order.size + 1, dtype=np.uint32)
    return np.repeat(numbers[which], lengths).reshape(labels.shape)


def measure_tile(labels: NDArray[np.uint32], region: Region) -> TileFacts:
    """Areas and boxes of a tile's labels.

    Parameters
    ----------
    labels
        `(h, w)` uint32 of `number_locally`.
    region
        The tile, in pixels of the slide.
    """
    sums = _measure(labels, int(labels.max(initial=0)))
    boxes = sums[:, 1:] + np.array([region.y0, region.x0, region.y0, region.x0])
    return TileFacts(sums[:, 0].copy(), boxes)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _measure(labels: NDArray[np.uint32], n: int) -> NDArray[np.int64]:
    """Area, y0, x0, y1, x1 of each label."""
    found = np.zeros((n, 5), np.int64)
    found[:, 1:3] = np.iinfo(np.int64).max
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            if labels[y, x]:
                row = found[labels[y, x] - 1]
                row[0] += 1
                row[1] = min(row[1], y)
                row[2] = min(row[2], x)
                row[3] = max(row[3], y + 1)
                row[4] = max(row[4], x + 1)
    return found


def measure_band(
    first: int,
    second: int,
    labels_first: NDArray[np.uint32],
    labels_second: NDArray[np.uint32],
) -> BandFacts:
    """Overlaps of the labels of two tiles.

    Parameters
    ----------
    first, second
        The tiles, as their layout numbers them.
    labels_first, labels_second
        `(h, w)` uint32 of `number_locally`, the part of each that both tiles see.

    Examples
    --------
    >>> a, b = np.array([[1, 1, 0], [2, 2, 2]]), np.array([[5, 5, 5], [0, 0, 7]])
    >>> measure_band(0, 1, a, b).pairs
    array([[1, 5, 2, 2, 3],
           [2, 7, 1, 3, 1]])
    """
    a, b = (np.ascontiguousarray(each).ravel() for each in (labels_first, labels_second))
    in_first, in_second = (np.bincount(each, minlength=1) for each in (a, b))
    step = in_second.size
    both = (a != 0) & (b != 0)
    packed = a[both].astype(np.int64) * step + b[both]
    codes, shared = np.unique(packed, return_counts=True)
    of_first, of_second = np.divmod(codes, step)
    pairs = np.stack([of_first, of_second, shared, in_first[of_first], in_second[of_second]], 1)
    return BandFacts(first, second, pairs.astype(np.int64))
