"""Bounds of a channel, and pixels normalised by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    """

    channel: int
    name: str
    low: float
    high: float
    tissue_fraction: float
    nonfinite_px: int


def normalize(pixels: NDArray[np.generic], bounds: ChannelBounds) -> NDArray[np.float32]:
    """Map a channel's pixels so that `low` becomes 0 and `high` becomes 1.

    NaN and minus infinity become 0, and plus infinity becomes 1, also where a value is beyond
    float32. A constant channel becomes 0 everywhere.

    Parameters
    ----------
    pixels
        Of any shape and real type; not changed.
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
    return scaled


def _scale(low: float, high: float) -> np.float32:
    """`1 / (high - low)`; 0 for a constant channel, or one that float32 cannot tell from it."""
    if not high - low > float(np.finfo(np.float32).tiny):
        return np.float32(0.0)
    return np.float32(1.0 / (high - low))


def to_float32(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """Copy as float32; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return pixels.astype(np.float32)
