"""From what was measured in the shards to what is known of each cell of the slide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.measuring.kernels import AREA, N_SHAPES, X0, Y0, Y1, Runs, find_runs
from densebatch.measuring.shapes import N_FORMS, measure_forms
from densebatch.measuring.values import measure_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from densebatch.measuring.parts import CellSums


@dataclass(frozen=True)
class CellShapes:
    """What labels alone decide, of all cells 1..n of a slide.

    Attributes
    ----------
    shapes : `(n, 7)` int64, as of `kernels.measure_shapes`
    forms : `(n, 7)` int64, as of `shapes.measure_forms`
    touching : `(n,)` bool: whether a pixel lies beside one that has no result
    split_px : `(n,)` int64: pixels of a cell that lies in several shards, else 0
    """

    shapes: NDArray[np.int64]
    forms: NDArray[np.int64]
    touching: NDArray[np.bool_]
    split_px: NDArray[np.int64]


@dataclass(frozen=True)
class CellValues:
    """Intensities of some cells, `n` rows of the table, in `c` channels.

    Attributes
    ----------
    areas : `(n,)` int64 px of these cells, or of a compartment of theirs
    sums : `(c, n)` float64; NaN where a pixel could not be read
    missing : `(c, n)` int64: pixels that were left out
    deviations : `(c, n)` float64
    quantiles : `(c, q, n)` float64
    counts : `(f, n)` int64: pixels over a value or under labels, of channels that have a `Share`
    """

    areas: NDArray[np.int64]
    sums: NDArray[np.float64]
    missing: NDArray[np.int64]
    deviations: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    counts: NDArray[np.int64]


def add_shapes(parts: Iterable[CellSums], n_cells: int, slide_width: int) -> CellShapes:
    """Shapes of the cells 1..n of a slide.

    Parameters
    ----------
    parts
        Of every shard, in any order; cells beyond n are left out.
    n_cells
        Of the slide.
    slide_width
        In pixels.
    """
    shapes = np.zeros((n_cells, N_SHAPES), np.int64)
    shapes[:, [Y0, X0]] = np.iinfo(np.int64).max
    forms = np.zeros((n_cells, N_FORMS), np.int64)
    touching = np.zeros(n_cells, np.bool_)
    split = _SplitCells(range(n_cells))
    for part in parts:
        known = part.ids <= n_cells
        # Plain indexing adds once, because ids are unique within a shard.
        rows = part.ids[known].astype(np.int64) - 1
        found = part.shapes[known]
        shapes[rows, :Y0] += found[:, :Y0]
        shapes[rows, Y0:Y1] = np.minimum(shapes[rows, Y0:Y1], found[:, Y0:Y1])
        shapes[rows, Y1:] = np.maximum(shapes[rows, Y1:], found[:, Y1:])
        forms[rows] += part.forms[known]
        touching[rows] |= part.touching[known]
        split.add(part, part.places[None])
    rows, starts = split.order()
    places, split_px = split.gather(0), np.zeros(n_cells, np.int64)
    split_px[rows] = np.diff(starts)
    for k, row in enumerate(rows):
        forms[row] = _measure_whole(places[starts[k] : starts[k + 1]], slide_width)
    return CellShapes(shapes, forms, touching, split_px)


def _measure_whole(places: NDArray[np.int64], slide_width: int) -> NDArray[np.int64]:
    """Forms of one cell, from the linear indices of its pixels."""
    y, x = np.divmod(places, slide_width)
    y, x = y - y.min(), x - x.min()
    mask = np.zeros((int(y.max()) + 1, int(x.max()) + 1), np.uint32)
    mask[y, x] = 1
    box = np.array([[0, 0, *mask.shape]])
    whole: NDArray[np.int64] = measure_forms(mask, box, find_runs(mask, np.array([places.size])))[0]
    return whole


def add_values(
    parts: Iterable[CellSums],
    rows: range,
    n_channels: int,
    fractions: Sequence[float],
    n_shares: int = 0,
) -> CellValues:
    """Intensities of some cells of a slide.

    Parameters
    ----------
    parts
        Of every shard that has such cells; float sums are added in this order, which decides their
        last bits.
    rows
        Of the table: row 0 is cell 1.
    n_channels
        That were measured.
    fractions
        Of the quantiles, ascending.
    n_shares
        Shares of pixels that were counted.
    """
    n_rows = len(rows)
    areas = np.zeros(n_rows, np.int64)
    sums = np.zeros((n_channels, n_rows), np.float64)
    missing = np.zeros(sums.shape, np.int64)
    deviations = np.full(sums.shape, np.nan)
    quantiles = np.full((n_channels, len(fractions), n_rows), np.nan)
    counts = np.zeros((n_shares, n_rows), np.int64)
    split = _SplitCells(rows)
    for part in parts:
        wanted = (part.ids > rows.start) & (part.ids <= rows.stop)
        if not wanted.any():
            continue
        at = part.ids[wanted].astype(np.int64) - 1 - rows.start
        areas[at] += part.shapes[wanted, AREA]
        sums[:, at] += part.sums[:, wanted]
        missing[:, at] += part.missing[:, wanted]
        deviations[:, at] = part.deviations[:, wanted]
        quantiles[:, :, at] = part.quantiles[:, :, wanted]
        counts[:, at] += part.counts[:, wanted]
        split.add(part, part.values)
    at, starts = split.order()
    # A run for each cell, because its pixels stand side by side.
    lengths = np.diff(starts)
    runs = Runs(
        starts[:-1].astype(np.uint32), lengths.astype(np.uint32), np.arange(starts.size),
        int(lengths.max(initial=0)),
    )  # fmt: skip
    for channel in range(n_channels):
        _, _, found, ranked = measure_values(split.gather(channel), runs, np.array(fractions))
        deviations[channel, at], quantiles[channel][:, at] = found, ranked
    # A cell with an unread pixel has no result, nor has one without a finite pixel.
    lost = np.isnan(sums)
    deviations[lost] = np.nan
    quantiles[np.broadcast_to(lost[:, None], quantiles.shape)] = np.nan
    return CellValues(areas, sums, missing, deviations, quantiles, counts)


class _SplitCells:
    """Gathers the pixels of cells that lie in several shards, in the order of the shards."""

    def __init__(self, rows: range) -> None:
        self._rows = rows
        self._found: list[NDArray[np.int64]] = []
        self._values: list[NDArray[Any]] = []
        self._order = np.zeros(0, np.int64)

    def add(self, part: CellSums, values: NDArray[Any]) -> None:
        """Add the pixels of a part, `(c, p)`, as far as they are of these rows."""
        lengths = part.shapes[part.split, AREA]
        rows = np.repeat(part.ids[part.split].astype(np.int64), lengths) - 1 - self._rows.start
        wanted = (rows >= 0) & (rows < len(self._rows))
        if wanted.any():
            self._found.append(rows[wanted])
            self._values.append(values[:, wanted])

    def order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of these cells, ascending, and where the pixels of each start."""
        rows = np.concatenate([*self._found, np.zeros(0, np.int64)])
        self._order = np.argsort(rows, kind="stable")
        cells, counts = np.unique(rows, return_counts=True)
        return cells, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    def gather(self, channel: int) -> NDArray[Any]:
        """All pixels of a channel, cell by cell; after `order`."""
        if not self._values:
            return np.zeros(0, np.int64)
        every: NDArray[Any] = np.concatenate([values[channel] for values in self._values])
        return every[self._order]
