"""Where tiles overlap and where they cut, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.base.geometry import Region
from densebatch.merging.layout import UNCUT, Layout, sort_regions

GRID = Layout(tuple(Region(y, x, y + 10, x + 10) for y in (0, 7) for x in (0, 7)))


def test_four_tiles_at_a_corner_share_six_bands():
    assert GRID.bands == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert GRID.neighbours[2] == [0, 1, 3]
    assert GRID.narrowest_px == 3
    assert GRID.reaching(Region(0, 8, 7, 9)) == [0, 1]
    assert GRID.reaching(Region(9, 9, 10, 10)) == [0, 1, 2, 3]
    assert GRID.reaching(Region(17, 0, 18, 9)) == []


def test_order_is_by_rows_then_columns():
    shuffled = [GRID.regions[k] for k in (2, 0, 3, 1)]
    assert [shuffled[k] for k in sort_regions(shuffled)] == list(GRID.regions)
    with pytest.raises(ValueError, match="raster order"):
        Layout(tuple(shuffled))
    with pytest.raises(ValueError, match="two of them begin at one pixel"):
        Layout((Region(0, 0, 5, 5), Region(0, 0, 6, 6)))


@pytest.mark.parametrize(
    ("box", "distance"),
    [
        ((0, 0, 10, 1), 0),  # cut below, where tile 2 goes on
        ((0, 0, 9, 1), 1),
        ((0, 4, 3, 6), 4),
        ((4, 4, 5, 10), 0),
    ],
)
def test_distances_count_where_a_tile_goes_on(box, distance):
    assert GRID.distances(0, np.array([box])).tolist() == [distance]


def test_the_slide_s_own_border_and_gaps_cut_nothing():
    assert GRID.distances(3, np.array([[12, 12, 17, 17]])).tolist() == [5]
    alone = Layout((Region(0, 0, 10, 10), Region(0, 30, 10, 40)))
    assert alone.distances(0, np.array([[0, 0, 10, 10]])).tolist() == [UNCUT]
    assert alone.bands == []
    assert alone.narrowest_px is None
    # below, only columns 0 to 4 go on
    part = Layout((Region(0, 0, 10, 10), Region(5, 0, 15, 5)))
    assert part.distances(0, np.array([[5, 6, 10, 9], [5, 4, 10, 6]])).tolist() == [UNCUT, 0]


def test_tiles_that_lie_against_each_other_cut_and_share_nothing():
    layout = Layout((Region(0, 0, 10, 10), Region(0, 10, 10, 20)))
    assert layout.bands == []
    assert layout.distances(0, np.array([[3, 7, 6, 10]])).tolist() == [0]
    assert layout.narrowest_px == 0


def test_a_tile_holds_a_label_better_if_it_is_further_from_its_borders():
    boxes = np.array([[2, 8, 5, 10], [2, 6, 5, 9], [2, 7, 5, 10], [2, 8, 5, 9]])
    distances = GRID.distances(0, boxes)
    assert distances.tolist() == [0, 1, 0, 1]
    assert GRID.distances(1, boxes)[[0, 2, 3]].tolist() == [1, 0, 1]
    assert GRID.holds_better(1, boxes, distances).tolist() == [True, False, False, False]
