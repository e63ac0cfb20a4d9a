"""Merging against the truth, and against a brute-force oracle, on small images."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from densebatch.merging.in_memory import merge_tiles
from tests.helpers.label_tiles import (
    cut_tiles,
    grow_cells,
    in_raster_order,
    keep_largest_pieces,
    scatter_ids,
    tile_regions,
)
from tests.merging import brute_force

SIDES = st.integers(6, 30)


@st.composite
def truths(draw, largest=8):
    shape = draw(SIDES), draw(SIDES)
    places = st.tuples(st.integers(0, 29), st.integers(0, 29))
    return grow_cells(shape, draw(st.lists(places, max_size=25)), draw(st.integers(1, largest)))


@st.composite
def tilings(draw, shape, most=12):
    tile = draw(st.integers(8, 24))
    overlap = draw(st.integers(1, min(most, tile - 5)))
    return tile_regions(shape, tile, overlap)


def disturb(truth, regions, rng, strength):
    """Tiles whose outlines, pieces and neighbours are other than the truth, each in its own way."""
    tiles = []
    for region in regions:
        labels = truth[region.slices].copy()
        moved = np.roll(labels, tuple(rng.integers(-1, 2, 2)), axis=(0, 1))
        labels = np.where(rng.random(labels.shape) < strength, moved, labels)
        for label in np.unique(labels[labels > 0]):
            fate = rng.random()
            if fate < 0.08:
                labels[labels == label] = 0
            elif fate < 0.16:  # merged with another
                labels[labels == label] = rng.choice(labels[labels > 0])
            elif fate < 0.24:  # split
                rows, cols = np.nonzero(labels == label)
                half = cols > np.median(cols)
                labels[rows[half], cols[half]] = labels.max() + 1
        tiles.append((region.y0, region.x0, scatter_ids(labels, rng)))
    return tiles


@st.composite
def disturbed(draw, truth, regions):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return disturb(truth, regions, rng, draw(st.sampled_from([0.05, 0.2, 0.5])))


def check_by_oracle(tiles, shape):
    merged = merge_tiles(tiles, shape)
    cells, larger = brute_force.merge(tiles)
    painted = np.zeros(shape, np.int64)
    contested = brute_force.paint(cells, painted)
    np.testing.assert_array_equal(merged.labels, in_raster_order(painted))
    assert (merged.decision.n_cells, merged.resolved_px) == (len(cells), contested)
    assert len(merged.decision.larger) == len(larger)
    return merged


@settings(max_examples=50)
@given(st.data())
def test_right_tiles_give_the_truth(data):
    """Whatever the overlap: cells that no tile holds are joined, those that touch are not."""
    truth = data.draw(truths(largest=12))
    regions = data.draw(tilings(truth.shape))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    merged = merge_tiles(cut_tiles(truth, regions, rng), truth.shape)
    np.testing.assert_array_equal(merged.labels, in_raster_order(truth))
    assert merged.resolved_px == 0
    assert not merged.decision.dropped
    # a cell is told as larger exactly where no tile has it without touching a border within
    told = {place.region for place in merged.decision.larger}
    for label in range(1, int(merged.labels.max(initial=0)) + 1):
        rows, cols = np.nonzero(merged.labels == label)
        box = (rows.min(), cols.min(), rows.max() + 1, cols.max() + 1)
        height, width = truth.shape
        held = any(
            (r.y0 < box[0] or r.y0 == 0) and (r.x0 < box[1] or r.x0 == 0)
            and (r.y1 > box[2] or r.y1 == height) and (r.x1 > box[3] or r.x1 == width)
            and r.y0 <= box[0] and r.x0 <= box[1] and r.y1 >= box[2] and r.x1 >= box[3]
            for r in regions
        )  # fmt: skip
        assert held != any((p.y0, p.x0, p.y1, p.x1) == box for p in told)


@settings(max_examples=50)
@given(st.data())
def test_as_the_oracle(data):
    truth = data.draw(truths())
    regions = data.draw(tilings(truth.shape))
    check_by_oracle(data.draw(disturbed(truth, regions)), truth.shape)


def test_dense_cells_as_the_oracle():
    """Examples that Hypothesis seldom draws: many cells, and every rule has something to do."""
    rng = np.random.default_rng(0)
    merged = larger = dropped = contested = 0
    for _ in range(60):
        shape = tuple(int(n) for n in rng.integers(20, 36, 2))
        truth = grow_cells(shape, rng.integers(0, 36, (30, 2)), int(rng.integers(2, 10)))
        tile = int(rng.integers(8, 22))
        regions = tile_regions(shape, tile, int(rng.integers(1, min(12, tile - 4))))
        found = check_by_oracle(disturb(truth, regions, rng, rng.choice([0.05, 0.2, 0.5])), shape)
        merged += found.decision.merged
        larger += len(found.decision.larger)
        dropped += len(found.decision.dropped)
        contested += found.resolved_px
    assert min(merged, larger, dropped, contested) > 0


@settings(max_examples=30)
@given(st.data())
def test_neither_order_nor_ids_of_tiles_matter(data):
    truth = data.draw(truths())
    regions = data.draw(tilings(truth.shape))
    tiles = data.draw(disturbed(truth, regions))
    once = merge_tiles(tiles, truth.shape)
    rng = np.random.default_rng(0)
    again = merge_tiles(
        [
            (y, x, scatter_ids(np.unique(labels, return_inverse=True)[1].reshape(labels.shape), rng)
             if (labels == 0).any() else labels)
            for y, x, labels in data.draw(st.permutations(tiles))
        ],
        truth.shape,
    )  # fmt: skip
    np.testing.assert_array_equal(once.labels, again.labels)
    assert once.decision.larger == again.decision.larger
    assert (once.decision.merged, once.resolved_px) == (again.decision.merged, again.resolved_px)


@settings(max_examples=30)
@given(st.data())
def test_every_label_is_a_cell_merged_or_dropped(data):
    truth = data.draw(truths())
    tiles = data.draw(disturbed(truth, data.draw(tilings(truth.shape))))
    decision = merge_tiles(tiles, truth.shape).decision
    labels = sum(ranks.size - 1 for ranks in decision.ranks)
    dropped = labels - decision.n_cells - decision.merged
    assert len(decision.dropped) <= dropped
    assert (dropped == 0) == (not decision.dropped)


def test_cells_are_one_piece():
    assert keep_largest_pieces(np.array([[1, 0, 1, 1]])).tolist() == [[0, 0, 1, 1]]
