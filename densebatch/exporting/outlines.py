"""Outlines of cells as polygons, exact or simplified, read of the labels window by window.

Coordinates are pixels of the slide at full resolution: x, y, and (0, 0) the outer corner of the
first pixel, as QuPath and ImageJ have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import shapely

from densebatch.base.errors import InputError
from densebatch.exporting.tracing import trace_rings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa
    from numpy.typing import NDArray

    from densebatch.cells.read import LabelImage
    from densebatch.exporting.source import Source
    from densebatch.exporting.tracing import Rings

# A simplified outline holds as many pixels as its cell, but for this share or number.
MAX_CHANGE, MAX_CHANGE_PX = 0.02, 2.0
# Cells whose boxes begin in one square of this side are read together.
_WINDOW_PX = 2048


class Window(NamedTuple):
    """Cells that are read together.

    Attributes
    ----------
    rows : `(n,)` int64, which of the cells that were asked for
    labels : `(h, w)` uint32
    boxes : `(n, 4)` int64, bounding boxes y0, x0, y1, x1 within `labels`
    y0, x0 : where `labels` begins in the slide
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.uint32]
    boxes: NDArray[np.int64]
    y0: int
    x0: int


def read_boxes(batch: pa.RecordBatch) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Ids `(n,)` and bounding boxes `(n, 4)`, y0, x0, y1, x1, of rows of the table."""
    boxes = [batch[name].to_numpy() for name in ("y0", "x0", "y1", "x1")]
    return batch["id"].to_numpy().astype(np.uint32), np.stack(boxes, axis=1).astype(np.int64)


def iter_windows(image: LabelImage, boxes: NDArray[np.int64]) -> Iterator[Window]:
    """Read the labels of cells, many at once.

    Parameters
    ----------
    image
        The label image.
    boxes
        `(n, 4)` the cells' bounding boxes y0, x0, y1, x1.

    Yields
    ------
    Window
        With sides of at most two squares; of a larger cell, its box alone.

    Raises
    ------
    InputError
        If a box is not in the image, or labels cannot be read.
    """
    height, width = image.shape
    y0, x0, y1, x1 = boxes.T
    outside = (y0 < 0) | (x0 < 0) | (y1 > height) | (x1 > width) | (y0 >= y1) | (x0 >= x1)
    if outside.any():
        raise InputError(
            f"{image.where}: does not hold the box {boxes[outside][0].tolist()} of a cell in the "
            "table"
        )
    is_large = np.maximum(y1 - y0, x1 - x0) > _WINDOW_PX
    alone = np.where(is_large, np.arange(1, len(boxes) + 1), 0)
    keys = np.stack([alone, y0 // _WINDOW_PX, x0 // _WINDOW_PX], axis=1)
    _, group = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1):
        if not rows.size:
            continue
        near, far = boxes[rows, :2].min(axis=0), boxes[rows, 2:].max(axis=0)
        labels = image[near[0] : far[0], near[1] : far[1]]
        yield Window(rows, labels, boxes[rows] - np.tile(near, 2), int(near[0]), int(near[1]))


def iter_outlines(
    source: Source, simplify: float
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.object_], NDArray[np.object_] | None]]:
    """Rows of the table with the outlines of their cells and, where there are any, of nuclei.

    Parameters
    ----------
    source
        The result.
    simplify
        See `simplify_outlines`.

    Yields
    ------
    batch, cells, nuclei
        Rows; for each a polygon or, in several pieces, a multipolygon. A cell without a nucleus has
        None there.

    Raises
    ------
    InputError
        If labels cannot be read, or are not those of the table.
    """
    for batch in source.read_batches():
        ids, boxes = read_boxes(batch)
        cells, areas = draw_outlines(source.cells, ids, boxes, simplify)
        wrong = np.flatnonzero(areas != batch["area_px"].to_numpy())
        if wrong.size:
            raise InputError(
                f"{source.cells.where}: cell {ids[wrong[0]]} has {areas[wrong[0]]} px, and "
                f"{batch['area_px'][int(wrong[0])]} px in {source.table}; labels and table are not "
                "of one result"
            )
        nuclei = None
        if source.nuclei is not None:
            nuclei, _ = draw_outlines(source.nuclei, ids, boxes, simplify)
        yield batch, cells, nuclei


def draw_outlines(
    image: LabelImage, ids: NDArray[np.uint32], boxes: NDArray[np.int64], simplify: float
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Outlines of cells, and their pixels.

    Parameters
    ----------
    image
        The label image.
    ids, boxes
        `(n,)` cells and `(n, 4)` boxes that hold them.
    simplify
        See `simplify_outlines`.

    Returns
    -------
    outlines : `(n,)` polygons and multipolygons; None where a label has no pixel
    areas : `(n,)` int64, pixels
    """
    outlines = np.full(ids.size, None, np.object_)
    areas = np.zeros(ids.size, np.int64)
    for window in iter_windows(image, boxes):
        rings = trace_rings(window.labels, ids[window.rows], window.boxes)
        rings.points[:] += (window.x0, window.y0)
        outlines[window.rows] = simplify_outlines(rings, simplify)
        areas[window.rows] = rings.areas
    return outlines, areas


