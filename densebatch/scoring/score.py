"""Every overlap metric of two label images, from their sparse contingency table.

    score = score_labels(truth, pred)
    score.at("0.50").ap, score.ari

Arrays go in, frozen results come out (`scoring.results`). Nothing here but the boundary score
depends on pixels except through the table, so that arrays in memory and slides on disk take the
same path.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.cells.components import refuse_mask, settle_masks
from densebatch.scoring.blocks import FIELD_PX, check_images, count_fields
from densebatch.scoring.boundary import score_boundaries
from densebatch.scoring.matching import Overlaps, find_ignored, match_cells
from densebatch.scoring.metrics import (
    adjusted_rand_index,
    aggregated_jaccard_index,
    classify_errors,
    iou_histogram,
    mean_dice,
)
from densebatch.scoring.results import (
    CellMatches,
    FieldScore,
    ImageScore,
    SizeBin,
    ThresholdScore,
)
from densebatch.scoring.settings import ScoreSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.cells.pixels import PixelSource
    from densebatch.scoring.blocks import FieldCounts, Workers
    from densebatch.scoring.contingency import Contingency
    from densebatch.scoring.matching import Matching


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
        `cells.read`. Ids may have gaps and go up to 2^32-1; chunks may differ. Yes/no masks are
        refused unless `settings.label_components` says what to do with them.
    settings
        Thresholds, matching, sizes; the defaults are those of Han et al. 2024.
    name
        Of the image.
    ignore
        Image of the same shape, bool too, not zero where nothing is to be counted; see
        `find_ignored`.
    boundary_px
        Tolerance of the boundary F-score; None leaves it out. It reads the pixels once more.
    field_px
        Edge of the fields in `ImageScore.fields`.
    workers
        Threads, a `concurrent.futures` executor or a Dask client. Changes no number.

    Returns
    -------
    ImageScore
        All scores of the image.

    Raises
    ------
    InputError
        For different shapes, for pixels that are no labels or cannot be read, and for masks.
    CapacityError
        Where the pieces of a mask do not fit into memory.
    """
    settings = settings or ScoreSettings()
    labelled: tuple[str, ...] = ()
    if settings.label_components:
        # Shapes are compared before, because an array of pieces does not know its file.
        check_images(truth, pred)
        truth, of_truth = settle_masks(truth, True, _name(truth, "the truth"))
        pred, of_pred = settle_masks(pred, True, _name(pred, "the prediction"))
        labelled = ("truth",) * of_truth + ("pred",) * of_pred
    counts = count_fields(truth, pred, field_px=field_px, workers=workers)
    if settings.label_components is None:
        refuse_mask(truth, _name(truth, "the truth"), counts.total.truth_areas[0])
        found = counts.total.pred_areas[0]
        refuse_mask(pred, _name(pred, "the prediction"), found, is_prediction=True)
    truth_inside, pred_inside = (
        None
        if ignore is None
        else count_fields(ignore, side, truth_is_region=True, workers=workers).total
        for side in (truth, pred)
    )
    score = score_table(
        counts.total,
        settings,
        name=name,
        fields=counts,
        truth_inside=truth_inside,
        pred_inside=pred_inside,
    )
    score = replace(score, labelled=labelled)
    if boundary_px is None:
        return score
    truth_small, pred_small = (
        ids[areas < score.settings.min_size]
        for ids, areas in (counts.total.truth_areas, counts.total.pred_areas)
    )
    boundary = score_boundaries(
        truth,
        pred,
        tolerance_px=boundary_px,
        truth_dropped=truth_small,
        pred_dropped=pred_small,
        workers=workers,
    )
    return replace(score, boundary=boundary)


