from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from densebatch.scoring import matching
from densebatch.scoring.contingency import Contingency
from densebatch.scoring.matching import Overlaps, find_ignored, match_cells, reaches
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from tests.helpers.label_images import label_pairs, masks

TENTHS = tuple(Fraction(k, 10) for k in range(1, 11))


@settings(max_examples=60, deadline=None)
@given(label_pairs(), st.sampled_from(TENTHS))
def test_one_to_one_matching_has_the_largest_sum_of_iou(pair, threshold):
    overlaps = Overlaps.from_table(Contingency.from_arrays(*pair))
    dense = np.zeros((overlaps.truth_ids.size, overlaps.pred_ids.size))
    dense[overlaps.truth, overlaps.pred] = overlaps.iou
    n_min = max(1, min(dense.shape))
    gain = (dense >= float(threshold)) + dense / (2 * n_min)
    rows, cols = linear_sum_assignment(gain, maximize=True)
    good = dense[rows, cols] >= float(threshold)
    with pytest.MonkeyPatch.context() as patch:
        for entries in (matching.DENSE_ENTRIES, 0):
            patch.setattr(matching, "DENSE_ENTRIES", entries)
            edges = match_cells(overlaps, threshold, "hungarian").edges
            assert len(set(overlaps.truth[edges])) == len(set(overlaps.pred[edges])) == edges.size
            assert edges.size == good.sum()
            # Beside the good pairs the dense assignment may prefer others below the threshold.
            assert overlaps.iou[edges].sum() >= dense[rows, cols][good].sum() - 1e-9


def test_a_pair_exactly_on_the_threshold_matches():
    truth = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    pred = np.where(np.arange(11) < 7, 3, 0)[None]
    score = score_labels(truth, pred, ScoreSettings(("7/11", "0.636", "0.637")))
    assert [at.tp for at in score.by_threshold] == [1, 1, 0]
    # 0.55 as a double is above 11/20, and 0.7 below 7/10
    pred = np.where(np.arange(20) < 11, 3, 0)[None]
    assert score_labels(np.ones((1, 20), int), pred).at(0.55).tp == 1


def test_halves_match_both_or_one():
    truth, pred = np.array([[4, 4, 0]]), np.array([[1, 2, 0]])
    both, one = (
        score_labels(truth, pred, ScoreSettings(matching=m)).at(0.5) for m in ("any", "hungarian")
    )
    assert (both.tp, both.fp, both.fn) == (1, 0, 0)
    assert (one.tp, one.fp, one.fn) == (1, 1, 0)


def test_any_and_hungarian_agree_above_one_half():
    rng = np.random.default_rng(1)
    truth = np.kron(rng.integers(0, 30, (20, 20)), np.ones((3, 3), int))
    pred = np.roll(truth, 1, 0)
    # A label of these lies in several places.
    scores = [
        score_labels(truth, pred, ScoreSettings(matching=m, label_components=False))
        for m in ("any", "hungarian")
    ]
    for a, b in zip(*(score.by_threshold[1:] for score in scores), strict=True):
        assert (a.tp, a.fp, a.fn) == (b.tp, b.fp, b.fn)
        assert a.iou_sum == pytest.approx(b.iou_sum)


def test_thresholds_too_fine_for_64_bits():
    truth, pred = np.ones((100, 100), int), np.ones((100, 100), int)
    pred[0, 0] = 0
    fine = ScoreSettings(("0.99990000000000000", "0.99990000000000001"))
    assert [at.tp for at in score_labels(truth, pred, fine).by_threshold] == [1, 0]


def test_thresholds_are_compared_beyond_the_digits_of_a_double():
    part, whole = np.array([2**59 - 1, 2**59]), np.array([2**60, 2**60])
    assert (part / whole).tolist() == [0.5, 0.5]
    assert reaches(part, whole, Fraction(1, 2)).tolist() == [False, True]


def test_small_cells_are_ignored_as_by_coco():
    truth = np.repeat([1, 2, 0, 3, 0], (10, 3, 5, 3, 10))[None]
    pred = np.repeat([1, 2, 0, 4, 0, 5], (10, 3, 8, 2, 2, 6))[None]
    # truth 1, 2 are found, 3 is missed; prediction 4 (2 px) and 5 (6 px) are spurious
    plain = score_labels(truth, pred).at(0.5)
    assert (plain.tp, plain.fp, plain.fn) == (2, 2, 1)
    # truth 2 and 3 are too small to count; 2 has a partner, which is then not spurious
    ignored = score_labels(truth, pred, ScoreSettings(ignore_below=5)).at(0.5)
    assert (ignored.tp, ignored.fp, ignored.fn) == (1, 1, 0)


