import csv
import math
import warnings
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score

from densebatch.base.errors import InputError
from densebatch.cells.pixels import MAX_LABEL
from densebatch.scoring import matching as scoring_matching
from densebatch.scoring.compare import compare_predictions, signed_rank_p
from densebatch.scoring.contingency import Contingency
from densebatch.scoring.matching import (
    Overlaps,
    format_threshold,
    match_cells,
    parse_threshold,
    reaches,
)
from densebatch.scoring.score import (
    ErrorCounts,
    ScoreSettings,
    ThresholdScore,
    adjusted_rand_index,
    score_labels,
    score_table,
    summarize,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "hsv-dense"
TENTHS = tuple(Fraction(k, 10) for k in range(1, 11))


@st.composite
def label_pairs(draw, side=9):
    """Truth, and a prediction that is independent of it or a damaged copy: real overlaps."""
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    ids = st.sampled_from([0, 1, 2, 3, 9, 40, MAX_LABEL])
    first = draw(hnp.arrays(np.uint32, shape, elements=ids, fill=st.nothing()))
    other = draw(hnp.arrays(np.uint32, shape, elements=ids, fill=ids))
    if draw(st.booleans()):
        other = np.where(draw(hnp.arrays(bool, shape)), other, first)
    return first, other


def masks(image):
    return [image == label for label in np.unique(image) if label != 0]


def count_matches(truth, pred, threshold, method):
    """Mask by mask, with fractions."""
    pairs = [[Fraction(int((a & b).sum()), int((a | b).sum())) for b in pred] for a in truth]
    good = np.array([[iou >= threshold for iou in row] for row in pairs], bool)
    good = good.reshape(len(truth), len(pred))
    if method == "any":
        found = int(good.any(1).sum())
        return found, len(pred) - int(good.any(0).sum()), len(truth) - found
    tp = int(good[linear_sum_assignment(good, maximize=True)].sum())
    return tp, len(pred) - tp, len(truth) - tp


@settings(max_examples=120, deadline=None)
@given(label_pairs(), st.sampled_from(["any", "hungarian"]))
def test_matches_agree_with_a_count_mask_by_mask(pair, method):
    score = score_table(Contingency.from_arrays(*pair), ScoreSettings(TENTHS, method))
    truth, pred = map(masks, pair)
    assert (score.n_truth, score.n_pred) == (len(truth), len(pred))
    for threshold in TENTHS:
        at = score.at(threshold)
        assert (at.tp, at.fp, at.fn) == count_matches(truth, pred, threshold, method)
    assert sum(score.iou_histogram) == len(truth)
    by_size = sum((part.score for part in score.by_size), ThresholdScore(0, 0, 0))
    focus = score.at("0.50")
    assert (by_size.tp, by_size.fp, by_size.fn) == (focus.tp, focus.fp, focus.fn)


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
        for entries in (scoring_matching.DENSE_ENTRIES, 0):
            patch.setattr(scoring_matching, "DENSE_ENTRIES", entries)
            edges = match_cells(overlaps, threshold, "hungarian").edges
            assert len(set(overlaps.truth[edges])) == len(set(overlaps.pred[edges])) == edges.size
            assert edges.size == good.sum()
            # Beside the good pairs the dense assignment may prefer others below the threshold.
            assert overlaps.iou[edges].sum() >= dense[rows, cols][good].sum() - 1e-9


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


@settings(max_examples=60, deadline=None)
@given(label_pairs())
def test_agreement_with_cellpose_where_ids_have_no_gaps(pair):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("cellpose.metrics")
    truth, pred = (np.unique(np.append(0, image), return_inverse=True)[1][1:] for image in pair)
    truth, pred = truth.reshape(pair[0].shape), pred.reshape(pair[0].shape)
    assume(truth.any() and pred.any())
    thresholds = [0.1, 0.5, 0.75, 0.9]
    # Without background its IoU of background with background is 0/0.
    with np.errstate(invalid="ignore"):
        ap, tp, fp, fn = metrics.average_precision(truth, pred, threshold=thresholds)
    score = score_labels(truth, pred, ScoreSettings(tuple(thresholds), "hungarian"))
    for k, threshold in enumerate(thresholds):
        at = score.at(threshold)
        assert (at.tp, at.fp, at.fn) == (tp[k], fp[k], fn[k])
        assert at.ap == pytest.approx(ap[k], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(label_pairs(), st.randoms(use_true_random=False))
def test_gaps_and_order_of_ids_change_nothing(pair, random):
    renamed = []
    for image in pair:
        ids, places = np.unique(image, return_inverse=True)
        new = np.array([0 if i == 0 else random.randrange(1, 2**32) for i in ids], np.uint32)
        assume(np.unique(new).size == new.size)
        renamed.append(new[places].reshape(image.shape))
    a, b = (score_table(Contingency.from_arrays(*images)) for images in (pair, renamed))
    assert (a.by_threshold[0].tp, a.ari, a.errors, a.iou_histogram) == (
        b.by_threshold[0].tp,
        b.ari,
        b.errors,
        b.iou_histogram,
    )


@settings(max_examples=40, deadline=None)
@given(label_pairs(20), st.integers(1, 12))
def test_fields_add_up_to_the_image(pair, field_px):
    score = score_labels(*pair, field_px=field_px)
    total = sum((field.score for field in score.fields), ThresholdScore(0, 0, 0))
    focus = score.at("0.50")
    assert (total.tp, total.fp, total.fn, total.n_pairs) == (
        focus.tp,
        focus.fp,
        focus.fn,
        focus.n_pairs,
    )
    assert total.iou_sum == pytest.approx(focus.iou_sum)


def test_a_cell_counts_in_the_field_with_most_of_it():
    truth = np.zeros((10, 20), int)
    truth[2:4, 3:12] = 5  # 14 px in the first field, 4 in the second
    truth[6:8, 9:15] = 6  # 2 and 10
    pred = truth.copy()
    pred[truth == 6] = 0
    fields = score_labels(truth, pred, field_px=10).fields
    assert [(f.region.x0, f.score.tp, f.score.fn) for f in fields] == [(0, 1, 0), (10, 0, 1)]


def published():
    path = DATA / "published_ap.csv"
    if not path.is_file():
        reason = f"{path} is not here; a user's checkout does not have it"
        return [pytest.param({}, marks=pytest.mark.skip(reason=reason))]
    with path.open() as file:
        return [pytest.param(row, id="-".join(row.values())) for row in csv.DictReader(file)]


@pytest.mark.parametrize("row", published())
def test_published_values(row):
    name = f"{row['image']}_test_masks.png"
    with (
        Image.open(DATA / "test" / name) as truth,
        Image.open(DATA / "predictions" / row["predictions"] / name) as pred,
    ):
        settings = ScoreSettings((row["iou"],), min_size=int(row["min_size_px"]))
        score = score_labels(np.asarray(truth), np.asarray(pred), settings)
    assert f"{score.at(row['iou']).ap:.6f}" == f"{float(row['ap']):.6f}"


def test_nothing_against_nothing_is_undefined():
    score = score_labels(np.zeros((5, 5), int), np.zeros((5, 5), int))
    at = score.at(0.5)
    assert (at.tp, at.fp, at.fn) == (0, 0, 0)
    for value in (at.ap, at.precision, at.recall, at.f1, at.sq, at.pq, score.dice, score.aji):
        assert math.isnan(value)
    assert score.ari == 1
    assert math.isnan(summarize([score]).mean_ap[0])


def test_nothing_against_one_cell_that_fills_the_image():
    empty, full = np.zeros((5, 5), int), np.full((5, 5), 9)
    missed, spurious = score_labels(full, empty), score_labels(empty, full)
    assert (missed.at(0.5).ap, missed.at(0.5).pq, missed.dice, missed.aji, missed.ari) == (
        *(0, 0, 0, 0),
        1,
    )
    assert (spurious.at(0.5).fp, spurious.at(0.5).ap, spurious.errors.spurious) == (1, 0, 1)
    assert math.isnan(spurious.count_bias)


def test_one_pixel_cells_without_background():
    ids = np.arange(1, 65, dtype=np.uint32).reshape(8, 8)
    score = score_labels(ids, ids[::-1] * 67_000_000)
    assert score.mean_ap == score.dice == score.aji == score.ari == score.at("0.95").pq == 1


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


def test_thresholds_too_fine_for_64_bits():
    truth, pred = np.ones((100, 100), int), np.ones((100, 100), int)
    pred[0, 0] = 0
    fine = ScoreSettings(("0.99990000000000000", "0.99990000000000001"))
    assert [at.tp for at in score_labels(truth, pred, fine).by_threshold] == [1, 0]


def test_thresholds_are_compared_beyond_the_digits_of_a_double():
    part, whole = np.array([2**59 - 1, 2**59]), np.array([2**60, 2**60])
    assert (part / whole).tolist() == [0.5, 0.5]
    assert reaches(part, whole, Fraction(1, 2)).tolist() == [False, True]


@pytest.mark.parametrize("bad", ["0", "1.01", "-0.5", "nan", "half", "1/0", ""])
def test_bad_thresholds_are_refused(bad):
    with pytest.raises(InputError, match="an IoU threshold is a number above 0 and up to 1"):
        parse_threshold(bad)


def test_thresholds_are_written_as_decimals():
    assert [format_threshold(parse_threshold(t)) for t in ("1", ".5", 0.725, "1/3")] == [
        *("1.00", "0.50"),
        *("0.725", "1/3"),
    ]


def test_panoptic_quality_is_segmentation_times_recognition():
    truth = np.repeat([1, 2, 3, 0], 10)[None]
    pred = np.concatenate([np.repeat([7, 0], (8, 2)), np.repeat([5], 10), np.repeat([0, 6], 10)])[
        None
    ]
    at = score_labels(truth, pred).at("0.5")
    assert (at.tp, at.fp, at.fn) == (2, 1, 1)
    assert (at.sq, at.f1, at.pq) == pytest.approx((0.9, 2 / 3, 0.6))


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


def test_summary_pools_cells_and_averages_images():
    good = score_labels(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 4]]), name="a")
    bad = score_labels(np.array([[1, 0]]), np.array([[0, 1]]), name="b")
    nothing = score_labels(np.array([[0, 0]]), np.array([[0, 0]]), name="c")
    summary = summarize([good, bad, nothing])
    assert summary.mean_ap[0] == 0.5
    assert summary.pooled[0].ap == pytest.approx(4 / 6)
    assert (summary.n_truth, summary.n_images) == (5, 3)
    with pytest.raises(ValueError, match="the same settings"):
        summarize(
            [good, score_labels(np.ones((1, 1), int), np.ones((1, 1), int), ScoreSettings(("1",)))]
        )


