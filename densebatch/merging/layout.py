"""Where tiles lie: which of them overlap, and how far a label is from where its tile is cut."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

UNCUT = np.iinfo(np.int32).max
"""Distance of a label that no border of its tile is near: beyond each there is no other tile."""


@dataclass(frozen=True)
class Layout:
    """Tiles of a slide, in raster order of their first pixels.

    Attributes
    ----------
    regions : of the slide, ascending by `(y0, x0)`; no two begin at one pixel

    Examples
    --------
    >>> from densebatch.base.geometry import Region
    >>> layout = Layout((Region(0, 0, 6, 6), Region(0, 4, 6, 10), Region(0, 10, 6, 12)))
    >>> layout.bands
    [(0, 1)]
    >>> layout.distances(0, np.array([[1, 3, 4, 5], [1, 3, 4, 6]])).tolist()
    [1, 0]
    """

    regions: tuple[Region, ...]

    def __post_init__(self) -> None:
        starts = [(region.y0, region.x0) for region in self.regions]
        if any(b <= a for a, b in pairwise(starts)):
            raise ValueError("tiles are not in raster order, or two of them begin at one pixel")

    @cached_property
    def bands(self) -> list[tuple[int, int]]:
        """Pairs of tiles that share pixels, the earlier one first, ascending."""
        return [
            (first, second)
            for first, around in enumerate(self._around)
            for second in around
            if first < second and self.regions[first].intersect(self.regions[second]) is not None
        ]

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """For each tile those that share pixels with it, ascending."""
        found: list[list[int]] = [[] for _ in self.regions]
        for first, second in self.bands:
            found[first].append(second)
            found[second].append(first)
        return [sorted(others) for others in found]

    @cached_property
    def _around(self) -> list[list[int]]:
        """For each tile those that share pixels with it or lie against it."""
        y0, x0, y1, x1 = self._edges
        found: list[list[int]] = [[] for _ in self.regions]
        for tile in range(len(self.regions)):
            # Later tiles begin further down, and those that begin below this one are none of its.
            stop = int(np.searchsorted(y0, y1[tile], side="right"))
            later = slice(tile + 1, stop)
            near = (y1[later] >= y0[tile]) & (x0[later] <= x1[tile]) & (x1[later] >= x0[tile])
            for other in (np.flatnonzero(near) + tile + 1).tolist():
                found[tile].append(other)
                found[other].append(tile)
        return found

    @cached_property
    def _edges(self) -> NDArray[np.int64]:
        """Rows y0, x0, y1, x1 of all tiles."""
        edges = [(r.y0, r.x0, r.y1, r.x1) for r in self.regions]
        return np.array(edges, np.int64).reshape(-1, 4).T

    def reaching(self, region: Region) -> list[int]:
        """Tiles that share pixels with a region, ascending."""
        y0, x0, y1, x1 = self._edges
        inside = (y0 < region.y1) & (y1 > region.y0) & (x0 < region.x1) & (x1 > region.x0)
        found: list[int] = np.flatnonzero(inside).tolist()
        return found

    @property
    def narrowest_px(self) -> int | None:
        """Pixels that a tile shares with what goes on behind its border, where they are fewest.

        None if nothing goes on behind any border.
        """
        depths: list[int] = []
        for own, around in zip(self.regions, self._around, strict=True):
            sides: dict[str, int] = {}
            for other in (self.regions[k] for k in around):
                for side, goes_on, facing, depth in (
                    ("up", other.y0 < own.y0, _meet(own, other, "x"), other.y1 - own.y0),
                    ("left", other.x0 < own.x0, _meet(own, other, "y"), other.x1 - own.x0),
                    ("down", other.y1 > own.y1, _meet(own, other, "x"), own.y1 - other.y0),
                    ("right", other.x1 > own.x1, _meet(own, other, "y"), own.x1 - other.x0),
                ):
                    if goes_on and facing:
                        sides[side] = max(depth, sides.get(side, 0))
            depths += sides.values()
        return min(depths, default=None)

    def distances(self, tile: int, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pixels between each label and the nearest border of a tile; 0 where the border cuts it.

        A border counts along those rows or columns only where another tile goes on behind it: the
        slide's own border, or that of a gap between tiles, cuts what nobody sees any more of.

        Parameters
        ----------
        tile
            Which tile.
        boxes
            `(k, 4)`: y0, x0, y1, x1 of the labels, half-open, in pixels of the slide.

        Returns
        -------
        ndarray
            `(k,)` int64; `UNCUT` where no border counts.
        """
        own = self.regions[tile]
        y0, x0, y1, x1 = boxes.T
        nearest = np.full(len(boxes), UNCUT, np.int64)
        for other in self._around[tile]:
            seen = self.regions[other]
            beside = (y0 < seen.y1) & (y1 > seen.y0)
            above = (x0 < seen.x1) & (x1 > seen.x0)
            for goes_on, facing, gap in (
                (seen.y0 < own.y0 <= seen.y1, above, y0 - own.y0),
                (seen.x0 < own.x0 <= seen.x1, beside, x0 - own.x0),
                (seen.y0 <= own.y1 < seen.y1, above, own.y1 - y1),
                (seen.x0 <= own.x1 < seen.x1, beside, own.x1 - x1),
            ):
                if goes_on:
                    nearest = np.where(facing, np.minimum(nearest, gap), nearest)
        return nearest

    def holds_better(
        self, tile: int, boxes: NDArray[np.int64], distances: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether a tile holds all of a label of another one, further from its own borders.

        Parameters
        ----------
        tile
            Which is asked.
        boxes
            As of `distances`, of labels of the other tile.
        distances
            `(k,)`, of these in their own tile.
        """
        region = self.regions[tile]
        inside = (boxes[:, 0] >= region.y0) & (boxes[:, 1] >= region.x0)
        inside &= (boxes[:, 2] <= region.y1) & (boxes[:, 3] <= region.x1)
        return inside & (self.distances(tile, boxes) > distances)


def _meet(one: Region, other: Region, axis: str) -> bool:
    """Whether two tiles have rows (y) or columns (x) in common."""
    if axis == "y":
        return one.y0 < other.y1 and other.y0 < one.y1
    return one.x0 < other.x1 and other.x0 < one.x1


def sort_regions(regions: Sequence[Region]) -> list[int]:
    """Indices of regions in the order that a `Layout` has them in."""
    return sorted(range(len(regions)), key=lambda k: (regions[k].y0, regions[k].x0))
