"""Follow the flow from every foreground pixel: bilinear steps of Euler's method, many at once.

This is where tracing spends its time, so pixels advance in blocks, step by step together: places
and weights are then computed by vector instructions, the four flows that a position lies between
are gathered as eight bytes each, and pixels that have arrived leave the block every few steps. The
operations on each pixel, and their order, are those of a plain loop over one pixel after the other
(`tests/test_following.py` has it), and so is every bit of the result.

A trajectory is deterministic in its position, so where it stays once it stays, and once it repeats
a position it cycles: the remaining steps are taken modulo the cycle's length (Brent's method), with
the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DROPPED = -1
"""In place of an end: the trajectory left the window, or went further than the limit."""

_BLOCK = 512  # pixels; all of their state stays in a processor's first cache
_LEAVE_STEPS = 8  # arrived pixels leave a block each so many steps
_GOES, _ARRIVED, _LOST, _CYCLES = (np.float32(k) for k in range(4))
# A block's state is one array, rows of one number per pixel, and so are its corners: a compiler
# can tell that rows do not overlap, where it could not of several arrays. Unsigned offsets spare
# the question whether an index is negative.
_N_ROWS = 9
_Y, _X, _DY, _DX, _MARK_Y, _MARK_X, _FAR, _END, _STATE = (
    np.uint64(k * _BLOCK) for k in range(_N_ROWS)
)
_CORNER_1, _CORNER_2, _CORNER_3 = (np.uint64(k * _BLOCK) for k in range(1, 4))
_PAIR_1, _PAIR_2, _PAIR_3 = (np.uint64(2 * k * _BLOCK) for k in range(1, 4))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _locate(
    n: int,
    state: NDArray[np.float32],
    index: NDArray[np.int32],
    last: tuple[np.float32, np.float32],
    size: tuple[int, int],
    step: np.float32,
) -> None:
    """Linear indices of the four pixels around each position; lost are those that lack one."""
    bottom, right = np.float32(size[0] - 1), np.float32(size[1] - 1)
    width = np.int32(size[1])
    for i in range(n):
        j = np.uint64(i)
        y0 = state[j + _Y] + np.floor(state[j + _DY])
        x0 = state[j + _X] + np.floor(state[j + _DX])
        y1 = min(y0 + _ONE, last[0])
        x1 = min(x0 + _ONE, last[1])
        outside = (y0 < _ZERO) | (x0 < _ZERO) | (y1 > bottom) | (x1 > right)
        before = state[j + _STATE]
        lost = outside & (before == _GOES) & (step < state[j + _END])
        state[j + _STATE] = _LOST if lost else before
        upper = np.int32(max(_ZERO, min(y0, bottom))) * width
        lower = np.int32(max(_ZERO, min(y1, bottom))) * width
        left = np.int32(max(_ZERO, min(x0, right)))
        rest = np.int32(max(_ZERO, min(x1, right)))
        index[j] = upper + left
        index[j + _CORNER_1] = upper + rest
        index[j + _CORNER_2] = lower + left
        index[j + _CORNER_3] = lower + rest


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gather(
    n: int, pairs: NDArray[np.int64], index: NDArray[np.int32], corners: NDArray[np.int64]
) -> None:
    """Both flows of each corner, moved as eight bytes."""
    for i in range(n):
        j = np.uint64(i)
        corners[j] = pairs[np.uint64(index[j])]
        corners[j + _CORNER_1] = pairs[np.uint64(index[j + _CORNER_1])]
        corners[j + _CORNER_2] = pairs[np.uint64(index[j + _CORNER_2])]
        corners[j + _CORNER_3] = pairs[np.uint64(index[j + _CORNER_3])]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _advance(
    n: int,
    state: NDArray[np.float32],
    flows: NDArray[np.float32],
    first: tuple[np.float32, np.float32],
    last: tuple[np.float32, np.float32],
    limits: tuple[np.float32, np.float32, np.float32],
) -> None:
    """One step of each pixel that still goes; `limits` are travel, this step, and all steps."""
    limit, step, steps = limits
    for i in range(n):
        j = np.uint64(i)
        k = j + j
        y = state[j + _Y]
        x = state[j + _X]
        was_y = state[j + _DY]
        was_x = state[j + _DX]
        fy = was_y - np.floor(was_y)
        fx = was_x - np.floor(was_x)
        w00 = (_ONE - fy) * (_ONE - fx)
        w01 = (_ONE - fy) * fx
        w10 = fy * (_ONE - fx)
        w11 = fy * fx
        step_y = flows[k] * w00 + flows[k + _PAIR_1] * w01
        step_y += flows[k + _PAIR_2] * w10 + flows[k + _PAIR_3] * w11
        k += np.uint64(1)
        step_x = flows[k] * w00 + flows[k + _PAIR_1] * w01
        step_x += flows[k + _PAIR_2] * w10 + flows[k + _PAIR_3] * w11
        # the slide's borders hold a position; distances are from the pixel's own place
        dy = min(last[0] - y, max(first[0] - y, was_y + step_y))
        dx = min(last[1] - x, max(first[1] - x, was_x + step_x))
        now = state[j + _STATE]
        end = state[j + _END]
        arrived = (now == _GOES) & ((step >= end) | ((dy == was_y) & (dx == was_x)))
        moves = (now == _GOES) & (not arrived)
        was_far = state[j + _FAR]
        far = max(was_far, max(abs(dy), abs(dx)))
        lost = moves & (far > limit)
        again = (dy == state[j + _MARK_Y]) & (dx == state[j + _MARK_X]) & (end == steps)
        now = _ARRIVED if arrived else now
        now = _CYCLES if moves & again else now
        now = _LOST if lost else now
        state[j + _STATE] = now
        state[j + _FAR] = far if moves else was_far
        state[j + _DY] = dy if moves else was_y
        state[j + _DX] = dx if moves else was_x


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _drop_arrived(
    n: int,
    state: NDArray[np.float32],
    ends: NDArray[np.int32],
    travel: NDArray[np.float32],
) -> int:
    """Write the results of pixels that go no more; how many are left, in unchanged order."""
    height, width = ends.shape
    kept = np.uint64(0)
    for i in range(n):
        j = np.uint64(i)
        now = state[j + _STATE]
        if now == _GOES:
            for row in range(_N_ROWS):
                offset = np.uint64(row * _BLOCK)
                state[kept + offset] = state[j + offset]
            kept += np.uint64(1)
            continue
        y = int(state[j + _Y])
        x = int(state[j + _X])
        travel[y, x] = state[j + _FAR]
        end_y = y + int(np.floor(state[j + _DY]))
        end_x = x + int(np.floor(state[j + _DX]))
        inside = end_y >= 0 and end_x >= 0 and end_y < height and end_x < width
        ends[y, x] = end_y * width + end_x if inside and now == _ARRIVED else DROPPED
    return int(kept)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def follow(
    flows: NDArray[np.float32],
    foreground: NDArray[np.bool_],
    bounds: tuple[int, int, int, int],
    iterations: int,
    limit: float,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Where each foreground pixel ends, and how far it got from its start on the way.

    Parameters
    ----------
    flows
        `(h, w, 2)` float32, finite: dy, dx in pixels per step.
    foreground
        `(h, w)`.
    bounds
        The slide's first and last row and column in window coordinates; positions are clamped to
        them. A trajectory that needs a pixel outside the window is dropped.
    iterations
        Steps.
    limit
        A pixel that gets further than this, along an axis, is dropped; px.

    Returns
    -------
    ends : `(h, w)` int32
        Linear index in the window, or `DROPPED`; also of background.
    travel : `(h, w)` float32
        Largest Chebyshev distance from the start, at any step; 0 of background.
    """
    height, width = foreground.shape
    pairs = flows.reshape(height * width * 2).view(np.int64)
    ends = np.full((height, width), DROPPED, np.int32)
    travel = np.zeros((height, width), np.float32)
    first = (np.float32(bounds[0]), np.float32(bounds[1]))
    last = (np.float32(bounds[2]), np.float32(bounds[3]))
    steps = np.float32(iterations)
    state = np.zeros(_N_ROWS * _BLOCK, np.float32)
    index = np.empty(4 * _BLOCK, np.int32)
    corners = np.empty(4 * _BLOCK, np.int64)
    values = corners.view(np.float32)
    y = 0
    x = 0
    while y < height:
        state[:] = _ZERO
        state[_END : _END + np.uint64(_BLOCK)] = steps
        n = 0
        while y < height and n < _BLOCK:
            if foreground[y, x]:
                state[np.uint64(n) + _Y] = y
                state[np.uint64(n) + _X] = x
                n += 1
            x += 1
            if x == width:
                x = 0
                y += 1
        step = 0
        mark = 0
        while n > 0:
            _locate(n, state, index, last, (height, width), np.float32(step))
            _gather(n, pairs, index, corners)
            _advance(n, state, values, first, last, (np.float32(limit), np.float32(step), steps))
            step += 1
            for i in range(n):
                j = np.uint64(i)
                if state[j + _STATE] == _CYCLES:
                    state[j + _STATE] = _GOES
                    state[j + _END] = step + (iterations - step) % (step - mark)
            if step == max(1, 2 * mark):
                mark = step
                for i in range(n):
                    j = np.uint64(i)
                    state[j + _MARK_Y] = state[j + _DY]
                    state[j + _MARK_X] = state[j + _DX]
            if step % _LEAVE_STEPS == 0:
                n = _drop_arrived(n, state, ends, travel)
    return ends, travel
