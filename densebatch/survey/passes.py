"""Passes over the pixels of one channel: read band by band, and counted.

A pass is done by threads of this process, each of which counts into a histogram of its own, or, in
bands of whole regions, by whoever a `BandMap` gives them to; counts are integers,
so they add up to the same. A piece that cannot be read is left out, with the blocks that it lies
in, and noted; all passes leave out the same.
"""

from __future__ import annotations

import math
import queue
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from densebatch.base.geometry import Region
from densebatch.slides.slide import reopen_slide
from densebatch.survey.debris import BlockLooks, Shapes, count_shapes
from densebatch.survey.kernels import (
    BLOCK_PX,
    CELL_PX,
    N_CLASSES,
    count_low_bits,
    count_tissue,
    is_narrow,
    make_keys,
    survey_blocks,
)
from densebatch.survey.normalization import to_float32
from densebatch.survey.reader import Reader, blocks_of, open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from numpy.typing import NDArray

    from densebatch.slides.info import SlideInfo
    from densebatch.survey.debris import Gap

_N_BINS = 1 << 16
_N_LOOKED_AT = 16  # regions that show whether something bright is debris
_WORKER_THREADS = 2


@dataclass(frozen=True)
class Counts:
    """What the first pass counts.

    Attributes
    ----------
    lowest, highest : extremes of each block's means, in the slide's units; infinite where nothing
        is finite
    looks : contrast class of each block, and what tells debris from tissue
    histogram : `(N_CLASSES, bins)` int64, of the keys, or of their upper 16 bits
    nonfinite_px : pixels that are NaN or infinite
    digests : of the pixels of each region; those that cannot be read count as 0
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    looks: BlockLooks
    histogram: NDArray[np.int64]
    nonfinite_px: int
    digests: tuple[bytes, ...]

    @property
    def content(self) -> str:
        """Digest of all pixels."""
        return xxhash.xxh3_128(b"".join(self.digests)).hexdigest()


def count_blocks(reader: Reader, side: int) -> Counts:
    """Take the first pass."""
    parts = _do_bands(reader, count_blocks_in_band, lambda rows: (side,))
    looks = [part.looks for part in parts]
    histogram = parts[0].histogram
    for part in parts[1:]:
        _add_rows(histogram, part.histogram)
    return Counts(
        np.concatenate([part.lowest for part in parts]),
        np.concatenate([part.highest for part in parts]),
        BlockLooks(
            *(
                np.concatenate([getattr(each, name) for each in looks])
                for name in ("classes", "least", "most", "grain", "skew")
            )
        ),
        histogram,
        sum(part.nonfinite_px for part in parts),
        tuple(digest for part in parts for digest in part.digests),
    )


def count_blocks_in_band(reader: Reader, rows: range, side: int) -> Counts:
    """Take the first pass over some rows of regions."""
    band = _Band(reader, rows)
    # What cannot be read looks like a block without finite pixels.
    lowest = np.full(band.shape, np.inf, np.float32)
    highest = np.full(band.shape, -np.inf, np.float32)
    classes, marks = np.zeros(band.shape, np.uint8), np.zeros((*band.shape, 4), np.float32)
    marks[..., 0], marks[..., 1] = np.inf, -np.inf
    n_bins, shift = _choose_bins(reader.dtype)
    digests: dict[tuple[int, int], bytes] = {}

    def count(index: tuple[int, int], histogram: NDArray[np.int64]) -> int:
        if not reader.may_count(index):
            return 0
        pixels = reader.read(index)
        digests[index] = xxhash.xxh3_128(np.ascontiguousarray(pixels).data).digest()
        nonfinite = 0
        for part, place in reader.split(index, pixels):
            values, keys = _take_values(part)
            at = band.find(place)
            nonfinite += survey_blocks(
                values, keys, shift, side, lowest[at], highest[at], classes[at], marks[at],
                histogram,
            )  # fmt: skip
        return nonfinite

    histogram, nonfinite_px = count_in_threads(
        count, band.indices, reader.threads, (N_CLASSES, n_bins)
    )
    looks = BlockLooks(classes, *np.moveaxis(marks, -1, 0))
    ordered = tuple(digests[index] for index in band.indices if index in digests)
    return Counts(lowest, highest, looks, histogram, nonfinite_px, ordered)


def look_at_blocks(pixels: NDArray[Any]) -> BlockLooks:
    """What a survey knows of the blocks of an image in memory, `(height, width)`."""
    shape = tuple(-(-n // BLOCK_PX) for n in pixels.shape)
    extremes = np.empty((2, *shape), np.float32)
    classes, marks = np.zeros(shape, np.uint8), np.zeros((*shape, 4), np.float32)
    n_bins, shift = _choose_bins(pixels.dtype)
    unused = np.zeros((N_CLASSES, n_bins), np.int64)
    survey_blocks(*_take_values(pixels), shift, CELL_PX, *extremes, classes, marks, unused)
    return BlockLooks(classes, *np.moveaxis(marks, -1, 0))


def count_shapes_in_blocks(
    reader: Reader, cell_px: float, gap: Gap, blocks: NDArray[np.bool_]
) -> Shapes:
    """Sum `debris.count_shapes` over the regions with the most of some blocks.

    Parameters
    ----------
    reader
        Of a channel.
    cell_px
        Diameter of a cell.
    gap
        What is bright.
    blocks
        `(rows, cols)` of the slide.
    """
    n_blocks = {index: int(blocks[blocks_of(reader.grid[index])].sum()) for index in reader.grid}
    chosen = sorted(filter(n_blocks.get, reader.grid), key=lambda index: -n_blocks[index])
    counts = [count_shapes(reader.read(index), gap, cell_px) for index in chosen[:_N_LOOKED_AT]]
    return sum(counts, Shapes())


def count_tissue_again(
    reader: Reader, classes: NDArray[np.uint8], threshold: int
) -> NDArray[np.int64]:
    """Count the tissue again, without the blocks whose class was set to 0: `(bins,)`."""

    def choose(rows: range) -> tuple[Any, ...]:
        return _Band(reader, rows).take(classes), threshold

    counted: NDArray[np.int64] = sum(_do_bands(reader, count_tissue_in_band, choose))
    return counted


def count_tissue_in_band(
    reader: Reader, rows: range, classes: NDArray[np.uint8], threshold: int
) -> NDArray[np.int64]:
    """As `count_tissue_again`, over some rows of regions and with the classes of their blocks."""
    band = _Band(reader, rows)
    n_bins, shift = _choose_bins(reader.dtype)

    def count(index: tuple[int, int], histogram: NDArray[np.int64]) -> int:
        for pixels, place in reader.read_blocks(index):
            found = classes[band.find(place)]
            count_tissue(*_take_values(pixels), shift, found, threshold, histogram)
        return 0

    histogram, _ = count_in_threads(count, band.indices, reader.threads, (1, n_bins))
    tissue: NDArray[np.int64] = histogram[0]
    return tissue


def count_wanted(
    reader: Reader, classes: NDArray[np.uint8], threshold: int, wanted: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Take the second pass: the lower 16 bits of keys with some upper bits, `(n, 65536)`."""

    def choose(rows: range) -> tuple[Any, ...]:
        return _Band(reader, rows).take(classes), threshold, wanted

    counted: NDArray[np.int64] = sum(_do_bands(reader, count_wanted_in_band, choose))
    return counted


