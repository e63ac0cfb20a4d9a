"""The part of a slide that counts, as runs of pixels: exact, small, and plain data in a plan.

Each pixel is outside, or in one of some areas. What a file says of pixels is settled once for the
whole slide; a window of it is looked up and never drawn again, so that it has the bits of the
whole.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.regions.runs import Runs

MOST_RUNS = 2**23
"""Of a slide; more are no region but noise, and a plan would be hundreds of megabytes."""


class _Lists(NamedTuple):
    """Runs of each row; rows that have the same ones share a list.

    Attributes
    ----------
    first : `(n + 1,)` first row of each list, and the height
    start : `(n + 1,)` where the runs of each list begin
    x0, x1, value : of each run, ascending in a list
    """

    first: NDArray[np.int64]
    start: NDArray[np.int64]
    x0: NDArray[np.int64]
    x1: NDArray[np.int64]
    value: NDArray[np.int64]


@dataclass(frozen=True)
class Areas:
    """The part of a slide that counts.

    Attributes
    ----------
    height, width : of the slide
    names : of the areas 1, 2, ...; "" of one without
    runs : base64 of the packed runs
    digest : of the runs before they are packed
    area_px : pixels that count
    files : by `roi` and `exclude`, name and SHA-256 of the file that told it
    """

    height: int
    width: int
    names: tuple[str, ...]
    runs: str = field(repr=False)
    digest: str
    area_px: int
    files: dict[str, tuple[str, str]]

    @property
    def has_names(self) -> bool:
        """Whether an area has a name."""
        return any(self.names)

    @cached_property
    def _lists(self) -> _Lists:
        data = np.frombuffer(zlib.decompress(base64.b64decode(self.runs)), "<i4").astype(np.int64)
        n_lists, n_runs = data[:2].tolist()
        ends = np.cumsum([n_lists + 1, n_lists + 1, n_runs, n_runs])
        return _Lists(*np.split(data[2:], ends))

    @cached_property
    def box(self) -> Region:
        """The smallest rectangle that holds all that counts."""
        lists = self._lists
        used = np.flatnonzero(np.diff(lists.start))
        return Region(
            int(lists.first[used[0]]),
            int(lists.x0.min()),
            int(lists.first[used[-1] + 1]),
            int(lists.x1.max()),
        )

    def show(self, region: Region) -> NDArray[np.int32]:
        """The area of each pixel of a region inside the slide, `(h, w)`; 0 for what is outside."""
        shown, rows = self._draw(region)
        return shown[rows]

    def find_inside(self, region: Region) -> NDArray[np.bool_]:
        """Whether each pixel of a region inside the slide counts, `(h, w)`."""
        shown, rows = self._draw(region)
        inside: NDArray[np.bool_] = (shown > 0)[rows]
        return inside

    def _draw(self, region: Region) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Rows of a region that differ, and which of them each row is."""
        lists, (y0, x0, y1, x1) = self._lists, (region.y0, region.x0, region.y1, region.x1)
        rows = np.searchsorted(lists.first, np.arange(y0, y1), side="right") - 1
        used, rows = np.unique(rows, return_inverse=True)
        counts = lists.start[used + 1] - lists.start[used]
        runs = _concatenate_ranges(lists.start[used], counts)
        row = np.repeat(np.arange(used.size), counts)
        begin, end = (np.clip(each[runs], x0, x1) - x0 for each in (lists.x0, lists.x1))
        steps = np.zeros((used.size, x1 - x0 + 1), np.int32)
        np.add.at(steps, (row, begin), lists.value[runs])
        np.subtract.at(steps, (row, end), lists.value[runs])
        shown: NDArray[np.int32] = np.cumsum(steps, axis=1, dtype=np.int32, out=steps)[:, :-1]
        return shown, rows

    def count(self, region: Region) -> int:
        """Pixels of a region that count; it may reach outside the slide."""
        lists, inside = self._lists, region.clip(self.height, self.width)
        if not inside.area:
            return 0
        some = self._find_lists(inside)
        rows = np.minimum(lists.first[some.start + 1 : some.stop + 1], inside.y1)
        rows -= np.maximum(lists.first[some], inside.y0)
        runs = slice(lists.start[some.start], lists.start[some.stop])
        lengths = np.clip(lists.x1[runs], inside.x0, inside.x1)
        lengths -= np.clip(lists.x0[runs], inside.x0, inside.x1)
        return int((lengths * np.repeat(rows, np.diff(lists.start)[some])).sum())

    def touches(self, region: Region) -> bool:
        """Whether a pixel of a region counts; it may reach outside the slide."""
        lists, inside = self._lists, region.clip(self.height, self.width)
        if not inside.area:
            return False
        some = self._find_lists(inside)
        runs = slice(lists.start[some.start], lists.start[some.stop])
        return bool(((lists.x0[runs] < inside.x1) & (lists.x1[runs] > inside.x0)).any())

    def count_blocks(self, side: int) -> NDArray[np.int64]:
        """Pixels that count in each block of a side, `(rows, cols)`; blocks begin at the origin."""
        lists = self._lists
        counts = np.zeros((-(-self.height // side), -(-self.width // side)), np.int64)
        steps = np.zeros((counts.shape[0], counts.shape[1] + 1), np.int64)
        first, stop = lists.first[:-1], lists.first[1:]
        n_bands = (stop - 1) // side - first // side + 1
        band = _concatenate_ranges(first // side, n_bands)
        rows = np.minimum(np.repeat(stop, n_bands), (band + 1) * side)
        rows -= np.maximum(np.repeat(first, n_bands), band * side)
        n_runs = np.repeat(np.diff(lists.start), n_bands)
        runs = _concatenate_ranges(np.repeat(lists.start[:-1], n_bands), n_runs)
        band, rows = np.repeat(band, n_runs), np.repeat(rows, n_runs)
        x0, x1 = lists.x0[runs], lists.x1[runs]
        begin, last = x0 // side, (x1 - 1) // side
        np.add.at(counts, (band, begin), rows * (np.minimum(x1, (begin + 1) * side) - x0))
        longer = last > begin
        band, rows, begin, last = (each[longer] for each in (band, rows, begin, last))
        np.add.at(counts, (band, last), rows * (x1[longer] - last * side))
        np.add.at(steps, (band, begin + 1), rows * side)
        np.subtract.at(steps, (band, last), rows * side)
        counts += np.cumsum(steps, axis=1)[:, :-1]
        return counts

    def choose_blocks(self, side: int) -> NDArray[np.bool_]:
        """The blocks of a side that stand for what counts, `(rows, cols)`.

        Those at least half of whose pixels count; where there is none, those with any.
        """
        counts = self.count_blocks(side)
        rows, cols = (
            np.minimum(side, length - side * np.arange(n))
            for length, n in zip((self.height, self.width), counts.shape, strict=True)
        )
        half = 2 * counts >= rows[:, None] * cols
        return half if half.any() else counts > 0

    def find_at(self, y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.int64]:
        """The area of points by the pixel that they lie in, 0 outside.

        Parameters
        ----------
        y, x
            `(n,)`, from the centre of the slide's first pixel.
        """
        lists = self._lists
        row = np.clip(np.floor(y + 0.5).astype(np.int64), 0, self.height - 1)
        col = np.floor(x + 0.5).astype(np.int64)
        of = np.searchsorted(lists.first, row, side="right") - 1
        # Runs of all lists ascend by list and column, so that one search finds them all.
        own = np.repeat(np.arange(lists.first.size - 1), np.diff(lists.start))
        stride = self.width + 1
        at = np.searchsorted(own * stride + lists.x0, of * stride + col, side="right")
        found = np.zeros(of.size, np.int64)
        known = at > lists.start[of]
        run = at[known] - 1
        found[known] = np.where(col[known] < lists.x1[run], lists.value[run], 0)
        return found

    def _find_lists(self, inside: Region) -> slice:
        """The lists of the rows of a region inside the slide."""
        first = self._lists.first
        begin, last = np.searchsorted(first, [inside.y0, inside.y1 - 1], side="right") - 1
        return slice(int(begin), int(last) + 1)


def pack_areas(
    runs: Runs, shape: tuple[int, int], names: Sequence[str], files: dict[str, tuple[str, str]]
) -> Areas:
    """Areas as plain data.

    Parameters
    ----------
    runs
        Ascending and disjoint, inside the slide; at least one.
    shape
        Height and width of the slide.
    names, files
        As of `Areas`.

    Raises
    ------
    InputError
        If there are too many runs.
    """
    if runs.row.size > MOST_RUNS:
        raise InputError(
            f"{' and '.join(name for name, _ in files.values()) or 'tissue'}: {runs.row.size} runs "
            f"of pixels are too ragged for a region; accepted are up to {MOST_RUNS}, so smooth its "
            "outlines"
        )
    counts = np.bincount(runs.row, minlength=shape[0])
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    # A row like the one above it has as many runs, and each like its counterpart there.
    before = np.arange(runs.row.size) - counts[np.maximum(runs.row - 1, 0)]
    others = np.maximum(before, 0)
    differs = np.zeros(runs.row.size, np.int64)
    for each in (runs.x0, runs.x1, runs.value):
        differs |= each != each[others]
    n_different = np.bincount(runs.row, differs, shape[0]).astype(np.int64)
    new = (np.diff(counts, prepend=-1) != 0) | (n_different > 0)
    first = np.flatnonzero(new)
    kept = _concatenate_ranges(start[first], counts[first])
    lists = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[first])])
    parts: list[Any] = [
        [first.size, kept.size], first, [shape[0]], lists,
        runs.x0[kept], runs.x1[kept], runs.value[kept],
    ]  # fmt: skip
    data = np.concatenate(parts).astype("<i4").tobytes()
    return Areas(
        height=shape[0],
        width=shape[1],
        names=tuple(names),
        runs=base64.b64encode(zlib.compress(data)).decode(),
        # Another zlib packs otherwise.
        digest=xxhash.xxh3_128(data).hexdigest(),
        area_px=int((runs.x1 - runs.x0).sum()),
        files=files,
    )


def _concatenate_ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of several ranges, one after the other.

    Examples
    --------
    >>> _concatenate_ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    result: NDArray[np.int64] = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return result
