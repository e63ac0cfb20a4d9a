"""Match truth cells to predicted cells by intersection over union, in integers.

Thresholds are fractions p/q and a pair matches if q I >= p U, for intersection I and union U in
pixels: a pair that sits exactly on the threshold matches, whatever the rounding of I/U. Sixteen
pairs of the masks published with Han et al. 2024 do.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.scoring.contingency import Contingency

MatchingName = Literal["any", "hungarian"]
# A dense cost matrix beyond this many entries costs more than the sparse solver.
DENSE_ENTRIES = 1 << 20


def parse_threshold(value: str | float | Fraction) -> Fraction:
    """An IoU threshold as the exact fraction that its decimal digits say.

    Examples
    --------
    >>> parse_threshold("0.55"), parse_threshold(0.1)
    (Fraction(11, 20), Fraction(1, 10))
    """
    try:
        threshold = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        threshold = Fraction(0)
    if not 0 < threshold <= 1:
        raise InputError(f"an IoU threshold is a number above 0 and up to 1, not {value!r}")
    return threshold


def format_threshold(threshold: Fraction) -> str:
    """Shortest exact decimal with at least two digits; a fraction where there is none.

    Examples
    --------
    >>> format_threshold(Fraction(1, 2)), format_threshold(Fraction("0.725"))
    ('0.50', '0.725')
    """
    for digits in range(2, 19):
        scaled = threshold * 10**digits
        if scaled.denominator == 1:
            whole, rest = divmod(int(scaled), 10**digits)
            return f"{whole}.{rest:0{digits}d}"
    return str(threshold)


def reaches(
    part: NDArray[np.int64], whole: NDArray[np.int64], threshold: Fraction
) -> NDArray[np.bool_]:
    """Whether part / whole >= threshold, exactly.

    Examples
    --------
    >>> reaches(np.array([1, 1]), np.array([2, 3]), Fraction(1, 2))
    array([ True, False])
    """
    p, q = threshold.numerator, threshold.denominator
    if max(p, q) * max(int(whole.max(initial=0)), int(part.max(initial=0))) >= 2**63:
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
            # Edges come sorted by truth cell, then prediction: no sort is needed.
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
        `evaluateImg` of pycocotools).
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
        # Over all cells the best edge is also the best good one: IoU decides both.
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
    settled, open_edges = edges[alone], edges[~np.asarray(alone, np.bool_)]
    if not open_edges.size:
        return settled
    n_truth = overlaps.truth_ids.size
    n = n_truth + overlaps.pred_ids.size
    ends = overlaps.truth[open_edges], n_truth + overlaps.pred[open_edges]
    graph = coo_array((np.ones(open_edges.size, np.int8), ends), shape=(n, n))
    component = connected_components(graph, directed=False)[1][ends[0]]
    order = np.argsort(component, kind="stable")
    cuts = np.flatnonzero(np.diff(component[order])) + 1
    solved = [_assign_component(overlaps, part) for part in np.split(open_edges[order], cuts)]
    return np.sort(np.concatenate([settled, *solved]))


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
        # A partner of its own for each truth cell makes a full matching possible; the offset
        # keeps every weight positive, which is what the solver takes for an edge.
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
