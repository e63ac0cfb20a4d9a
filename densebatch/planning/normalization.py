"""Bounds of a channel, and pixels normalised by them."""

from __future__ import annotations

from dataclasses import dataclass
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
    content: str = ""
    unread: tuple[Region, ...] = ()

    @property
    def reach_px(self) -> int:
        """How far around a pixel others decide what it becomes."""
        return 0 if self.above is None and self.dead is None else HALO_PX


def normalize(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    """Map a channel's pixels so that `low` becomes 0 and `high` becomes 1.

    Debris and dead pixels become 0, and what is nearer to them than `HALO_PX` pixels, so that a
    region needs so many pixels around it to become what it is in the whole (`reach_px`).
    NaN and minus infinity become 0, and plus infinity becomes 1, also where a value is beyond
    float32. A constant channel becomes 0 everywhere.

    Parameters
    ----------
    pixels
        `(height, width)` of any real type; not changed.
    bounds
        Of the channel.
    """
    factor = _scale(bounds.low, bounds.high)
    if factor == 0:
        return np.zeros(pixels.shape, np.float32)
    scaled = to_float32(pixels)
    with np.errstate(over="ignore"):
        scaled -= np.float32(bounds.low)
        scaled *= factor
    if pixels.dtype.kind == "f":
        np.nan_to_num(scaled, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
    if bounds.reach_px:
        scaled[find_masked(pixels, bounds.above, bounds.dead)] = 0
    return scaled


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
