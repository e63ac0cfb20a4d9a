"""Match truth cells to predicted cells by intersection over union, in integers.

Thresholds are fractions p/q and a pair matches if q I >= p U, for intersection I and union U in
pixels: a pair that sits exactly on the threshold matches, whatever the rounding of I/U. Sixteen
pairs of the masks published with Han et al. 2024 do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

if TYPE_CHECKING:
    from fractions import Fraction

    from numpy.typing import NDArray

    from densebatch.scoring.contingency import Contingency
    from densebatch.scoring.settings import MatchingName

# A dense cost matrix beyond this many entries costs more than the sparse solver.
DENSE_ENTRIES = 1 << 20


def reaches(
    part: NDArray[np.int64], whole: NDArray[np.int64], threshold: Fraction
) -> NDArray[np.bool_]:
    """Whether part / whole >= threshold, exactly.

    Parameters
    ----------
    part, whole
        Pixel counts, of one shape.
    threshold
        A fraction of the whole.

    Returns
    -------
    ndarray of bool
        Of the shape of the counts.

    Examples
    --------
    >>> from fractions import Fraction
    >>> reaches(np.array([1, 1]), np.array([2, 3]), Fraction(1, 2))
    array([ True, False])
    """
    p, q = threshold.numerator, threshold.denominator
    if max(p, q) * max(int(whole.max(initial=1)), int(part.max(initial=1))) >= 2**63:
        # The products would not fit in 64 bits; Python's integers have no end.
        return np.array(
            [q * i >= p * u for i, u in zip(part.tolist(), whole.tolist(), strict=True)], np.bool_
        )
    return q * part >= p * whole


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Cells of both sides and the pairs of them that share pixels, as a sparse graph.

    Attributes
    ----------
    truth_ids, pred_ids
        Labels, ascending.
    truth_areas, pred_areas
        Pixels of each cell.
    truth, pred
        Places in `truth_ids` and `pred_ids` of the two ends of each edge, sorted.
    shared
        Pixels in common, of each edge.
    """

    truth_ids: NDArray[np.uint32]
    truth_areas: NDArray[np.int64]
    pred_ids: NDArray[np.uint32]
    pred_areas: NDArray[np.int64]
    truth: NDArray[np.intp]
    pred: NDArray[np.intp]
    shared: NDArray[np.int64]

    @classmethod
    def from_table(cls, table: Contingency) -> Overlaps:
        """Leave the background out and number the cells."""
        truth_ids, truth_areas = table.truth_areas
        pred_ids, pred_areas = table.pred_areas
        both = (table.truth > 0) & (table.pred > 0)
        return cls(
            truth_ids,
            truth_areas,
            pred_ids,
            pred_areas,
            np.searchsorted(truth_ids, table.truth[both]),
            np.searchsorted(pred_ids, table.pred[both]),
            table.count[both],
        )

    @cached_property
    def union(self) -> NDArray[np.int64]:
        """Pixels of either cell, of each edge."""
        return self.truth_areas[self.truth] + self.pred_areas[self.pred] - self.shared

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each edge, rounded."""
        return self.shared / self.union

    @cached_property
    def best(self) -> NDArray[np.intp]:
        """For each truth cell the edge of largest IoU (of equals the lowest id), or -1."""
        return self._first_by(self.iou)

    @cached_property
    def largest(self) -> NDArray[np.intp]:
        """For each truth cell the edge with most pixels (of equals the lowest id), or -1."""
        return self._first_by(self.shared)

    def _first_by(self, value: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.intp]:
        chosen = np.full(self.truth_ids.size, -1, np.intp)
        if value.size:
            # Edges come sorted by truth cell, then prediction, so that no sort is needed.
            starts = np.flatnonzero(np.diff(self.truth, prepend=-1))
            highest = np.maximum.reduceat(value, starts)
            lengths = np.diff(starts, append=value.size)
            hits = np.flatnonzero(value == np.repeat(highest, lengths))
            first = hits[np.diff(self.truth[hits], prepend=-1) > 0]
            chosen[self.truth[first]] = first
        return chosen


@dataclass(frozen=True, eq=False)
class Ignored:
    """Cells that count neither as found nor as missed, in the sense of COCO.

    Attributes
    ----------
    truth
        Truth cells to be ignored.
    pred_small
        Predictions that are ignored if nothing matches them, because of their size.
    pred_inside_px
        Pixels of each prediction in an ignored region.
    """

    truth: NDArray[np.bool_]
    pred_small: NDArray[np.bool_]
    pred_inside_px: NDArray[np.int64]


def find_ignored(
    overlaps: Overlaps,
    below_px: int,
    truth_inside: Contingency | None,
    pred_inside: Contingency | None,
) -> Ignored:
    """Find the cells that COCO would ignore.

    Parameters
    ----------
    overlaps
        The cells.
    below_px
        Cells of fewer pixels are out of range (`areaRng` of pycocotools).
    truth_inside, pred_inside
        Tables of an ignored region (any non-zero label) against truth and prediction. A truth
        cell is ignored if at least half of it lies in the region; a prediction that matches
        nothing, if the share of it in the region reaches the IoU threshold (`iscrowd`).

    Returns
    -------
    Ignored
        What `match_cells` takes.
    """
    truth_px = _count_inside(truth_inside, overlaps.truth_ids)
    return Ignored(
        truth=(overlaps.truth_areas < below_px) | (2 * truth_px >= overlaps.truth_areas),
        pred_small=overlaps.pred_areas < below_px,
        pred_inside_px=_count_inside(pred_inside, overlaps.pred_ids),
    )


def _count_inside(table: Contingency | None, ids: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Pixels of each cell that lie in a region; the region is the table's truth."""
    px = np.zeros(ids.size, np.int64)
    if table is not None:
        rows = (table.truth > 0) & np.isin(table.pred, ids)
        np.add.at(px, np.searchsorted(ids, table.pred[rows]), table.count[rows])
    return px


