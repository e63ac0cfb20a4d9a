"""Bounds of a channel, and pixels normalised by them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.geometry import Region  # noqa: TC001  pydantic looks it up at run time

if TYPE_CHECKING:
    from numpy.typing import NDArray


HALO_PX = 2
"""Pixels around debris that become 0 with it: light spreads so far even through good lenses."""


@dataclass(frozen=True)
class ChannelBounds:
    """Normalisation of one channel.

    A network of Cellpose's kind adds a mean over its whole patch to every pixel, so that a few
    cells far brighter than the tissue disturb all others of their patch, and are themselves not
    seen for what they are. Where a channel has such cells, it is shown twice: the tissue without
    them (`normalize`), and the bright cells on their own scale (`normalize_bright`).

    Attributes
    ----------
    channel : index in the slide
    name : channel name
    low, high : pixel values that become 0 and 1; equal if the channel is constant
    tissue_fraction : share of the slide's blocks that count as tissue
    nonfinite_px : pixels that are NaN or infinite
    above : pixels of more than this are debris and become 0; None if there is none
    dead : pixels of this and less are dead and become 0; None if there is none
    debris_fraction : share of the slide's blocks that hold either
    debris_times : brightness of the brightest debris over that of the tissue
    bright : pixels of more than this are of rare cells far brighter than the tissue; None if there
        are none
    bright_peak : pixel value that becomes 1 where these are shown
    bright_fill_px : half of how wide the dark inside of such a cell may be
    bright_fraction : share of the slide's blocks that hold such pixels
    bright_times : brightness of the brightest cell over that of the tissue
    content : digest of the channel's pixels as the survey read them; empty before it
    unread : pieces that could not be read then, which count as 0
    """

    channel: int
    name: str
    low: float
    high: float
    tissue_fraction: float
    nonfinite_px: int
    above: float | None = None
    dead: float | None = None
    debris_fraction: float = 0.0
    debris_times: float = 0.0
    bright: float | None = None
    bright_peak: float = 0.0
    bright_fill_px: int = 0
    bright_fraction: float = 0.0
    bright_times: float = 0.0
    content: str = ""
    unread: tuple[Region, ...] = ()

    @property
    def reach_px(self) -> int:
        """How far around a pixel others decide what it becomes."""
        if self.bright is not None:
            return 2 * (HALO_PX + self.bright_fill_px)
        return 0 if self.above is None and self.dead is None else HALO_PX


def normalize(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    """Map a channel's pixels so that `low` becomes 0 and `high` becomes 1.

    Debris, rare bright cells and dead pixels become 0, and what is nearer to them than `HALO_PX`
    pixels, so that a region needs so many pixels around it to become what it is in the whole
    (`reach_px`).
    NaN and minus infinity become 0, and plus infinity becomes 1, also where a value is beyond
    float32. A constant channel becomes 0 everywhere.

    Parameters
    ----------
    pixels
        `(height, width)` of any real type; not changed.
    bounds
        Of the channel.
    """
    scaled = _scale_pixels(pixels, bounds)
    if bounds.reach_px:
        above = bounds.above if bounds.bright is None else bounds.bright
        scaled[find_masked(pixels, above, bounds.dead)] = 0
    return scaled


def normalize_bright(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    """Map a channel's pixels so that `bright_peak` becomes 1, as `normalize` does for the rest.

    What is above `bright` is compressed to its logarithm, because such cells may differ much in
    brightness: at that level the curve and its slope go on. A channel without rare bright cells
    becomes what `normalize` makes of it.
    """
    if bounds.bright is None:
        return normalize(pixels, bounds)
    scaled = _scale_pixels(pixels, bounds)
    level, peak = _scale_pixels(np.array([bounds.bright, bounds.bright_peak]), bounds)

    def compress(values: NDArray[np.float32]) -> NDArray[np.float32]:
        high: NDArray[np.float32] = level * (1 + np.log(np.maximum(values, level) / level))
        return np.where(values > level, high, values)

    shown = compress(scaled) / compress(peak)
    shown[find_masked(pixels, bounds.above, bounds.dead)] = 0
    return shown


def show_once(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    """Map a channel's pixels to 0 to 1 for those that are not disturbed by what is bright.

    Rare bright cells become 1, as all else above `high`; debris and dead pixels 0, as for
    `normalize`.
    """
    shown = normalize(pixels, replace(bounds, bright=None))
    return np.clip(shown, 0, 1, out=shown)


def _scale_pixels(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    """Map pixels by the bounds alone, whatever they are of."""
    factor = _scale(bounds.low, bounds.high)
    if factor == 0:
        return np.zeros(pixels.shape, np.float32)
    scaled = to_float32(pixels)
    with np.errstate(over="ignore"):
        scaled -= np.float32(bounds.low)
        scaled *= factor
    if pixels.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
    return scaled


def find_bright(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.bool_]:
    """Where the network's view of the bright cells counts: `(height, width)`.

    It is what is above `bright` and no debris, the insides of cells that are bright at their rim
    only, and `HALO_PX` around.
    """
    if bounds.bright is None:
        return np.zeros(pixels.shape, bool)
    from scipy import ndimage

    bright = np.greater(pixels, bounds.bright)
    if pixels.dtype.kind == "f":
        bright &= np.isfinite(pixels)
    bright &= ~find_masked(pixels, bounds.above, bounds.dead)
    reach = bounds.bright_fill_px
    # Zeros beyond the slide's edge and ones in the second step, so that a region with `reach_px`
    # around it becomes what it is in the whole.
    grown = ndimage.maximum_filter(bright, 2 * (reach + HALO_PX) + 1, mode="constant")
    closed: NDArray[np.bool_] = ndimage.minimum_filter(
        grown, 2 * reach + 1, mode="constant", cval=1
    )
    return closed


def find_masked(
    pixels: NDArray[np.generic], above: float | None, dead: float | None
) -> NDArray[np.bool_]:
    """Debris and dead pixels, and what is nearer to them than `HALO_PX`.

    Parameters
    ----------
    pixels
        `(height, width)`.
    above, dead
        As of `ChannelBounds`.
    """
    masked = np.zeros(pixels.shape, bool)
    if above is not None:
        masked |= np.greater(pixels, above)
    if dead is not None:
        masked |= np.less_equal(pixels, dead)
    if pixels.dtype.kind == "f":
        masked &= np.isfinite(pixels)
    if not masked.any():
        return masked
    # Imported here because few slides have debris, and workers start faster without.
    from scipy import ndimage

    near: NDArray[np.bool_] = ndimage.maximum_filter(masked, 2 * HALO_PX + 1, mode="constant")
    return near


def _scale(low: float, high: float) -> np.float32:
    """`1 / (high - low)`; 0 for a constant channel, or one that float32 cannot tell from it."""
    if not high - low > float(np.finfo(np.float32).tiny):
        return np.float32(0.0)
    return np.float32(1.0 / (high - low))


def to_float32(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Copy as float32; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return pixels.astype(np.float32)
