"""One pass over a slide's pixels: percentiles over tissue, and where there is nothing to find.

Normalisation is per slide and per channel, never per tile: `(x - low) / (high - low)` with the
percentiles of the pixels of tissue. Tissue is what has local contrast: the slide is cut into
blocks of 32 px anchored at its origin, a block's contrast is the range of its 4x4 means, and a
block belongs to tissue when its contrast reaches 1/64 of the 99th percentile of all blocks
that are not flat (a biopsy on a canvas of zeros may cover less than a hundredth of it). On a dense
field that is nearly everything; on a slide it leaves out the glass. Contrast is kept in classes of
half an octave from 2^-32 to 2^32 in the slide's units; what lies beyond is in the outermost class.

Whether there is anything to find is told from means over more pixels, about half a cell wide
(`signal_side`): they halve the noise of glass and leave most of the contrast of tissue.

The percentiles are exact (those of `numpy.percentile` over the same pixels): integers of up to 16
bits from a histogram, everything else as float32 by radix selection in two passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from densebatch.base.geometry import Grid
from densebatch.base.machine import count_cores
from densebatch.planning.histograms import count_in_threads
from densebatch.planning.normalization import ChannelBounds, normalize, to_float32
from densebatch.slides.slide import decoded_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.slides.slide import Slide

BLOCK_PX = 32
_CELL_PX = 4  # side of the means whose range is the contrast of a block
_SIGNAL_PX = 8  # at the network's scale: side of the means that are told from glass
_N_CLASSES = 128
_CLASSES_PER_OCTAVE = 2
# 1/64. Networks are trained on fields with the percentiles of the whole field, so a field's dark
# gaps must count: on the training field with the fewest cells 1/8 cost 0.016 AP, 1/64 nothing.
_TISSUE_CLASSES = 6 * _CLASSES_PER_OCTAVE
_N_BINS = 1 << 16
_READ_PX = 2048  # a multiple of BLOCK_PX
_MAX_THREADS = 4  # each counts in 64 MB of its own; more would wait for the disk
_DECODED_BYTES = 10**9  # of all threads together, unless one alone needs more


@dataclass(frozen=True)
class ChannelSurvey:
    """Bounds of a channel, and the extremes of each block's means (`signal_side`), normalised."""

    bounds: ChannelBounds
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]


def _is_narrow(dtype: np.dtype[Any]) -> bool:
    """Integers of which a histogram can count each value."""
    return dtype.kind in "iu" and dtype.itemsize <= 2


def _sortable(pixels: NDArray[Any]) -> NDArray[np.uint32]:
    """Unsigned keys in the order of the values: the value itself, or the float32's bits."""
    dtype = pixels.dtype
    if dtype.kind == "u" and _is_narrow(dtype):
        return pixels.astype(np.uint32)
    if _is_narrow(dtype):
        keys: NDArray[np.uint32] = (pixels.astype(np.int64) - np.iinfo(dtype).min).astype(np.uint32)
        return keys
    bits = to_float32(pixels).view(np.uint32)
    # negative floats: all bits flipped; others: the sign bit set
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint32)


