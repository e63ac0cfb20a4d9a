"""Measure the cells of one shard: shapes first, then one channel after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.measuring.kernels import (
    AREA,
    X0,
    X1,
    Y0,
    Y1,
    find_runs,
    measure_shapes,
)
from densebatch.measuring.parts import CellSums
from densebatch.measuring.shapes import N_FORMS, measure_forms
from densebatch.measuring.values import count_over, measure_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region


class Shard:
    """The cells of a shard while they are measured.

    Parameters
    ----------
    labels
        `(h, w)` uint32; 0 background, else 1..k.
    ids
        `(k,)` uint32, ascending: the cell of each label. Labels without a pixel are left out.
    split
        `(k,)` bool: whether a cell has, or may have, pixels in other shards too.
    region
        The shard, in pixels of the slide.
    slide_width
        In pixels.
    fractions
        Of the quantiles, ascending.
    forms
        Whether outlines and hulls are wanted; of compartments they are not.
    """

    def __init__(
        self,
        labels: NDArray[np.uint32],
        ids: NDArray[np.uint32],
        split: NDArray[np.bool_],
        region: Region,
        slide_width: int,
        fractions: Sequence[float] = (),
        *,
        forms: bool = True,
    ) -> None:
        self._labels, self._ids, self._split, self._region = labels, ids, split, region
        self._shapes = measure_shapes(labels, ids.size, region.y0, region.x0)
        self._runs = find_runs(labels, self._shapes[:, AREA])
        boxes = self._shapes[:, [Y0, X0, Y1, X1]] - np.array([region.y0, region.x0] * 2)
        self._forms = np.zeros((ids.size, N_FORMS), np.int64)
        if forms:
            self._forms = measure_forms(labels, boxes, self._runs)
            self._forms[split] = 0
        self._kept = self._runs.list_places(split)
        y, x = np.divmod(self._kept, labels.shape[1])
        self._slide_places = (y + region.y0) * slide_width + x + region.x0
        self._fractions = np.array(fractions, np.float64)
        self._channels: list[tuple[NDArray[Any], ...]] = []
        self._counts: list[NDArray[np.int64]] = []

    def add_channel(
        self,
        pixels: NDArray[np.generic],
        holes: Iterable[Region] = (),
        over: float | None = None,
    ) -> None:
        """Measure the next channel.

        Parameters
        ----------
        pixels
            `(h, w)` of the shard.
        holes
            Regions of the slide that could not be read; cells with a pixel there have no result.
        over
            Pixels with a larger value are counted, unless it is None.
        """
        # Half precision is widened, because numba does not have it.
        exact = pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels
        flat = np.ascontiguousarray(exact).reshape(-1)
        sums, missing, deviations, quantiles = measure_values(flat, self._runs, self._fractions)
        for hole in holes:
            inside = hole.shift(-self._region.y0, -self._region.x0).clip(*self._region.shape)
            touched = np.unique(self._labels[inside.slices])
            sums[touched[touched > 0] - 1] = np.nan
        self._channels.append((sums, missing, deviations, quantiles, flat[self._kept]))
        if over is not None:
            self._counts.append(count_over(flat, self._runs, over))

    def add_cover(self, labels: NDArray[np.uint32]) -> None:
        """Count the pixels that have a label in another label image, `(h, w)` of the shard."""
        flat = (labels != 0).astype(np.uint8).reshape(-1)
        self._counts.append(count_over(flat, self._runs, 0.0))

    def finish(self, touching: NDArray[np.uint32]) -> CellSums:
        """What was measured.

        Parameters
        ----------
        touching
            Labels that lie beside a pixel without a result.
        """
        n_cells, n_channels = self._ids.size, len(self._channels)
        present = self._shapes[:, AREA] > 0
        beside = np.zeros(n_cells, np.bool_)
        beside[touching - 1] = True
        none = (
            np.zeros((0, n_cells)), np.zeros((0, n_cells), np.int64), np.zeros((0, n_cells)),
            np.zeros((0, self._fractions.size, n_cells)), np.zeros((0, self._kept.size)),
        )  # fmt: skip
        stacked = [np.stack(column) for column in zip(*self._channels, strict=True)]
        sums, missing, deviations, quantiles, values = stacked if n_channels else none
        return CellSums(
            ids=self._ids[present],
            shapes=self._shapes[present],
            forms=self._forms[present],
            touching=beside[present],
            split=self._split[present],
            places=self._slide_places,
            sums=sums[:, present],
            missing=missing[:, present],
            deviations=deviations[:, present],
            quantiles=quantiles[:, :, present],
            counts=np.array(self._counts, np.int64).reshape(len(self._counts), n_cells)[:, present],
            values=values,
        )