@dataclass(frozen=True, eq=False)
class Matching:
    """Which cells are matched at one threshold.

    Attributes
    ----------
    threshold
        Least IoU of a match.
    edges
        The matched edges of the graph; with `any` the best one of each matched truth cell.
    truth_found
        Truth cells that count as true positives.
    truth_missed
        Truth cells that count as false negatives.
    pred_found
        Predictions that have a partner.
    pred_spurious
        Predictions that count as false positives.
    """

    threshold: Fraction
    edges: NDArray[np.intp]
    truth_found: NDArray[np.bool_]
    truth_missed: NDArray[np.bool_]
    pred_found: NDArray[np.bool_]
    pred_spurious: NDArray[np.bool_]


def match_cells(
    overlaps: Overlaps,
    threshold: Fraction,
    method: MatchingName = "any",
    ignored: Ignored | None = None,
) -> Matching:
    """Match cells whose IoU reaches a threshold.

    Parameters
    ----------
    overlaps
        The graph.
    threshold
        Least IoU.
    method
        `any`: a truth cell is found if any prediction reaches the threshold, and a prediction is
        spurious if no truth cell does (Han et al. 2024, `tp_fp_fn` of their code). `hungarian`:
        partners are exclusive, as many as possible, and of these the largest sum of IoU (Stringer
        et al. 2021, after Schmidt et al. 2018). Above 0.5 they agree, as no cell can reach it
        twice; at 0.5 they differ where a cell is cut into exact halves.
    ignored
        COCO-style exceptions: an ignored truth cell is neither found nor missed; a prediction
        without a partner is not spurious if it reaches the threshold with an ignored cell, if that
        share of it lies in an ignored region, or if its size is out of range (Lin et al. 2014,
        `evaluateImg` of pycocotools). None makes no exceptions.

    Returns
    -------
    Matching
        What became of each cell.
    """
    good = reaches(overlaps.shared, overlaps.union, threshold)
    n_truth, n_pred = overlaps.truth_ids.size, overlaps.pred_ids.size
    excused = np.zeros(n_pred, np.bool_)
    counted = np.ones(n_truth, np.bool_)
    if ignored is not None:
        counted = ~ignored.truth
        excused |= ignored.pred_small
        excused |= reaches(ignored.pred_inside_px, overlaps.pred_areas, threshold)
        excused[overlaps.pred[good & ignored.truth[overlaps.truth]]] = True
        good &= counted[overlaps.truth]
    edges = np.flatnonzero(good)
    truth_found, pred_found = np.zeros(n_truth, np.bool_), np.zeros(n_pred, np.bool_)
    if method == "hungarian":
        edges = _assign(overlaps, edges)
    truth_found[overlaps.truth[edges]] = True
    pred_found[overlaps.pred[edges]] = True
    if method == "any":
        # The best edge of a found cell reaches the threshold, because another one does.
        edges = overlaps.best[truth_found]
    return Matching(
        threshold,
        edges,
        truth_found,
        counted & ~truth_found,
        pred_found,
        ~pred_found & ~excused,
    )


def _assign(overlaps: Overlaps, edges: NDArray[np.intp]) -> NDArray[np.intp]:
    """One-to-one matches among edges, solved for each connected component by itself."""
    truth, pred = overlaps.truth[edges], overlaps.pred[edges]
    alone = (np.bincount(truth)[truth] == 1) & (np.bincount(pred)[pred] == 1) if edges.size else []
    chosen, open_edges = edges[alone], edges[~np.asarray(alone, np.bool_)]
    if not open_edges.size:
        return chosen
    n_truth = overlaps.truth_ids.size
    n = n_truth + overlaps.pred_ids.size
    ends = overlaps.truth[open_edges], n_truth + overlaps.pred[open_edges]
    graph = coo_array((np.ones(open_edges.size, np.int8), ends), shape=(n, n))
    component = connected_components(graph, directed=False)[1][ends[0]]
    order = np.argsort(component, kind="stable")
    cuts = np.flatnonzero(np.diff(component[order])) + 1
    solved = [_assign_component(overlaps, part) for part in np.split(open_edges[order], cuts)]
    return np.sort(np.concatenate([chosen, *solved]))


def _assign_component(overlaps: Overlaps, edges: NDArray[np.intp]) -> NDArray[np.intp]:
    truth, row = np.unique(overlaps.truth[edges], return_inverse=True)
    pred, col = np.unique(overlaps.pred[edges], return_inverse=True)
    shape = truth.size, pred.size
    # One more match outweighs any sum of IoU.
    gain = 1 + overlaps.iou[edges] / (2 * min(shape))
    if shape[0] * shape[1] <= DENSE_ENTRIES:
        weight = np.zeros(shape)
        weight[row, col] = gain
        chosen = linear_sum_assignment(weight, maximize=True)
    else:
        # The solver wants a partner for every truth cell, so each gets a spare one that nothing
        # is gained by. It takes a weight of 0 for no edge; the offset keeps all of them positive.
        own = np.arange(shape[0])
        weights = csr_array(
            (
                np.concatenate([3 - gain, np.full(shape[0], 3.0)]),
                (np.concatenate([row, own]), np.concatenate([col, shape[1] + own])),
            ),
            shape=(shape[0], shape[1] + shape[0]),
        )
        chosen = min_weight_full_bipartite_matching(weights)
    picked = np.full(shape[0], -1, np.intp)
    picked[chosen[0]] = chosen[1]
    taken: NDArray[np.intp] = edges[picked[row] == col]
    return taken