def _value(key: int, dtype: np.dtype[Any]) -> float:
    """Inverse of `_sortable`."""
    if _is_narrow(dtype):
        return float(key + np.iinfo(dtype).min)
    bits = np.uint32(key)
    bits = bits & np.uint32(0x7FFFFFFF) if bits >> np.uint32(31) else ~bits
    return float(np.array(bits, np.uint32).view(np.float32))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _survey_blocks(
    pixels: NDArray[np.float32 | np.uint8 | np.uint16],
    keys: NDArray[np.uint32 | np.uint8 | np.uint16],
    shift: int,
    side: int,
    lowest: NDArray[np.float32],
    highest: NDArray[np.float32],
    classes: NDArray[np.uint8],
    histogram: NDArray[np.int64],
) -> int:
    """Extremes, contrast class and histogram of each block; returns the non-finite pixels."""
    height, width = pixels.shape
    nonfinite = 0
    for row in range(classes.shape[0]):
        for col in range(classes.shape[1]):
            y0 = row * BLOCK_PX
            x0 = col * BLOCK_PX
            y1 = min(y0 + BLOCK_PX, height)
            x1 = min(x0 + BLOCK_PX, width)
            low, high = np.inf, -np.inf
            signal_low, signal_high = np.inf, -np.inf
            for sy in range(y0, y1, side):
                for sx in range(x0, x1, side):
                    signal_total = 0.0
                    signal_n = 0
                    for cy in range(sy, min(sy + side, y1), _CELL_PX):
                        for cx in range(sx, min(sx + side, x1), _CELL_PX):
                            total = 0.0
                            n = 0
                            for y in range(cy, min(cy + _CELL_PX, y1)):
                                for x in range(cx, min(cx + _CELL_PX, x1)):
                                    value = pixels[y, x]
                                    if np.isfinite(value):
                                        total += value
                                        n += 1
                                    else:
                                        nonfinite += 1
                            if n:
                                low = min(low, total / n)
                                high = max(high, total / n)
                            signal_total += total
                            signal_n += n
                    if signal_n:
                        signal_low = min(signal_low, signal_total / signal_n)
                        signal_high = max(signal_high, signal_total / signal_n)
            contrast = high - low
            kind = 0
            if contrast > 0:
                octave = int(np.floor(_CLASSES_PER_OCTAVE * np.log2(contrast)))
                kind = min(max(octave + _N_CLASSES // 2, 1), _N_CLASSES - 1)
            lowest[row, col] = signal_low
            highest[row, col] = signal_high
            classes[row, col] = kind
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if np.isfinite(pixels[y, x]):
                        histogram[kind, keys[y, x] >> shift] += 1
    return nonfinite


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_low_bits(
    keys: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    threshold: int,
    wanted: NDArray[np.uint32],
    histograms: NDArray[np.int64],
) -> None:
    """Histogram the low 16 bits of tissue pixels whose high 16 bits are among `wanted`."""
    for y in range(keys.shape[0]):
        for x in range(keys.shape[1]):
            if classes[y // BLOCK_PX, x // BLOCK_PX] < threshold:
                continue
            for index in range(wanted.size):
                if keys[y, x] >> 16 == wanted[index]:
                    histograms[index, keys[y, x] & 0xFFFF] += 1


def _tissue_class(classes: NDArray[np.uint8]) -> int:
    """Lowest contrast class that counts as tissue; 0, hence everything, if all blocks are flat."""
    ranked = np.sort(classes[classes > 0])
    if ranked.size == 0:
        return 0
    return max(1, int(ranked[int(0.99 * (ranked.size - 1))]) - _TISSUE_CLASSES)


def _interpolate(low: float, high: float, fraction: float) -> float:
    """Between two values, rounded as `numpy.percentile` rounds."""
    step = high - low
    return high - step * (1 - fraction) if fraction >= 0.5 else low + step * fraction


def signal_side(rescale: float) -> int:
    """Side in slide pixels of the means that tell tissue from glass: 4, 8, 16 or 32.

    The power of two nearest to 8 px at the network's scale, half a cell's diameter. Means over a
    whole cell would hide it among others.

    Parameters
    ----------
    rescale
        Slide pixels to network pixels.
    """
    exponent = round(float(np.log2(_SIGNAL_PX / rescale)))
    return int(min(max(2**exponent, _CELL_PX), BLOCK_PX))


def survey_channel(
    slide: Slide, channel: int, percentiles: tuple[float, float], side: int = _SIGNAL_PX
) -> ChannelSurvey:
    """Read one channel once (twice if it is wider than 16 bits) and find its bounds.

    Parameters
    ----------
    slide
        An open slide.
    channel
        Index of the channel.
    percentiles
        Lower and upper percentile, 0 to 100, over the finite pixels of tissue.
    side
        Of the means in pixels (`signal_side`).

    Returns
    -------
    ChannelSurvey
        Bounds, and per block of `BLOCK_PX` the extremes of its means in normalised units.
    """
    info = slide.info
    dtype = np.dtype(info.dtype)
    wide = not _is_narrow(dtype)
    shift = 16 if wide else 0
    rows, cols = -(-info.height // BLOCK_PX), -(-info.width // BLOCK_PX)
    lowest = np.empty((rows, cols), np.float32)
    highest = np.empty((rows, cols), np.float32)
    classes = np.zeros((rows, cols), np.uint8)
    n_bins = _N_BINS if wide else 256**dtype.itemsize
    grid = Grid(info.height, info.width, _READ_PX, _READ_PX)
    at_once = _DECODED_BYTES // decoded_bytes(info, _READ_PX, _READ_PX)
    threads = max(1, min(count_cores(), _MAX_THREADS, grid.rows * grid.cols, at_once))

    def blocks(region: Region) -> tuple[slice, slice]:
        return (
            slice(region.y0 // BLOCK_PX, -(-region.y1 // BLOCK_PX)),
            slice(region.x0 // BLOCK_PX, -(-region.x1 // BLOCK_PX)),
        )

    def values_and_keys(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        if dtype.kind == "u" and not wide:
            return pixels, pixels  # they are both, and copies would take as long as the rest
        return to_float32(pixels), _sortable(pixels)

    def survey(index: tuple[int, int], histogram: NDArray[np.int64]) -> int:
        region = grid[index]
        pixels = slide.read(channel, region)
        at = blocks(region)
        return int(
            _survey_blocks(
                *values_and_keys(np.ascontiguousarray(pixels)),
                shift,
                side,
                lowest[at],
                highest[at],
                classes[at],
                histogram,
            )
        )

    histogram, nonfinite = count_in_threads(survey, grid, threads, (_N_CLASSES, n_bins))
    threshold = _tissue_class(classes)
    tissue = histogram[threshold:].sum(axis=0)
    n_pixels = int(tissue.sum())
    name = info.channels[channel]
    fraction = float(np.mean(classes >= threshold))
    if n_pixels == 0:
        bounds = ChannelBounds(channel, name, 0.0, 0.0, 0.0, nonfinite)
        return ChannelSurvey(bounds, np.zeros_like(lowest), np.zeros_like(highest))

    ranks = [percentile / 100.0 * (n_pixels - 1) for percentile in percentiles]
    whole = sorted({rank for r in ranks for rank in (int(np.floor(r)), int(np.ceil(r)))})
    cumulative = np.cumsum(tissue)
    bins = {rank: int(np.searchsorted(cumulative, rank, side="right")) for rank in whole}
    if wide:
        wanted = np.array(sorted(set(bins.values())), np.uint32)

        def count(index: tuple[int, int], low_bits: NDArray[np.int64]) -> int:
            region = grid[index]
            pixels = slide.read(channel, region)
            keys = _sortable(pixels)
            if nonfinite:
                # NaN and infinities have keys of their own at both ends, but exclude them plainly
                finite = np.isfinite(to_float32(pixels))
                keys = np.where(finite, keys, np.uint32(0xFFFFFFFF))
            _count_low_bits(keys, classes[blocks(region)], threshold, wanted, low_bits)
            return 0

        low_bits, _ = count_in_threads(count, grid, threads, (wanted.size, _N_BINS))
        exact = {}
        for rank, high_bits in bins.items():
            before = int(cumulative[high_bits - 1]) if high_bits else 0
            within = np.cumsum(low_bits[int(np.searchsorted(wanted, high_bits))])
            exact[rank] = (high_bits << 16) + int(np.searchsorted(within, rank - before, "right"))
        bins = exact
    values = {rank: _value(key, dtype) for rank, key in bins.items()}
    low, high = (
        _interpolate(values[int(np.floor(r))], values[int(np.ceil(r))], r - np.floor(r))
        for r in ranks
    )
    bounds = ChannelBounds(channel, name, float(low), float(high), fraction, nonfinite)
    # a block without finite pixels has no signal
    empty = ~np.isfinite(lowest)
    lowest[empty] = highest[empty] = low
    return ChannelSurvey(bounds, normalize(lowest, bounds), normalize(highest, bounds))


def contrast_in(surveys: Sequence[ChannelSurvey], region: Region) -> float:
    """Largest normalised contrast of any channel in a region (grown to whole blocks).

    It is the range of the means; a patch below `config.SKIP_CONTRAST` is not evaluated.
    """
    at = (
        slice(max(region.y0, 0) // BLOCK_PX, -(-max(region.y1, 0) // BLOCK_PX)),
        slice(max(region.x0, 0) // BLOCK_PX, -(-max(region.x1, 0) // BLOCK_PX)),
    )
    contrasts = [
        float(survey.highest[at].max() - survey.lowest[at].min())
        for survey in surveys
        if survey.lowest[at].size
    ]
    return max(contrasts, default=0.0)
