"""Runs of pixels: from outlines, by the centres of pixels and the even-odd rule, and from masks."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

_CROSSINGS = 2**21  # of outlines that are drawn together


class Outline(NamedTuple):
    """An area by its rings: a pixel is inside if an odd number of them is around its centre.

    Attributes
    ----------
    name : "" without one
    rings : each `(n, 2)` float64, x and y in pixels from the slide's upper left corner
    """

    name: str
    rings: tuple[NDArray[np.float64], ...]


class Runs(NamedTuple):
    """Runs of pixels, each `(n,)` int64.

    Attributes
    ----------
    row, x0, x1 : where a run lies; x1 is behind its end
    value : of its pixels
    """

    row: NDArray[np.int64]
    x0: NDArray[np.int64]
    x1: NDArray[np.int64]
    value: NDArray[np.int64]

    def sort(self) -> Runs:
        """The same runs by row, column and value."""
        order = np.lexsort((self.value, self.x0, self.row))
        return Runs(*(each[order] for each in self))


def concatenate(parts: Iterable[Runs]) -> Runs:
    """Several runs one after the other."""
    every = [*parts, Runs(*np.zeros((4, 0), np.int64))]
    return Runs(*(np.concatenate(each) for each in zip(*every, strict=True)))


def draw_outlines(
    outlines: Sequence[Outline], values: Sequence[int], shape: tuple[int, int]
) -> Runs:
    """Runs of the pixels of a slide whose centres lie in outlines.

    A centre on an edge is in what lies right of the edge or below it, so that of areas that share
    an edge one has it. Where outlines overlap there are several runs.

    Parameters
    ----------
    outlines
        In pixels of the slide.
    values
        Of the pixels of each.
    shape
        Height and width of the slide.
    """
    return concatenate(
        _draw(np.concatenate(edges), np.concatenate(of), shape, np.array(values, np.int64))
        for edges, of in _batch_edges(outlines, shape)
    )


def _batch_edges(
    outlines: Sequence[Outline], shape: tuple[int, int]
) -> Iterator[tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]]:
    """Edges `(n, 4)` of some outlines, whole ones, and which outline each is of."""
    edges, of, n = [np.zeros((0, 4))], [np.zeros(0, np.int64)], 0
    for index, outline in enumerate(outlines):
        for ring in outline.rings:
            pairs = np.hstack([ring, np.roll(ring, -1, axis=0)])
            edges.append(pairs)
            of.append(np.full(len(pairs), index))
            rows = np.clip(pairs[:, 1::2], 0, shape[0])
            n += int(np.abs(rows[:, 1] - rows[:, 0]).sum())
        if n > _CROSSINGS:
            yield edges, of
            edges, of, n = [np.zeros((0, 4))], [np.zeros(0, np.int64)], 0
    yield edges, of


def _draw(
    edges: NDArray[np.float64],
    of: NDArray[np.int64],
    shape: tuple[int, int],
    values: NDArray[np.int64],
) -> Runs:
    # Each edge goes down, so that two areas that share one cross it at the same places.
    up = edges[:, 1] > edges[:, 3]
    edges = np.where(up[:, None], edges[:, [2, 3, 0, 1]], edges)
    first, stop = (
        np.clip(np.ceil(edges[:, k] - 0.5), 0, shape[0]).astype(np.int64) for k in (1, 3)
    )
    counts = stop - first
    ends = np.cumsum(counts)
    row = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(first - ends + counts, counts)
    xa, ya, xb, yb = np.repeat(edges, counts, axis=0).T
    x = xa + (row + 0.5 - ya) * (xb - xa) / (yb - ya)
    col = np.clip(np.ceil(x - 0.5), 0, shape[1]).astype(np.int64)
    of = np.repeat(of, counts)
    order = np.lexsort((col, row, of))
    # A ring is closed, so that each row has an even number of crossings.
    begin, end = order[0::2], order[1::2]
    kept = col[end] > col[begin]
    begin, end = begin[kept], end[kept]
    return Runs(row[begin], col[begin], col[end], values[of[begin]])


def stretch_mask(mask: Runs, of: tuple[int, int], shape: tuple[int, int]) -> Runs:
    """Runs of a mask of another size, stretched to a slide by the centres of its pixels.

    Parameters
    ----------
    mask
        Ascending and disjoint.
    of
        Height and width of the mask.
    shape
        Height and width of the slide.
    """
    x0, x1 = (_place(each, of[1], shape[1]) for each in (mask.x0, mask.x1))
    first, stop = (_place(each, of[0], shape[0]) for each in (mask.row, mask.row + 1))
    counts = np.where(x1 > x0, stop - first, 0)
    ends = np.cumsum(counts)
    row = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(first - ends + counts, counts)
    x0, x1, value = (np.repeat(each, counts) for each in (x0, x1, mask.value))
    return Runs(row, x0, x1, value)


def _place(at: NDArray[np.int64], of: int, length: int) -> NDArray[np.int64]:
    """The first pixel of an axis whose centre lies at or behind the beginning of a mask's pixel.

    Examples
    --------
    >>> _place(np.arange(4), 3, 6).tolist(), _place(np.arange(5), 4, 2).tolist()
    ([0, 2, 4, 6], [0, 0, 1, 1, 2])
    """
    # The centre (2 k + 1) / 2 is at or behind at * length / of, in whole numbers.
    return -(-(2 * length * at - of) // (2 * of))


def find_runs(pixels: NDArray[np.bool_], first_row: int) -> Runs:
    """Runs of the pixels of some rows that are true, with the value 1.

    Parameters
    ----------
    pixels
        `(h, w)`.
    first_row
        Of these.
    """
    steps = np.diff(pixels.astype(np.int8), axis=1, prepend=0, append=0)
    row, x0 = np.nonzero(steps > 0)
    x1 = np.nonzero(steps < 0)[1]
    return Runs(row + first_row, x0, x1, np.ones_like(row))


def settle(runs: Runs) -> Runs:
    """Runs that overlap nowhere: of several over a pixel the smallest value counts, and 0 clears.

    Examples
    --------
    >>> some = Runs(*np.array([[0, 0, 4, 0], [0, 2, 9, 5], [8, 4, 10, 6], [2, 1, 1, 0]]))
    >>> [list(map(int, run)) for run in zip(*settle(some))]
    [[0, 0, 2, 2], [0, 2, 4, 1], [0, 4, 5, 2], [0, 6, 8, 2], [4, 9, 10, 1]]
    """
    runs = runs.sort()
    beside = runs.row[1:] == runs.row[:-1]
    # Of runs that begin later none reaches into another if none reaches into the one before it.
    overlap = beside & (runs.x0[1:] < runs.x1[:-1])
    busy = np.unique(np.concatenate([runs.row[1:][overlap], runs.row[runs.value == 0]]))
    slow = np.isin(runs.row, busy)
    parts = [Runs(*(each[~slow] for each in runs))]
    some = Runs(*(each[slow] for each in runs))
    starts = np.searchsorted(some.row, [*busy, np.iinfo(np.int64).max])
    for row, (begin, end) in zip(busy.tolist(), pairwise(starts.tolist()), strict=True):
        spans = zip(*(each[begin:end].tolist() for each in some[1:]), strict=True)
        found = np.array(list(_settle_row(list(spans))), np.int64).reshape(-1, 3)
        parts.append(Runs(np.full(len(found), row), *found.T))
    runs = concatenate(parts).sort()
    return _join(runs)


def _settle_row(spans: list[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Runs of a row, `(x0, x1, value)` by x0, without overlap."""
    edges = sorted({x for x0, x1, _ in spans for x in (x0, x1)})
    open_runs: list[tuple[int, int]] = []
    begun = 0
    for left, right in pairwise(edges):
        while begun < len(spans) and spans[begun][0] <= left:
            _, x1, value = spans[begun]
            heapq.heappush(open_runs, (value, x1))
            begun += 1
        while open_runs and open_runs[0][1] <= left:
            heapq.heappop(open_runs)
        if open_runs and open_runs[0][0] > 0:
            yield left, right, open_runs[0][0]


def _join(runs: Runs) -> Runs:
    """Put runs together that go on as the one before them ends; they are sorted and disjoint."""
    if not runs.row.size:
        return runs
    goes_on = (
        (runs.row[1:] == runs.row[:-1])
        & (runs.x0[1:] == runs.x1[:-1])
        & (runs.value[1:] == runs.value[:-1])
    )
    begins, ends = np.append(True, ~goes_on), np.append(~goes_on, True)
    return Runs(runs.row[begins], runs.x0[begins], runs.x1[ends], runs.value[begins])
