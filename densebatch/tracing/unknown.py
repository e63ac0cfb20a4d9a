"""Which cells can be told where the flow is unknown in places, and which cannot.

A patch whose pixels cannot be read leaves a hole in the flow field. What is outside of the hole
must have the labels that it would have without it, or be marked as missing: nothing in between.
So this module bounds what the unknown flows could do:

- A pixel of known flow is *lost* if its trajectory comes to need an unknown flow.
- An unknown trajectory, be it of a pixel in the hole or of a lost one, may end in the hole, beside
  it, or wherever the known flow leads from there. So the known flow is followed from everywhere
  beside the hole, in steps of a quarter of a pixel; the ways, a pixel wider, are all places where
  such a trajectory is taken to end (`spread`). They stay in the cells that the hole cuts.
- Only there can more pixels end than are known to. A seed that is there or within reach of a peak,
  whose claim meets a claim that could be there, and all pixels that end in such a claim, are in
  doubt (`find_missing`). All others are exact: they are counted, claimed, and judged by pixels of
  which every one is known.

Two things are taken for granted: an unknown flow is no faster than `STEP_PX` (networks are trained
to flows of one pixel a step), so that a trajectory cannot leap out of the hole over known ground;
and what runs between two of the ways that are followed ends where one of them passes. A bound for
all trajectories (the image of a square lies in the hull of the images of its corners) does without
the second, but takes the line between two cells, along which nothing real runs, for a road to all
others: a hole of 80 px cost twice as much. Of 5000 random holes in simulated tissue with up to
heavy noise none had a wrong pixel outside of what was marked.

How far the known flow leads from beside the hole is reported like the travel of a pixel, for a
halo must hold it: `tile` says how a window's halo follows from that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np
from scipy import ndimage

from densebatch.tracing.follow_plain import DROPPED
from densebatch.tracing.seeds import (
    CLAIM_REACH,
    GROW_COUNT,
    PEAK_REACH,
    SEED_COUNT,
    count_ends,
    gather_cells,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.tracing.candidates import Candidates
    from densebatch.tracing.follow_plain import Bounds
    from densebatch.tracing.foreground import Unknown

STEP_PX = 2
"""No unknown flow is taken to be faster than this, px per step along an axis."""

_PARTS = 4  # of a pixel: the known flow is followed from so many places along each axis


class Doubt(NamedTuple):
    """What depends on unknown flows.

    Attributes
    ----------
    missing : `(h, w)` bool; pixels that may belong to another cell than theirs, or to some cell
        where they have none
    cells : `(n,)` bool; per candidate
    furthest : `(h, w)` float32; as of `spread`
    """

    missing: NDArray[np.bool_]
    cells: NDArray[np.bool_]
    furthest: NDArray[np.float32]


def gather_known_cells(
    flows: NDArray[np.float32],
    unknown: Unknown,
    foreground: NDArray[np.bool_],
    ends: NDArray[np.int32],
    travel: NDArray[np.float32],
    bounds: Bounds,
    iterations: int,
) -> tuple[NDArray[np.int32], Candidates, Doubt]:
    """Candidate cells of a window, as `seeds.gather_cells` finds them, and which are in doubt.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32: dy, dx in pixels per step; 0 where it is unknown.
    unknown
        Where that is.
    foreground
        `(h, w)` bool; nowhere unknown.
    ends, travel
        As `follow.follow` gives them for these. Changed in place: a lost pixel has no end.
    bounds
        Of the slide, in pixels of the window.
    iterations
        Steps.
    """
    lost = find_lost(flows, unknown.pixels, foreground, travel, bounds, iterations)
    ends[lost] = DROPPED
    labels, cells = gather_cells(ends)
    possible, furthest = find_possible(flows, unknown, bounds, iterations)
    missing, doubtful = find_missing(unknown.pixels | lost, possible, ends, labels, cells)
    return labels, cells, Doubt(missing, doubtful, furthest)


def find_lost(
    flows: NDArray[np.float32],
    unknown: NDArray[np.bool_],
    foreground: NDArray[np.bool_],
    travel: NDArray[np.float32],
    bounds: Bounds,
    iterations: int,
) -> NDArray[np.bool_]:
    """Find the foreground pixels whose trajectories come to need an unknown flow.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32: dy, dx in pixels per step; 0 where it is unknown.
    unknown
        `(h, w)` bool.
    foreground
        `(h, w)` bool; nowhere unknown.
    travel
        `(h, w)` float32: how far each pixel got as if flows were 0 where they are unknown. Until a
        trajectory needs one of these it is the true one, so it has needed none if the hole is
        further away than it got.
    bounds
        Of the slide, in pixels of the window.
    iterations
        Steps.
    """
    distance = ndimage.distance_transform_cdt(~unknown, "chessboard")
    near = foreground & (distance <= travel + 2)
    lost: NDArray[np.bool_] = _follow_near(flows, unknown, near, travel, bounds, iterations)
    return lost


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _step(
    flows: NDArray[np.float32],
    start_y: int,
    start_x: int,
    moved_y: np.float32,
    moved_x: np.float32,
    bounds: Bounds,
) -> tuple[np.float32, np.float32]:
    """One step as `follow_plain` takes it; the corners must be in the window."""
    one = np.float32(1.0)
    part_y, part_x = moved_y - np.floor(moved_y), moved_x - np.floor(moved_x)
    rest_y, rest_x = one - part_y, one - part_x
    upper, left = start_y + int(np.floor(moved_y)), start_x + int(np.floor(moved_x))
    lower, right = min(upper + 1, bounds.last_y), min(left + 1, bounds.last_x)
    go_y = (
        flows[upper, left, 0] * (rest_y * rest_x) + flows[upper, right, 0] * (rest_y * part_x)
    ) + (flows[lower, left, 0] * (part_y * rest_x) + flows[lower, right, 0] * (part_y * part_x))
    go_x = (
        flows[upper, left, 1] * (rest_y * rest_x) + flows[upper, right, 1] * (rest_y * part_x)
    ) + (flows[lower, left, 1] * (part_y * rest_x) + flows[lower, right, 1] * (part_y * part_x))
    lowest_y, lowest_x = np.float32(bounds.first_y - start_y), np.float32(bounds.first_x - start_x)
    highest_y, highest_x = np.float32(bounds.last_y - start_y), np.float32(bounds.last_x - start_x)
    return (
        min(highest_y, max(lowest_y, moved_y + go_y)),
        min(highest_x, max(lowest_x, moved_x + go_x)),
    )


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _follow_near(
    flows: NDArray[np.float32],
    unknown: NDArray[np.bool_],
    near: NDArray[np.bool_],
    travel: NDArray[np.float32],
    bounds: Bounds,
    iterations: int,
) -> NDArray[np.bool_]:
    """Follow some pixels as `follow_plain` does, until they need an unknown flow, or never do."""
    height, width = near.shape
    lost = np.zeros((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            if not near[y, x]:
                continue
            moved_y = moved_x = np.float32(0.0)
            for _ in range(iterations):
                upper, left = y + int(np.floor(moved_y)), x + int(np.floor(moved_x))
                lower, right = min(upper + 1, bounds.last_y), min(left + 1, bounds.last_x)
                if upper < 0 or left < 0 or lower >= height or right >= width:
                    break  # the fast loop has dropped it too
                below, beyond = moved_y > np.floor(moved_y), moved_x > np.floor(moved_x)
                if (
                    unknown[upper, left]
                    or (beyond and unknown[upper, right])
                    or (below and unknown[lower, left])
                    or (below and beyond and unknown[lower, right])
                ):
                    lost[y, x] = True
                    break
                was_y, was_x = moved_y, moved_x
                moved_y, moved_x = _step(flows, y, x, moved_y, moved_x, bounds)
                if moved_y == was_y and moved_x == was_x:
                    break
                if max(abs(moved_y), abs(moved_x)) > travel[y, x] + 1:
                    break  # beyond the limit, where the fast loop stopped
    return lost


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def mark_squares(unknown: NDArray[np.bool_], bounds: Bounds) -> NDArray[np.bool_]:
    """The squares of four pixels of which one is unknown, by their upper left pixels.

    Parameters
    ----------
    unknown
        `(h, w)` bool.
    bounds
        Of the slide, in pixels of the window. On its last row and column squares are flat.
    """
    height, width = unknown.shape
    squares = np.zeros((height, width), np.bool_)
    for y in range(height):
        lower = min(y + 1, bounds.last_y, height - 1)
        for x in range(width):
            right = min(x + 1, bounds.last_x, width - 1)
            squares[y, x] = (
                unknown[y, x] or unknown[y, right] or unknown[lower, x] or unknown[lower, right]
            )
    return squares


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def spread(
    flows: NDArray[np.float32],
    hole: NDArray[np.bool_],
    beside: NDArray[np.bool_],
    bounds: Bounds,
    iterations: int,
    limit: int,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Follow the known flow from everywhere beside a hole.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32: dy, dx in pixels per step.
    hole, beside
        `(h, w)` bool, squares by their upper left pixels: those with an unknown flow, and those
        where a trajectory may come out.
    bounds
        Of the slide, in pixels of the window.
    iterations
        Steps.
    limit
        A place further than this from where it is reached from is left out, px.

    Returns
    -------
    reached : `(h, w)` bool
        Squares on the ways, those beside the hole included.
    furthest : `(h, w)` float32
        For each square beside the hole how far the known flow leads from it, px; more than `limit`
        if a place was left out.
    """
    height, width = hole.shape
    reached = np.zeros((height, width), np.bool_)
    furthest = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            if not beside[y, x] or hole[y, x]:
                continue
            reached[y, x] = True
            for part in range(_PARTS * _PARTS):
                first_y = moved_y = np.float32(part // _PARTS) / np.float32(_PARTS)
                first_x = moved_x = np.float32(part % _PARTS) / np.float32(_PARTS)
                for _ in range(iterations):
                    upper, left = y + int(np.floor(moved_y)), x + int(np.floor(moved_x))
                    lower, right = min(upper + 1, bounds.last_y), min(left + 1, bounds.last_x)
                    if upper < 0 or left < 0 or lower >= height or right >= width:
                        break  # too far away to matter
                    if hole[upper, left]:
                        break  # what comes out again is followed from there
                    reached[upper, left] = True
                    was_y, was_x = moved_y, moved_x
                    moved_y, moved_x = _step(flows, y, x, moved_y, moved_x, bounds)
                    if moved_y == was_y and moved_x == was_x:
                        break
                    far = max(abs(moved_y - first_y), abs(moved_x - first_x))
                    furthest[y, x] = max(furthest[y, x], far)
                    if far > limit:
                        break
    return reached, furthest


def find_possible(
    flows: NDArray[np.float32], unknown: Unknown, bounds: Bounds, iterations: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Find where unknown trajectories may end.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32: dy, dx in pixels per step; 0 where it is unknown.
    unknown
        Where that is.
    bounds
        Of the slide, in pixels of the window.
    iterations
        Steps.

    Returns
    -------
    possible : `(h, w)` bool
    furthest : `(h, w)` float32
        As of `spread`.
    """
    hole = mark_squares(unknown.pixels, bounds)
    beside = ndimage.maximum_filter(hole, 2 * STEP_PX + 1, mode="constant")
    reached, furthest = spread(flows, hole, beside, bounds, iterations, unknown.reach_px)
    # A pixel around the ways, for what runs between two of them.
    return hole | ndimage.maximum_filter(reached, 3, mode="constant"), furthest


def find_missing(
    without_end: NDArray[np.bool_],
    possible: NDArray[np.bool_],
    ends: NDArray[np.int32],
    labels: NDArray[np.int32],
    cells: Candidates,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the pixels whose cells are in doubt, and the candidates that are.

    Parameters
    ----------
    without_end
        `(h, w)` bool: pixels without a flow, and those that come to need one.
    possible
        `(h, w)` bool: where unknown trajectories may end.
    ends
        `(h, w)` int32 of the known ones, as `follow.follow` gives them; `DROPPED` for lost ones.
    labels, cells
        As `seeds.gather_cells` makes them of these.

    Returns
    -------
    missing : `(h, w)` bool
        Pixels that may belong to another cell than to theirs, or to one where they have none.
    doubtful : `(n,)` bool
        Per candidate.
    """
    counts = count_ends(ends)
    around = ndimage.maximum_filter(possible, 2 * PEAK_REACH + 1, mode="constant")
    # One more end may make a peak, or unmake one beside it.
    sources = possible | (around & (counts > SEED_COUNT))
    # A claim from there covers the pixels of the first steps; who claims one of these is in doubt.
    steps = _count_steps(counts, sources, 2 * CLAIM_REACH)
    doubtful = steps[cells.seed_y, cells.seed_x] <= 2 * CLAIM_REACH
    missing: NDArray[np.bool_] = _mark_missing(
        without_end, ends, labels, steps <= CLAIM_REACH, doubtful
    )
    return missing, doubtful


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_steps(
    counts: NDArray[np.int32], sources: NDArray[np.bool_], most: int
) -> NDArray[np.int32]:
    """Steps to 8 neighbours, over well-filled pixels, from the nearest source; else `most + 1`."""
    height, width = counts.shape
    steps = np.full((height, width), most + 1, np.int32)
    queue = np.empty(height * width, np.int64)
    tail = 0
    for y in range(height):
        for x in range(width):
            if sources[y, x]:
                steps[y, x] = 0
                queue[tail] = y * width + x
                tail += 1
    head = 0
    while head < tail:
        y = queue[head] // width
        x = queue[head] % width
        head += 1
        if steps[y, x] == most:
            continue
        for j in range(max(0, y - 1), min(height, y + 2)):
            for i in range(max(0, x - 1), min(width, x + 2)):
                if steps[j, i] == most + 1 and counts[j, i] > GROW_COUNT:
                    steps[j, i] = steps[y, x] + 1
                    queue[tail] = j * width + i
                    tail += 1
    return steps


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark_missing(
    without_end: NDArray[np.bool_],
    ends: NDArray[np.int32],
    labels: NDArray[np.int32],
    claimable: NDArray[np.bool_],
    doubtful: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Pixels without an end, or with one in a doubtful claim, or of a doubtful candidate."""
    height, width = ends.shape
    missing = without_end.copy()
    for y in range(height):
        for x in range(width):
            end = ends[y, x]
            claimed = end != DROPPED and claimable[end // width, end % width]
            doubted = labels[y, x] > 0 and doubtful[labels[y, x] - 1]
            missing[y, x] = missing[y, x] or claimed or doubted
    return missing