def count_wanted_in_band(
    reader: Reader,
    rows: range,
    classes: NDArray[np.uint8],
    threshold: int,
    wanted: NDArray[np.uint32],
) -> NDArray[np.int64]:
    """As `count_wanted`, over some rows of regions and with the classes of their blocks."""
    band = _Band(reader, rows)

    def count(index: tuple[int, int], histograms: NDArray[np.int64]) -> int:
        for pixels, place in reader.read_blocks(index):
            # No NaN and no infinity has the upper bits of a finite value, so none is counted here.
            found = classes[band.find(place)]
            count_low_bits(make_keys(pixels), found, threshold, wanted, histograms)
        return 0

    shape = (wanted.size, _N_BINS)
    histograms, _ = count_in_threads(count, band.indices, reader.threads, shape)
    return histograms


class _Band:
    """Some rows of the regions of a channel, and the rows of blocks that lie in them.

    Parameters
    ----------
    reader
        Of the channel.
    rows
        Of its grid.
    """

    def __init__(self, reader: Reader, rows: range) -> None:
        self.indices = [index for index in reader.grid if index[0] in rows]
        whole = Region(0, 0, reader.grid.height, reader.grid.width)
        first, last = reader.grid[rows.start, 0], reader.grid[rows.stop - 1, 0]
        self._rows, cols = blocks_of(Region(first.y0, 0, last.y1, whole.x1))
        self.shape = self._rows.stop - self._rows.start, cols.stop
        self._n_rows = blocks_of(whole)[0].stop

    def find(self, at: tuple[slice, slice]) -> tuple[slice, slice]:
        """Where blocks of the slide lie among those of the band."""
        start = self._rows.start
        return slice(at[0].start - start, at[0].stop - start), at[1]

    def take(self, blocks: NDArray[Any]) -> NDArray[Any]:
        """Of the slide's blocks those of the band."""
        return blocks[self._rows]

    def spread(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The slide's blocks, of which those of the band are given and all others False."""
        every = np.zeros((self._n_rows, self.shape[1]), np.bool_)
        every[self._rows] = blocks
        return every


def _do_bands(
    reader: Reader,
    function: Callable[..., Any],
    choose: Callable[[range], tuple[Any, ...]],
) -> list[Any]:
    """Call a function with a reader, rows of regions and what `choose` gives for these rows.

    For all rows at once in this process, or for each row elsewhere.
    """
    every = range(reader.grid.rows)
    if reader.elsewhere is None:
        return [function(reader, every, *choose(every))]
    known = tuple(reader.unread.items())
    about = (function.__name__, reader.slide.info, reader.channel, known)

    def describe(row: int) -> tuple[Any, ...]:
        rows = range(row, row + 1)
        counted = None if reader.counted is None else _Band(reader, rows).take(reader.counted)
        return *about, row, counted, *choose(rows)

    found = reader.elsewhere(do_band, [describe(row) for row in every])
    for part in found:
        reader.unread.update(part.unread)
    return [part.unpack() for part in found]


def do_band(
    name: str,
    info: SlideInfo,
    channel: int,
    known: Collection[tuple[Region, str]],
    row: int,
    counted: NDArray[np.bool_] | None,
    *arguments: Any,  # noqa: ANN401
) -> PackedPart:
    """A row of regions of a pass, on a worker.

    Parameters
    ----------
    name
        Of the pass.
    info
        The slide.
    channel
        Of it.
    known
        Pieces that cannot be read, with the reason.
    row
        Of the grid of regions.
    counted
        Blocks of the row that count; None for all.
    *arguments
        Of the pass.
    """
    reader = open_reader(reopen_slide(info), channel)
    reader.unread.update(known)
    rows = range(row, row + 1)
    if counted is not None:
        counted = _Band(reader, rows).spread(counted)
    threads = min(reader.threads, _WORKER_THREADS)
    reader = replace(reader, threads=threads, counted=counted)
    function = {each.__name__: each for each in _OF_BANDS}[name]
    return pack_part(function(reader, rows, *arguments), reader.unread)


_OF_BANDS = (count_blocks_in_band, count_tissue_in_band, count_wanted_in_band)


@dataclass(frozen=True)
class PackedPart:
    """A part of a pass as it travels: few of many bins of a histogram are not 0.

    Attributes
    ----------
    counts : of the first pass, without its histogram; None of another pass
    shape : of the histogram
    places, values : where it is not 0, and how much, compressed
    unread : pieces that cannot be read
    """

    counts: Counts | None
    shape: tuple[int, ...]
    places: bytes
    values: bytes
    unread: dict[Region, str]

    def unpack(self) -> Any:  # noqa: ANN401
        """What `pack_part` was given."""
        histogram = np.zeros(math.prod(self.shape), np.int64)
        places = np.frombuffer(zlib.decompress(self.places), np.uint32)
        histogram[places] = np.frombuffer(zlib.decompress(self.values), np.int64)
        histogram = histogram.reshape(self.shape)
        return histogram if self.counts is None else replace(self.counts, histogram=histogram)


def pack_part(found: Counts | NDArray[np.int64], unread: dict[Region, str]) -> PackedPart:
    """Pack what a pass has found in a band."""
    histogram = found.histogram if isinstance(found, Counts) else found
    places = np.flatnonzero(histogram)
    values = histogram.reshape(-1)[places]
    counts = None
    if isinstance(found, Counts):
        counts = replace(found, histogram=np.zeros((0, 0), np.int64))
    packed = [zlib.compress(part.tobytes(), 1) for part in (places.astype(np.uint32), values)]
    return PackedPart(counts, histogram.shape, packed[0], packed[1], unread)


def _choose_bins(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Bins of the first histogram, and the bits by which keys are shifted for it."""
    return (256**dtype.itemsize, 0) if is_narrow(dtype) else (_N_BINS, 16)


def _take_values(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Values and keys of pixels, as the kernels take them."""
    pixels = np.ascontiguousarray(pixels)
    if is_narrow(pixels.dtype) and pixels.dtype.kind == "u":
        return pixels, pixels  # no copies, which would take as long as all the rest
    return to_float32(pixels), make_keys(pixels)


def count_in_threads(
    function: Callable[[tuple[int, int], NDArray[np.int64]], int],
    grid: Iterable[tuple[int, int]],
    threads: int,
    shape: tuple[int, int],
) -> tuple[NDArray[np.int64], int]:
    """Call a function for every region, with a histogram to add to.

    Parameters
    ----------
    function
        Takes an index of a region and a histogram; what it returns is summed up too.
    grid
        Indices of regions.
    threads
        Threads that work at once: one that reads waits for the disk, and one that counts in a
        numba kernel does not hold the interpreter's lock.
    shape
        Of a histogram. Rows in which nothing is counted take no memory.

    Returns
    -------
    histogram : `shape` int64
        Sum of all; of integers, so it does not depend on which thread counted what.
    total : int
        Sum of what the calls returned.

    Raises
    ------
    Exception
        Of the first region, in the grid's order, that failed; no further region is begun then.
    """
    histograms = [np.zeros(shape, np.int64) for _ in range(threads)]
    spare: queue.SimpleQueue[NDArray[np.int64]] = queue.SimpleQueue()
    for histogram in histograms:
        spare.put(histogram)

    def call(index: tuple[int, int]) -> int:
        histogram = spare.get()
        try:
            return function(index, histogram)
        finally:
            spare.put(histogram)

    pool = ThreadPoolExecutor(threads)
    try:
        total = sum(pool.map(call, grid))
    finally:
        pool.shutdown(cancel_futures=True)
    whole, *others = histograms
    for histogram in others:
        _add_rows(whole, histogram)
    return whole, total


def _add_rows(whole: NDArray[np.int64], histogram: NDArray[np.int64]) -> None:
    """Add a histogram to another, but for rows in which nothing is counted."""
    for row in np.flatnonzero(histogram.any(axis=1)):
        whole[row] += histogram[row]
