"""Follow the flow from every foreground pixel: bilinear steps of Euler's method, many at once.

This is where tracing spends its time, so pixels advance in blocks, step by step together: places
and weights are then computed by vector instructions, the four flows that a position lies between
are moved as two times sixteen bytes, and pixels that have arrived leave the block every few steps.
Most arrive soon; the few that go on are collected from many blocks and finished together, or every
block would be taken to the last step for their sake. The operations on each pixel, and their order,
are those of a plain loop over one pixel after the other (`tests/test_following.py` has it), and so
is every end.

Not all steps need be taken to know the end:

- A trajectory is deterministic in its position, so where it stays once it stays.
- Once it repeats a position it cycles: the remaining steps are taken modulo the cycle's length
  (Brent's method).
- A step is bilinear between four pixels, so the image of the square between them lies in the hull
  of the images of its corners. If those lie inside the square, nothing that is in it gets out, and
  an end is known by the square that it is in. That is how most sinks look, and getting there takes
  half of the steps that settling would.
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
LEAVE_STEPS = 8  # arrived pixels leave a block each so many steps
_LONG_STEPS = 64  # pixels that still go then leave too; a power of two, when positions are marked
_GOES, _ARRIVED, _LOST, _CYCLES = (np.float32(k) for k in range(4))
# A block's state is one array, rows of one number per pixel, and so are its corners: a compiler
# can tell that rows do not overlap, where it could not of several arrays. Unsigned offsets spare
# the question whether an index is negative.
_N_ROWS = 9
_Y, _X, _DY, _DX, _MARK_Y, _MARK_X, _FAR, _END, _STATE = (
    np.uint64(k * _BLOCK) for k in range(_N_ROWS)
)
_LOWER = np.uint64(_BLOCK)  # the lower two corners come after the upper two
_LOWER_FLOWS = np.uint64(4 * _BLOCK)
_NEXT, _TWO, _THREE, _FOUR = (np.uint64(k) for k in range(1, 5))
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
ROUNDING = np.float32(1e-3)  # far more than a step is rounded by, even with a travel of 2^13 px


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _locate(
    n: int,
    state: NDArray[np.float32],
    index: NDArray[np.int32],
    last: tuple[np.float32, np.float32],
    size: tuple[int, int],
    step: np.float32,
) -> None:
    """Linear index of the left of the two pixels above, and below; lost are those that lack one."""
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
        left = np.int32(max(_ZERO, min(x0, right)))
        index[j] = np.int32(max(_ZERO, min(y0, bottom))) * width + left
        index[j + _LOWER] = np.int32(max(_ZERO, min(y1, bottom))) * width + left


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gather(
    n: int,
    neighbours: NDArray[np.complex128],
    index: NDArray[np.int32],
    corners: NDArray[np.complex128],
) -> None:
    """Both flows of two neighbouring corners, moved as sixteen bytes.

    On the slide's last column there is no right neighbour: whatever stands there gets weight 0.
    """
    for i in range(n):
        j = np.uint64(i)
        corners[j] = neighbours[np.uint64(index[j])]
        corners[j + _LOWER] = neighbours[np.uint64(index[j + _LOWER])]


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
        k = j * _FOUR
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
        step_y = flows[k] * w00 + flows[k + _TWO] * w01
        step_y += flows[k + _LOWER_FLOWS] * w10 + flows[k + _LOWER_FLOWS + _TWO] * w11
        step_x = flows[k + _NEXT] * w00 + flows[k + _THREE] * w01
        step_x += flows[k + _LOWER_FLOWS + _NEXT] * w10 + flows[k + _LOWER_FLOWS + _THREE] * w11
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
def _stop_caught(
    n: int,
    state: NDArray[np.float32],
    flows: NDArray[np.float32],
    last: tuple[np.float32, np.float32],
    limit: np.float32,
) -> None:
    """Let those have arrived that can no longer leave the square between four pixels.

    `flows` are of the corners before the last step: also where a pixel is now, if it was caught.
    How far it will still get is not known, so the far side of the square counts.
    """
    least, most = ROUNDING, _ONE - ROUNDING
    for i in range(n):
        j = np.uint64(i)
        k = j * _FOUR
        low = k + _LOWER_FLOWS
        down = min(min(flows[k], flows[k + _TWO]), -max(flows[low], flows[low + _TWO]))
        fast = max(max(flows[k], flows[k + _TWO]), -min(flows[low], flows[low + _TWO]))
        across = min(
            min(flows[k + _NEXT], flows[low + _NEXT]), -max(flows[k + _THREE], flows[low + _THREE])
        )
        quick = max(
            max(flows[k + _NEXT], flows[low + _NEXT]), -min(flows[k + _THREE], flows[low + _THREE])
        )
        dy = np.floor(state[j + _DY])
        dx = np.floor(state[j + _DX])
        within = (state[j + _Y] + dy < last[0]) & (state[j + _X] + dx < last[1])
        far = max(max(abs(dy), abs(dy + _ONE)), max(abs(dx), abs(dx + _ONE)))
        far = max(far, state[j + _FAR])
        now = state[j + _STATE]
        caught = (down >= least) & (fast <= most) & (across >= least) & (quick <= most)
        caught = caught & within & (far <= limit) & (now == _GOES)
        state[j + _STATE] = _ARRIVED if caught else now
        state[j + _FAR] = far if caught else state[j + _FAR]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _drop_arrived(
    n: int,
    state: NDArray[np.float32],
    going: NDArray[np.int32],
    ends: NDArray[np.int32],
    travel: NDArray[np.float32],
) -> int:
    """Write the results of pixels that go no more; how many are left, in unchanged order.

    `going` is scratch, `(n + 1)`.
    """
    height, width = ends.shape
    kept = 0
    for i in range(n):
        j = np.uint64(i)
        now = state[j + _STATE]
        going[kept] = i
        if now == _GOES:
            kept += 1
            continue
        y = int(state[j + _Y])
        x = int(state[j + _X])
        travel[y, x] = state[j + _FAR]
        end_y = y + int(np.floor(state[j + _DY]))
        end_x = x + int(np.floor(state[j + _DX]))
        inside = end_y >= 0 and end_x >= 0 and end_y < height and end_x < width
        ends[y, x] = end_y * width + end_x if inside and now == _ARRIVED else DROPPED
    if kept < n:
        for row in range(_N_ROWS):
            offset = np.uint64(row * _BLOCK)
            for i in range(kept):
                state[np.uint64(i) + offset] = state[np.uint64(going[i]) + offset]
    return kept


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _run(
    n: int,
    state: NDArray[np.float32],
    neighbours: NDArray[np.complex128],
    stretch: tuple[int, int],
    bounds: tuple[int, int, int, int],
    limits: tuple[np.float32, int],
    results: tuple[NDArray[np.int32], NDArray[np.float32]],
) -> int:
    """Take a block along a stretch of steps, or until no pixel goes.

    `stretch` is the first step, 0 or a power of two, and the one to stop at; `limits` are travel
    and all steps. Returns how many pixels go on.
    """
    step, stop = stretch
    mark = step
    limit, iterations = limits
    ends, travel = results
    first = (np.float32(bounds[0]), np.float32(bounds[1]))
    last = (np.float32(bounds[2]), np.float32(bounds[3]))
    index = np.empty(2 * _BLOCK, np.int32)
    corners = np.empty(2 * _BLOCK, np.complex128)
    flows = corners.view(np.float32)
    going = np.empty(_BLOCK + 1, np.int32)
    steps = np.float32(iterations)
    while n > 0 and step < stop:
        _locate(n, state, index, last, ends.shape, np.float32(step))
        _gather(n, neighbours, index, corners)
        _advance(n, state, flows, first, last, (limit, np.float32(step), steps))
        step += 1
        any_cycles = False
        for i in range(n):
            any_cycles |= state[np.uint64(i) + _STATE] == _CYCLES
        if any_cycles:
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
        if step % LEAVE_STEPS == 0:
            _stop_caught(n, state, flows, last, limit)
            n = _drop_arrived(n, state, going, ends, travel)
    return n


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _follow_all(
    neighbours: NDArray[np.complex128],
    foreground: NDArray[np.bool_],
    bounds: tuple[int, int, int, int],
    iterations: int,
    limit: np.float32,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """As `follow`; `neighbours` are the flows of each pixel and of the next one."""
    height, width = foreground.shape
    ends = np.full((height, width), DROPPED, np.int32)
    travel = np.zeros((height, width), np.float32)
    results = (ends, travel)
    limits = (limit, iterations)
    state = np.zeros(_N_ROWS * _BLOCK, np.float32)
    late = np.zeros(_N_ROWS * _BLOCK, np.float32)
    n_late = 0
    forever = iterations + LEAVE_STEPS + 1  # whoever goes arrives at the last step, then leaves
    y = 0
    x = 0
    while y < height:
        state[:] = _ZERO
        state[_END : _END + np.uint64(_BLOCK)] = iterations
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
        stretch = (0, min(forever, _LONG_STEPS))
        n = _run(n, state, neighbours, stretch, bounds, limits, results)
        moved = 0
        while moved < n:
            m = min(n - moved, _BLOCK - n_late)
            for row in range(_N_ROWS):
                here = row * _BLOCK
                late[here + n_late : here + n_late + m] = state[here + moved : here + moved + m]
            moved += m
            n_late += m
            if n_late == _BLOCK:
                _run(n_late, late, neighbours, (_LONG_STEPS, forever), bounds, limits, results)
                n_late = 0
    _run(n_late, late, neighbours, (_LONG_STEPS, forever), bounds, limits, results)
    return ends, travel


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
        Largest Chebyshev distance from the start, at any step, or up to one pixel more; 0 of
        background.
    """
    height, width = foreground.shape
    padded = np.zeros(height * width + 1, np.complex64)  # the last pixel has a next one too
    padded[:-1] = flows.reshape(-1).view(np.complex64)
    neighbours = np.lib.stride_tricks.as_strided(
        padded[:2].view(np.complex128), (height * width,), padded.strides
    )
    ends, travel = _follow_all(neighbours, foreground, bounds, iterations, np.float32(limit))
    return ends, travel
