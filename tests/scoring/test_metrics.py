import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import adjusted_rand_score

from densebatch.scoring.contingency import Contingency
from densebatch.scoring.matching import Overlaps
from densebatch.scoring.metrics import (
    adjusted_rand_index,
    aggregated_jaccard_index,
    classify_errors,
    iou_histogram,
    mean_dice,
)
from densebatch.scoring.results import ErrorCounts
from densebatch.scoring.score import score_table
from tests.helpers.label_images import label_pairs, masks


@settings(max_examples=150, deadline=None)
@given(label_pairs())
def test_adjusted_rand_index_agrees_with_scikit_learn(pair):
    expected = adjusted_rand_score(pair[0].ravel(), pair[1].ravel())
    assert adjusted_rand_index(Contingency.from_arrays(*pair)) == pytest.approx(expected, abs=1e-12)


def test_adjusted_rand_index_is_exact_beyond_three_gigapixels():
    counts = np.array([[2**34 + 1, 3, 77], [5, 2**33 + 9, 0], [2**21, 1, 2**22 + 3]])
    truth, pred = np.nonzero(counts)
    table = Contingency.from_rows(
        truth.astype(np.uint32), pred.astype(np.uint32), counts[truth, pred].astype(np.int64)
    )

    def pairs(values):
        return sum(math.comb(int(value), 2) for value in values)

    index = pairs(counts.ravel())
    in_truth, in_pred = pairs(counts.sum(1)), pairs(counts.sum(0))
    expected = Fraction(in_truth * in_pred, math.comb(int(counts.sum()), 2))
    exact = (index - expected) / (Fraction(in_truth + in_pred, 2) - expected)
    assert adjusted_rand_index(table) == float(exact)


@settings(max_examples=100, deadline=None)
@given(label_pairs())
def test_dice_and_aji_agree_with_a_loop_over_cells(pair):
    score = score_table(Contingency.from_arrays(*pair))
    truth, pred = map(masks, pair)
    dice, used, intersection, union = [], set(), 0, 0
    for a in truth:
        shared = [int((a & b).sum()) for b in pred]
        best = max(range(len(pred)), key=lambda k: (shared[k], -k), default=None)
        if best is None or not shared[best]:
            dice.append(0.0)
            union += int(a.sum())
            continue
        dice.append(2 * shared[best] / (a.sum() + pred[best].sum()))
        ious = [Fraction(shared[k], int((a | pred[k]).sum())) for k in range(len(pred))]
        best = max(range(len(pred)), key=lambda k: (ious[k], -k))
        intersection += shared[best]
        union += int((a | pred[best]).sum())
        used.add(best)
    union += sum(int(b.sum()) for k, b in enumerate(pred) if k not in used)
    if truth:
        assert score.dice == pytest.approx(np.mean(dice), abs=1e-12)
    else:
        assert math.isnan(score.dice)
    assert score.aji == (
        pytest.approx(intersection / union) if union else pytest.approx(np.nan, nan_ok=True)
    )


@settings(max_examples=100, deadline=None)
@given(label_pairs())
def test_kinds_of_errors_agree_with_a_loop_over_cells(pair):
    truth, pred = map(masks, pair)

    def lies(a, b):
        return 2 * (a & b).sum() > a.sum()

    expected = ErrorCounts(
        splits=sum(sum(lies(b, a) for b in pred) >= 2 for a in truth),
        merges=sum(sum(lies(a, b) for a in truth) >= 2 for b in pred),
        missed=sum(not any(lies(a, b) or lies(b, a) for b in pred) for a in truth),
        spurious=sum(not any(lies(a, b) or lies(b, a) for a in truth) for b in pred),
    )
    assert score_table(Contingency.from_arrays(*pair)).errors == expected


def test_values_of_one_pair_by_hand():
    """Truth cell 1 is halved, 2 is found but for a pixel, 3 is missed; prediction 9 is spurious."""
    truth = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0]])
    pred = np.array([[4, 4, 5, 5, 6, 6, 6, 0, 0, 0, 9, 9]])
    table = Contingency.from_arrays(truth, pred)
    overlaps = Overlaps.from_table(table)
    assert mean_dice(overlaps) == pytest.approx((4 / 6 + 6 / 7 + 0) / 3)
    # intersections 2 and 3; unions 4 and 4, the missed cell, and predictions 5 and 9
    assert aggregated_jaccard_index(overlaps) == 5 / (4 + 4 + 2 + 2 + 2)
    assert classify_errors(overlaps) == ErrorCounts(splits=1, merges=0, missed=1, spurious=1)
    histogram = iou_histogram(overlaps)
    assert {k: n for k, n in enumerate(histogram) if n} == {0: 1, 10: 1, 15: 1}
    swapped = Overlaps.from_table(Contingency.from_arrays(pred, truth))
    assert classify_errors(swapped) == ErrorCounts(splits=0, merges=1, missed=1, spurious=1)


@settings(max_examples=80)
@given(label_pairs())
def test_histogram_counts_each_truth_cell_by_its_best_iou(pair):
    truth, pred = map(masks, pair)
    expected = [0] * 20
    for a in truth:
        best = max((Fraction(int((a & b).sum()), int((a | b).sum())) for b in pred), default=0)
        expected[min(19, math.floor(20 * best))] += 1
    overlaps = Overlaps.from_table(Contingency.from_arrays(*pair))
    assert iou_histogram(overlaps) == tuple(expected)
