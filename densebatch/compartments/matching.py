"""Which cell a nucleus belongs to: decided from how many pixels they share.

A nucleus belongs to the cell that holds most of it. One that lies outside of all cells for the most
part is an orphan. Counts add over the pieces of a slide, so that the answer knows no tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Match:
    """Nuclei 1..n and the cells that they belong to.

    Attributes
    ----------
    cells : `(n,)` uint32: the cell of each nucleus, 0 for an orphan or one without a pixel
    areas : `(n,)` int64 px: of each nucleus
    outside : `(n,)` int64 px: of each nucleus outside of its cell; of an orphan all
    several : `(n,)` bool: whether a nucleus has pixels in more than one cell
    """

    cells: NDArray[np.uint32]
    areas: NDArray[np.int64]
    outside: NDArray[np.int64]
    several: NDArray[np.bool_]

    @property
    def orphans(self) -> NDArray[np.int64]:
        """Nuclei that have no cell, ascending."""
        return np.flatnonzero((self.cells == 0) & (self.areas > 0)) + 1


def match_nuclei(
    nuclei: NDArray[np.uint32],
    cells: NDArray[np.uint32],
    count: NDArray[np.int64],
    n_nuclei: int,
) -> Match:
    """Find the cell of each nucleus.

    Parameters
    ----------
    nuclei, cells, count
        `(p,)`: pairs of labels that share pixels, and how many; each pair once, in any order.
        0 is background.
    n_nuclei
        Largest label of a nucleus.

    Returns
    -------
    Match
        Of cells that hold as much of a nucleus the one with the smallest label counts.

    Examples
    --------
    Nucleus 1 lies in two cells, and nucleus 2 mostly outside of the only one that it touches.

    >>> pairs = np.array([[1, 7, 3], [1, 9, 4], [1, 0, 5], [2, 9, 4], [2, 0, 5]])
    >>> found = match_nuclei(*pairs.T, n_nuclei=2)
    >>> found.cells.tolist(), found.orphans.tolist(), found.outside.tolist()
    ([9, 0], [2], [8, 9])
    """
    real = nuclei > 0
    nuclei, cells, count = nuclei[real].astype(np.int64), cells[real], count[real]
    areas = np.zeros(n_nuclei + 1, np.int64)
    np.add.at(areas, nuclei, count)
    inside = cells > 0
    nuclei, cells, count = nuclei[inside], cells[inside], count[inside]
    in_cells = np.zeros(n_nuclei + 1, np.int64)
    np.add.at(in_cells, nuclei, count)
    # The last of a nucleus in this order is the cell with most pixels, then the smallest label.
    order = np.lexsort((-cells.astype(np.int64), count, nuclei))
    found = np.zeros(n_nuclei + 1, np.uint32)
    held = np.zeros(n_nuclei + 1, np.int64)
    found[nuclei[order]] = cells[order]
    held[nuclei[order]] = count[order]
    is_orphan = 2 * in_cells < areas
    found[is_orphan] = 0
    held[is_orphan] = 0
    several = np.bincount(nuclei, minlength=n_nuclei + 1) > 1
    return Match(found[1:], areas[1:], (areas - held)[1:], several[1:])
