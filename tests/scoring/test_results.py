import math
from fractions import Fraction

import numpy as np
import pytest

from densebatch.scoring.results import (
    BoundaryScore,
    ErrorCounts,
    ThresholdScore,
    mean,
    summarize_images,
)
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings


def test_panoptic_quality_is_segmentation_times_recognition():
    truth = np.repeat([1, 2, 3, 0], 10)[None]
    pred = np.concatenate([np.repeat([7, 0], (8, 2)), np.repeat([5], 10), np.repeat([0, 6], 10)])[
        None
    ]
    at = score_labels(truth, pred).at("0.5")
    assert (at.tp, at.fp, at.fn) == (2, 1, 1)
    assert (at.sq, at.f1, at.pq) == pytest.approx((0.9, 2 / 3, 0.6))


def test_summary_pools_cells_and_averages_images():
    good = score_labels(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 4]]), name="a")
    bad = score_labels(np.array([[1, 0]]), np.array([[0, 1]]), name="b")
    nothing = score_labels(np.array([[0, 0]]), np.array([[0, 0]]), name="c")
    summary = summarize_images([good, bad, nothing])
    assert summary.ap_by_threshold[0] == 0.5
    assert summary.pooled[0].ap == pytest.approx(4 / 6)
    assert (summary.n_truth, summary.n_images) == (5, 3)
    with pytest.raises(ValueError, match="the same settings"):
        summarize_images(
            [good, score_labels(np.ones((1, 1), int), np.ones((1, 1), int), ScoreSettings(("1",)))]
        )


def test_ratios_of_matches_by_hand():
    at = ThresholdScore(tp=6, fp=2, fn=4, iou_sum=4.5, n_pairs=6)
    assert (at.ap, at.precision, at.recall, at.f1) == (6 / 12, 6 / 8, 6 / 10, 12 / 18)
    assert (at.sq, at.pq) == (0.75, 0.75 * 12 / 18)
    # Without a match SQ is undefined, but PQ is 0 as long as there is a cell.
    assert math.isnan(ThresholdScore(0, 1, 0).sq)
    assert ThresholdScore(0, 1, 0).pq == 0
    assert math.isnan(ThresholdScore(0, 0, 0).pq)


def test_results_add_number_by_number():
    matches = ThresholdScore(1, 2, 3, 0.5, 1) + ThresholdScore(10, 20, 30, 5.0, 10)
    assert matches == ThresholdScore(11, 22, 33, 5.5, 11)
    assert ErrorCounts(1, 2, 3, 4) + ErrorCounts(10, 20, 30, 40) == ErrorCounts(11, 22, 33, 44)
    boundary = BoundaryScore(2.0, 1, 2, 3, 4) + BoundaryScore(2.0, 10, 20, 30, 40)
    assert boundary == BoundaryScore(2.0, 11, 22, 33, 44)


def test_means_leave_out_what_is_undefined():
    assert mean([1.0, math.nan, 4.0]) == 2.5
    assert math.isnan(mean([math.nan]))
    assert math.isnan(mean([]))


def test_an_image_is_asked_for_its_thresholds():
    truth, pred = np.array([[1, 1, 2, 0]]), np.array([[1, 1, 0, 3]])
    score = score_labels(truth, pred, ScoreSettings(("0.5", "0.75")))
    assert score.at("0.50") is score.at(0.5) is score.at(Fraction(1, 2)) is score.by_threshold[0]
    with pytest.raises(KeyError, match=r"IoU 0\.9 was not scored; there are 0\.50, 0\.75"):
        score.at(0.9)
    assert score.mean_ap == (1 / 3 + 1 / 3) / 2
    assert score.count_bias == 0


def test_a_summary_sums_errors_and_outlines():
    truth, pred = np.array([[1, 1, 2, 0, 0, 4]]), np.array([[1, 1, 0, 0, 3, 4]])
    one = score_labels(truth, pred, boundary_px=0)
    other = score_labels(pred, truth, boundary_px=0)
    summary = summarize_images([one, other])
    assert summary.errors == one.errors + other.errors
    assert (summary.errors.missed, summary.errors.spurious) == (2, 2)
    assert summary.boundary == one.boundary + other.boundary
    assert (summary.n_truth, summary.n_pred) == (6, 6)
    assert summary.mean_ap == summary.pooled_mean_ap == 0.5
    assert summarize_images([score_labels(truth, pred)]).boundary is None