def test_comparison_is_paired_by_image():
    truth = np.arange(1, 11)[None]
    spoiled = [np.where(np.arange(10) < k, 0, truth[0])[None] for k in range(6)]
    worse = [score_labels(truth, pred, name=str(k)) for k, pred in enumerate(spoiled)]
    best = [score_labels(truth, truth, name=str(k)) for k in range(6)]
    (found,) = compare_predictions({"best": best, "worse": worse})
    assert (found.unit, found.n, found.better, found.worse) == ("image", 6, 0, 5)
    assert found.difference == pytest.approx(-0.25)
    assert found.p_value == signed_rank_p([-0.1, -0.2, -0.3, -0.4, -0.5]) == 0.0625
    assert math.isnan(signed_rank_p([0.0, 0.0]))
    with pytest.raises(InputError, match="not predictions of the same images"):
        compare_predictions({"a": best, "b": best[:2]})


def test_comparison_is_paired_by_field_where_there_is_one_image():
    truth = np.arange(1, 401).reshape(20, 20)
    pred = truth.copy()
    pred[:5, :5] = 0
    scores = [score_labels(truth, p, field_px=10) for p in (truth, pred)]
    (found,) = compare_predictions({"a": scores[:1], "b": scores[1:]})
    assert (found.unit, found.n, found.worse, found.better) == ("field", 4, 1, 0)


def test_any_and_hungarian_agree_above_one_half():
    rng = np.random.default_rng(1)
    truth = np.kron(rng.integers(0, 30, (20, 20)), np.ones((3, 3), int))
    pred = np.roll(truth, 1, 0)
    scores = [score_labels(truth, pred, ScoreSettings(matching=m)) for m in ("any", "hungarian")]
    for a, b in zip(*(score.by_threshold[1:] for score in scores), strict=True):
        assert (a.tp, a.fp, a.fn) == (b.tp, b.fp, b.fn)
        assert a.iou_sum == pytest.approx(b.iou_sum)


def test_every_pair_of_settings_keeps_its_thresholds():
    for a, b in combinations(("0.9", "0.50", "0.75"), 2):
        assert ScoreSettings((a, b)).thresholds == tuple(sorted((Fraction(a), Fraction(b))))
    assert ScoreSettings(("0.75", "0.9")).focus == Fraction(3, 4)
