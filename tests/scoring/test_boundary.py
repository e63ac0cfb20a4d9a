import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from skimage.segmentation import find_boundaries

from densebatch.base.errors import InputError
from densebatch.scoring.boundary import find_outline, score_boundaries
from densebatch.scoring.results import BoundaryScore
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings


@st.composite
def label_pairs(draw):
    shape = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    ids = st.sampled_from([0, 0, 1, 2, 2**32 - 1])
    return tuple(draw(hnp.arrays(np.uint32, shape, elements=ids, fill=ids)) for _ in range(2))


def brute_force(truth, pred, tolerance):
    outlines = [find_boundaries(i, mode="inner", connectivity=1) & (i > 0) for i in (truth, pred)]
    a, b = (np.argwhere(outline) for outline in outlines)
    near = cdist(a, b, "sqeuclidean") <= tolerance * tolerance if len(a) and len(b) else None
    counts = (0, 0) if near is None else (int(near.any(1).sum()), int(near.any(0).sum()))
    return BoundaryScore(tolerance, len(a), counts[0], len(b), counts[1])


@settings(max_examples=150, deadline=None)
@given(label_pairs(), st.sampled_from([0, 1, 1.5, 2, 3]), st.integers(1, 16))
def test_counts_agree_with_all_distances_for_any_blocks(pair, tolerance, block_px):
    expected = brute_force(*pair, tolerance)
    assert score_boundaries(*pair, tolerance_px=tolerance, block_px=block_px) == expected


def test_threads_change_no_number():
    rng = np.random.default_rng(3)
    truth = np.kron(rng.integers(0, 50, (12, 12)), np.ones((5, 5), int))
    pred = np.roll(truth, (3, 2), (0, 1))
    alone = score_boundaries(truth, pred, tolerance_px=1, block_px=1000)
    assert score_boundaries(truth, pred, tolerance_px=1, block_px=13, workers=3) == alone
    assert alone.truth_near < alone.truth_px


def test_outlines_of_touching_cells_are_on_both_sides():
    labels = np.array([[1, 1, 1, 2, 2, 2]] * 6, np.uint32)
    assert find_outline(labels).sum(0).tolist() == [0, 0, 6, 6, 0, 0]


def test_ratios():
    shifted = np.zeros((9, 9), int), np.zeros((9, 9), int)
    shifted[0][2:7, 2:5] = 1
    shifted[1][2:7, 5:8] = 1
    score = score_boundaries(*shifted, tolerance_px=1)
    assert (score.truth_px, score.truth_near, score.pred_px, score.pred_near) == (12, 5, 12, 5)
    assert score.precision == score.recall == score.f1 == 5 / 12
    both = score + score
    assert (both.truth_px, both.f1) == (24, 5 / 12)
    with pytest.raises(ValueError, match="tolerances"):
        score + score_boundaries(*shifted, tolerance_px=2)


def test_no_outline_on_one_or_both_sides():
    empty, cell = np.zeros((5, 5), int), np.zeros((5, 5), int)
    cell[1:4, 1:4] = 1
    assert math.isnan(score_boundaries(empty, empty).f1)
    assert score_boundaries(cell, empty).f1 == score_boundaries(empty, cell).f1 == 0


def test_cells_below_the_least_size_have_no_outline():
    truth = np.zeros((20, 20), int)
    truth[2:12, 2:12] = 1
    pred = truth.copy()
    pred[15:17, 15:17] = 2
    settings = ScoreSettings(min_size=5)
    filtered = score_labels(truth, pred, settings, boundary_px=0).boundary
    assert filtered.pred_px == filtered.truth_px
    assert score_labels(truth, pred, boundary_px=0).boundary.pred_px == filtered.pred_px + 4


def test_absurd_tolerances_are_refused():
    with pytest.raises(InputError, match="the boundary tolerance is 0 to 100 px, not 1000"):
        score_boundaries(np.ones((2, 2), int), np.ones((2, 2), int), tolerance_px=1000)