def simplify_outlines(rings: Rings, tolerance: float) -> NDArray[np.object_]:
    """Polygons with few corners that hold as many pixels as their cells, as near as is asked for.

    The corners of pixels are cut from the middle of one edge to that of the next, which moves an
    outline by at most 0.36 px and leaves its area as it was, but for half a pixel. Of what is left,
    corners are left out that are no further than the tolerance from the line between those that
    stay (Douglas and Peucker 1973, as GEOS has it). Where that changes the area too much, or is no
    valid polygon, half of the tolerance is tried, and at last the outline of the pixels stays.

    Parameters
    ----------
    rings
        Of `n` cells.
    tolerance
        In px; 0 leaves the outlines of the pixels as they are.

    Returns
    -------
    ndarray
        `(n,)` polygons, multipolygons of cells in several pieces, None for those without a pixel.
        Valid; the areas differ by at most 2 % or 2 px from the pixels.
    """
    result = build_polygons(rings.points.astype(np.float64), rings)
    if tolerance == 0:
        return result
    todo = np.flatnonzero(rings.n_pieces)
    smooth = build_polygons(*_cut_corners(rings))
    cell_of_piece = np.repeat(np.arange(rings.n_pieces.size), rings.n_pieces)
    n_rings = np.bincount(cell_of_piece[rings.pieces], minlength=rings.n_pieces.size)
    for tried in (tolerance, tolerance / 2, tolerance / 4, 0.0):
        if not todo.size:
            break
        # That this may make a polygon invalid or lose a piece is seen below, at a fifth of the time
        # that GEOS takes to avoid it.
        found = smooth[todo]
        if tried:
            found = shapely.simplify(found, tried, preserve_topology=False)
        change = np.abs(shapely.area(found) - rings.areas[todo])
        good = change <= np.maximum(MAX_CHANGE * rings.areas[todo], MAX_CHANGE_PX)
        good &= shapely.is_valid(found)
        good &= _count_rings(found) == n_rings[todo]
        result[todo[good]] = found[good]
        todo = todo[~good]
    return result


def _count_rings(polygons: NDArray[np.object_]) -> NDArray[np.int64]:
    """Shells and holes of each polygon or multipolygon that are not empty."""
    pieces, index = shapely.get_parts(polygons, return_index=True)
    rings = np.where(shapely.is_empty(pieces), 0, 1 + shapely.get_num_interior_rings(pieces))
    counted: NDArray[np.int64] = np.bincount(index, rings, len(polygons)).astype(np.int64)
    return counted


def _cut_corners(rings: Rings) -> tuple[NDArray[np.float64], Rings]:
    """The middles of the first and last edge of each straight piece of the rings."""
    starts = np.concatenate([[0], rings.ends[:-1]]).astype(np.int64)
    following = np.arange(len(rings.points)) + 1
    following[rings.ends - 1] = starts
    here, there = rings.points, rings.points[following]
    step = np.sign(there - here) / 2
    is_long = np.abs(there - here).sum(axis=1) > 1
    points = np.stack([here + step, there - step], axis=1)
    kept = np.stack([np.ones_like(is_long), is_long], axis=1)
    ends = np.cumsum(1 + is_long)[rings.ends - 1]
    return points[kept], rings._replace(ends=ends)


def build_polygons(points: NDArray[np.float64], rings: Rings) -> NDArray[np.object_]:
    """Polygons with the rings of some cells, and points of their own.

    Parameters
    ----------
    points
        `(k, 2)` x and y, ring after ring.
    rings
        Where rings end in `points`, and what they are of.

    Returns
    -------
    ndarray
        As of `simplify_outlines`.
    """
    lengths = np.diff(rings.ends, prepend=0)
    starts = rings.ends - lengths
    # Rings are closed: each first point comes again behind the last.
    order = np.insert(np.arange(len(points)), rings.ends, starts)
    offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
    of_pieces = np.flatnonzero(np.diff(rings.pieces, prepend=-1, append=len(rings.pieces)))
    if not len(rings.pieces):
        return np.full(rings.n_pieces.size, None, np.object_)
    pieces = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, points[order], (offsets, of_pieces)
    )
    cell = np.repeat(np.arange(rings.n_pieces.size), rings.n_pieces)
    result = np.full(rings.n_pieces.size, None, np.object_)
    is_whole = rings.n_pieces[cell] == 1
    result[cell[is_whole]] = pieces[is_whole]
    several = np.flatnonzero(rings.n_pieces > 1)
    if several.size:
        index = np.searchsorted(several, cell[~is_whole])
        result[several] = shapely.multipolygons(pieces[~is_whole], indices=index)
    return result
