"""The pixels of one region, counted: extremes and contrast of blocks, histograms by contrast.

Values are counted by keys, unsigned integers in the order of the values: an integer of up to 16
bits is its own key, all else has 32 bits. A histogram of 32-bit keys takes two passes, one for
the upper 16 bits and one for the lower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from densebatch.survey.normalization import to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_PX = 32
CELL_PX = 4  # side of the means whose range is the contrast of a block
N_CLASSES = 128
CLASSES_PER_OCTAVE = 2


def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Whether values are integers of which a histogram can count each: of up to 16 bits."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def make_keys(pixels: NDArray[Any]) -> NDArray[np.uint32]:
    """Unsigned keys in the order of the values: the value itself, or the float32's bits."""
    dtype = pixels.dtype
    if dtype.kind == "u" and is_narrow(dtype):
        return pixels.astype(np.uint32)
    if is_narrow(dtype):
        keys: NDArray[np.uint32] = (pixels.astype(np.int64) - np.iinfo(dtype).min).astype(np.uint32)
        return keys
    bits = to_float32(pixels).view(np.uint32)
    # Of negative numbers all bits are flipped, of the others the sign bit is set.
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def value_of_key(key: int, dtype: np.dtype[Any]) -> float:
    """Inverse of `make_keys`."""
    if is_narrow(dtype):
        return float(key + np.iinfo(dtype).min)
    bits = np.uint32(key)
    bits = bits & np.uint32(0x7FFFFFFF) if bits >> np.uint32(31) else ~bits
    return float(np.array(bits, np.uint32).view(np.float32))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def describe_means(means: NDArray[np.float64]) -> tuple[float, float]:
    """How coarse the grain of a block is, and how lopsided its brightness.

    Parameters
    ----------
    means
        `(8, 8)` means over cells of 4x4 px; NaN where a cell has no pixel.

    Returns
    -------
    grain : float
        Variance of the means over 2x2 cells, over the mean square by which cells differ from them.
        A quarter to a third for noise that differs from pixel to pixel, because a mean over four
        times as many pixels has a quarter of its variance; 1 and more for tissue, whose cells are
        larger than 8 px; 0 for a block without contrast.
    skew : float
        Third standardised moment of the means; 0 for noise, positive where bright things lie on a
        dark ground, as stained membranes do.
    """
    total = 0.0
    n = 0
    within = 0.0
    group_total, group_squares, groups = 0.0, 0.0, 0
    centres = np.full((means.shape[0] // 2, means.shape[1] // 2), np.nan)
    for gy in range(0, means.shape[0], 2):
        for gx in range(0, means.shape[1], 2):
            part, m = 0.0, 0
            for y in range(gy, gy + 2):
                for x in range(gx, gx + 2):
                    if np.isfinite(means[y, x]):
                        part += means[y, x]
                        m += 1
            if m == 0:
                continue
            centre = part / m
            centres[gy // 2, gx // 2] = centre
            for y in range(gy, gy + 2):
                for x in range(gx, gx + 2):
                    if np.isfinite(means[y, x]):
                        within += (means[y, x] - centre) ** 2
            total += part
            n += m
            group_total += centre
            groups += 1
    if n == 0:
        return 0.0, 0.0
    mean, group_mean = total / n, group_total / groups
    second, third = 0.0, 0.0
    for gy in range(0, means.shape[0], 2):
        for gx in range(0, means.shape[1], 2):
            if np.isnan(centres[gy // 2, gx // 2]):
                continue
            group_squares += (centres[gy // 2, gx // 2] - group_mean) ** 2
            for y in range(gy, gy + 2):
                for x in range(gx, gx + 2):
                    if np.isfinite(means[y, x]):
                        second += (means[y, x] - mean) ** 2
                        third += (means[y, x] - mean) ** 3
    second, third, within = second / n, third / n, within / n
    grain = group_squares / groups / within if within > 0 else 0.0
    skew = third / second**1.5 if second > 0 else 0.0
    return grain, skew


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def survey_blocks(
    pixels: NDArray[np.float32 | np.uint8 | np.uint16],
    keys: NDArray[np.uint32 | np.uint8 | np.uint16],
    shift: int,
    side: int,
    lowest: NDArray[np.float32],
    highest: NDArray[np.float32],
    classes: NDArray[np.uint8],
    looks: NDArray[np.float32],
    histogram: NDArray[np.int64],
) -> int:
    """Find extremes, contrast and look of each block of a region, and count its finite values.

    Parameters
    ----------
    pixels
        `(h, w)` values; the region begins at a block's corner.
    keys
        `(h, w)` keys of the values.
    shift
        Bits by which a key is shifted to the right before it is counted.
    side
        Of the means whose extremes are found, pixels; a multiple of `CELL_PX`.
    lowest, highest
        `(rows, cols)` of blocks, written: the extremes of the means; infinite for a block without
        finite pixels.
    classes
        `(rows, cols)` of blocks, written: 0 for a block without contrast, else its class.
    looks
        `(rows, cols, 4)` of blocks, written: the least and the largest pixel, and `grain` and
        `skew` of its means (`describe_means`).
    histogram
        `(N_CLASSES, bins)`: the region's values are added to the row of their block's class.

    Returns
    -------
    int
        Number of pixels that are not finite.
    """
    height, width = pixels.shape
    nonfinite = 0
    side_cells = BLOCK_PX // CELL_PX
    means = np.empty((side_cells, side_cells))
    for row in range(classes.shape[0]):
        for col in range(classes.shape[1]):
            y0 = row * BLOCK_PX
            x0 = col * BLOCK_PX
            y1 = min(y0 + BLOCK_PX, height)
            x1 = min(x0 + BLOCK_PX, width)
            low, high = np.inf, -np.inf
            signal_low, signal_high = np.inf, -np.inf
            least, most = np.inf, -np.inf
            means[:] = np.nan
            for sy in range(y0, y1, side):
                for sx in range(x0, x1, side):
                    signal_total = 0.0
                    signal_n = 0
                    for cy in range(sy, min(sy + side, y1), CELL_PX):
                        for cx in range(sx, min(sx + side, x1), CELL_PX):
                            total = 0.0
                            n = 0
                            for y in range(cy, min(cy + CELL_PX, y1)):
                                for x in range(cx, min(cx + CELL_PX, x1)):
                                    value = pixels[y, x]
                                    if np.isfinite(value):
                                        total += value
                                        n += 1
                                        least = min(least, value)
                                        most = max(most, value)
                                    else:
                                        nonfinite += 1
                            if n:
                                low = min(low, total / n)
                                high = max(high, total / n)
                                means[(cy - y0) // CELL_PX, (cx - x0) // CELL_PX] = total / n
                            signal_total += total
                            signal_n += n
                    if signal_n:
                        signal_low = min(signal_low, signal_total / signal_n)
                        signal_high = max(signal_high, signal_total / signal_n)
            contrast = high - low
            kind = 0
            if contrast > 0:
                octave = int(np.floor(CLASSES_PER_OCTAVE * np.log2(contrast)))
                kind = min(max(octave + N_CLASSES // 2, 1), N_CLASSES - 1)
            lowest[row, col] = signal_low
            highest[row, col] = signal_high
            classes[row, col] = kind
            looks[row, col, 0] = least
            looks[row, col, 1] = most
            looks[row, col, 2], looks[row, col, 3] = describe_means(means)
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if np.isfinite(pixels[y, x]):
                        histogram[kind, keys[y, x] >> shift] += 1
    return nonfinite


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def count_tissue(
    pixels: NDArray[np.float32 | np.uint8 | np.uint16],
    keys: NDArray[np.uint32 | np.uint8 | np.uint16],
    shift: int,
    classes: NDArray[np.uint8],
    threshold: int,
    histogram: NDArray[np.int64],
) -> None:
    """Count the finite values of the blocks of tissue.

    Parameters
    ----------
    pixels, keys, shift
        As of `survey_blocks`.
    classes
        `(rows, cols)` contrast classes of the region's blocks.
    threshold
        Lowest class that is tissue.
    histogram
        `(1, bins)`, added to.
    """
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            if classes[y // BLOCK_PX, x // BLOCK_PX] >= threshold and np.isfinite(pixels[y, x]):
                histogram[0, keys[y, x] >> shift] += 1


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def count_low_bits(
    keys: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    threshold: int,
    wanted: NDArray[np.uint32],
    histograms: NDArray[np.int64],
) -> None:
    """Count the lower 16 bits of the tissue pixels whose upper 16 bits are wanted.

    Parameters
    ----------
    keys
        `(h, w)`; the region begins at a block's corner.
    classes
        `(rows, cols)` contrast classes of the region's blocks.
    threshold
        Lowest class that is tissue.
    wanted
        `(n,)` upper bits.
    histograms
        `(n, 65536)`: a row for each of `wanted`, added to.
    """
    for y in range(keys.shape[0]):
        for x in range(keys.shape[1]):
            if classes[y // BLOCK_PX, x // BLOCK_PX] < threshold:
                continue
            for index in range(wanted.size):
                if keys[y, x] >> 16 == wanted[index]:
                    histograms[index, keys[y, x] & 0xFFFF] += 1
