"""From a flow field as it is stored to what is followed: foreground, and unit flows in it.

Flow fields are stored in half precision. Processors widen it fast, but NumPy and numba do not make
them, so this module widens with integer arithmetic, row by row. No subnormal number occurs on the
way: the result is the same where a processor is set to take subnormal numbers for zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOW_SCALE = np.float32(5.0)  # networks give flows at five times unit length
_LARGEST_HALF = np.float32(65504.0)  # infinity and NaN become larger numbers when widened
_LARGEST_SINGLE = np.finfo(np.float32).max
_SMALLEST_NORMAL = np.int32(0x0400)  # bits of a half; below are zero and the subnormal numbers
_REBIAS = np.int32((127 - 15) << 23)  # from the exponents of halves to those of single precision
_SUBNORMAL_UNIT = np.float32(2.0**-24)


@dataclass(frozen=True)
class Unknown:
    """Where the flow of a window is unknown.

    Attributes
    ----------
    pixels : `(h, w)` bool
    reach_px : how far from there the known flow is followed: the travel that the halo allows for
    """

    pixels: NDArray[np.bool_]
    reach_px: int


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mask_row(
    rows: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    largest: np.float32,
    threshold: float,
    foreground: NDArray[np.bool_],
    unit: NDArray[np.float32],
) -> bool:
    """Write one row of the foreground and of the unit flows; whether all of it is finite.

    `rows` are dy, dx and logit, each `(w,)`; a value beyond `largest` is infinite or NaN.
    """
    dy, dx, logit = rows
    finite = True
    for x in range(foreground.size):
        finite &= (abs(dy[x]) <= largest) & (abs(dx[x]) <= largest) & (abs(logit[x]) <= largest)
        inside = logit[x] > threshold
        foreground[x] = inside
        unit[x, 0] = dy[x] / FLOW_SCALE if inside else np.float32(0.0)
        unit[x, 1] = dx[x] / FLOW_SCALE if inside else np.float32(0.0)
    return finite


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _widen_row(
    halves: NDArray[np.int16], bits: NDArray[np.int32], wide: NDArray[np.float32]
) -> None:
    """Widen one row; `wide` is the memory of `bits` seen as single precision."""
    for x in range(halves.size):
        half = np.int32(halves[x])
        sign = (half & np.int32(-0x8000)) << np.int32(16)
        bits[x] = sign | (((half & np.int32(0x7FFF)) << np.int32(13)) + _REBIAS)
    for x in range(halves.size):
        size = np.int32(halves[x]) & np.int32(0x7FFF)
        small = np.float32(size) * _SUBNORMAL_UNIT
        small = -small if halves[x] < 0 else small
        wide[x] = small if size < _SMALLEST_NORMAL else wide[x]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mask_singles(
    flows: NDArray[np.float32],
    threshold: float,
    foreground: NDArray[np.bool_],
    unit: NDArray[np.float32],
) -> bool:
    finite = True
    for y in range(foreground.shape[0]):
        rows = (flows[0, y], flows[1, y], flows[2, y])
        finite &= _mask_row(rows, _LARGEST_SINGLE, threshold, foreground[y], unit[y])
    return finite


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mask_halves(
    flows: NDArray[np.int16],
    threshold: float,
    foreground: NDArray[np.bool_],
    unit: NDArray[np.float32],
) -> bool:
    bits = np.empty((3, foreground.shape[1]), np.int32)
    wide = bits.view(np.float32)
    finite = True
    for y in range(foreground.shape[0]):
        for plane in range(3):
            _widen_row(flows[plane, y], bits[plane], wide[plane])
        rows = (wide[0], wide[1], wide[2])
        finite &= _mask_row(rows, _LARGEST_HALF, threshold, foreground[y], unit[y])
    return finite


def mask_flows(
    flows: NDArray[np.float16 | np.float32], threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Foreground, and unit flows that are zero outside of it.

    Parameters
    ----------
    flows
        `(3, h, w)` float16 or float32: dy, dx at five times unit length, and the logit.
    threshold
        Pixels with a larger logit are foreground.

    Returns
    -------
    foreground : `(h, w)` bool
    unit : `(h, w, 2)` float32
        dy, dx in pixels per step.

    Raises
    ------
    ValueError
        If a flow or a logit is not finite, wherever it is.
    """
    shape = flows.shape[1:]
    foreground = np.empty(shape, np.bool_)
    unit = np.empty((*shape, 2), np.float32)
    if flows.dtype == np.float16:
        finite = _mask_halves(flows.view(np.int16), threshold, foreground, unit)
    else:
        finite = _mask_singles(flows, threshold, foreground, unit)
    if not finite:
        raise ValueError("the flow field holds values that are not finite")
    return foreground, unit
