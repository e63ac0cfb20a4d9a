"""What following the flow means: a plain loop, the reference for the fast one in `follow`.

`follow.follow` gives the same ends to the bit and the travel to within a pixel; the tests compare
the two. Read this module to know what is computed, and `follow` to know why it is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DROPPED = -1
"""In place of an end: the trajectory left the window, or went further than the limit."""

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


class Bounds(NamedTuple):
    """The slide's first and last row and column, in pixels of a window that may be part of it."""

    first_y: int
    first_x: int
    last_y: int
    last_x: int


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _follow_pixel(
    flows: NDArray[np.float32],
    y: int,
    x: int,
    bounds: Bounds,
    iterations: int,
    limit: np.float32,
) -> tuple[int, np.float32]:
    """Where the pixel (y, x) ends, as a linear index or `DROPPED`, and how far it got.

    A position is the start plus a displacement in float32, so that it rounds alike wherever the
    window begins.
    """
    height, width = flows.shape[:2]
    moved_y = moved_x = far = _ZERO
    for _ in range(iterations):
        upper, left = y + int(np.floor(moved_y)), x + int(np.floor(moved_x))
        lower, right = min(upper + 1, bounds.last_y), min(left + 1, bounds.last_x)
        if upper < 0 or left < 0 or lower >= height or right >= width:
            return DROPPED, far
        part_y, part_x = moved_y - np.floor(moved_y), moved_x - np.floor(moved_x)
        rest_y, rest_x = _ONE - part_y, _ONE - part_x
        go = np.zeros(2, np.float32)
        for axis in range(2):
            go[axis] = (
                flows[upper, left, axis] * (rest_y * rest_x)
                + flows[upper, right, axis] * (rest_y * part_x)
            ) + (
                flows[lower, left, axis] * (part_y * rest_x)
                + flows[lower, right, axis] * (part_y * part_x)
            )
        # The slide's borders hold a position; displacements are from the pixel's own place.
        moved_y = min(
            np.float32(bounds.last_y - y), max(np.float32(bounds.first_y - y), moved_y + go[0])
        )
        moved_x = min(
            np.float32(bounds.last_x - x), max(np.float32(bounds.first_x - x), moved_x + go[1])
        )
        far = max(far, max(abs(moved_y), abs(moved_x)))
        if far > limit:
            return DROPPED, far
    end_y, end_x = y + int(np.floor(moved_y)), x + int(np.floor(moved_x))
    if end_y < 0 or end_x < 0 or end_y >= height or end_x >= width:
        return DROPPED, far
    return end_y * width + end_x, far


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def follow_plainly(
    flows: NDArray[np.float32],
    foreground: NDArray[np.bool_],
    bounds: Bounds,
    iterations: int,
    limit: float,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Follow one pixel after the other, for all of its steps.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32, finite: dy, dx in pixels per step.
    foreground
        `(h, w)` bool; the pixels to follow.
    bounds
        Of the slide; positions are clamped to them. A trajectory that needs the flow of a pixel
        outside the window is dropped.
    iterations
        Steps.
    limit
        A pixel that gets further than this from its start, along an axis, is dropped; px.

    Returns
    -------
    ends : `(h, w)` int32
        Linear index in the window, or `DROPPED`; `DROPPED` for background too.
    travel : `(h, w)` float32
        Largest Chebyshev distance from the start at any step, px; 0 for background.
    """
    height, width = foreground.shape
    ends = np.full((height, width), DROPPED, np.int32)
    travel = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            if foreground[y, x]:
                ends[y, x], travel[y, x] = _follow_pixel(
                    flows, y, x, bounds, iterations, np.float32(limit)
                )
    return ends, travel
