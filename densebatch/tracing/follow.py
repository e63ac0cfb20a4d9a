"""Follow the flow from every foreground pixel: bilinear steps of Euler's method, many at once.

`follow_plain` says in a plain loop what is computed; this module gives the same ends, and is where
tracing spends its time. So pixels advance in blocks, step by step together: places and weights are
then computed by vector instructions, the four flows that a position lies between are moved as two
times sixteen bytes, and pixels that have arrived leave the block every few steps. Most arrive soon;
the few that go on are collected from many blocks and finished together, or every block would be
taken to the last step for their sake. The operations on each pixel, and their order, are those of
the plain loop, and so every end is the same to the bit.

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

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from densebatch.tracing.follow_plain import DROPPED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.tracing.follow_plain import Bounds

LEAVE_STEPS = 8
"""Arrived pixels leave a block each so many steps."""
ROUNDING = np.float32(1e-3)
"""Far more than a step is rounded by, px, even with a travel of 2^13 px."""

_BLOCK = 512  # pixels; all of their state stays in a processor's first cache
_LONG_STEPS = 64  # pixels that still go then leave too; a power of two, when positions are marked
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)

# The state of a block's pixels is one array of rows, each a number per pixel, and pixel `j` finds
# its own at `j + row`. One array, because a compiler can tell that its rows do not overlap, where
# it could not of several arrays. Offsets are unsigned, because an index that may be negative costs
# a comparison.
_N_ROWS = 9
(
    _START_Y,  # the pixel itself
    _START_X,
    _MOVED_Y,  # displacement from it
    _MOVED_X,
    _MARK_Y,  # displacement at the last step that was a power of two
    _MARK_X,
    _FAR,  # largest displacement along an axis
    _END,  # the step at which the pixel has arrived, whatever it does
    _STATE,  # one of the four below
) = (np.uint64(row * _BLOCK) for row in range(_N_ROWS))
_GOES, _ARRIVED, _LOST, _CYCLES = (np.float32(state) for state in range(4))

# The corners that a pixel lies between are two pairs of neighbours, the upper pairs of a block
# before its lower ones. A pair is sixteen bytes: four floats, of the left and the right pixel.
_LOWER_PAIR = np.uint64(_BLOCK)
_PAIR_FLOATS = np.uint64(4)
_LEFT_DY, _LEFT_DX, _RIGHT_DY, _RIGHT_DX = (np.uint64(place) for place in range(4))
_LOWER_FLOWS = _LOWER_PAIR * _PAIR_FLOATS


class _Field(NamedTuple):
    """What is the same for all pixels of a window."""

    height: int  # of the window
    width: int
    first_y: np.float32  # of the slide, in the window's pixels
    first_x: np.float32
    last_y: np.float32
    last_x: np.float32
    iterations: int
    limit: np.float32  # of a pixel's travel, px
    neighbours: NDArray[np.complex128]  # `(h * w,)`: flows of each pixel and of the next one
    ends: NDArray[np.int32]  # `(h, w)`, results
    travel: NDArray[np.float32]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _locate(
    n: int, state: NDArray[np.float32], pairs: NDArray[np.int32], field: _Field, step: np.float32
) -> None:
    """Find the linear index of the left pixel of both pairs; a pixel that lacks one is lost."""
    bottom, right = np.float32(field.height - 1), np.float32(field.width - 1)
    width = np.int32(field.width)
    for i in range(n):
        j = np.uint64(i)
        y0 = state[j + _START_Y] + np.floor(state[j + _MOVED_Y])
        x0 = state[j + _START_X] + np.floor(state[j + _MOVED_X])
        y1 = min(y0 + _ONE, field.last_y)
        x1 = min(x0 + _ONE, field.last_x)
        outside = (y0 < _ZERO) | (x0 < _ZERO) | (y1 > bottom) | (x1 > right)
        before = state[j + _STATE]
        lost = outside & (before == _GOES) & (step < state[j + _END])
        state[j + _STATE] = _LOST if lost else before
        left = np.int32(max(_ZERO, min(x0, right)))
        pairs[j] = np.int32(max(_ZERO, min(y0, bottom))) * width + left
        pairs[j + _LOWER_PAIR] = np.int32(max(_ZERO, min(y1, bottom))) * width + left


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _gather(
    n: int,
    neighbours: NDArray[np.complex128],
    pairs: NDArray[np.int32],
    corners: NDArray[np.complex128],
) -> None:
    """Move the flows of both pairs, sixteen bytes at a time.

    On the slide's last column there is no right neighbour: whatever stands there gets weight 0.
    """
    for i in range(n):
        j = np.uint64(i)
        corners[j] = neighbours[np.uint64(pairs[j])]
        corners[j + _LOWER_PAIR] = neighbours[np.uint64(pairs[j + _LOWER_PAIR])]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _advance(
    n: int, state: NDArray[np.float32], flows: NDArray[np.float32], field: _Field, step: np.float32
) -> None:
    """Take one step with each pixel that still goes; `flows` are those of its corners."""
    limit, last_step = field.limit, np.float32(field.iterations)
    for i in range(n):
        j = np.uint64(i)
        upper = j * _PAIR_FLOATS
        lower = upper + _LOWER_FLOWS
        y = state[j + _START_Y]
        x = state[j + _START_X]
        was_y = state[j + _MOVED_Y]
        was_x = state[j + _MOVED_X]
        fy = was_y - np.floor(was_y)
        fx = was_x - np.floor(was_x)
        w00 = (_ONE - fy) * (_ONE - fx)
        w01 = (_ONE - fy) * fx
        w10 = fy * (_ONE - fx)
        w11 = fy * fx
        go_y = flows[upper + _LEFT_DY] * w00 + flows[upper + _RIGHT_DY] * w01
        go_y += flows[lower + _LEFT_DY] * w10 + flows[lower + _RIGHT_DY] * w11
        go_x = flows[upper + _LEFT_DX] * w00 + flows[upper + _RIGHT_DX] * w01
        go_x += flows[lower + _LEFT_DX] * w10 + flows[lower + _RIGHT_DX] * w11
        # The slide's borders hold a position; displacements are from the pixel's own place.
        moved_y = min(field.last_y - y, max(field.first_y - y, was_y + go_y))
        moved_x = min(field.last_x - x, max(field.first_x - x, was_x + go_x))
        now = state[j + _STATE]
        end = state[j + _END]
        arrived = (now == _GOES) & ((step >= end) | ((moved_y == was_y) & (moved_x == was_x)))
        moves = (now == _GOES) & (not arrived)
        was_far = state[j + _FAR]
        far = max(was_far, max(abs(moved_y), abs(moved_x)))
        lost = moves & (far > limit)
        again = (
            (moved_y == state[j + _MARK_Y]) & (moved_x == state[j + _MARK_X]) & (end == last_step)
        )
        now = _ARRIVED if arrived else now
        now = _CYCLES if moves & again else now
        now = _LOST if lost else now
        state[j + _STATE] = now
        state[j + _FAR] = far if moves else was_far
        state[j + _MOVED_Y] = moved_y if moves else was_y
        state[j + _MOVED_X] = moved_x if moves else was_x


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _stop_caught(
    n: int, state: NDArray[np.float32], flows: NDArray[np.float32], field: _Field
) -> None:
    """Let those have arrived that can no longer leave the square between four pixels.

    `flows` are of the corners before the last step: also of those where a pixel is now, if it was
    caught. How far it will still get is not known, so the far side of the square counts.
    """
    least, most = ROUNDING, _ONE - ROUNDING
    for i in range(n):
        j = np.uint64(i)
        upper = j * _PAIR_FLOATS
        lower = upper + _LOWER_FLOWS
        # Along each axis, the slowest and the fastest of the four flows into the square.
        slow_y = min(
            min(flows[upper + _LEFT_DY], flows[upper + _RIGHT_DY]),
            -max(flows[lower + _LEFT_DY], flows[lower + _RIGHT_DY]),
        )
        fast_y = max(
            max(flows[upper + _LEFT_DY], flows[upper + _RIGHT_DY]),
            -min(flows[lower + _LEFT_DY], flows[lower + _RIGHT_DY]),
        )
        slow_x = min(
            min(flows[upper + _LEFT_DX], flows[lower + _LEFT_DX]),
            -max(flows[upper + _RIGHT_DX], flows[lower + _RIGHT_DX]),
        )
        fast_x = max(
            max(flows[upper + _LEFT_DX], flows[lower + _LEFT_DX]),
            -min(flows[upper + _RIGHT_DX], flows[lower + _RIGHT_DX]),
        )
        square_y = np.floor(state[j + _MOVED_Y])
        square_x = np.floor(state[j + _MOVED_X])
        within = (state[j + _START_Y] + square_y < field.last_y) & (
            state[j + _START_X] + square_x < field.last_x
        )
        far = max(
            max(abs(square_y), abs(square_y + _ONE)), max(abs(square_x), abs(square_x + _ONE))
        )
        far = max(far, state[j + _FAR])
        now = state[j + _STATE]
        caught = (slow_y >= least) & (fast_y <= most) & (slow_x >= least) & (fast_x <= most)
        caught = caught & within & (far <= field.limit) & (now == _GOES)
        state[j + _STATE] = _ARRIVED if caught else now
        state[j + _FAR] = far if caught else state[j + _FAR]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shorten_cycles(
    n: int, state: NDArray[np.float32], field: _Field, step: int, mark: int
) -> None:
    """Who is where it was at the mark takes the rest of the steps modulo the cycle's length."""
    any_cycles = False
    for i in range(n):
        any_cycles |= state[np.uint64(i) + _STATE] == _CYCLES
    if any_cycles:
        for i in range(n):
            j = np.uint64(i)
            if state[j + _STATE] == _CYCLES:
                state[j + _STATE] = _GOES
                state[j + _END] = step + (field.iterations - step) % (step - mark)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _drop_arrived(
    n: int, state: NDArray[np.float32], going: NDArray[np.int32], field: _Field
) -> int:
    """Write the results of pixels that go no more; how many are left, in unchanged order.

    `going` is scratch, `(_BLOCK + 1,)`.
    """
    kept = 0
    for i in range(n):
        j = np.uint64(i)
        now = state[j + _STATE]
        going[kept] = i
        if now == _GOES:
            kept += 1
            continue
        y = int(state[j + _START_Y])
        x = int(state[j + _START_X])
        field.travel[y, x] = state[j + _FAR]
        end_y = y + int(np.floor(state[j + _MOVED_Y]))
        end_x = x + int(np.floor(state[j + _MOVED_X]))
        inside = end_y >= 0 and end_x >= 0 and end_y < field.height and end_x < field.width
        field.ends[y, x] = end_y * field.width + end_x if inside and now == _ARRIVED else DROPPED
    if kept < n:
        for row in range(_N_ROWS):
            offset = np.uint64(row * _BLOCK)
            for i in range(kept):
                state[np.uint64(i) + offset] = state[np.uint64(going[i]) + offset]
    return kept


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _run(n: int, state: NDArray[np.float32], field: _Field, start: int, stop: int) -> int:
    """Take a block from one step to another, or until no pixel goes; how many go on.

    The first step is 0 or a power of two.
    """
    step = start
    mark = step
    pairs = np.empty(2 * _BLOCK, np.int32)
    corners = np.empty(2 * _BLOCK, np.complex128)
    flows = corners.view(np.float32)
    going = np.empty(_BLOCK + 1, np.int32)
    while n > 0 and step < stop:
        _locate(n, state, pairs, field, np.float32(step))
        _gather(n, field.neighbours, pairs, corners)
        _advance(n, state, flows, field, np.float32(step))
        step += 1
        _shorten_cycles(n, state, field, step, mark)
        if step == max(1, 2 * mark):
            mark = step
            for i in range(n):
                j = np.uint64(i)
                state[j + _MARK_Y] = state[j + _MOVED_Y]
                state[j + _MARK_X] = state[j + _MOVED_X]
        if step % LEAVE_STEPS == 0:
            _stop_caught(n, state, flows, field)
            n = _drop_arrived(n, state, going, field)
    return n


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _follow_all(foreground: NDArray[np.bool_], field: _Field) -> None:
    """Fill blocks with foreground pixels in raster order, and run them."""
    state = np.zeros(_N_ROWS * _BLOCK, np.float32)
    late = np.zeros(_N_ROWS * _BLOCK, np.float32)  # pixels that go on after `_LONG_STEPS`
    n_late = 0
    # A pixel that goes all the way arrives at the last step and leaves at one of the next.
    forever = field.iterations + LEAVE_STEPS + 1
    y = 0
    x = 0
    while y < field.height:
        state[:] = _ZERO
        state[_END : _END + np.uint64(_BLOCK)] = field.iterations
        n = 0
        while y < field.height and n < _BLOCK:
            if foreground[y, x]:
                state[np.uint64(n) + _START_Y] = y
                state[np.uint64(n) + _START_X] = x
                n += 1
            x += 1
            if x == field.width:
                x = 0
                y += 1
        n = _run(n, state, field, 0, min(forever, _LONG_STEPS))
        moved = 0
        while moved < n:
            m = min(n - moved, _BLOCK - n_late)
            for row in range(_N_ROWS):
                here = row * _BLOCK
                late[here + n_late : here + n_late + m] = state[here + moved : here + moved + m]
            moved += m
            n_late += m
            if n_late == _BLOCK:
                _run(n_late, late, field, _LONG_STEPS, forever)
                n_late = 0
    _run(n_late, late, field, _LONG_STEPS, forever)


