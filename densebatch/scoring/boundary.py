"""Boundary F-score: how much of each outline lies near an outline of the other side.

Needs pixels, not only the contingency table. A block is read with a halo as wide as the tolerance
and one pixel more, so that counts add up to the same integers for any blocks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.base.errors import InputError
from densebatch.scoring.blocks import BLOCK_PX, Part, plan_blocks, run_tasks
from densebatch.scoring.contingency import check_same_shape
from densebatch.scoring.results import BoundaryScore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.cells.pixels import PixelSource
    from densebatch.scoring.blocks import Workers


def score_boundaries(
    truth: PixelSource,
    pred: PixelSource,
    *,
    tolerance_px: float = 2,
    truth_dropped: NDArray[np.uint32] | None = None,
    pred_dropped: NDArray[np.uint32] | None = None,
    block_px: int = BLOCK_PX,
    workers: Workers = 1,
) -> BoundaryScore:
    """Compare the outlines of two label images.

    The outline of a label image is the pixels of cells with another label (background or a cell)
    above, below, left or right of them; the image's edge is no outline. This is `find_boundaries`
    of scikit-image with `mode="inner"` and `connectivity=1`.

    Parameters
    ----------
    truth, pred
        Two-dimensional label images of the same shape; see `score_labels`.
    tolerance_px
        Largest distance at which an outline pixel has a partner.
    truth_dropped, pred_dropped
        Ids to be taken for background, such as cells below a size; None for none.
    block_px, workers
        How the images are read; they change no number.

    Returns
    -------
    BoundaryScore
        Outline pixels of either side, and those near the other's.

    Raises
    ------
    InputError
        For a tolerance out of range, different shapes, and pixels that are no labels.
    """
    if not 0 <= tolerance_px <= 100:
        raise InputError(f"the boundary tolerance is 0 to 100 px, not {tolerance_px}")
    check_same_shape(truth, pred)
    blocks = plan_blocks(truth, pred, block_px)
    halo_px = math.floor(tolerance_px) + 1

    def cut(block: Region) -> tuple[object, ...]:
        window = block.expand(halo_px).clip(*truth.shape)
        return (
            Part.cut(truth, window, "the truth"),
            Part.cut(pred, window, "the prediction"),
            block.shift(-window.y0, -window.x0),
            tolerance_px,
            truth_dropped,
            pred_dropped,
        )

    total = BoundaryScore(tolerance_px, 0, 0, 0, 0)
    for part in run_tasks(_score_block, (cut(blocks[i]) for i in blocks), workers):
        total += part
    return total


def _score_block(
    truth: Part,
    pred: Part,
    inside: Region,
    tolerance_px: float,
    truth_dropped: NDArray[np.uint32] | None,
    pred_dropped: NDArray[np.uint32] | None,
) -> BoundaryScore:
    """Count the outlines of a block; `inside` is its place in the windows that are read."""
    truth_outline = _outline(_drop_cells(truth.read(), truth_dropped))
    pred_outline = _outline(_drop_cells(pred.read(), pred_dropped))
    place = (inside.y0, inside.x0, inside.y1, inside.x1)
    counts = _count_near(truth_outline, pred_outline, _list_offsets(tolerance_px), *place)
    return BoundaryScore(tolerance_px, *(int(count) for count in counts))


def _drop_cells(labels: NDArray[np.uint32], ids: NDArray[np.uint32] | None) -> NDArray[np.uint32]:
    if ids is None or not ids.size:
        return labels
    return np.where(np.isin(labels, ids), np.uint32(0), labels)


def find_outline(labels: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Pixels of cells with another label above, below, left or right of them.

    Examples
    --------
    >>> find_outline(np.array([[1, 1, 2], [1, 1, 2]], np.uint32)).astype(int)
    array([[0, 1, 1],
           [0, 1, 1]])
    """
    outline: NDArray[np.uint8] = _outline(np.ascontiguousarray(labels, np.uint32))
    return outline.view(np.bool_)


def _list_offsets(radius_px: float) -> NDArray[np.int64]:
    """Offsets (dy, dx) of the pixels within a radius, nearest first; `(n, 2)`."""
    reach = math.floor(radius_px)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    squared = (dy * dy + dx * dx).ravel()
    order = np.argsort(squared, kind="stable")
    order = order[squared[order] <= radius_px * radius_px]
    return np.ascontiguousarray(np.stack([dy.ravel(), dx.ravel()], axis=1)[order], np.int64)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _outline(labels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    height, width = labels.shape
    outline = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label != 0 and (
                (y > 0 and labels[y - 1, x] != label)
                or (y + 1 < height and labels[y + 1, x] != label)
                or (x > 0 and labels[y, x - 1] != label)
                or (x + 1 < width and labels[y, x + 1] != label)
            ):
                outline[y, x] = 1
    return outline


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_near(
    truth: NDArray[np.uint8],
    pred: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    y0: int,
    x0: int,
    y1: int,
    x1: int,
) -> tuple[int, int, int, int]:
    """Outline pixels in a rectangle, and those near the other outline, of either side."""
    height, width = truth.shape
    n_truth, near_truth, n_pred, near_pred = 0, 0, 0, 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            in_truth, in_pred = truth[y, x] != 0, pred[y, x] != 0
            if in_truth and in_pred:
                n_truth += 1
                n_pred += 1
                near_truth += 1
                near_pred += 1
            elif in_truth or in_pred:
                other = pred if in_truth else truth
                near = 0
                for k in range(offsets.shape[0]):
                    v, u = y + offsets[k, 0], x + offsets[k, 1]
                    if 0 <= v < height and 0 <= u < width and other[v, u] != 0:
                        near = 1
                        break
                if in_truth:
                    n_truth += 1
                    near_truth += near
                else:
                    n_pred += 1
                    near_pred += near
    return n_truth, near_truth, n_pred, near_pred
