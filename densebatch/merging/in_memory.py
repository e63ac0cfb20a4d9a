"""All three steps for tiles that are arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.geometry import Region
from densebatch.merging.decision import decide
from densebatch.merging.facts import measure_band, measure_tile, number_locally
from densebatch.merging.layout import Layout, sort_regions
from densebatch.merging.painting import Part, find_first_pixels, number_cells, paint_region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.merging.decision import Decision


@dataclass(frozen=True)
class Merged:
    """Labels of a slide.

    Attributes
    ----------
    labels : `(height, width)` uint32, 0 and 1..N in raster order of the cells' first pixels
    layout : the tiles, in the order by which the decision numbers them
    decision : what was merged
    resolved_px : pixels that several cells claimed
    """

    labels: NDArray[np.uint32]
    layout: Layout
    decision: Decision
    resolved_px: int


def merge_tiles(
    tiles: Sequence[tuple[int, int, NDArray[np.integer[Any]]]], shape: tuple[int, int]
) -> Merged:
    """Merge labels of overlapping tiles.

    Parameters
    ----------
    tiles
        Row and column of the first pixel, and labels `(h, w)` of any whole numbers, 0 for
        background; in any order.
    shape
        Of the slide, px.

    Examples
    --------
    >>> left, right = np.array([[7, 7, 0, 2]]), np.array([[0, 9, 9, 9]])
    >>> merge_tiles([(0, 2, right), (0, 0, left)], (1, 6)).labels
    array([[1, 1, 0, 2, 2, 2]], dtype=uint32)
    """
    found = [Region(y, x, y + each.shape[0], x + each.shape[1]) for y, x, each in tiles]
    order = sort_regions(found)
    layout = Layout(tuple(found[k] for k in order))
    local = [number_locally(tiles[k][2]) for k in order]

    def view(tile: int, region: Region) -> NDArray[np.uint32]:
        own = layout.regions[tile]
        return local[tile][region.shift(-own.y0, -own.x0).slices]

    bands = []
    for first, second in layout.bands:
        band = layout.regions[first].intersect(layout.regions[second])
        assert band is not None
        bands.append(measure_band(first, second, view(first, band), view(second, band)))
    facts = [measure_tile(each, own) for each, own in zip(local, layout.regions, strict=True)]
    decision = decide(layout, facts, bands)
    parts = [Part(own, each, ranks) for own, each, ranks in
             zip(layout.regions, local, decision.ranks, strict=True)]  # fmt: skip
    painted = paint_region(Region(0, 0, *shape), parts, shape[1])
    ids, _ = number_cells(find_first_pixels([painted], decision.n_cells))
    numbers = np.concatenate([np.zeros(1, np.uint32), ids[painted.ranks]])
    return Merged(numbers[painted.labels], layout, decision, painted.resolved_px)