def follow(
    flows: NDArray[np.float32],
    foreground: NDArray[np.bool_],
    bounds: Bounds,
    iterations: int,
    limit: float,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Where each foreground pixel ends, and how far it got from its start on the way.

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
        Linear index in the window, or `DROPPED`; `DROPPED` for background too. Those of
        `follow_plain.follow_plainly`.
    travel : `(h, w)` float32
        Largest Chebyshev distance from the start at any step, or up to one pixel more, because of
        a pixel that is caught in a square the far side counts; px, 0 for background.
    """
    height, width = foreground.shape
    padded = np.zeros(height * width + 1, np.complex64)  # so that the last pixel has a next one
    padded[:-1] = flows.reshape(-1).view(np.complex64)
    neighbours = np.lib.stride_tricks.as_strided(
        padded[:2].view(np.complex128), (height * width,), padded.strides
    )
    field = _Field(
        height=height,
        width=width,
        first_y=np.float32(bounds.first_y),
        first_x=np.float32(bounds.first_x),
        last_y=np.float32(bounds.last_y),
        last_x=np.float32(bounds.last_x),
        iterations=iterations,
        limit=np.float32(limit),
        neighbours=neighbours,
        ends=np.full((height, width), DROPPED, np.int32),
        travel=np.zeros((height, width), np.float32),
    )
    _follow_all(foreground, field)
    return field.ends, field.travel
