"""Put part of one crop into another: the same cells among other neighbours.

Whole cells move, so every flow stays right. Ghiasi et al. 2021 (Simple copy-paste) paste single
objects; here the background between the cells comes along, because in dense tissue a cell is hard
to find for its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RADIUS = (1 / 7, 3 / 7)  # of the disc, of a crop's side
_SPOILT = 0.1  # share of a cell's pixels; if more are covered, the rest need not look like a cell


class Crop(NamedTuple):
    """A part of an annotated image.

    Attributes
    ----------
    pixels : `(2, h, w)` float32, NaN where nothing is known
    labels : `(h, w)` int32
    flows : `(2, h, w)` float32, unit vectors
    weight : `(h, w)` float32, of each pixel in the loss; 0 where the annotation tells nothing
    """

    pixels: NDArray[np.float32]
    labels: NDArray[np.int32]
    flows: NDArray[np.float32]
    weight: NDArray[np.float32]


def paste_disc(onto: Crop, other: Crop, rng: np.random.Generator) -> Crop:
    """Put a disc of another crop into this one.

    Cells of the other crop are pasted whole if at least half of them is in the disc, and else not
    at all. Cells that an image's edge cuts in the other crop, or would cut here, are not pasted.
    A cell here that loses more than a tenth of its pixels has no weight in what is left of it.

    Parameters
    ----------
    onto, other
        Crops of equal size; they are not changed.
    rng
        For the disc's place and size.

    Returns
    -------
    Crop
        Labels that were pasted follow those that were there.
    """
    height, width = onto.labels.shape
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    radius = rng.uniform(*_RADIUS) * min(height, width)
    rows, cols = np.ogrid[:height, :width]
    disc = (rows - y) ** 2 + (cols - x) ** 2 < radius**2
    # Where a whole cell may lie: known in this crop, and not beside an image's edge in the other.
    free = ~np.isnan(onto.pixels[0])
    free &= ~ndimage.binary_dilation(np.isnan(other.pixels[0]), np.ones((3, 3)))
    whole = (_share_inside(other.labels, disc) >= 0.5) & (_share_inside(other.labels, free) == 1)
    pasted = np.where(other.labels > 0, whole, disc & free)
    spoilt = (onto.labels > 0) & (_share_inside(onto.labels, pasted) > _SPOILT)
    shifted = np.where(other.labels > 0, other.labels + onto.labels.max(), 0)
    return Crop(
        np.where(pasted, other.pixels, onto.pixels),
        np.where(pasted, shifted, onto.labels).astype(np.int32),
        np.where(pasted, other.flows, onto.flows),
        np.where(pasted, other.weight, np.where(spoilt, np.float32(0), onto.weight)),
    )


def _share_inside(labels: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """For each pixel, the share of its label's pixels that are in the mask."""
    sizes = np.bincount(labels.ravel())
    inside = np.bincount(labels[mask], minlength=sizes.size)
    share: NDArray[np.float64] = (inside / np.maximum(sizes, 1))[labels]
    return share
