"""Cells cut at straight lines: the borders of somebody's tiles.

A cell that ends exactly at a line, along an edge as long as at least half of its own extent, is
*flat* there. Two flat cells that face each other across the line are a *cut pair*: most likely one
cell. Round cells do this by chance now and then, and how often is told by the same count at lines
where nobody has a border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import find_objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

MIN_EDGE_PX = 4
SEAM_PX = 3  # lines so near to a seam of the mosaic are left out: there the truth itself is cut


def interior_lines(length: int, step: int) -> list[int]:
    """Positions k such that a border runs between k - 1 and k."""
    return list(range(step, length, step))


def _flat_edges(
    labels: NDArray[np.int64], boxes: Sequence[tuple[slice, slice] | None], line: int, side: int
) -> NDArray[np.int64]:
    """Along a line before a column: the cell that is flat there on one side, per row; else 0."""
    column = labels[:, line - 1 if side < 0 else line]
    ids, counts = np.unique(column[column > 0], return_counts=True)
    flat = []
    for cell, count in zip(ids, counts, strict=True):
        box = boxes[cell - 1]
        if box is None:
            continue
        rows, cols = box
        ends_here = cols.stop == line if side < 0 else cols.start == line
        if ends_here and count >= MIN_EDGE_PX and 2 * count >= rows.stop - rows.start:
            flat.append(cell)
    return np.where(np.isin(column, flat), column, 0)


def _count_along(labels: NDArray[np.int64], lines: Iterable[int]) -> tuple[int, int]:
    """Flat cells and cut pairs at vertical lines."""
    boxes = find_objects(labels)
    n_flat = n_pairs = 0
    for line in lines:
        before = _flat_edges(labels, boxes, line, -1)
        after = _flat_edges(labels, boxes, line, 1)
        n_flat += len(set(before[before > 0])) + len(set(after[after > 0]))
        facing = (before > 0) & (after > 0)
        pairs, counts = np.unique(
            np.stack([before[facing], after[facing]]), axis=1, return_counts=True
        )
        n_pairs += int((counts >= MIN_EDGE_PX).sum()) if pairs.size else 0
    return n_flat, n_pairs


def count_cut(
    labels: NDArray[np.integer], rows: Iterable[int], cols: Iterable[int]
) -> dict[str, int]:
    """Flat cells and cut pairs at horizontal lines before `rows` and vertical ones before `cols`.

    Examples
    --------
    >>> image = np.zeros((12, 12), np.int64)
    >>> image[2:8, 1:6], image[2:8, 6:10] = 1, 2
    >>> count_cut(image, [], [6]), count_cut(image, [6], [5])
    ({'flat_cells': 2, 'cut_pairs': 1}, {'flat_cells': 0, 'cut_pairs': 0})
    """
    _, compact = np.unique(np.append(labels.ravel(), 0), return_inverse=True)
    image = compact[:-1].reshape(labels.shape).astype(np.int64)
    vertical = _count_along(image, cols)
    horizontal = _count_along(np.ascontiguousarray(image.T), rows)
    return {
        "flat_cells": vertical[0] + horizontal[0],
        "cut_pairs": vertical[1] + horizontal[1],
    }


def report_borders(
    labels: NDArray[np.integer],
    lines: tuple[list[int], list[int]],
    seams: tuple[list[int], list[int]],
) -> dict[str, float]:
    """Counts at a tiling's borders, and what chance gives at as many lines elsewhere.

    Parameters
    ----------
    labels
        `(h, w)`.
    lines
        Rows and columns before which a border runs.
    seams
        Rows and columns at which the mosaic's fields meet.
    """
    shape = labels.shape

    def usable(shift: float) -> list[list[int]]:
        kept: list[list[int]] = []
        for axis in (0, 1):
            moved = [line + round(shift) for line in lines[axis]]
            taken = set(lines[axis]) if shift else set()
            kept.append(
                [
                    line
                    for line in moved
                    if 0 < line < shape[axis]
                    and all(abs(line - seam) > SEAM_PX for seam in seams[axis])
                    and line not in taken
                ]
            )
        return kept

    here = usable(0)
    found = count_cut(labels, *here)
    n_lines = sum(map(len, here))
    chance, n_chance = 0, 0
    for shift in (-29, -17, 17, 29):
        elsewhere = usable(shift)
        chance += count_cut(labels, *elsewhere)["cut_pairs"]
        n_chance += sum(map(len, elsewhere))
    by_chance = round(chance / n_chance * n_lines, 1) if n_chance else 0.0
    return {"lines": n_lines, **found, "cut_pairs_by_chance": by_chance}
