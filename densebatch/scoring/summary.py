"""Scores of several images together: means over images, and sums over cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.scoring.results import ErrorCounts, ThresholdScore, mean

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from densebatch.scoring.results import BoundaryScore, ImageScore


@dataclass(frozen=True)
class Summary:
    """Scores of several images together.

    Attributes
    ----------
    thresholds
        IoU thresholds.
    mean_ap
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
    mean_ap: tuple[float, ...]
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
    def mean_ap_over_thresholds(self) -> float:
        """Mean over thresholds of `mean_ap`."""
        return mean(self.mean_ap)

    @property
    def pooled_ap_over_thresholds(self) -> float:
        """Mean over thresholds of the pooled AP."""
        return mean([score.ap for score in self.pooled])


def summarize(images: Sequence[ImageScore]) -> Summary:
    """Mean and pooled scores of images that were scored with the same settings."""
    if len({image.settings for image in images}) != 1:
        raise ValueError("a summary needs at least one image and the same settings for all")
    by_threshold = list(zip(*(image.by_threshold for image in images), strict=True))
    boundaries = [image.boundary for image in images if image.boundary is not None]
    return Summary(
        thresholds=images[0].settings.thresholds,
        mean_ap=tuple(mean([score.ap for score in scores]) for scores in by_threshold),
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
