"""Painting region by region gives what painting at once does, whoever paints which."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.base.geometry import Grid, Region
from densebatch.merging.in_memory import merge_tiles
from densebatch.merging.painting import (
    NO_PIXEL,
    Part,
    find_first_pixels,
    number_cells,
    paint_region,
)

RNG = np.random.default_rng(8)
SHAPE = (30, 41)
LAYOUT = [
    Region(0, 0, 20, 25),
    Region(0, 15, 20, 41),
    Region(12, 0, 30, 25),
    Region(12, 15, 30, 41),
]
# noise, in which cells overlap everywhere
TILES = [np.kron(RNG.integers(0, 9, (10, 13)), np.ones((2, 2), int))[: r.height, : r.width]
         for r in LAYOUT]  # fmt: skip
WHOLE = merge_tiles([(r.y0, r.x0, t) for r, t in zip(LAYOUT, TILES, strict=True)], SHAPE)


@pytest.mark.parametrize("step", [(30, 41), (7, 11), (1, 41), (20, 3)])
def test_regions_add_up(step):
    from densebatch.merging.facts import number_locally

    local = [number_locally(tile) for tile in TILES]

    def paint(region):
        parts = []
        for tile, own in enumerate(WHOLE.layout.regions):
            inside = own.intersect(region)
            if inside is not None:
                at = inside.shift(-own.y0, -own.x0).slices
                parts.append(Part(inside, local[tile][at], WHOLE.decision.ranks[tile]))
        return paint_region(region, parts[::-1], SHAPE[1])

    grid = Grid(*SHAPE, *step)
    order = RNG.permutation(len(list(grid)))
    regions = [grid[list(grid)[k]] for k in order]
    painted = [paint(region) for region in regions]
    ids, n = number_cells(find_first_pixels(painted, WHOLE.decision.n_cells))
    labels = np.zeros(SHAPE, np.uint32)
    for region, each in zip(regions, painted, strict=True):
        labels[region.slices] = np.append(0, ids[each.ranks])[each.labels]
        assert each.is_seen.all()
    np.testing.assert_array_equal(labels, WHOLE.labels)
    assert sum(each.resolved_px for each in painted) == WHOLE.resolved_px > 0
    assert n == WHOLE.labels.max()


def test_pixels_in_no_tile_are_told():
    part = Part(Region(0, 0, 2, 2), np.ones((2, 2), np.uint32), np.array([0, 1], np.uint32))
    painted = paint_region(Region(0, 0, 2, 3), [part], 3)
    assert painted.is_seen.tolist() == [[True, True, False]] * 2
    assert painted.labels.tolist() == [[1, 1, 0]] * 2
    assert painted.first_pixels.tolist() == [0]


def test_a_cell_without_a_pixel_gets_no_number():
    assert find_first_pixels([], 2).tolist() == [NO_PIXEL] * 2
    ids, n = number_cells(np.array([NO_PIXEL, 5, 2]))
    assert (ids.tolist(), n) == ([0, 0, 2, 1], 2)
