"""Sparse contingency tables: which truth cell and which prediction share how many pixels.

Every overlap metric follows from one table of (truth id, prediction id, pixel count), background
included. Tables add, so that a slide is scored block by block, in any order and with any chunking
of either side, and the integers come out the same. Memory grows with the number of touching pairs
of cells, never with pixels or with cells squared.

Runs of equal pairs along a row are counted at once. The next row mostly has the same pairs again:
runs are added up in a table of recent pairs that fits the processor's first cache, and what it
has to give up to newer pairs is sorted and added when the rectangle is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numba
import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells.pixels import as_labels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    from densebatch.cells.pixels import PixelSource

# 2048 recent pairs take 32 KB: a row of a thousand pixels of dense tissue has about a hundred.
RECENT_BITS = 11
# Noise has as many pairs as pixels; counted in pieces, they take no more memory at a time.
PIECE_PX = 2**22


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _tally(
    truth: NDArray[np.uint32],
    pred: NDArray[np.uint32],
    y0: int,
    x0: int,
    y1: int,
    x1: int,
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Pairs (truth << 32 | pred) of a rectangle and their pixel counts; a pair may come twice."""
    n = x1 - x0
    starts = np.empty(n + 1, np.int64)
    recent_keys = np.zeros(1 << RECENT_BITS, np.uint64)
    recent_counts = np.zeros(1 << RECENT_BITS, np.int64)
    keys, counts = np.empty(1 << 12, np.uint64), np.empty(1 << 12, np.int64)
    used = 0
    for y in range(y0, y1):
        truth_row, pred_row = truth[y, x0:x1], pred[y, x0:x1]
        # Runs start where a pixel differs from the one before. Adding the comparison is twice as
        # fast as branching on it, because no processor can predict where the next cell begins.
        runs = min(n, 1)
        starts[0] = 0
        for x in range(1, n):
            starts[runs] = x
            runs += (truth_row[x] != truth_row[x - 1]) | (pred_row[x] != pred_row[x - 1])
        starts[runs] = n
        if used + runs > keys.size:
            size = 2 * (used + runs)
            more_keys, more_counts = np.empty(size, np.uint64), np.empty(size, np.int64)
            more_keys[:used], more_counts[:used] = keys[:used], counts[:used]
            keys, counts = more_keys, more_counts
        for run in range(runs):
            x = starts[run]
            key = (np.uint64(truth_row[x]) << np.uint64(32)) | np.uint64(pred_row[x])
            # MurmurHash3 mixes so that both ids reach the upper bits, which are the place.
            mixed = (key ^ (key >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
            place = mixed >> np.uint64(64 - RECENT_BITS)
            if recent_keys[place] != key:
                if recent_counts[place] != 0:
                    keys[used], counts[used] = recent_keys[place], recent_counts[place]
                    used += 1
                recent_keys[place], recent_counts[place] = key, 0
            recent_counts[place] += starts[run + 1] - x
    left = np.nonzero(recent_counts)[0]
    return (
        np.concatenate((keys[:used], recent_keys[left])),
        np.concatenate((counts[:used], recent_counts[left])),
    )


@dataclass(frozen=True, eq=False)
class Contingency:
    """Pixel counts of the pairs of labels that occur together; one row for each pair.

    Rows are sorted by (truth, pred), each pair occurs once and has at least one pixel.

    Attributes
    ----------
    truth, pred
        Label ids, 0 for background.
    count
        Pixels that carry both.

    Examples
    --------
    >>> a = Contingency.from_arrays([[1, 1, 0]], [[5, 0, 0]])
    >>> b = Contingency.from_arrays([[1]], [[5]])
    >>> [*zip(*(column.tolist() for column in ((a + b).truth, (a + b).pred, (a + b).count)))]
    [(0, 0, 1), (1, 0, 1), (1, 5, 2)]
    """

    truth: NDArray[np.uint32]
    pred: NDArray[np.uint32]
    count: NDArray[np.int64]

    @classmethod
    def from_rows(
        cls, truth: NDArray[np.uint32], pred: NDArray[np.uint32], count: NDArray[np.int64]
    ) -> Contingency:
        """Sort rows and add those of the same pair."""
        return cls._from_keys(truth.astype(np.uint64) << np.uint64(32) | pred, count)

    @classmethod
    def _from_keys(cls, key: NDArray[np.uint64], count: NDArray[np.int64]) -> Contingency:
        # A stable sort of 64-bit keys is a merge sort that takes advantage of sorted stretches, so
        # that adding sorted tables is linear.
        order = np.argsort(key, kind="stable")
        key, count = key[order], count[order]
        first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))) if key.size else order
        key, count = key[first], np.add.reduceat(count, first) if key.size else count
        return cls((key >> np.uint64(32)).astype(np.uint32), key.astype(np.uint32), count)

    @classmethod
    def from_arrays(cls, truth: ArrayLike, pred: ArrayLike) -> Contingency:
        """Count two label arrays of the same shape, of any number of dimensions."""
        a, b = as_labels(truth, "the truth"), as_labels(pred, "the prediction")
        check_same_shape(a, b)
        width = a.shape[-1] if a.ndim and a.shape[-1] else 1
        a, b = a.reshape(-1, width), b.reshape(-1, width)
        step = max(1, PIECE_PX // width)
        pieces = [Region(y, 0, min(y + step, len(a)), width) for y in range(0, len(a), step)]
        return cls.sum(cls.count_part(a, b, piece) for piece in pieces)

    @classmethod
    def count_part(
        cls, truth: NDArray[np.uint32], pred: NDArray[np.uint32], part: Region
    ) -> Contingency:
        """Count a rectangle of two images of contiguous uint32."""
        return cls._from_keys(*_tally(truth, pred, part.y0, part.x0, part.y1, part.x1))

    @classmethod
    def sum(cls, tables: Iterable[Contingency]) -> Contingency:
        """Add any number of tables."""
        parts = list(tables)
        if not parts:
            return cls(np.zeros(0, np.uint32), np.zeros(0, np.uint32), np.zeros(0, np.int64))
        return (
            parts[0]
            if len(parts) == 1
            else cls.from_rows(
                np.concatenate([part.truth for part in parts]),
                np.concatenate([part.pred for part in parts]),
                np.concatenate([part.count for part in parts]),
            )
        )

    def __add__(self, other: Contingency) -> Contingency:
        return Contingency.sum((self, other))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contingency) and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("truth", "pred", "count")
        )

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.count.size

    @cached_property
    def n_px(self) -> int:
        """All pixels, background included."""
        return int(self.count.sum())

    @cached_property
    def truth_areas(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids and areas (px) of the truth's cells, ascending ids, without background."""
        return _areas(self.truth, self.count)

    @cached_property
    def pred_areas(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Ids and areas (px) of the predicted cells, ascending ids, without background."""
        order = np.argsort(self.pred, kind="stable")
        return _areas(self.pred[order], self.count[order])

    def drop_small(self, min_size: int) -> Contingency:
        """Turn cells of fewer than `min_size` pixels into background, on each side by itself.

        This is the size filter of Han et al. 2024 (BMC Med Inform Decis Mak 24:124): `area >= s`,
        applied to truth and prediction independently and before any matching.
        """
        truth, pred = self.truth.copy(), self.pred.copy()
        for labels, (ids, areas) in ((truth, self.truth_areas), (pred, self.pred_areas)):
            labels[np.isin(labels, ids[areas < min_size])] = 0
        return Contingency.from_rows(truth, pred, self.count)


def _areas(
    labels: NDArray[np.uint32], count: NDArray[np.int64]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    if not labels.size:
        return labels, count
    first = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    ids, areas = labels[first], np.add.reduceat(count, first)
    return (ids[1:], areas[1:]) if ids[0] == 0 else (ids, areas)


def check_same_shape(truth: PixelSource, pred: PixelSource) -> None:
    """Refuse images of different shapes.

    Raises
    ------
    InputError
        With a hint where one image looks like a pyramid level of the other.
    """
    if truth.shape == pred.shape:
        return
    hint = ""
    if len(truth.shape) == len(pred.shape) and all((*truth.shape, *pred.shape)):
        ratios = [max(a, b) / min(a, b) for a, b in zip(truth.shape, pred.shape, strict=True)]
        level = round(math.log2(max(ratios)))
        if level and all(abs(ratio - 2**level) < 0.05 * 2**level for ratio in ratios):
            hint = f" (the smaller one looks like pyramid level {level} of the larger)"
    names = [
        getattr(s, "where", role) for s, role in ((truth, "the truth"), (pred, "the prediction"))
    ]
    sizes = ["x".join(map(str, s.shape)) for s in (truth, pred)]
    raise InputError(
        f"{names[1]} is {sizes[1]} px but {names[0]} is {sizes[0]} px{hint}; "
        "both must show the same pixels"
    )
