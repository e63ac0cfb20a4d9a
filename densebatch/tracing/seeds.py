"""Where pixels gather: seeds, what they claim, and the candidate cell that each pixel belongs to.

A sink of the flow shows as a peak in the histogram of end points. The peaks are seeds; each claims
the well-filled pixels around it, because the end points of one cell spread over a few pixels; and a
pixel belongs to the seed that claimed the place where it ended. `gather_cells` takes these steps,
which are the functions below, in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.tracing.candidates import Candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED_COUNT = 10
"""A seed has more end points than this."""
GROW_COUNT = 2
"""A claimed pixel has more end points than this."""

PEAK_REACH = 2
"""A seed is the largest of the 5x5 pixels around it."""
CLAIM_REACH = 5
"""A claim extends over at most 11x11 pixels around its seed."""


def gather_cells(ends: NDArray[np.int32]) -> tuple[NDArray[np.int32], Candidates]:
    """Candidate cells, from where pixels end.

    Parameters
    ----------
    ends
        `(h, w)` int32: linear index of each pixel's end in the window, negative for pixels that
        have none.

    Returns
    -------
    labels : `(h, w)` int32
        Row in the table plus one; 0 for pixels that belong to no candidate.
    cells : Candidates
        All with the verdict `OUTSIDE`: they have not been checked yet.
    """
    counts = count_ends(ends)
    seeds = find_seeds(counts)
    claims = claim_pixels(counts, seeds, rank_seeds(counts, seeds))
    gathered: tuple[NDArray[np.int32], Candidates] = assign_pixels(ends, claims, seeds)
    return gathered


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def count_ends(ends: NDArray[np.int32]) -> NDArray[np.int32]:
    """How many pixels end at each pixel."""
    height, width = ends.shape
    counts = np.zeros((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            if ends[y, x] >= 0:
                counts[ends[y, x] // width, ends[y, x] % width] += 1
    return counts


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def find_seeds(counts: NDArray[np.int32]) -> NDArray[np.int32]:
    """Linear indices of 5x5 maxima with more than `SEED_COUNT` end points, in raster order.

    Of equal neighbours each is a maximum.
    """
    height, width = counts.shape
    found = []
    for y in range(height):
        for x in range(width):
            here = counts[y, x]
            if here <= SEED_COUNT:
                continue
            largest = True
            for j in range(max(0, y - PEAK_REACH), min(height, y + PEAK_REACH + 1)):
                for i in range(max(0, x - PEAK_REACH), min(width, x + PEAK_REACH + 1)):
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


def rank_seeds(counts: NDArray[np.int32], seeds: NDArray[np.int32]) -> NDArray[np.int64]:
    """Indices of seeds from the weakest to the strongest; of equal ones the first comes last."""
    ranking: NDArray[np.int64] = np.lexsort((-seeds, counts.reshape(-1)[seeds]))
    return ranking


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def claim_pixels(
    counts: NDArray[np.int32], seeds: NDArray[np.int32], ranking: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Grow each seed over pixels with more than `GROW_COUNT` end points.

    A seed grows in five steps to the 8 neighbours, over pixels that other seeds may have claimed:
    where claims meet, the later of the ranking wins.

    Returns, per pixel, the index of the claiming seed plus one; 0 where nobody claims.
    """
    height, width = counts.shape
    claims = np.zeros((height, width), np.int32)
    side = 2 * CLAIM_REACH + 1
    grown = np.zeros((side, side), np.bool_)
    queue_y = np.empty(side * side, np.int32)
    queue_x = np.empty(side * side, np.int32)
    for index in ranking:
        seed_y = seeds[index] // width
        seed_x = seeds[index] % width
        grown[:] = False
        grown[CLAIM_REACH, CLAIM_REACH] = True
        queue_y[0] = CLAIM_REACH
        queue_x[0] = CLAIM_REACH
        claims[seed_y, seed_x] = index + 1
        tail = 1
        ring_start = 0
        for _ in range(CLAIM_REACH):
            ring_end = tail
            for q in range(ring_start, ring_end):
                for j in range(queue_y[q] - 1, queue_y[q] + 2):
                    for i in range(queue_x[q] - 1, queue_x[q] + 2):
                        if j < 0 or i < 0 or j >= side or i >= side or grown[j, i]:
                            continue
                        y = seed_y + j - CLAIM_REACH
                        x = seed_x + i - CLAIM_REACH
                        if y < 0 or x < 0 or y >= height or x >= width:
                            continue
                        if counts[y, x] > GROW_COUNT:
                            grown[j, i] = True
                            queue_y[tail] = j
                            queue_x[tail] = i
                            tail += 1
                            claims[y, x] = index + 1
            ring_start = ring_end
    return claims


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def assign_pixels(
    ends: NDArray[np.int32], claims: NDArray[np.int32], seeds: NDArray[np.int32]
) -> tuple[NDArray[np.int32], Candidates]:
    """Give each pixel to the seed that claimed its end; returns as `gather_cells`."""
    height, width = ends.shape
    labels = np.zeros((height, width), np.int32)
    n = seeds.size
    cells = Candidates(
        (seeds // width).astype(np.int32),
        (seeds % width).astype(np.int32),
        np.zeros(n, np.int32),
        np.full(n, height, np.int32),
        np.full(n, width, np.int32),
        np.zeros(n, np.int32),
        np.zeros(n, np.int32),
        np.zeros(n, np.int8),
    )
    for y in range(height):
        for x in range(width):
            if ends[y, x] < 0:
                continue
            label = claims[ends[y, x] // width, ends[y, x] % width]
            if label == 0:
                continue
            labels[y, x] = label
            index = label - 1
            cells.area[index] += 1
            cells.y0[index] = min(cells.y0[index], y)
            cells.x0[index] = min(cells.x0[index], x)
            cells.y1[index] = max(cells.y1[index], y + 1)
            cells.x1[index] = max(cells.x1[index], x + 1)
    return labels, cells
