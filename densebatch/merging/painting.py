"""Step 3: the pixels of any region, from the tiles that reach into it; and the cells' numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

NO_PIXEL = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Part:
    """What a tile has in a region.

    Attributes
    ----------
    region : the part of the slide, inside the tile
    labels : `(h, w)` uint32 of the tile, as `facts.number_locally` numbered the whole of it
    ranks : by label, of the tile's `decision.Decision`
    """

    region: Region
    labels: NDArray[np.uint32]
    ranks: NDArray[np.uint32]


@dataclass(frozen=True)
class Painted:
    """The cells of a region.

    Attributes
    ----------
    labels
        `(h, w)` uint32, 0 or an index into `ranks` plus one.
    ranks
        `(k,)` uint32, ascending: the cells that have a pixel in the region.
    first_pixels
        `(k,)` int64: linear index in the slide of the first pixel that each has there.
    resolved_px
        Pixels that several cells claim and one of them got.
    is_seen
        `(h, w)` bool: whether any tile holds the pixel.
    """

    labels: NDArray[np.uint32]
    ranks: NDArray[np.uint32]
    first_pixels: NDArray[np.int64]
    resolved_px: int
    is_seen: NDArray[np.bool_]

    def strip(self) -> Painted:
        """The same without its pixels, for `find_first_pixels`."""
        return replace(self, labels=self.labels[:0].copy(), is_seen=self.is_seen[:0].copy())


def paint_region(region: Region, parts: Iterable[Part], slide_width: int) -> Painted:
    """Paint a region; a pixel that several cells claim goes to the one of the lowest rank.

    Parameters
    ----------
    region
        Of the slide.
    parts
        Of all tiles that reach into it, in any order; each is let go before the next is taken.
    slide_width
        Pixels of a row of the slide.
    """
    painted = np.zeros(region.shape, np.uint32)
    is_resolved, is_seen = (np.zeros(region.shape, np.bool_) for _ in range(2))
    for part in parts:
        at = part.region.shift(-region.y0, -region.x0).slices
        here, claimed = painted[at], part.ranks[part.labels]
        is_resolved[at] |= (here != 0) & (claimed != 0) & (here != claimed)
        # Without its one, 0 wraps to the largest number, and any cell is before background.
        painted[at] = np.minimum(here - np.uint32(1), claimed - np.uint32(1)) + np.uint32(1)
        is_seen[at] = True
    ranks, seen_at, which = np.unique(painted, return_index=True, return_inverse=True)
    has_background = int(ranks.size > 0 and ranks[0] == 0)
    labels = (which.reshape(region.shape) + (1 - has_background)).astype(np.uint32)
    rows, cols = np.divmod(seen_at[has_background:], max(1, region.width))
    return Painted(
        labels=labels,
        ranks=ranks[has_background:],
        first_pixels=(rows + region.y0) * slide_width + cols + region.x0,
        resolved_px=int(is_resolved.sum()),
        is_seen=is_seen,
    )


def find_first_pixels(painted: Iterable[Painted], n_cells: int) -> NDArray[np.int64]:
    """The first pixel of each cell on the slide, by rank; what the cells are keyed by.

    Parameters
    ----------
    painted
        All regions of a partition of the slide, or of those of its parts that tiles reach into.
    n_cells
        Of the decision.

    Returns
    -------
    ndarray
        `(n_cells,)` int64; `NO_PIXEL` for a cell that lost all its pixels to others.
    """
    first = np.full(n_cells, NO_PIXEL, np.int64)
    for region in painted:
        at = region.ranks.astype(np.int64) - 1
        first[at] = np.minimum(first[at], region.first_pixels)
    return first


def number_cells(first_pixels: NDArray[np.int64]) -> tuple[NDArray[np.uint32], int]:
    """Ids 1..N in raster order of the cells' first pixels.

    Parameters
    ----------
    first_pixels
        By rank.

    Returns
    -------
    ids : `(n_cells + 1,)` uint32
        By rank; 0 for background and for cells without a pixel.
    n : int
        Cells that have one.

    Examples
    --------
    >>> number_cells(np.array([70, NO_PIXEL, 3]))
    (array([0, 2, 0, 1], dtype=uint32), 2)
    """
    order = np.argsort(first_pixels, kind="stable")
    n = int(np.count_nonzero(first_pixels != NO_PIXEL))
    ids = np.zeros(first_pixels.size + 1, np.uint32)
    ids[order[:n] + 1] = np.arange(1, n + 1, dtype=np.uint32)
    return ids, n
