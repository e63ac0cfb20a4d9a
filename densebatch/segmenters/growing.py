"""Cells grown from their nuclei over the membrane plane.

Watershed would do, but for tiles: where the membrane is flat a flood may come from anywhere. Here a
pixel goes to the nucleus with the cheapest path to it, where a bright membrane makes each step
dearer, and no path has more steps than the growth takes. What lies further away cannot matter.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MEMBRANE_COST = 10.0
"""A pixel of full membrane light is as far as so many without."""


def grow_cells(
    nuclei: NDArray[np.int32], membrane: NDArray[np.float32], grow_px: float, smooth_px: float
) -> NDArray[np.int32]:
    """Cells around nuclei, which end where others are nearer beyond a membrane, or at a distance.

    Parameters
    ----------
    nuclei
        `(y, x)`, 0 for background.
    membrane
        `(y, x)` float32, 0 to 1.
    grow_px
        Distance from the nucleus at which a cell ends at the latest.
    smooth_px
        Standard deviation of the Gaussian that smooths the membrane.

    Returns
    -------
    ndarray
        `(y, x)` int32, a cell numbered as its nucleus.
    """
    from scipy import ndimage

    if not nuclei.any():
        return nuclei
    near = ndimage.distance_transform_edt(nuclei == 0) <= grow_px
    step = 1 + _MEMBRANE_COST * ndimage.gaussian_filter(membrane, smooth_px)
    labels, cost = nuclei.copy(), np.where(nuclei > 0, 0, np.inf).astype(np.float32)
    for _ in range(math.ceil(math.sqrt(2) * grow_px)):
        before = labels.copy(), cost.copy()
        if not _take_step(*before, step, near, labels, cost):
            break
    return labels


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _take_step(
    labels: NDArray[np.int32],
    cost: NDArray[np.float32],
    step: NDArray[np.float32],
    near: NDArray[np.bool_],
    new_labels: NDArray[np.int32],
    new_cost: NDArray[np.float32],
) -> bool:
    """Let each pixel take the label of the neighbour from which it is cheapest; whether any did.

    Of neighbours that are as good as each other the first counts.
    """
    height, width = labels.shape
    diagonal = np.float32(math.sqrt(2))
    changed = False
    for y in range(height):
        for x in range(width):
            if not near[y, x] or cost[y, x] == 0:
                continue
            best, label = cost[y, x], labels[y, x]
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if not (0 <= y + dy < height and 0 <= x + dx < width):
                        continue
                    length = diagonal if dy and dx else np.float32(1)
                    found = cost[y + dy, x + dx] + length * step[y, x]
                    if found < best:
                        best, label = found, labels[y + dy, x + dx]
                        changed = True
            new_cost[y, x], new_labels[y, x] = best, label
    return changed
