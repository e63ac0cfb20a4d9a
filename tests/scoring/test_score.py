import csv
import math
import subprocess
import sys
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import linear_sum_assignment

from densebatch.base.geometry import Grid
from densebatch.scoring.contingency import Contingency
from densebatch.scoring.results import ThresholdScore, summarize_images
from densebatch.scoring.score import score_labels, score_table
from densebatch.scoring.settings import ScoreSettings
from tests.helpers.label_images import label_pairs, masks
from tests.helpers.real_tissue import DATA

# Labels of random images lie in several places, as those of masks do.
SCATTERED = ScoreSettings(label_components=False)
TENTHS = tuple(Fraction(k, 10) for k in range(1, 11))


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
    settings = ScoreSettings(tuple(thresholds), "hungarian", label_components=False)
    score = score_labels(truth, pred, settings)
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
    score = score_labels(*pair, SCATTERED, field_px=field_px)
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
    if not (DATA / "published_ap.csv").is_file():
        skipped = pytest.mark.skip(reason="the published scores are not among the test data")
        return [pytest.param({}, marks=skipped)]
    with (DATA / "published_ap.csv").open() as file:
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
    assert math.isnan(summarize_images([score]).ap_by_threshold[0])


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


def test_scoring_imports_neither_torch_nor_dask():
    code = (
        "import sys, densebatch.scoring; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'dask', 'distributed', 'click')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scoring_loads_its_core_alone():
    """Also when it scores: what a notebook or a worker pays for is numpy, numba and scipy."""
    code = (
        "import sys, numpy, densebatch.scoring\n"
        "labels = numpy.ones((8, 8), int)\n"
        "score = densebatch.scoring.score_labels(labels, labels, boundary_px=1)\n"
        "assert score.at(0.5).tp == 1\n"
        "print([m for m in ('torch', 'dask', 'distributed', 'zarr', 'click', 'rich', 'jinja2')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_the_package_has_no_other_name():
    import densebatch.scoring

    assert densebatch.scoring.score_labels is score_labels
    with pytest.raises(AttributeError, match="has no attribute 'score_label'"):
        _ = densebatch.scoring.score_label


@settings(max_examples=100)
@given(label_pairs(), st.sampled_from(["any", "hungarian"]), st.sampled_from([0, 4]))
def test_sizes_hold_the_cells_of_their_areas(pair, method, ignore_below):
    edges = (2, 5, 11)
    options = ScoreSettings(("0.3",), method, 0, ignore_below, edges)
    score = score_table(Contingency.from_arrays(*pair), options)
    cells = score.cells
    truth_px = np.array([(pair[0] == k).sum() for k in cells.truth_ids], int)
    pred_px = np.array([(pair[1] == k).sum() for k in cells.pred_ids], int)
    missed = ~cells.truth_found & (truth_px >= ignore_below)
    for part in score.by_size:
        high = math.inf if part.high is None else part.high
        truth, pred = ((part.low <= px) & (px < high) for px in (truth_px, pred_px))
        assert part.score.tp == (cells.truth_found & truth).sum()
        assert part.score.fn == (missed & truth).sum()
        assert part.score.fp == (cells.pred_spurious & pred).sum()
    assert [(part.low, part.high) for part in score.by_size] == [(2, 5), (5, 11), (11, None)]


@settings(max_examples=60)
@given(label_pairs(12), st.integers(2, 7))
def test_fields_hold_the_cells_that_are_mostly_in_them(pair, field_px):
    score = score_labels(*pair, SCATTERED, field_px=field_px)
    regions = [*Grid(*pair[0].shape, field_px, field_px)]
    grid = Grid(*pair[0].shape, field_px, field_px)

    def owner(mask):
        return max(regions, key=lambda i: (mask[grid[i].slices].sum(), -regions.index(i)))

    expected = {}
    cells = score.cells
    for image, ids, kinds in (
        (pair[0], cells.truth_ids, {"tp": cells.truth_found, "fn": ~cells.truth_found}),
        (pair[1], cells.pred_ids, {"fp": cells.pred_spurious}),
    ):
        for k, cell in enumerate(ids.tolist()):
            counts = expected.setdefault(owner(image == cell), {"tp": 0, "fn": 0, "fp": 0})
            for kind, is_one in kinds.items():
                counts[kind] += bool(is_one[k])
    found = {f.region: {"tp": f.score.tp, "fn": f.score.fn, "fp": f.score.fp} for f in score.fields}
    assert found == {grid[i]: counts for i, counts in expected.items() if any(counts.values())}
