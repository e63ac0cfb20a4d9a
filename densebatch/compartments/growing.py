"""Cells grown around nuclei: each pixel within a distance goes to the nearest nucleus.

Cells that meet do so halfway, and nothing overlaps. A pixel that is as far from two nuclei goes to
the smaller label, so that what a pixel gets depends on what lies within the distance and on nothing
else: a window that holds so much around has the labels of the whole slide.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def reach_of(distance_px: float) -> int:
    """Pixels along an axis that growing, or a ring, of a distance looks at.

    Examples
    --------
    >>> reach_of(2.5), reach_of(3.0)
    (2, 3)
    """
    return math.floor(distance_px)


@lru_cache(maxsize=4)
def list_offsets(distance_px: float) -> NDArray[np.int64]:
    """`(k, 3)` offsets dy, dx up to a distance and their squared lengths, the nearest first."""
    reach = reach_of(distance_px)
    axis = np.arange(-reach, reach + 1)
    dy, dx = (each.reshape(-1) for each in np.meshgrid(axis, axis, indexing="ij"))
    squared = dy**2 + dx**2
    wanted = (squared > 0) & (squared <= distance_px**2)
    offsets = np.stack([dy, dx, squared], axis=1)[wanted]
    return np.ascontiguousarray(offsets[np.argsort(offsets[:, 2], kind="stable")])


def grow_labels(
    labels: NDArray[np.uint32], free: NDArray[np.bool_], distance_px: float
) -> NDArray[np.uint32]:
    """Let labels grow by a distance over free pixels.

    Parameters
    ----------
    labels
        `(h, w)` uint32, 0 for background.
    free
        `(h, w)` bool: background that may be taken.
    distance_px
        Between the centres of two pixels, up to which a label grows.

    Returns
    -------
    ndarray
        `(h, w)` uint32. Equal to `skimage.segmentation.expand_labels` but for pixels that are as
        far from several labels, and those that are not free.
    """
    grown = labels.copy()
    offsets = list_offsets(distance_px)
    if offsets.size and labels.any():
        from scipy import ndimage

        # Few pixels of glass have a label near, and those that have none would look furthest.
        side = 2 * reach_of(distance_px) + 1
        near = ndimage.maximum_filter(labels > 0, side, mode="constant")
        _grow(labels, near & free & (labels == 0), offsets, grown)
    return grown


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _grow(
    labels: NDArray[np.uint32],
    wanted: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    grown: NDArray[np.uint32],
) -> None:
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            if not wanted[y, x]:
                continue
            best, squared = np.uint32(0), np.int64(-1)
            for k in range(offsets.shape[0]):
                if best and offsets[k, 2] > squared:
                    break
                near_y, near_x = y + offsets[k, 0], x + offsets[k, 1]
                if not (0 <= near_y < height and 0 <= near_x < width):
                    continue
                label = labels[near_y, near_x]
                if label and (best == 0 or label < best):
                    best, squared = label, offsets[k, 2]
            grown[y, x] = best
