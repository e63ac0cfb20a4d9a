"""Every overlap metric of two label images, from their sparse contingency table.

    score = score_labels(truth, pred)
    score.at("0.50").ap, score.ari

Arrays go in, frozen results come out (`scoring_results`). Nothing here depends on pixels except
through the table, so that arrays in memory and slides on disk take the same path.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from densebatch.scoring.blocks import FIELD_PX, FieldCounts, count_fields
from densebatch.scoring.boundary import score_boundaries
from densebatch.scoring.matching import Ignored, Matching, Overlaps, match_cells
from densebatch.scoring.metrics import (
    adjusted_rand_index,
    aggregated_jaccard_index,
    classify_errors,
    iou_histogram,
    mean_dice,
)
from densebatch.scoring.results import (
    CellMatches,
    ErrorCounts,
    FieldScore,
    ImageScore,
    ScoreSettings,
    SizeBin,
    ThresholdScore,
)
from densebatch.scoring.summary import Summary, summarize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.scoring.blocks import Workers
    from densebatch.scoring.contingency import Contingency, PixelSource

__all__ = [
    "CellMatches",
    "ErrorCounts",
    "FieldScore",
    "ImageScore",
    "ScoreSettings",
    "SizeBin",
    "Summary",
    "ThresholdScore",
    "adjusted_rand_index",
    "aggregated_jaccard_index",
    "classify_errors",
    "count_ignored",
    "mean_dice",
    "score_fields",
    "score_labels",
    "score_table",
    "summarize",
]


def _threshold_score(overlaps: Overlaps, matching: Matching) -> ThresholdScore:
    return ThresholdScore(
        int(matching.truth_found.sum()),
        int(matching.pred_spurious.sum()),
        int(matching.truth_missed.sum()),
        float(overlaps.iou[matching.edges].sum()),
        matching.edges.size,
    )


def _size_bins(
    overlaps: Overlaps, matching: Matching, edges: tuple[int, ...]
) -> tuple[SizeBin, ...]:
    n = len(edges)
    truth_bin = np.digitize(overlaps.truth_areas, edges) - 1
    pred_bin = np.digitize(overlaps.pred_areas, edges) - 1
    pair_bin = truth_bin[overlaps.truth[matching.edges]]

    def count(bins: NDArray[np.intp]) -> list[int]:
        counts: list[int] = np.bincount(bins[bins >= 0], minlength=n).tolist()
        return counts

    tp, fn = count(truth_bin[matching.truth_found]), count(truth_bin[matching.truth_missed])
    fp, pairs = count(pred_bin[matching.pred_spurious]), count(pair_bin)
    iou = overlaps.iou[matching.edges]
    sums = np.bincount(pair_bin[pair_bin >= 0], weights=iou[pair_bin >= 0], minlength=n).tolist()
    return tuple(
        SizeBin(low, high, ThresholdScore(tp[k], fp[k], fn[k], sums[k], pairs[k]))
        for k, (low, high) in enumerate(zip(edges, (*edges[1:], None), strict=True))
    )


def score_fields(
    counts: FieldCounts, overlaps: Overlaps, matching: Matching
) -> tuple[FieldScore, ...]:
    """Divide the matches of an image among its fields.

    Cells are matched over the whole image, so that a field's edge cuts none; each cell counts
    where most of its pixels are (of equals the first field). Fields without cells are left out.
    """
    n = len(counts.tables)
    truth = _owners([table.truth_areas for table in counts.tables], overlaps.truth_ids)
    pred = _owners([table.pred_areas for table in counts.tables], overlaps.pred_ids)
    tp, fn = (
        np.bincount(truth[m], minlength=n) for m in (matching.truth_found, matching.truth_missed)
    )
    fp = np.bincount(pred[matching.pred_spurious], minlength=n)
    owner = truth[overlaps.truth[matching.edges]]
    pairs = np.bincount(owner, minlength=n)
    sums = np.bincount(owner, weights=overlaps.iou[matching.edges], minlength=n)
    return tuple(
        FieldScore(
            counts.region(k),
            ThresholdScore(int(tp[k]), int(fp[k]), int(fn[k]), float(sums[k]), int(pairs[k])),
        )
        for k in np.flatnonzero(tp + fp + fn).tolist()
    )


def _owners(
    areas: list[tuple[NDArray[np.uint32], NDArray[np.int64]]], cells: NDArray[np.uint32]
) -> NDArray[np.intp]:
    """For each cell the field with most of its pixels."""
    ids = np.concatenate([part[0] for part in areas])
    px = np.concatenate([part[1] for part in areas])
    fields = np.repeat(np.arange(len(areas)), [part[0].size for part in areas])
    order = np.lexsort((fields, -px, ids))
    first = order[np.flatnonzero(np.diff(ids[order].astype(np.int64), prepend=-1))]
    owners: NDArray[np.intp] = fields[first][np.searchsorted(ids[first], cells)]
    return owners


def count_ignored(
    overlaps: Overlaps,
    below: int,
    truth_inside: Contingency | None,
    pred_inside: Contingency | None,
) -> Ignored:
    """Cells that COCO would ignore.

    Parameters
    ----------
    overlaps
        The cells.
    below
        Cells of fewer pixels are out of range (`areaRng` of pycocotools).
    truth_inside, pred_inside
        Tables of an ignored region (any non-zero label) against truth and prediction. A truth
        cell is ignored if at least half of it lies in the region; a prediction that matches
        nothing, if the share of it in the region reaches the IoU threshold (`iscrowd`).
    """
    inside_px = []
    for table, ids in ((truth_inside, overlaps.truth_ids), (pred_inside, overlaps.pred_ids)):
        px = np.zeros(ids.size, np.int64)
        if table is not None:
            rows = (table.truth > 0) & np.isin(table.pred, ids)
            np.add.at(px, np.searchsorted(ids, table.pred[rows]), table.count[rows])
        inside_px.append(px)
    return Ignored(
        (overlaps.truth_areas < below) | (2 * inside_px[0] >= overlaps.truth_areas),
        overlaps.pred_areas < below,
        inside_px[1],
    )


def score_table(
    table: Contingency,
    settings: ScoreSettings | None = None,
    *,
    name: str = "",
    fields: FieldCounts | None = None,
    truth_inside: Contingency | None = None,
    pred_inside: Contingency | None = None,
) -> ImageScore:
    """Compute every overlap metric from a contingency table.

    Parameters
    ----------
    table
        Of the whole image.
    settings
        Thresholds, matching, sizes; the defaults are those of Han et al. 2024.
    name
        Of the image.
    fields
        The same table by fields, if fields are to be scored.
    truth_inside, pred_inside
        Tables of an ignored region against either side; see `count_ignored`.
    """
    settings = settings or ScoreSettings()
    if settings.min_size > 0:
        table = table.drop_small(settings.min_size)
    overlaps = Overlaps.from_table(table)
    ignored = None
    if settings.ignore_below or truth_inside is not None or pred_inside is not None:
        ignored = count_ignored(overlaps, settings.ignore_below, truth_inside, pred_inside)
    matchings = {
        t: match_cells(overlaps, t, settings.matching, ignored) for t in settings.thresholds
    }
    focus = matchings[settings.focus]
    return ImageScore(
        name=name,
        settings=settings,
        n_px=table.n_px,
        n_truth=overlaps.truth_ids.size,
        n_pred=overlaps.pred_ids.size,
        ari=adjusted_rand_index(table),
        dice=mean_dice(overlaps),
        aji=aggregated_jaccard_index(overlaps),
        errors=classify_errors(overlaps),
        by_threshold=tuple(_threshold_score(overlaps, m) for m in matchings.values()),
        by_size=_size_bins(overlaps, focus, settings.size_edges),
        iou_histogram=iou_histogram(overlaps),
        fields=score_fields(fields, overlaps, focus) if fields is not None else (),
        cells=CellMatches(
            overlaps.truth_ids,
            focus.truth_found,
            overlaps.pred_ids,
            focus.pred_found,
            focus.pred_spurious,
        ),
    )


def score_labels(
    truth: PixelSource,
    pred: PixelSource,
    settings: ScoreSettings | None = None,
    *,
    name: str = "",
    ignore: PixelSource | None = None,
    boundary_px: float | None = None,
    field_px: int = FIELD_PX,
    workers: Workers = 1,
) -> ImageScore:
    """Score a prediction against the truth, block by block.

    Parameters
    ----------
    truth, pred
        Two-dimensional label images of the same shape: NumPy or zarr arrays, or label images of
        `label_io`. Ids may have gaps and go up to 2^32-1; chunks may differ.
    settings
        Thresholds, matching, sizes; the defaults are those of Han et al. 2024.
    name
        Of the image.
    ignore
        Image of the same shape, not zero where nothing is to be counted; see `count_ignored`.
    boundary_px
        Tolerance of the boundary F-score; None leaves it out. It reads the pixels once more.
    field_px
        Edge of the fields in `ImageScore.fields`.
    workers
        Threads, a `concurrent.futures` executor or a Dask client. Changes no number.

    Raises
    ------
    InputError
        For different shapes, and for pixels that are no labels or cannot be read.
    """
    counts = count_fields(truth, pred, field_px=field_px, workers=workers)
    inside = [
        None if ignore is None else count_fields(ignore, side, workers=workers).total
        for side in (truth, pred)
    ]
    score = score_table(
        counts.total,
        settings,
        name=name,
        fields=counts,
        truth_inside=inside[0],
        pred_inside=inside[1],
    )
    if boundary_px is None:
        return score
    small = [
        ids[areas < score.settings.min_size]
        for ids, areas in (counts.total.truth_areas, counts.total.pred_areas)
    ]
    boundary = score_boundaries(
        truth,
        pred,
        tolerance_px=boundary_px,
        truth_dropped=small[0],
        pred_dropped=small[1],
        workers=workers,
    )
    return replace(score, boundary=boundary)
