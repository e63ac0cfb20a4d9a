"""The table of a window's candidate cells, which the steps of tracing hand to each other."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Verdict(IntEnum):
    """What becomes of a candidate."""

    REJECTED = -1  # by a size limit or by quality control
    OUTSIDE = 0  # no pixel, or none near the core: nobody asks for it
    KEPT = 1


class Candidates(NamedTuple):
    """One row per seed, in raster order of the seeds; row `i` is label `i + 1` in label images.

    Attributes
    ----------
    seed_y, seed_x : int32; the seed, in pixels of the window
    area : int32; pixels that belong to the seed
    y0, x0, y1, x1 : int32; half-open bounding box of these pixels; without pixels it is inverted
    verdict : int8; of `Verdict`
    """

    seed_y: NDArray[np.int32]
    seed_x: NDArray[np.int32]
    area: NDArray[np.int32]
    y0: NDArray[np.int32]
    x0: NDArray[np.int32]
    y1: NDArray[np.int32]
    x1: NDArray[np.int32]
    verdict: NDArray[np.int8]
