"""The pixels of one channel, region by region; what cannot be read is left out and noted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.base.machine import count_cores
from densebatch.slides.info import decoded_bytes
from densebatch.survey.kernels import BLOCK_PX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from densebatch.slides.info import SlideInfo
    from densebatch.slides.slide import Slide

_READ_PX = 2048  # a multiple of BLOCK_PX; digests of pixels change with it
MAX_THREADS = 4  # more would only wait for the disk, and each takes 64 MB to count in
_DECODED_BYTES = 10**9  # of all threads together, unless one alone needs more

BandMap = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Sequence[Any]]
"""Calls a function with each of several tuples of arguments, anywhere; results in their order."""


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
    elsewhere : gives bands of a pass to others; None where this process does all
    """

    slide: Slide
    channel: int
    grid: Grid
    threads: int
    unread: dict[Region, str] = field(default_factory=dict)
    counted: NDArray[np.bool_] | None = None
    elsewhere: BandMap | None = None

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
            try:  # all of it, so that the reason is the same whichever region comes first
                read = self.slide.read(self.channel, pieces[place])
            except (InputError, OSError) as error:
                self.unread[pieces[place]] = " ".join(str(error).split())
            else:
                inside = part.slices_in(pieces[place])
                pixels[part.slices_in(region)] = read[inside]
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


def count_regions(info: SlideInfo) -> int:
    """Regions in which a pass reads a channel."""
    return len(Grid(info.height, info.width, _READ_PX, _READ_PX))


def open_reader(
    slide: Slide,
    channel: int,
    elsewhere: BandMap | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> Reader:
    """Choose how many threads read: as many as the processors, the memory and the regions allow.

    Parameters
    ----------
    slide, channel
        What is read.
    elsewhere, counted
        As of `Reader`.
    """
    info = slide.info
    grid = Grid(info.height, info.width, _READ_PX, _READ_PX)
    at_once = _DECODED_BYTES // decoded_bytes(info, _READ_PX, _READ_PX)
    threads = max(1, min(count_cores(), MAX_THREADS, grid.rows * grid.cols, at_once))
    return Reader(slide, channel, grid, threads, counted=counted, elsewhere=elsewhere)


def blocks_of(region: Region) -> tuple[slice, slice]:
    """Rows and columns of the blocks that a region touches; it may begin before the slide."""
    return (
        slice(max(region.y0, 0) // BLOCK_PX, -(-max(region.y1, 0) // BLOCK_PX)),
        slice(max(region.x0, 0) // BLOCK_PX, -(-max(region.x1, 0) // BLOCK_PX)),
    )
