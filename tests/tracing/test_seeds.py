"""Seeds, claims and candidates against slow oracles that follow the definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from densebatch.tracing.candidates import Verdict
from densebatch.tracing.seeds import (
    GROW_COUNT,
    SEED_COUNT,
    claim_pixels,
    count_ends,
    find_seeds,
    gather_cells,
    rank_seeds,
)

shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=24)
# with ties, and the values at which something becomes a seed or is claimed
count_images = hnp.arrays(
    np.int32, shapes, elements=st.sampled_from([0, 0, 2, 3, 3, 4, 10, 11, 11, 12, 40])
)


@st.composite
def end_images(draw):
    """Ends that gather at a few places, some of them side by side, and pixels that have none."""
    height, width = draw(shapes)
    n = height * width
    places = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6))
    places += [min(place + draw(st.sampled_from([1, 2, width])), n - 1) for place in places]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ends = rng.choice([*places, -1], n)
    astray = rng.random(n) < draw(st.sampled_from([0.0, 0.3]))
    ends[astray] = rng.integers(0, n, astray.sum())
    return ends.reshape(height, width).astype(np.int32)


def find_peaks(counts):
    around = ndimage.maximum_filter(counts, 5, mode="constant")
    return np.flatnonzero((counts == around) & (counts > SEED_COUNT))


def grow_claims(counts, seeds):
    """Each seed dilated by 8 neighbours, five times; written from the weakest to the strongest."""
    claims = np.zeros(counts.shape, int)
    ranking = sorted(range(len(seeds)), key=lambda k: (counts.flat[seeds[k]], -seeds[k]))
    for k in ranking:
        start = np.zeros(counts.shape, bool)
        start.flat[seeds[k]] = True
        grown = ndimage.binary_dilation(start, np.ones((3, 3)), 5, mask=counts > GROW_COUNT)
        claims[grown] = k + 1
    return claims


@given(end_images())
def test_ends_are_counted(ends):
    expected = np.bincount(ends[ends >= 0], minlength=ends.size).reshape(ends.shape)
    assert np.array_equal(count_ends(ends), expected)


@given(count_images)
def test_seeds_are_the_peaks(counts):
    assert np.array_equal(find_seeds(counts), find_peaks(counts))


@settings(max_examples=200)
@given(count_images)
def test_claims_grow_from_every_seed_and_the_strongest_wins(counts):
    seeds = find_seeds(counts)
    claims = claim_pixels(counts, seeds, rank_seeds(counts, seeds))
    assert np.array_equal(claims, grow_claims(counts, seeds))


def test_of_equal_seeds_the_first_in_the_slide_wins():
    counts = np.zeros((3, 15), np.int32)
    counts[1, 1:14] = 3
    counts[1, [2, 8]] = 20
    counts[1, 12] = 30
    seeds = find_seeds(counts)
    assert np.array_equal(rank_seeds(counts, seeds), [1, 0, 2])
    claims = claim_pixels(counts, seeds, rank_seeds(counts, seeds))
    assert np.array_equal(claims[1], [0, *[1] * 6, *[3] * 7, 0])


def test_a_claim_ends_after_five_pixels_and_at_gaps():
    counts = np.full((21, 21), 3, np.int32)
    counts[10, 10] = 20
    counts[:, 13] = 2
    claims = claim_pixels(counts, find_seeds(counts), np.arange(1))
    expected = np.zeros((21, 21), int)
    expected[5:16, 5:13] = 1
    assert np.array_equal(claims, expected)


@settings(max_examples=200)
@given(end_images())
def test_pixels_belong_to_who_claimed_their_end(ends):
    labels, cells = gather_cells(ends)
    counts = np.bincount(ends[ends >= 0], minlength=ends.size).reshape(ends.shape)
    seeds = find_peaks(counts)
    claims = grow_claims(counts, seeds)
    assert np.array_equal(labels, np.where(ends >= 0, claims.flat[np.maximum(ends, 0)], 0))
    assert np.array_equal(cells.seed_y * ends.shape[1] + cells.seed_x, seeds)
    assert {column.size for column in cells} == {seeds.size}
    assert (cells.verdict == Verdict.OUTSIDE).all()
    boxes = ndimage.find_objects(labels, seeds.size)
    for k, box in enumerate(boxes):
        assert cells.area[k] == np.count_nonzero(labels == k + 1)
        if box is None:
            assert cells.y0[k] >= cells.y1[k]
        else:
            found = slice(cells.y0[k], cells.y1[k]), slice(cells.x0[k], cells.x1[k])
            assert found == box


def test_the_ends_that_are_tried_make_cells_that_compete():
    """Or the test above shows little."""
    n_seeds, without = [], 0

    @settings(max_examples=200, derandomize=True, database=None)
    @given(end_images())
    def look(ends):
        nonlocal without
        cells = gather_cells(ends)[1]
        n_seeds.append(cells.area.size)
        without += np.count_nonzero(cells.area == 0)

    look()
    assert sum(n > 2 for n in n_seeds) > 20
    assert without > 2  # seeds whose every end a stronger one claimed
