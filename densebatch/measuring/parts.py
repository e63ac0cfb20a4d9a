"""What was measured in each shard, until the shards of a slide are added.

A cell of one shard is measured there for good. Of one that lies in several, the pixels are kept
with their values, because neither a median nor an outline can be added: where all shards come
together it is measured whole (`totals`). So what a shard keeps grows with its edges.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class CellSums:
    """What was measured in a shard, of the `k` cells that have a pixel there and in `c` channels.

    Attributes
    ----------
    ids
        `(k,)` uint32, ascending.
    shapes
        `(k, 7)` int64, as of `kernels.measure_shapes`.
    forms
        `(k, 7)` int64, as of `shapes.measure_forms`; of split cells nothing.
    touching
        `(k,)` bool: whether a pixel of the cell lies beside one that has no result.
    split
        `(k,)` bool: whether the cell has pixels in other shards too.
    places
        `(p,)` int64: linear indices into the slide of the pixels of split cells, cell by cell and
        each cell's in raster order.
    sums
        `(c, k)` float64: finite pixel values; NaN where a pixel could not be read.
    missing
        `(c, k)` int64: pixels left out of the sums.
    deviations
        `(c, k)` float64: standard deviations; of split cells nothing.
    quantiles
        `(c, q, k)` float64, as of `values.measure_values`; of split cells nothing.
    counts
        `(f, k)` int64: pixels over a value or under labels, of each channel that has a `Share`.
    values
        `(c, p)` of the image's type: pixels at `places`.
    """

    ids: NDArray[np.uint32]
    shapes: NDArray[np.int64]
    forms: NDArray[np.int64]
    touching: NDArray[np.bool_]
    split: NDArray[np.bool_]
    places: NDArray[np.int64]
    sums: NDArray[np.float64]
    missing: NDArray[np.int64]
    deviations: NDArray[np.float64]
    quantiles: NDArray[np.float64]
    counts: NDArray[np.int64]
    values: NDArray[Any]


_OF_VALUES = ("sums", "missing", "deviations", "quantiles", "counts", "values")


class Parts:
    """What was measured in each shard of a slide, in the order of the shards.

    Parameters
    ----------
    parts
        In memory.
    """

    def __init__(self, parts: Iterable[CellSums]) -> None:
        self._parts = tuple(parts)

    def __iter__(self) -> Iterator[CellSums]:
        """Every part."""
        return iter(self._parts)

    def with_shapes(self) -> Iterator[CellSums]:
        """Every part, of which intensities are not looked at."""
        return iter(self._parts)

    def with_cells(self, rows: range) -> Iterator[CellSums]:
        """The parts that may have cells in these rows of the table (row 0 is cell 1)."""
        for part in self._parts:
            if _has_rows(part.ids, rows):
                yield part


class StoredParts(Parts):
    """As `Parts`, in files, of which one is in memory at a time.

    Parameters
    ----------
    paths
        Files with the content of `pack_part`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    def __iter__(self) -> Iterator[CellSums]:
        """Every part."""
        for path in self._paths:
            with np.load(path) as stored:
                yield CellSums(**stored)

    def with_shapes(self) -> Iterator[CellSums]:
        """Every part, without intensities, which are not read."""
        for path in self._paths:
            with np.load(path) as stored:
                names = [f.name for f in fields(CellSums) if f.name not in _OF_VALUES]
                none = np.zeros((0, 0))
                yield CellSums(
                    **{name: stored[name] for name in names},
                    sums=none, missing=none.astype(np.int64), deviations=none,
                    quantiles=none.reshape(0, 0, 0), counts=none.astype(np.int64), values=none,
                )  # fmt: skip

    def with_cells(self, rows: range) -> Iterator[CellSums]:
        """The parts that may have cells in these rows of the table (row 0 is cell 1)."""
        for path in self._paths:
            with np.load(path) as stored:
                if _has_rows(stored["ids"], rows):
                    yield CellSums(**stored)


def _has_rows(ids: NDArray[np.uint32], rows: range) -> bool:
    return bool(ids.size) and int(ids[0]) <= rows.stop and int(ids[-1]) > rows.start


def pack_part(part: CellSums) -> bytes:
    """A part as the content of a file."""
    buffer = io.BytesIO()
    np.savez(buffer, **{field.name: getattr(part, field.name) for field in fields(CellSums)})
    return buffer.getvalue()
