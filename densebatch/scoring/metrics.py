"""Metrics of whole label images that need no IoU threshold: ARI, Dice, AJI, kinds of errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from densebatch.scoring.results import IOU_BINS, ErrorCounts, divide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.scoring.contingency import Contingency
    from densebatch.scoring.matching import Overlaps


def adjusted_rand_index(table: Contingency) -> float:
    """Chance-adjusted Rand index over all pixels, background included (Hubert & Arabie 1985).

    Agrees with `sklearn.metrics.adjusted_rand_score`. Numbers of pixel pairs pass 2^63 above three
    gigapixels; they are Python integers here, and the only rounding is the last division.

    Examples
    --------
    >>> from densebatch.scoring.contingency import Contingency
    >>> adjusted_rand_index(Contingency.from_arrays([1, 1, 0, 0], [1, 1, 0, 2]))
    0.5714285714285714
    """

    def pairs(areas: NDArray[np.int64], background: int) -> int:
        return _sum_of_squares(areas) + background**2

    truth, pred = table.truth_areas[1], table.pred_areas[1]
    n = table.n_px
    both = _sum_of_squares(table.count)
    in_truth = pairs(truth, n - int(truth.sum()))
    in_pred = pairs(pred, n - int(pred.sum()))
    together, apart = both - n, n * n - in_truth - in_pred + both
    only_truth, only_pred = in_truth - both, in_pred - both
    if only_truth == only_pred == 0:
        return 1.0
    top = 2 * (together * apart - only_truth * only_pred)
    return top / (
        (together + only_truth) * (only_truth + apart)
        + (together + only_pred) * (only_pred + apart)
    )


def _sum_of_squares(values: NDArray[np.int64]) -> int:
    # Below 2^20 pixels a square is below 2^40, and 2^23 of them fit in 63 bits; what is larger
    # (background, mostly) is rare enough for Python.
    small = values[values < 2**20]
    total = sum(
        int(np.dot(part, part)) for part in np.split(small, range(2**22, small.size, 2**22))
    )
    large: list[int] = values[values >= 2**20].tolist()
    return total + sum(value * value for value in large)


def mean_dice(overlaps: Overlaps) -> float:
    """Mean over truth cells of 2 |A n B| / (|A| + |B|), B the prediction of largest overlap.

    This is `average_dice` of Han et al. 2024: a truth cell that nothing overlaps counts 0, and of
    equal overlaps the lowest id is taken.
    """
    edges = overlaps.largest[overlaps.largest >= 0]
    areas = overlaps.truth_areas[overlaps.truth[edges]] + overlaps.pred_areas[overlaps.pred[edges]]
    return divide(float((2 * overlaps.shared[edges] / areas).sum()), overlaps.truth_ids.size)


def aggregated_jaccard_index(overlaps: Overlaps) -> float:
    """AJI of Kumar et al. 2017 (IEEE TMI 36:1550, algorithm 1).

    Each truth cell adds its intersection and union with the prediction of largest IoU, its own
    area if nothing overlaps it; predictions that no truth cell chose add their area to the union.
    """
    edges = overlaps.best[overlaps.best >= 0]
    unused = np.ones(overlaps.pred_ids.size, np.bool_)
    unused[overlaps.pred[edges]] = False
    union = (
        int(overlaps.union[edges].sum())
        + int(overlaps.truth_areas[overlaps.best < 0].sum())
        + int(overlaps.pred_areas[unused].sum())
    )
    return divide(int(overlaps.shared[edges].sum()), union)


def classify_errors(overlaps: Overlaps) -> ErrorCounts:
    """Count splits, merges, missed and spurious cells; `ErrorCounts` says what they are."""
    truth, pred = overlaps.truth, overlaps.pred
    n_truth, n_pred = overlaps.truth_ids.size, overlaps.pred_ids.size
    pred_lies = 2 * overlaps.shared > overlaps.pred_areas[pred]
    truth_lies = 2 * overlaps.shared > overlaps.truth_areas[truth]
    related = pred_lies | truth_lies
    return ErrorCounts(
        splits=int((np.bincount(truth[pred_lies], minlength=n_truth) >= 2).sum()),
        merges=int((np.bincount(pred[truth_lies], minlength=n_pred) >= 2).sum()),
        missed=int((np.bincount(truth[related], minlength=n_truth) == 0).sum()),
        spurious=int((np.bincount(pred[related], minlength=n_pred) == 0).sum()),
    )


def iou_histogram(overlaps: Overlaps) -> tuple[int, ...]:
    """Truth cells by their best IoU, in equal bins from 0 to 1, the last with 1 in it."""
    edges = overlaps.best[overlaps.best >= 0]
    bins = np.minimum(IOU_BINS * overlaps.shared[edges] // overlaps.union[edges], IOU_BINS - 1)
    counts = np.bincount(bins, minlength=IOU_BINS)
    counts[0] += np.count_nonzero(overlaps.best < 0)
    return tuple(counts.tolist())
