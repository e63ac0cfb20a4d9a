"""Compare predictions of the same images: paired differences and a signed-rank test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.scoring.results import mean

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from densebatch.scoring.results import ImageScore


@dataclass(frozen=True)
class Comparison:
    """How one prediction differs from another in AP at the focus threshold.

    Attributes
    ----------
    name, reference
        The prediction, and the one that it is compared with.
    unit
        What is paired: `image`, or `field` where there is a single image.
    n
        Pairs in which both have an AP.
    mean_ap, reference_ap
        Means over the pairs.
    difference
        Mean of the paired differences, prediction minus reference.
    better, worse
        Pairs in which the prediction has the higher or the lower AP.
    p_value
        Of the two-sided Wilcoxon signed-rank test; NaN where there is nothing to rank.
    """

    name: str
    reference: str
    unit: str
    n: int
    mean_ap: float
    reference_ap: float
    difference: float
    better: int
    worse: int
    p_value: float


def compare_predictions(
    predictions: Mapping[str, Sequence[ImageScore]],
) -> tuple[Comparison, ...]:
    """Compare every prediction with the first.

    Over images where there are several, over the fields of the image where there is one. Fields
    of one slide are not independent samples: neighbours share stain and tissue, and their p-value
    is a lower bound.

    Parameters
    ----------
    predictions
        Scores of the same images by each prediction, the reference first.

    Returns
    -------
    tuple of Comparison
        One for each prediction but the first.

    Raises
    ------
    InputError
        If a prediction is not of the same images as the first.
    """
    (reference, first), *others = predictions.items()
    return tuple(_compare_pair(name, scores, reference, first) for name, scores in others)


def _compare_pair(
    name: str, scores: Sequence[ImageScore], reference: str, first: Sequence[ImageScore]
) -> Comparison:
    if [score.name for score in scores] != [score.name for score in first]:
        raise InputError(f"{name} and {reference} are not predictions of the same images")
    unit = "image" if len(first) > 1 else "field"
    ours, theirs = _ap_by_unit(scores, unit), _ap_by_unit(first, unit)
    # A field in which only one of the two has any cell has an AP in that one alone, and is no pair.
    keys = [
        key
        for key, ap in theirs.items()
        if not math.isnan(ap) and not math.isnan(ours.get(key, math.nan))
    ]
    differences = [ours[key] - theirs[key] for key in keys]
    return Comparison(
        name=name,
        reference=reference,
        unit=unit,
        n=len(keys),
        mean_ap=mean([ours[key] for key in keys]),
        reference_ap=mean([theirs[key] for key in keys]),
        difference=mean(differences),
        better=sum(difference > 0 for difference in differences),
        worse=sum(difference < 0 for difference in differences),
        p_value=signed_rank_p(differences),
    )


def _ap_by_unit(scores: Sequence[ImageScore], unit: str) -> dict[Hashable, float]:
    if unit == "image":
        return {score.name: score.at(score.settings.focus).ap for score in scores}
    return {field.region: field.score.ap for score in scores for field in score.fields}


def signed_rank_p(differences: Sequence[float]) -> float:
    """P-value of the two-sided Wilcoxon signed-rank test; zeros are dropped, as Wilcoxon did.

    Examples
    --------
    >>> signed_rank_p([0.1, 0.2, 0.3, 0.4])
    0.125
    """
    ranked = [value for value in differences if value != 0]
    if not ranked:
        return math.nan
    # scipy.stats takes longer to import than most images take to score.
    from scipy.stats import wilcoxon

    return float(wilcoxon(ranked).pvalue)
