"""Passes over the pixels of one channel: read by threads, and counted.

Each thread counts into a histogram of its own. A piece that cannot be read is left out, with the
blocks that it lies in, and noted; all passes leave out the same.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.base.machine import count_cores
from densebatch.slides.slide import decoded_bytes
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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from densebatch.slides.slide import Slide
    from densebatch.survey.debris import Gap

_N_BINS = 1 << 16
_READ_PX = 2048  # a multiple of BLOCK_PX; digests of pixels change with it
_N_LOOKED_AT = 16  # regions that show whether something bright is debris
_MAX_THREADS = 4  # more would only wait for the disk, and each takes 64 MB to count in
_DECODED_BYTES = 10**9  # of all threads together, unless one alone needs more


@dataclass(frozen=True)
class Reader:
    """A channel of an open slide, read region by region in several threads.

    Attributes
    ----------
    slide, channel : what is read
    grid : regions
    threads : that read at once
    unread : pieces that cannot be read, with the reason
    counted : `(rows, cols)` of the slide's blocks: those that count; None for all
    """

    slide: Slide
    channel: int
    grid: Grid
    threads: int
    unread: dict[Region, str] = field(default_factory=dict)
    counted: NDArray[np.bool_] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the slide's pixels."""
        return np.dtype(self.slide.info.dtype)

    def read(self, index: tuple[int, int]) -> NDArray[Any]:
        """Pixels of a region; 0 where they cannot be read."""
        region = self.grid[index]
        if not any(region.intersect(piece) for piece in list(self.unread)):
            try:
                return self.slide.read(self.channel, region)
            except (InputError, OSError):
                pass
        pixels = np.zeros(region.shape, self.dtype)
        info = self.slide.info
        pieces = Grid(info.height, info.width, *info.chunk_px)
        for place in pieces.overlapping(region):
            part = pieces[place].intersect(region)
            if part is None or pieces[place] in self.unread:
                continue
            try:
                read = self.slide.read(self.channel, part)
            except (InputError, OSError) as error:
                self.unread[pieces[place]] = " ".join(str(error).split())
            else:
                pixels[part.shift(-region.y0, -region.x0).slices] = read
        return pixels

    def read_blocks(
        self, index: tuple[int, int]
    ) -> Iterator[tuple[NDArray[Any], tuple[slice, slice]]]:
        """Pixels of a region, as `split` divides them."""
        return self.split(index, self.read(index)) if self.may_count(index) else iter(())

    def may_count(self, index: tuple[int, int]) -> bool:
        """Whether a block of a region counts, so that it is read."""
        return self.counted is None or bool(self.counted[blocks_of(self.grid[index])].any())

    def split(
        self, index: tuple[int, int], pixels: NDArray[Any]
    ) -> Iterator[tuple[NDArray[Any], tuple[slice, slice]]]:
        """Pixels of a region, and where their blocks are among those of the slide.

        In several parts, of whole blocks, if some cannot be read or do not count.
        """
        region = self.grid[index]
        lost = self.find_lost(region)
        if not lost.any():
            yield pixels, blocks_of(region)
            return
        for row, col in zip(*np.nonzero(~lost), strict=True):
            y0, x0 = region.y0 + int(row) * BLOCK_PX, region.x0 + int(col) * BLOCK_PX
            block = Region(y0, x0, y0 + BLOCK_PX, x0 + BLOCK_PX).clip(region.y1, region.x1)
            part = pixels[block.shift(-region.y0, -region.x0).slices]
            yield part, blocks_of(block)

    def find_lost(self, region: Region) -> NDArray[np.bool_]:
        """`(rows, cols)` of a region's blocks: what cannot be read all of, or does not count."""
        rows, cols = blocks_of(region)
        lost = np.zeros((rows.stop - rows.start, cols.stop - cols.start), np.bool_)
        if self.counted is not None:
            lost = ~self.counted[rows, cols]
        for piece in list(self.unread):
            part = piece.intersect(region)
            if part is not None:
                lost[blocks_of(part.shift(-region.y0, -region.x0))] = True
        return lost


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
    content : digest of all pixels; those that cannot be read count as 0
    """

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    looks: BlockLooks
    histogram: NDArray[np.int64]
    nonfinite_px: int
    content: str


def open_reader(slide: Slide, channel: int, counted: NDArray[np.bool_] | None = None) -> Reader:
    """Choose how many threads read: as many as the processors, the memory and the regions allow."""
    info = slide.info
    grid = Grid(info.height, info.width, _READ_PX, _READ_PX)
    at_once = _DECODED_BYTES // decoded_bytes(info, _READ_PX, _READ_PX)
    threads = max(1, min(count_cores(), _MAX_THREADS, grid.rows * grid.cols, at_once))
    return Reader(slide, channel, grid, threads, counted=counted)


def blocks_of(region: Region) -> tuple[slice, slice]:
    """Rows and columns of the blocks that a region touches; it may begin before the slide."""
    return (
        slice(max(region.y0, 0) // BLOCK_PX, -(-max(region.y1, 0) // BLOCK_PX)),
        slice(max(region.x0, 0) // BLOCK_PX, -(-max(region.x1, 0) // BLOCK_PX)),
    )


def count_blocks(reader: Reader, side: int) -> Counts:
    """Take the first pass."""
    info, dtype = reader.slide.info, reader.dtype
    shape = (-(-info.height // BLOCK_PX), -(-info.width // BLOCK_PX))
    # What cannot be read looks like a block without finite pixels.
    lowest, highest = np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32)
    classes, marks = np.zeros(shape, np.uint8), np.zeros((*shape, 4), np.float32)
    marks[..., 0], marks[..., 1] = np.inf, -np.inf
    n_bins, shift = _choose_bins(dtype)
    digests: dict[tuple[int, int], bytes] = {}

    def count(index: tuple[int, int], histogram: NDArray[np.int64]) -> int:
        if not reader.may_count(index):
            return 0
        pixels = reader.read(index)
        digests[index] = xxhash.xxh3_128(np.ascontiguousarray(pixels).data).digest()
        nonfinite = 0
        for part, at in reader.split(index, pixels):
            values, keys = _take_values(part)
            nonfinite += survey_blocks(
                values, keys, shift, side, lowest[at], highest[at], classes[at], marks[at],
                histogram,
            )  # fmt: skip
        return nonfinite

    histogram, nonfinite_px = count_in_threads(
        count, reader.grid, reader.threads, (N_CLASSES, n_bins)
    )
    looks = BlockLooks(classes, *np.moveaxis(marks, -1, 0))
    every = b"".join(digests[index] for index in reader.grid if index in digests)
    content = xxhash.xxh3_128(every).hexdigest()
    return Counts(lowest, highest, looks, histogram, nonfinite_px, content)


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
    n_bins, shift = _choose_bins(reader.dtype)

    def count(index: tuple[int, int], histogram: NDArray[np.int64]) -> int:
        for pixels, at in reader.read_blocks(index):
            count_tissue(*_take_values(pixels), shift, classes[at], threshold, histogram)
        return 0

    histogram, _ = count_in_threads(count, reader.grid, reader.threads, (1, n_bins))
    tissue: NDArray[np.int64] = histogram[0]
    return tissue


def count_wanted(
    reader: Reader, classes: NDArray[np.uint8], threshold: int, wanted: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """Take the second pass: the lower 16 bits of keys with some upper bits, `(n, 65536)`."""

    def count(index: tuple[int, int], histograms: NDArray[np.int64]) -> int:
        for pixels, at in reader.read_blocks(index):
            # No NaN and no infinity has the upper bits of a finite value, so none is counted here.
            count_low_bits(make_keys(pixels), classes[at], threshold, wanted, histograms)
        return 0

    histograms, _ = count_in_threads(count, reader.grid, reader.threads, (wanted.size, _N_BINS))
    return histograms


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
    grid: Grid,
    threads: int,
    shape: tuple[int, int],
) -> tuple[NDArray[np.int64], int]:
    """Call a function for every region, with a histogram to add to.

    Parameters
    ----------
    function
        Takes an index of the grid and a histogram; what it returns is summed up too.
    grid
        Regions.
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
        for row in np.flatnonzero(histogram.any(axis=1)):
            whole[row] += histogram[row]
    return whole, total
