"""What a score consists of: frozen results whose integers add up over images and fields.

Counts are exact; ratios are computed from them when asked for. A ratio 0/0 (no cells on either
side) is NaN: it is left out of means and written as null.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field
from operator import add
from typing import TYPE_CHECKING

from densebatch.scoring.settings import format_threshold, parse_threshold

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.scoring.settings import ScoreSettings

IOU_BINS = 20


def divide(a: float, b: float) -> float:
    """The ratio a / b, or NaN where b is zero."""
    return a / b if b else math.nan


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return divide(math.fsum(defined), len(defined))


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
        return ThresholdScore(*map(add, astuple(self), astuple(other)))

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
        return ErrorCounts(*map(add, astuple(self), astuple(other)))


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
        counts = map(add, astuple(self)[1:], astuple(other)[1:])
        return BoundaryScore(self.tolerance_px, *counts)

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
    cells
        What became of each cell.
    boundary
        Boundary scores, where asked for.
    fields
        Matches in fields of the image, where it was counted by fields.
    labelled
        Sides that were yes/no masks whose pieces became cells: of `truth` and `pred`.
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
    cells: CellMatches = field(repr=False, compare=False)
    boundary: BoundaryScore | None = None
    fields: tuple[FieldScore, ...] = field(default=(), repr=False)
    labelled: tuple[str, ...] = ()

    def at(self, threshold: str | float | Fraction) -> ThresholdScore:
        """The matches at one of the thresholds that were asked for.

        Raises
        ------
        KeyError
            For a threshold that was not scored.
        """
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


@dataclass(frozen=True)
class Summary:
    """Scores of several images together.

    Attributes
    ----------
    thresholds
        IoU thresholds.
    ap_by_threshold
        Mean over images of AP, at each threshold; images without any cells are left out.
    pooled
        Sums over images of the matches, at each threshold.
    ari, dice, aji
        Means over images.
    errors
        Sums over images.
    n_images, n_truth, n_pred
        Sums.
    boundary
        Pooled boundary score.
    """

    thresholds: tuple[Fraction, ...]
    ap_by_threshold: tuple[float, ...]
    pooled: tuple[ThresholdScore, ...]
    ari: float
    dice: float
    aji: float
    errors: ErrorCounts
    n_images: int
    n_truth: int
    n_pred: int
    boundary: BoundaryScore | None = None

    @property
    def mean_ap(self) -> float:
        """Mean over thresholds of `ap_by_threshold`."""
        return mean(self.ap_by_threshold)

    @property
    def pooled_mean_ap(self) -> float:
        """Mean over thresholds of the pooled AP."""
        return mean([score.ap for score in self.pooled])


def summarize_images(images: Sequence[ImageScore]) -> Summary:
    """Mean and pooled scores of images that were scored with the same settings.

    Raises
    ------
    ValueError
        For no image at all, and for images of different settings.
    """
    if len({image.settings for image in images}) != 1:
        raise ValueError("a summary needs at least one image and the same settings for all")
    by_threshold = list(zip(*(image.by_threshold for image in images), strict=True))
    boundaries = [image.boundary for image in images if image.boundary is not None]
    return Summary(
        thresholds=images[0].settings.thresholds,
        ap_by_threshold=tuple(mean([score.ap for score in scores]) for scores in by_threshold),
        pooled=tuple(sum(scores, ThresholdScore(0, 0, 0)) for scores in by_threshold),
        ari=mean([image.ari for image in images]),
        dice=mean([image.dice for image in images]),
        aji=mean([image.aji for image in images]),
        errors=sum((image.errors for image in images), ErrorCounts(0, 0, 0, 0)),
        n_images=len(images),
        n_truth=sum(image.n_truth for image in images),
        n_pred=sum(image.n_pred for image in images),
        boundary=sum(boundaries[1:], boundaries[0]) if boundaries else None,
    )
