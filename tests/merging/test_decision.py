"""The rules of merging, one by one, on tiles of a few pixels that are written out."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.base.geometry import Region
from densebatch.merging.decision import Place
from densebatch.merging.in_memory import merge_tiles

CODES = {".": 0} | {letter: k for k, letter in enumerate("abcdefgh", 1)}


def draw(*rows):
    return np.array([[CODES[letter] for letter in row] for row in rows])


def show(labels):
    letters = "." + "abcdefgh"
    return ["".join(letters[label] for label in row) for row in labels.tolist()]


def merge(width, *tiles):
    """Tiles given as their first column and their rows."""
    drawn = [(0, x, draw(*rows)) for x, *rows in tiles]
    return merge_tiles(drawn, (len(tiles[0]) - 1, width))


def test_a_cell_that_both_tiles_hold_is_one_and_the_far_copy_stays():
    merged = merge(12, (0, "....bbb.", "....bbb."), (3, "..ccc....", "..ccc...."))
    assert show(merged.labels) == [".....aaa...."] * 2
    assert (merged.decision.candidate_pairs, merged.decision.merged) == (1, 1)
    assert merged.resolved_px == 0


def test_cells_that_touch_stay_two():
    merged = merge(10, (0, "aaabbbb", "aaabbbb"), (3, "hhhhccc", "hhhhccc"))
    assert show(merged.labels) == ["aaabbbbccc"] * 2


def test_a_piece_of_a_cut_cell_joins_it():
    """The right tile cuts the cell at its left border, in two pieces."""
    merged = merge(12, (0, "..aaaaaa..", "..aaaaaa.."), (5, "aab....", "aab...."))
    assert show(merged.labels) == ["..aaaaaa....", "..aaaaaa...."]
    assert merged.decision.merged == 2


def test_the_inner_piece_of_a_cut_cell_is_not_trusted_more_than_the_whole():
    """The right tile splits what it cuts; the piece within is further from a border than all is."""
    left = (0, "....aaaaaaaa.", "....aaaaaaaa.")
    right = (5, "hhhbbbb.......", "hhhbbbb.......")
    merged = merge(19, left, right)
    assert show(merged.labels) == ["....aaaaaaaa......."] * 2
    assert merged.decision.merged == 2


@pytest.mark.parametrize("mirror", [False, True])
def test_a_copy_without_its_edge_yields_to_the_whole(mirror):
    """One tile's border cuts a cell that takes the edge of the next one.

    What is left of that is further from the border than the copy of the other tile is from its
    own. With its edge it would be as near, so the larger copy stays, whichever tile it is of.
    """
    whole, less = "....aaaa..", "hhhbbb...."
    if mirror:
        tiles = (0, *[less[::-1]] * 2), (2, *[whole[::-1]] * 2)
    else:
        tiles = (0, *[whole] * 2), (2, *[less] * 2)
    assert show(merge(12, *tiles).labels) == ["....aaaa...."] * 2


def test_a_cut_blob_over_two_cells_takes_neither():
    merged = merge(14, (0, "...aaabbb...", "...aaabbb..."), (4, "hhhhh.....", "hhhhh....."))
    assert show(merged.labels) == ["...aaabbb....."] * 2
    assert merged.resolved_px == 0


def test_a_chain_of_matches_does_not_make_one_cell_of_two():
    """The middle tile has a blob that matches a cell of the left and one of the right tile.

    Neither of these tiles sees the other's cell.
    """
    left = (0, ".....aaaa.", ".....aaaa.")
    middle = (4, ".hhhhhhhh.", ".hhhhhhhh.")
    right = (8, ".bbbb.....", ".bbbb.....")
    merged = merge(18, left, middle, right)
    found = {letter for row in show(merged.labels) for letter in row} - {"."}
    assert len(found) == 2
    assert merged.decision.n_cells == 2


def test_a_cell_larger_than_the_overlap_is_whole_and_told():
    merged = merge(12, (0, ".aaaaa", ".aaaaa"), (4, "bbbb", "bbbb"), (6, "ddddd.", "ddddd."))
    assert show(merged.labels) == [".aaaaaaaaaa."] * 2
    assert merged.decision.larger == (Place(Region(0, 1, 2, 11), (0, 1, 2)),)
    assert merged.decision.merged == 2


def test_a_cut_piece_that_the_other_tile_knows_nothing_of_is_dropped():
    merged = merge(12, (0, "..........", ".........."), (4, "c.......", "c......."))
    assert not merged.labels.any()
    assert merged.decision.dropped == (Place(Region(0, 4, 2, 5), (1,)),)


def test_so_is_one_that_ends_just_before_the_border():
    merged = merge(14, (0, "............", "............"), (4, "..c.......", "..c......."))
    assert not merged.labels.any()
    (place,) = merged.decision.dropped
    assert place == Place(Region(0, 6, 2, 7), (1,))


def test_a_cell_near_the_borders_of_both_tiles_is_kept():
    """Each would see the other's copy further from its own border, and both know the cell."""
    merged = merge(14, (0, "......aaaaa.", "......aaaaa."), (4, ".bbbbb....", ".bbbbb...."))
    assert show(merged.labels) == ["......aaaaa..."] * 2
    assert not merged.decision.dropped


def test_what_is_nearer_to_a_border_than_it_is_long_is_dropped_if_the_other_tile_knows_nothing():
    merged = merge(20, (0, "..........aaaa..", "..........aaaa.."), (4, "." * 16, "." * 16))
    assert not merged.labels.any()
    (place,) = merged.decision.dropped
    assert place == Place(Region(0, 10, 2, 14), (0,))


def test_a_cell_that_only_one_tile_found_is_kept():
    merged = merge(12, (0, "......aa..", "......aa.."), (4, "........", "........"))
    assert show(merged.labels) == ["......aa...."] * 2


def test_pixels_that_two_cells_claim_go_to_the_one_that_is_further_from_a_border():
    """Left, the tile sees one cell with a wide outline; right, another beside it."""
    merged = merge(16, (0, "...aaaaa...", "...aaaaa..."), (2, ".....bbbbb....", ".....bbbbb...."))
    assert show(merged.labels) == ["...aaaabbbbb...."] * 2
    assert merged.resolved_px == 2


def test_no_tiles_and_empty_tiles():
    assert merge_tiles([], (3, 4)).labels.tolist() == [[0] * 4] * 3
    merged = merge(6, (0, "....", "...."), (2, "....", "...."))
    assert not merged.labels.any()
    assert merged.decision.n_cells == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64])
def test_any_whole_numbers_are_ids(dtype):
    top = np.iinfo(dtype).max
    tile = np.array([[0, top, top, 1, 0]], dtype)
    assert merge_tiles([(0, 0, tile), (0, 2, tile[:, 2:])], (1, 5)).labels.tolist() == [
        [0, 1, 1, 2, 0]
    ]
