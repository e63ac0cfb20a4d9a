"""How many cells lie around each, and how far the nearest is, by their centroids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import KDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 2**16  # that are asked for at once


def find_nearest(centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each centroid to the nearest other one; NaN if there is none.

    Parameters
    ----------
    centroids
        `(n, 2)`, px.
    """
    if len(centroids) < 2:
        return np.full(len(centroids), np.nan)
    distances, _ = KDTree(centroids).query(centroids, k=2)
    nearest: NDArray[np.float64] = distances[:, 1]
    return nearest


def count_neighbours(centroids: NDArray[np.float64], radius: float) -> NDArray[np.int64]:
    """Other centroids that are no further than a radius.

    Parameters
    ----------
    centroids
        `(n, 2)`, px.
    radius
        In px.
    """
    counts = np.zeros(len(centroids), np.int64)
    if not len(centroids):
        return counts
    tree = KDTree(centroids)
    for first in range(0, len(centroids), _ROWS):
        some = centroids[first : first + _ROWS]
        counts[first : first + _ROWS] = tree.query_ball_point(some, radius, return_length=True) - 1
    return counts
