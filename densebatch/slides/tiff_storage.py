"""Where a TIFF file keeps its pixels: checks before the first read, and uncompressed rows."""

from __future__ import annotations

import contextlib
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from typing import BinaryIO

    from numpy.typing import NDArray
    from tifffile import TiffPageSeries

    from densebatch.base.geometry import Region
    from densebatch.slides.source import Axes

_BAND_BYTES = 2**24
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
# sizes, descriptions, offsets and the like, and ImageJ's; a maker's own tags may be as they are
_TAGS_NEEDED = {*range(254, 533), 50838, 50839}


def check_directories(path: Path) -> None:
    """Follow the chain of image file directories to its end.

    tifffile stops at a damaged link and presents the pages before it, so that a truncated file
    of many channels would become a smaller one; and it leaves out a tag whose value is cut off,
    so that channels would lose their names.

    Raises
    ------
    InputError
        If a directory or a value in it lies beyond the end of the file, or the chain runs in a
        circle.
    """
    if path.suffix.lower() == ".ndpi":
        return  # classic TIFF with links of 8 bytes, which tifffile knows by the suffix too
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        header = file.read(16)
        order = "<" if header[:2] == b"II" else ">"
        big = header[2:4] in (b"+\0", b"\0+")
        count_format, link_format, tag_size = ("Q", "Q", 20) if big else ("H", "I", 12)
        link_at = 8 if big else 4
        seen: set[int] = set()
        while True:
            offset = _unpack(file, order + link_format, link_at)
            if offset == 0 and seen:
                return
            n_tags = None if not offset else _unpack(file, order + count_format, offset)
            if offset is None or n_tags is None:
                raise InputError(
                    f"{path} is truncated: its image directory {len(seen)} should begin at byte "
                    f"{offset or link_at} of {size}"
                )
            if offset in seen:
                raise InputError(f"{path} is damaged: its image directories form a circle")
            tags_at = offset + struct.calcsize("=" + count_format)
            link_at = tags_at + n_tags * tag_size
            if link_at <= size:
                file.seek(tags_at)
                _check_values(path, file.read(n_tags * tag_size), order, big, len(seen), size)
            seen.add(offset)


def _check_values(
    path: Path, tags: bytes, order: str, big: bool, directory: int, size: int
) -> None:
    """Refuse a directory that points to values beyond the end of the file."""
    pointer = "Q" if big else "I"
    for code, value_type, count, offset in struct.iter_unpack(f"{order}HH{pointer * 2}", tags):
        n_bytes = count * _TYPE_BYTES.get(value_type, 0)
        if code in _TAGS_NEEDED and n_bytes > struct.calcsize(pointer) and offset + n_bytes > size:
            raise InputError(
                f"{path} is truncated: tag {code} of its image directory {directory} should end "
                f"at byte {offset + n_bytes} of {size}"
            )


def _unpack(file: BinaryIO, number_format: str, offset: int) -> int | None:
    n_bytes = struct.calcsize(number_format)
    if offset >= 2**63:
        return None
    file.seek(offset)
    data = file.read(n_bytes)
    return int(struct.unpack(number_format, data)[0]) if len(data) == n_bytes else None


def check_segments(path: Path, series: TiffPageSeries) -> None:
    """Check that the pixels of every tile or strip of a series lie inside their file.

    A tile with a byte count of zero would read as zeros, a plane without a page too.

    Raises
    ------
    InputError
        Naming the first tile or strip that is missing.
    """
    keyframe = series.keyframe
    expected = math.prod(keyframe.chunked)
    what = "tile" if keyframe.is_tiled else "strip"
    if series.dataoffset is not None:
        # only the first page's offsets are used; the others' pixels follow it without a gap
        end = series.dataoffset + math.prod(series.shape) * series.dtype.itemsize
        size = keyframe.parent.filehandle.size
        if end > size:
            raise InputError(
                f"{path} is truncated: its pixels should end at byte {end}, the file has {size}"
            )
        pages = [series[0]]
    else:
        pages = list(series)
    missing = sum(page is None for page in pages)
    if missing:
        raise InputError(
            f"{path} lacks {missing} of the {len(pages)} planes that its metadata list; "
            "all must be there, in files of their own beside it or inside"
        )
    for number, page in enumerate(pages):
        where = f"of page {number}" if page.parent is keyframe.parent else f"of {page.parent}"
        offsets = np.array(page.dataoffsets, dtype=np.uint64)
        counts = np.array(page.databytecounts, dtype=np.uint64)
        if not len(offsets) == len(counts) == expected:
            raise InputError(
                f"{path} is damaged: {len(offsets)} offsets and {len(counts)} byte counts {where} "
                f"for {expected} {what}s"
            )
        empty = np.flatnonzero((counts == 0) | (offsets == 0))
        if len(empty):
            raise InputError(
                f"{path} has no pixels for {what} {empty[0]} {where} ({len(empty)} of {expected} "
                "have a byte count or offset of zero); accepted are files with all of them, so "
                "rewrite a sparse TIFF, as GDAL makes them, in full"
            )
        size = page.parent.filehandle.size
        limit = np.uint64(size)
        beyond = np.flatnonzero((offsets > limit) | (counts > limit - np.minimum(offsets, limit)))
        if len(beyond):
            end = int(offsets[beyond[0]]) + int(counts[beyond[0]])
            raise InputError(
                f"{path} is truncated: {what} {beyond[0]} {where} should end at byte {end}, the "
                f"file has {size} ({len(beyond)} of {expected} {what}s are cut)"
            )


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
    """

    pages: tuple[tuple[Path, int], ...]
    page_size: int
    stored: np.dtype[Any]
    strides: tuple[int, int, int]
    chunk_px: tuple[int, int]

    @classmethod
    def of(cls, series: TiffPageSeries, axes: Axes) -> RowReader | None:
        """A reader for a series whose segments passed `check_segments`; None if not such one."""
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
        )

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the image, (planes, height, width)."""
        down, right, across = self.strides
        out = np.empty((stop - first, *region.shape), self.stored)
        run = np.empty((region.width, right), self.stored)
        with contextlib.ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            for row in range(region.height):
                start = (region.y0 + row) * down + region.x0 * right
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