def test_a_region_is_ignored_as_by_coco():
    truth = np.repeat([1, 0, 2, 0], (10, 10, 10, 10))[None]
    pred = np.repeat([1, 0, 4, 0, 5], (10, 15, 5, 5, 5))[None]
    region = np.repeat([0, 1], (20, 20))[None]
    plain = score_labels(truth, pred, ScoreSettings(("0.6",))).at("0.6")
    assert (plain.tp, plain.fp, plain.fn) == (1, 2, 1)
    ignored = score_labels(truth, pred, ScoreSettings(("0.6",)), ignore=region).at("0.6")
    assert (ignored.tp, ignored.fp, ignored.fn) == (1, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.integers(1, 2**62)), max_size=5),
    st.fractions(min_value=Fraction(1, 1000), max_value=1),
)
def test_shares_reach_a_threshold_as_fractions_do(pairs, threshold):
    part, whole = (np.array([pair[k] for pair in pairs], np.int64) for k in (0, 1))
    expected = [Fraction(a, b) >= threshold for a, b in pairs]
    assert reaches(part, whole, threshold).tolist() == expected


@settings(max_examples=80)
@given(label_pairs())
def test_overlaps_are_those_of_masks(pair):
    overlaps = Overlaps.from_table(Contingency.from_arrays(*pair))
    truth, pred = map(masks, pair)
    assert overlaps.truth_areas.tolist() == [a.sum() for a in truth]
    assert overlaps.pred_areas.tolist() == [b.sum() for b in pred]
    shared = {
        (i, j): int((a & b).sum())
        for i, a in enumerate(truth)
        for j, b in enumerate(pred)
        if (a & b).any()
    }
    edges = [*zip(overlaps.truth.tolist(), overlaps.pred.tolist(), strict=True)]
    assert dict(zip(edges, overlaps.shared.tolist(), strict=True)) == shared
    assert edges == sorted(edges)
    assert overlaps.union.tolist() == [int((truth[i] | pred[j]).sum()) for i, j in edges]
    for chosen, value in ((overlaps.best, overlaps.iou), (overlaps.largest, overlaps.shared)):
        for i, edge in enumerate(chosen):
            mine = [k for k, (truth_cell, _) in enumerate(edges) if truth_cell == i]
            assert edge == (max(mine, key=lambda k: (value[k], -k)) if mine else -1)


def test_each_truth_cell_keeps_its_best_edge_where_any_match_counts():
    truth, pred = np.array([[1, 1, 1, 1, 1, 1]]), np.array([[7, 7, 5, 5, 5, 0]])
    overlaps = Overlaps.from_table(Contingency.from_arrays(truth, pred))
    found = match_cells(overlaps, Fraction(1, 3))
    assert overlaps.iou[found.edges].tolist() == [0.5]
    assert found.truth_found.tolist() == [True]
    assert found.pred_found.tolist() == [True, True]


@settings(max_examples=80)
@given(label_pairs(), st.integers(0, 4), st.integers(0, 2**32))
def test_ignored_cells_are_those_of_masks(pair, below_px, seed):
    region = np.random.default_rng(seed).integers(0, 2, pair[0].shape)
    overlaps = Overlaps.from_table(Contingency.from_arrays(*pair))
    inside = [Contingency.from_arrays(region, side) for side in pair]
    ignored = find_ignored(overlaps, below_px, *inside)
    truth, pred = map(masks, pair)
    assert ignored.truth.tolist() == [
        a.sum() < below_px or 2 * (a & (region > 0)).sum() >= a.sum() for a in truth
    ]
    assert ignored.pred_small.tolist() == [b.sum() < below_px for b in pred]
    assert ignored.pred_inside_px.tolist() == [(b & (region > 0)).sum() for b in pred]
    nothing = find_ignored(overlaps, 0, None, None)
    for found in (nothing.truth, nothing.pred_small, nothing.pred_inside_px):
        assert not found.any()
