"""The compartments of cells: nucleus, membrane and cytoplasm, which together are the cell.

The nucleus is what its nuclei have of the cell, the membrane the rest of a ring inside the cell's
outline, the cytoplasm what is left. Each is a label image in which a cell's part has its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.compartments.growing import list_offsets
from densebatch.compartments.names import CYTOPLASM, MEMBRANE, NUCLEUS

if TYPE_CHECKING:
    from numpy.typing import NDArray


def find_ring(cells: NDArray[np.uint32], width_px: float) -> NDArray[np.bool_]:
    """Pixels of cells that are no further than a width from a pixel that is not the cell's.

    Parameters
    ----------
    cells
        `(h, w)` uint32, 0 for background.
    width_px
        Between the centres of two pixels; of 1 the ring is one pixel wide. What lies outside the
        array is no outline.

    Returns
    -------
    ndarray
        `(h, w)` bool.

    Examples
    --------
    >>> find_ring(np.array([[1, 1, 1, 0, 2, 2]], np.uint32), 1).astype(int)
    array([[0, 0, 1, 0, 1, 0]])
    """
    ring = np.zeros(cells.shape, np.bool_)
    _find_ring(cells, list_offsets(width_px), ring)
    return ring


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_ring(
    cells: NDArray[np.uint32], offsets: NDArray[np.int64], ring: NDArray[np.bool_]
) -> None:
    height, width = cells.shape
    for y in range(height):
        for x in range(width):
            label = cells[y, x]
            if label == 0:
                continue
            for k in range(offsets.shape[0]):
                near_y, near_x = y + offsets[k, 0], x + offsets[k, 1]
                if not (0 <= near_y < height and 0 <= near_x < width):
                    continue
                if cells[near_y, near_x] != label:
                    ring[y, x] = True
                    break


def split_cells(
    cells: NDArray[np.uint32], nuclei: NDArray[np.uint32], ring: NDArray[np.bool_]
) -> dict[str, NDArray[np.uint32]]:
    """Label images of the compartments, by name.

    Parameters
    ----------
    cells
        `(h, w)` uint32, 0 for background.
    nuclei
        `(h, w)` uint32: of each pixel of a nucleus the cell that it belongs to, else 0. Pixels
        outside of that cell are no part of its nucleus.
    ring
        `(h, w)` bool, see `find_ring`.
    """
    is_nucleus = (nuclei == cells) & (cells > 0)
    none = np.uint32(0)
    return {
        NUCLEUS: np.where(is_nucleus, cells, none),
        CYTOPLASM: np.where(is_nucleus | ring, none, cells),
        MEMBRANE: np.where(ring & ~is_nucleus, cells, none),
    }
