"""What a score consists of: frozen results whose integers add up over images and fields.

Counts are exact; ratios are computed from them when asked for. A ratio 0/0 (no cells on either
side) is NaN: it is left out of means and written as null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.scoring.matching import MatchingName, format_threshold, parse_threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

DEFAULT_THRESHOLDS = tuple(Fraction(k, 100) for k in range(50, 100, 5))
IOU_BINS = 20


def divide(a: float, b: float) -> float:
    """The ratio a / b, or NaN where b is zero."""
    return a / b if b else math.nan


@dataclass(frozen=True)
class ScoreSettings:
    """What is counted as a match, and which cells take part.

    Attributes
    ----------
    thresholds
        IoU thresholds, exact, ascending.
    matching
        `any` as in Han et al. 2024, or `hungarian` (one-to-one).
    min_size
        Cells of fewer pixels become background on both sides, before matching.
    ignore_below
        Cells of fewer pixels are ignored as by COCO: neither missed nor spurious. Acts on the
        counts of matches only, not on ARI, Dice and AJI.
    size_edges
        Lower bounds of the size bins, px.
    """

    thresholds: tuple[Fraction, ...] = DEFAULT_THRESHOLDS
    matching: MatchingName = "any"
    min_size: int = 0
    ignore_below: int = 0
    size_edges: tuple[int, ...] = (0, 50, 100, 200, 400, 800)

    def __post_init__(self) -> None:
        thresholds = tuple(sorted({parse_threshold(value) for value in self.thresholds}))
        object.__setattr__(self, "thresholds", thresholds)
        if not thresholds:
            raise InputError("no IoU threshold was given; at least one is needed")
        if self.matching not in ("any", "hungarian"):
            raise InputError(f"matching is 'any' or 'hungarian', not {self.matching!r}")

    @property
    def focus(self) -> Fraction:
        """The threshold of pictures, fields and size bins: 0.50 where it is asked for."""
        half = Fraction(1, 2)
        return half if half in self.thresholds else self.thresholds[0]


@dataclass(frozen=True)
class ThresholdScore:
    """Matches at one IoU threshold. Scores add: pooling is a sum.

    Attributes
    ----------
    tp, fp, fn
        Found truth cells, spurious predictions, missed truth cells.
    iou_sum, n_pairs
        Sum of IoU over the matched pairs, and their number.
    """

    tp: int
    fp: int
    fn: int
    iou_sum: float = 0.0
    n_pairs: int = 0

    def __add__(self, other: ThresholdScore) -> ThresholdScore:
        return ThresholdScore(
            self.tp + other.tp,
            self.fp + other.fp,
            self.fn + other.fn,
            self.iou_sum + other.iou_sum,
            self.n_pairs + other.n_pairs,
        )

    @property
    def ap(self) -> float:
        """TP / (TP + FP + FN), called average precision by Cellpose and Han et al., also CSI."""
        return divide(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return divide(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), which is also the recognition quality RQ."""
        return divide(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matched pairs (Kirillov et al. 2019, eq. 2)."""
        return divide(self.iou_sum, self.n_pairs)

    @property
    def pq(self) -> float:
        """Panoptic quality SQ x RQ (Kirillov et al. 2019); 0 where nothing matches."""
        return self.sq * self.f1 if self.tp else divide(0, self.fp + self.fn)


@dataclass(frozen=True)
class SizeBin:
    """Matches of truth cells, and spurious predictions, of `low <= area < high` px."""

    low: int
    high: int | None
    score: ThresholdScore


@dataclass(frozen=True)
class ErrorCounts:
    """Kinds of mistakes, by majority overlap and so without a threshold on IoU.

    Cell A lies in cell B if more than half of A's pixels do (the detection test of Matula et al.
    2015, of the Cell Tracking Challenge, read in both directions).

    Attributes
    ----------
    splits
        Truth cells in which two or more predictions lie.
    merges
        Predictions in which two or more truth cells lie.
    missed
        Truth cells that lie in no prediction and in which no prediction lies.
    spurious
        Predictions that lie in no truth cell and in which no truth cell lies.
    """

    splits: int
    merges: int
    missed: int
    spurious: int

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.splits + other.splits,
            self.merges + other.merges,
            self.missed + other.missed,
            self.spurious + other.spurious,
        )


@dataclass(frozen=True)
class FieldScore:
    """Matches in one field of an image, each cell counted where most of its pixels are."""

    region: Region
    score: ThresholdScore


@dataclass(frozen=True, eq=False)
class CellMatches:
    """What became of each cell at the focus threshold.

    Attributes
    ----------
    truth_ids, pred_ids
        Labels, ascending, after the size filter.
    truth_found, pred_found
        Cells with a partner.
    pred_spurious
        Predictions that count as false positives; ignored ones are neither.
    """

    truth_ids: NDArray[np.uint32]
    truth_found: NDArray[np.bool_]
    pred_ids: NDArray[np.uint32]
    pred_found: NDArray[np.bool_]
    pred_spurious: NDArray[np.bool_]


@dataclass(frozen=True)
class ImageScore:
    """All scores of one pair of label images.

    Attributes
    ----------
    name
        Of the pair.
    settings
        What was counted.
    n_px, n_truth, n_pred
        Pixels and cells, after the size filter.
    ari
        Adjusted Rand index over all pixels, background included.
    dice
        Mean over truth cells of the Dice coefficient with the prediction of largest overlap.
    aji
        Aggregated Jaccard index.
    errors
        Splits, merges, missed, spurious.
    by_threshold
        Matches at each of `settings.thresholds`.
    by_size
        Matches in size bins at `settings.focus`.
    iou_histogram
        Truth cells by their best IoU, in 20 equal bins from 0 to 1 (the last includes 1).
    boundary
        Boundary scores, where asked for.
    fields
        Matches in fields of the image, where it was counted by fields.
    cells
        What became of each cell.
    """

    name: str
    settings: ScoreSettings
    n_px: int
    n_truth: int
    n_pred: int
    ari: float
    dice: float
    aji: float
    errors: ErrorCounts
    by_threshold: tuple[ThresholdScore, ...]
    by_size: tuple[SizeBin, ...]
    iou_histogram: tuple[int, ...]
    boundary: BoundaryScore | None = None
    fields: tuple[FieldScore, ...] = field(default=(), repr=False)
    cells: CellMatches | None = field(default=None, repr=False, compare=False)

    def at(self, threshold: str | float | Fraction) -> ThresholdScore:
        """The matches at one of the thresholds that were asked for."""
        exact = parse_threshold(threshold)
        if exact not in self.settings.thresholds:
            asked = ", ".join(map(format_threshold, self.settings.thresholds))
            raise KeyError(f"IoU {threshold} was not scored; there are {asked}")
        return self.by_threshold[self.settings.thresholds.index(exact)]

    @property
    def mean_ap(self) -> float:
        """Mean AP over the thresholds, by default 0.50 to 0.95 in steps of 0.05."""
        return divide(sum(score.ap for score in self.by_threshold), len(self.by_threshold))

    @property
    def count_bias(self) -> float:
        """Predicted cells / truth cells - 1 (`bias` of Han et al. 2024)."""
        return divide(self.n_pred - self.n_truth, self.n_truth)


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return divide(math.fsum(defined), len(defined))


@dataclass(frozen=True)
class BoundaryScore:
    """Outline pixels, and how many have an outline pixel of the other side within the tolerance.

    Attributes
    ----------
    tolerance_px
        Largest Euclidean distance between pixel centres.
    truth_px, truth_near
        Outline pixels of the truth; those near an outline of the prediction.
    pred_px, pred_near
        Outline pixels of the prediction; those near an outline of the truth.
    """

    tolerance_px: float
    truth_px: int
    truth_near: int
    pred_px: int
    pred_near: int

    def __add__(self, other: BoundaryScore) -> BoundaryScore:
        if self.tolerance_px != other.tolerance_px:
            raise ValueError("boundary scores of different tolerances do not add")
        return BoundaryScore(
            self.tolerance_px,
            self.truth_px + other.truth_px,
            self.truth_near + other.truth_near,
            self.pred_px + other.pred_px,
            self.pred_near + other.pred_near,
        )

    @property
    def precision(self) -> float:
        """Share of the predicted outline that is near the true one."""
        return divide(self.pred_near, self.pred_px)

    @property
    def recall(self) -> float:
        """Share of the true outline that is near the predicted one."""
        return divide(self.truth_near, self.truth_px)

    @property
    def f1(self) -> float:
        """2 P R / (P + R) (Csurka et al. 2013); 0 where one side has no outline."""
        if not self.truth_px or not self.pred_px:
            return divide(0, self.truth_px + self.pred_px)
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0
