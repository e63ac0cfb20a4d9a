"""Where pixels gather: seeds, the pixels that they claim, and which cell each pixel belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


_SEED_COUNT = 10  # a seed has more end points than this
_GROW_COUNT = 2  # a claimed pixel has more end points than this
_REACH = 5  # a claim extends this far from its seed


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def count_ends(ends: NDArray[np.int32], foreground: NDArray[np.bool_]) -> NDArray[np.int32]:
    """How many foreground pixels end at each pixel."""
    height, width = foreground.shape
    counts = np.zeros((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            if foreground[y, x] and ends[y, x] >= 0:
                counts[ends[y, x] // width, ends[y, x] % width] += 1
    return counts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def find_seeds(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Linear indices of 5x5 maxima with enough end points, in raster order."""
    height, width = counts.shape
    found = []
    for y in range(height):
        for x in range(width):
            here = counts[y, x]
            if here <= _SEED_COUNT:
                continue
            largest = True
            for j in range(max(0, y - 2), min(height, y + 3)):
                for i in range(max(0, x - 2), min(width, x + 3)):
                    if counts[j, i] > here:
                        largest = False
                        break
                if not largest:
                    break
            if largest:
                found.append(y * width + x)
    seeds = np.empty(len(found), np.int32)
    for index, seed in enumerate(found):
        seeds[index] = seed
    return seeds


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def claim_pixels(counts: NDArray[np.int32], seeds: NDArray[np.int32]) -> NDArray[np.int32]:
    """Grow each seed over 11x11 pixels; where claims meet, the later seed of the list wins.

    Returns, per pixel, the index of the claiming seed plus one.
    """
    height, width = counts.shape
    claims = np.zeros((height, width), np.int32)
    side = 2 * _REACH + 1
    grown = np.zeros((side, side), np.bool_)
    queue_y = np.empty(side * side, np.int32)
    queue_x = np.empty(side * side, np.int32)
    for index in range(seeds.size):
        sy = seeds[index] // width
        sx = seeds[index] % width
        grown[:] = False
        grown[_REACH, _REACH] = True
        queue_y[0] = _REACH
        queue_x[0] = _REACH
        claims[sy, sx] = index + 1
        tail = 1
        ring_start = 0
        for _ in range(_REACH):
            ring_end = tail
            for q in range(ring_start, ring_end):
                for j in range(queue_y[q] - 1, queue_y[q] + 2):
                    for i in range(queue_x[q] - 1, queue_x[q] + 2):
                        if j < 0 or i < 0 or j >= side or i >= side or grown[j, i]:
                            continue
                        y = sy + j - _REACH
                        x = sx + i - _REACH
                        if y < 0 or x < 0 or y >= height or x >= width:
                            continue
                        if counts[y, x] > _GROW_COUNT:
                            grown[j, i] = True
                            queue_y[tail] = j
                            queue_x[tail] = i
                            tail += 1
                            claims[y, x] = index + 1
            ring_start = ring_end
    return claims


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def assign_pixels(
    ends: NDArray[np.int32], foreground: NDArray[np.bool_], claims: NDArray[np.int32], n_seeds: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Seed index plus one per pixel; and area and bounding box per seed (area, y0, x0, y1, x1)."""
    height, width = foreground.shape
    labels = np.zeros((height, width), np.int32)
    cells = np.zeros((n_seeds, 5), np.int32)
    cells[:, 1] = height
    cells[:, 2] = width
    for y in range(height):
        for x in range(width):
            if not foreground[y, x] or ends[y, x] < 0:
                continue
            label = claims[ends[y, x] // width, ends[y, x] % width]
            if label == 0:
                continue
            labels[y, x] = label
            cell = cells[label - 1]
            cell[0] += 1
            cell[1] = min(cell[1], y)
            cell[2] = min(cell[2], x)
            cell[3] = max(cell[3], y + 1)
            cell[4] = max(cell[4], x + 1)
    return labels, cells
