"""Outlines of cells as rings of pixel corners, traced exactly.

A pixel (row y, column x) covers the square from (x, y) to (x + 1, y + 1). A cell's pixels that are
joined by edges make a piece: pixels that meet at a corner only belong to two pieces, because one
ring around both would touch itself. A ring is followed with the cell's pixels to its right, as seen
with y downwards, and where it comes to a corner a second time it is cut in two there: what is cut
off is the ring of a hole, for a piece is joined by edges. So every ring is simple, each piece has
one shell and its holes, and these meet in corners at most: a valid polygon (OGC Simple Features).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Rings(NamedTuple):
    """Outlines of `n` cells.

    Attributes
    ----------
    points : `(k, 2)` int64, x and y of corners; every ring's first is not repeated at its end
    ends : `(rings,)` int64, where each ring ends in `points`; of a piece the shell comes first
    pieces : `(rings,)` int64, which piece a ring is of, counted over all cells in their order
    n_pieces : `(n,)` int64, of each cell
    areas : `(n,)` int64, pixels of each cell
    """

    points: NDArray[np.int64]
    ends: NDArray[np.int64]
    pieces: NDArray[np.int64]
    n_pieces: NDArray[np.int64]
    areas: NDArray[np.int64]


def trace_rings(
    labels: NDArray[np.uint32], ids: NDArray[np.uint32], boxes: NDArray[np.int64]
) -> Rings:
    """Trace the outlines of cells.

    Parameters
    ----------
    labels
        `(h, w)` of a part of the slide.
    ids
        `(n,)` cells to trace.
    boxes
        `(n, 4)` their bounding boxes y0, x0, y1, x1 within `labels`.

    Returns
    -------
    Rings
        In pixels of `labels`. A cell without a pixel in its box has no piece. Shells have a
        positive area by their numbers, counter-clockwise as GeoJSON has it, holes a negative one.
    """
    capacity = _count_edges(labels)
    found, lengths, doubled, pieces, n_pieces = _trace(labels, ids, boxes, capacity)
    order = np.lexsort((doubled < 0, pieces))
    lengths, starts = lengths[order], (np.cumsum(lengths) - lengths)[order]
    ends = np.cumsum(lengths)
    taken = np.arange(len(found)) + np.repeat(starts - (ends - lengths), lengths)
    cell_of_piece = np.repeat(np.arange(len(ids)), n_pieces)
    areas = np.zeros(len(ids), np.int64)
    np.add.at(areas, cell_of_piece[pieces], doubled)
    return Rings(found[taken].astype(np.int64), ends, pieces[order], n_pieces, areas // 2)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_edges(labels: NDArray[np.uint32]) -> int:
    """At least the corners of all outlines: unit edges between different labels, on both sides."""
    height, width = labels.shape
    count = 0
    for y in range(height):
        for x in range(width):
            if labels[y, x] != 0:
                count += y == 0 or labels[y - 1, x] != labels[y, x]
                count += y == height - 1 or labels[y + 1, x] != labels[y, x]
                count += x == 0 or labels[y, x - 1] != labels[y, x]
                count += x == width - 1 or labels[y, x + 1] != labels[y, x]
    return count


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark_pieces(
    labels: NDArray[np.uint32], label: int, y0: int, x0: int, piece: NDArray[np.int32]
) -> int:
    """Number the pixels of a cell by the piece that they are of, from 1 on; returns how many."""
    height, width = piece.shape
    waiting = np.empty((height * width, 2), np.int32)
    n_pieces = 0
    for y in range(height):
        for x in range(width):
            if labels[y0 + y, x0 + x] != label or piece[y, x] != 0:
                continue
            n_pieces += 1
            piece[y, x] = n_pieces
            waiting[0, 0], waiting[0, 1] = y, x
            n_waiting = 1
            while n_waiting:
                n_waiting -= 1
                py, px = waiting[n_waiting, 0], waiting[n_waiting, 1]
                for dy, dx in ((-1, 0), (0, -1), (0, 1), (1, 0)):
                    qy, qx = py + dy, px + dx
                    if (
                        0 <= qy < height
                        and 0 <= qx < width
                        and piece[qy, qx] == 0
                        and labels[y0 + qy, x0 + qx] == label
                    ):
                        piece[qy, qx] = n_pieces
                        waiting[n_waiting, 0], waiting[n_waiting, 1] = qy, qx
                        n_waiting += 1
    return n_pieces


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _has(piece: NDArray[np.int32], y: int, x: int) -> bool:
    return 0 <= y < piece.shape[0] and 0 <= x < piece.shape[1] and piece[y, x] != 0


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _trace(
    labels: NDArray[np.uint32], ids: NDArray[np.uint32], boxes: NDArray[np.int64], capacity: int
) -> tuple[
    NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]
]:
    """Rings in the order in which they are closed: points, lengths, doubled areas, pieces."""
    points = np.empty((capacity, 2), np.int32)
    lengths = np.empty(capacity // 4 + 1, np.int64)
    doubled = np.empty(capacity // 4 + 1, np.int64)
    pieces = np.empty(capacity // 4 + 1, np.int64)
    n_pieces = np.zeros(ids.size, np.int64)
    walk = np.empty((capacity, 2), np.int32)
    n_points, n_rings, before = 0, 0, 0
    for cell in range(ids.size):
        y0, x0, y1, x1 = boxes[cell]
        piece = np.zeros((y1 - y0, x1 - x0), np.int32)
        n_pieces[cell] = _mark_pieces(labels, ids[cell], y0, x0, piece)
        seen = np.zeros(piece.shape, np.bool_)  # pixels whose upper edge has been walked
        place = np.full((piece.shape[0] + 1, piece.shape[1] + 1), -1, np.int32)  # in the walk
        for y in range(piece.shape[0]):
            for x in range(piece.shape[1]):
                if piece[y, x] == 0 or seen[y, x] or _has(piece, y - 1, x):
                    continue
                cy, cx, dy, dx, depth = y, x, 0, 1, 0
                ended = False
                while True:
                    # At the end of the walk all of it is one ring; in between what is cut off.
                    start = -1
                    if ended:
                        start = 0
                    else:
                        if dx == 1:
                            seen[cy, cx] = True
                        cy, cx = cy + dy, cx + dx
                        ry, rx = dx, -dy  # to the right
                        turn = 0
                        if not _has(piece, cy + (dy + ry - 1) // 2, cx + (dx + rx - 1) // 2):
                            turn = 1
                        elif _has(piece, cy + (dy - ry - 1) // 2, cx + (dx - rx - 1) // 2):
                            turn = -1
                        if turn == 0:
                            continue
                        dy, dx = turn * ry, turn * rx
                        start = place[cy, cx]
                        if start < 0:
                            place[cy, cx] = depth
                            walk[depth, 0], walk[depth, 1] = cx, cy
                            depth += 1
                    if start >= 0:
                        area = 0
                        for i in range(start, depth):
                            j = i + 1 if i + 1 < depth else start
                            area += walk[i, 0] * walk[j, 1] - walk[j, 0] * walk[i, 1]
                            points[n_points, 0] = walk[i, 0] + x0
                            points[n_points, 1] = walk[i, 1] + y0
                            n_points += 1
                            if ended or i > start:
                                place[walk[i, 1], walk[i, 0]] = -1
                        lengths[n_rings] = depth - start
                        doubled[n_rings] = area
                        pieces[n_rings] = before + piece[y, x] - 1
                        n_rings += 1
                        depth = start + 1
                    if ended:
                        break
                    ended = cy == y and cx == x and dy == 0 and dx == 1
        before += n_pieces[cell]
    return (
        points[:n_points], lengths[:n_rings], doubled[:n_rings], pieces[:n_rings], n_pieces
    )  # fmt: skip