def _name(source: PixelSource, role: str) -> str:
    return str(getattr(source, "where", role))


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
        Tables of an ignored region against either side; see `find_ignored`.

    Returns
    -------
    ImageScore
        All scores but that of the boundary.
    """
    settings = settings or ScoreSettings()
    if settings.min_size > 0:
        table = table.drop_small(settings.min_size)
    overlaps = Overlaps.from_table(table)
    ignored = None
    if settings.ignore_below or truth_inside is not None or pred_inside is not None:
        ignored = find_ignored(overlaps, settings.ignore_below, truth_inside, pred_inside)
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
        by_threshold=tuple(_score_threshold(overlaps, m) for m in matchings.values()),
        by_size=_score_sizes(overlaps, focus, settings.size_edges),
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


def _score_threshold(overlaps: Overlaps, matching: Matching) -> ThresholdScore:
    return ThresholdScore(
        int(matching.truth_found.sum()),
        int(matching.pred_spurious.sum()),
        int(matching.truth_missed.sum()),
        float(overlaps.iou[matching.edges].sum()),
        matching.edges.size,
    )


def _score_sizes(
    overlaps: Overlaps, matching: Matching, edges: Sequence[int]
) -> tuple[SizeBin, ...]:
    """Matches by size; a pair counts by the size of its truth cell."""
    truth_bin = np.digitize(overlaps.truth_areas, edges) - 1
    pred_bin = np.digitize(overlaps.pred_areas, edges) - 1
    scores = _score_groups(overlaps, matching, truth_bin, pred_bin, len(edges))
    return tuple(
        SizeBin(low, high, score)
        for low, high, score in zip(edges, (*edges[1:], None), scores, strict=True)
    )


def score_fields(
    counts: FieldCounts, overlaps: Overlaps, matching: Matching
) -> tuple[FieldScore, ...]:
    """Divide the matches of an image among its fields.

    Cells are matched over the whole image, so that a field's edge cuts none; each cell counts
    where most of its pixels are (of equals the first field). Fields without cells are left out.
    """
    truth = _find_owners([table.truth_areas for table in counts.tables], overlaps.truth_ids)
    pred = _find_owners([table.pred_areas for table in counts.tables], overlaps.pred_ids)
    scores = _score_groups(overlaps, matching, truth, pred, len(counts.tables))
    return tuple(
        FieldScore(counts.region(k), score)
        for k, score in enumerate(scores)
        if score.tp + score.fp + score.fn
    )


def _find_owners(
    areas: Sequence[tuple[NDArray[np.uint32], NDArray[np.int64]]], cells: NDArray[np.uint32]
) -> NDArray[np.intp]:
    """For each cell the field with most of its pixels, from ids and areas in each field."""
    ids = np.concatenate([part[0] for part in areas])
    px = np.concatenate([part[1] for part in areas])
    fields = np.repeat(np.arange(len(areas)), [part[0].size for part in areas])
    order = np.lexsort((fields, -px, ids))
    first = order[np.flatnonzero(np.diff(ids[order].astype(np.int64), prepend=-1))]
    owners: NDArray[np.intp] = fields[first][np.searchsorted(ids[first], cells)]
    return owners


def _score_groups(
    overlaps: Overlaps,
    matching: Matching,
    truth_group: NDArray[np.intp],
    pred_group: NDArray[np.intp],
    n_groups: int,
) -> list[ThresholdScore]:
    """Divide the matches among groups of cells; a cell of group -1 counts in none.

    A found or missed cell counts in the truth cell's group, and so does a pair; a spurious one in
    the prediction's.
    """

    def count(groups: NDArray[np.intp], weights: NDArray[np.float64] | None = None) -> list[Any]:
        grouped = groups >= 0
        kept = None if weights is None else weights[grouped]
        counts: list[Any] = np.bincount(groups[grouped], kept, n_groups).tolist()
        return counts

    pair_group = truth_group[overlaps.truth[matching.edges]]
    columns = (
        count(truth_group[matching.truth_found]),
        count(pred_group[matching.pred_spurious]),
        count(truth_group[matching.truth_missed]),
        count(pair_group, overlaps.iou[matching.edges]),
        count(pair_group),
    )
    return [ThresholdScore(*row) for row in zip(*columns, strict=True)]
