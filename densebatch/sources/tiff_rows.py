"""Uncompressed rows of a TIFF file, read from where they lie instead of decoded by the strip."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.sources.axes import largest_of

if TYPE_CHECKING:
    from typing import BinaryIO

    from numpy.typing import NDArray
    from tifffile import TiffPageSeries

    from densebatch.base.geometry import Region
    from densebatch.sources.axes import Axes

_BAND_BYTES = 2**24


@dataclass(frozen=True)
class RowReader:
    """Reads pieces of rows of an uncompressed image without a gap between its strips.

    Most uncompressed files have one strip for the whole image: to decode it for every tile would
    take the whole image into memory each time.

    Attributes
    ----------
    pages
        File and byte offset of each page.
    page_size
        Values per page.
    stored
        Type of the values in the file.
    strides
        Values from one pixel to the next: down, right, and to the next plane.
    chunk_px
        Full rows of some megabytes.
    origins
        Values before the first pixel, of each image whose largest values are wanted.
    """

    pages: tuple[tuple[Path, int], ...]
    page_size: int
    stored: np.dtype[Any]
    strides: tuple[int, int, int]
    chunk_px: tuple[int, int]
    origins: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, series: TiffPageSeries, axes: Axes) -> RowReader | None:
        """A reader for a series that passed `check_segments`; None if it is not of this kind."""
        keyframe = series.keyframe
        shape = series.shape
        if (
            keyframe.is_tiled
            or not keyframe.is_final
            or series.transform is not None
            or keyframe.bitspersample != series.dtype.itemsize * 8
        ):
            return None
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        across = 0 if axes.channel is None else steps[axes.channel]
        n = 1 if axes.channel is None else shape[axes.channel]
        interleaved = steps[axes.x] == n and across == 1
        if steps[axes.x] != 1 and not interleaved:
            return None
        pages = _page_offsets(series)
        if pages is None:
            return None
        row_bytes = shape[axes.x] * steps[axes.x] * series.dtype.itemsize
        return cls(
            pages=pages,
            page_size=keyframe.size,
            stored=np.dtype(keyframe.parent.byteorder + series.dtype.char),
            strides=(steps[axes.y], steps[axes.x], across),
            chunk_px=(min(shape[axes.y], max(1, _BAND_BYTES // row_bytes)), shape[axes.x]),
            origins=tuple(
                sum(steps[axis] * index for axis, index in place.items())
                for place in axes.list_places()
            ),
        )

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the image, (planes, height, width)."""
        return largest_of(self._read(at, first, stop, region) for at in self.origins)

    def _read(self, origin: int, first: int, stop: int, region: Region) -> NDArray[Any]:
        down, right, across = self.strides
        out = np.empty((stop - first, *region.shape), self.stored)
        run = np.empty((region.width, right), self.stored)
        with contextlib.ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            for row in range(region.height):
                start = origin + (region.y0 + row) * down + region.x0 * right
                if right > 1:
                    self._fill(run, start, files, stack)
                    out[:, row] = run[:, first:stop].T
                else:
                    for plane in range(first, stop):
                        self._fill(out[plane - first, row], start + plane * across, files, stack)
        return out.astype(self.stored.newbyteorder("="), copy=False)

    def _fill(
        self,
        values: NDArray[Any],
        start: int,
        files: dict[Path, BinaryIO],
        stack: contextlib.ExitStack,
    ) -> None:
        page, index = divmod(start, self.page_size)
        path, offset = self.pages[page]
        if path not in files:
            files[path] = stack.enter_context(path.open("rb", buffering=0))
        files[path].seek(offset + index * self.stored.itemsize)
        buffer = values.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(buffer):
            n = files[path].readinto(buffer[done:])  # type: ignore[attr-defined]
            if not n:
                raise EOFError(f"{path} ends {len(buffer) - done} bytes early")
            done += n


def _page_offsets(series: TiffPageSeries) -> tuple[tuple[Path, int], ...] | None:
    """File and offset of each page, None if a page has gaps between its strips."""
    keyframe = series.keyframe
    n_bytes = keyframe.size * series.dtype.itemsize
    if series.dataoffset is not None:
        path = Path(keyframe.parent.filehandle.path)
        n_pages = math.prod(series.shape) // keyframe.size
        return tuple((path, series.dataoffset + i * n_bytes) for i in range(n_pages))
    pages = []
    for page in series:
        ends = np.cumsum(page.databytecounts) + page.dataoffsets[0]
        if ends[-1] < page.dataoffsets[0] + n_bytes or any(ends[:-1] != page.dataoffsets[1:]):
            return None
        pages.append((Path(page.parent.filehandle.path), page.dataoffsets[0]))
    return tuple(pages)
