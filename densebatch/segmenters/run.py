"""Calling a segmenter, and refusing what is no label image of its tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import SegmenterError, describe_cause

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import Segmenter, Tile


def label_tile(segmenter: Segmenter, tile: Tile) -> NDArray[np.integer[Any]]:
    """Labels of a tile, or an error; a failure never becomes background.

    Returns
    -------
    ndarray
        `(y, x)` of the tile, whole numbers from 0 that fit int64; 0 is background.

    Raises
    ------
    SegmenterError
        If the segmenter fails, with its own exception as the cause, or returns something else: one
        sentence that names it.
    """
    try:
        labels = segmenter.label(tile)
    except SegmenterError:
        raise
    except (Exception, SystemExit) as error:
        # What was written as a program ends by `sys.exit`, which would take the worker along.
        raise SegmenterError(f"segmenter {segmenter.name}: {describe_cause(error)}") from error
    shape = tile.image.shape[1:]
    wrong = find_fault(labels, (shape[0], shape[1]))
    if wrong is not None:
        raise SegmenterError(f"segmenter {segmenter.name}: {wrong}")
    return labels


def find_fault(labels: object, shape: tuple[int, int], verb: str = "returned") -> str | None:
    """What is wrong with labels of a tile of this shape, and what is accepted; None if nothing.

    Examples
    --------
    >>> find_fault(np.array([[0, -1]]), (1, 2))
    'returned -1; accepted are labels from 0, which is background'
    """
    if not isinstance(labels, np.ndarray):
        return f"{verb} {type(labels).__name__}; accepted is a NumPy array of labels"
    if isinstance(labels, np.ma.MaskedArray):
        return f"{verb} a masked array; accepted is a plain one, with 0 for background"
    if labels.shape != shape:
        return f"{verb} an array of shape {labels.shape}; accepted is that of the tile, {shape}"
    if labels.dtype == bool:
        return f"{verb} yes and no for each pixel; accepted are numbers, one for each cell"
    if not np.issubdtype(labels.dtype, np.integer):
        whole = labels.dtype.kind == "f" and bool((labels == np.rint(labels)).all())
        return (
            f"{verb} {labels.dtype} numbers{', though all are whole' if whole else ''}; accepted "
            "are integers, such as uint32"
        )
    if labels.size and int(labels.min()) < 0:
        return f"{verb} {labels.min()}; accepted are labels from 0, which is background"
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        return f"{verb} {labels.max()}; accepted are labels up to {np.iinfo(np.int64).max}"
    return None
