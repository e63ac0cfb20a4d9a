"""Opening PNG and TIFF files strictly: what is damaged or cut is an error and never reads as zeros.

A slide and a label image are opened alike; what each accepts of colours, types and sizes, its
package says.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import tifffile

from densebatch.base.errors import InputError, describe_cause

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray
    from tifffile import TiffFile, TiffPageSeries

# tifffile tells of damaged metadata in the log only; what matters of it is an InputError here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3  # colour type of a PNG whose values are indices into a table of colours
# Values per pixel of each colour type of PNG.
PNG_PLANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_HEADER_BYTES = 33

# Bytes of each type of value in a TIFF's tags.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
# Tags that are read: sizes, descriptions, offsets and the like, and ImageJ's. Tags of a maker's own
# may be as they are.
_TAGS_NEEDED = {*range(254, 533), 50838, 50839}


@dataclass(frozen=True)
class PngHeader:
    """What the first bytes of a PNG tell.

    Attributes
    ----------
    height, width
        Pixels.
    bits
        Per value: 1, 2, 4, 8 or 16.
    colour_type
        0 grey, 2 colours, 3 palette, 4 grey and alpha, 6 colours and alpha.
    """

    height: int
    width: int
    bits: int
    colour_type: int

    @property
    def has_alpha(self) -> bool:
        """Whether the last plane is opacity."""
        return self.colour_type in (4, 6)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the decoded values."""
        return np.dtype(np.uint16 if self.bits == 16 else np.uint8)


def read_png_header(path: Path) -> PngHeader:
    """Read the header of a PNG.

    Raises
    ------
    InputError
        If the file is no PNG or ends before its header does.
    """
    with path.open("rb") as file:
        start = file.read(_PNG_HEADER_BYTES)
    if not start.startswith(PNG_SIGNATURE):
        raise InputError(f"{path} is not a PNG, whatever its name says")
    if len(start) < _PNG_HEADER_BYTES or start[12:16] != b"IHDR":
        raise InputError(
            f"{path} is truncated: a PNG begins with {_PNG_HEADER_BYTES} bytes of header"
        )
    width, height, bits, colour_type = struct.unpack(">IIBB", start[16:26])
    return PngHeader(height, width, bits, colour_type)


def decode_png(path: Path, header: PngHeader) -> NDArray[Any]:
    """Decode a PNG without a palette; not with pillow, which brings 16-bit colours down to 8 bits.

    Returns
    -------
    ndarray
        `(height, width)`, or `(height, width, planes)` of colours and alpha; a transparent colour
        (tRNS) decodes to one plane more than the header tells.

    Raises
    ------
    InputError
        If it is damaged, or is not what its header tells.
    """
    try:
        pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    except MemoryError:
        raise
    # Every failure of the codec means that the pixels are unknown.
    except Exception as exc:
        raise InputError(f"{path} cannot be decoded as PNG ({describe_cause(exc)})") from exc
    size, n = (header.height, header.width), PNG_PLANES[header.colour_type]
    n_found = math.prod(pixels.shape[2:])
    if pixels.shape[:2] != size or n_found not in (n, n + 1) or pixels.dtype != header.dtype:
        raise InputError(
            f"{path} decodes to {pixels.shape} values of type {pixels.dtype}, "
            f"not to {(*size, n)} of type {header.dtype} as its header tells"
        )
    return pixels


def open_tiff_file(path: Path) -> TiffFile:
    """Open a TIFF file that is whole as far as its directories tell; the caller closes it.

    Raises
    ------
    InputError
        If a directory or a value in it lies beyond the end of the file, the directories form a
        circle, the XML has a document type, or tifffile cannot read it.
    """
    _check_directories(path)
    with contextlib.ExitStack() as stack:
        try:
            tif = stack.enter_context(tifffile.TiffFile(path))
            _refuse_doctype(path, tif)
        except InputError:
            raise
        # A damaged file makes tifffile fail in any way.
        except Exception as exc:
            raise InputError(
                f"{path} cannot be read as a TIFF file ({describe_cause(exc)})"
            ) from exc
        stack.pop_all()
    return tif


def _refuse_doctype(path: Path, tif: TiffFile) -> None:
    """Refuse XML with a document type: entities are how a small file expands to gigabytes.

    This comes before the series are looked at, because tifffile parses the XML for them.
    """
    for text in (tif.pages.first.description, tif.pages.first.description1):
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise InputError(
                f"{path} has OME-XML with a document type declaration; "
                "accepted is OME-XML without one"
            )


def _check_directories(path: Path) -> None:
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
        return  # a classic TIFF with links of 8 bytes, which tifffile knows by the suffix too
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
    # File systems refuse to seek far beyond what they can hold.
    if offset + n_bytes > os.fstat(file.fileno()).st_size:
        return None
    file.seek(offset)
    data = file.read(n_bytes)
    return int(struct.unpack(number_format, data)[0]) if len(data) == n_bytes else None


def check_segments(path: object, series: TiffPageSeries) -> None:
    """Check that the pixels of every tile or strip of a series lie inside their file.

    tifffile reads a tile whose byte count is zero as zeros, and a plane without a page too.

    Raises
    ------
    InputError
        Naming the first tile or strip that is missing.
    """
    keyframe = series.keyframe
    expected = math.prod(keyframe.chunked)
    what = "tile" if keyframe.is_tiled else "strip"
    if series.dataoffset is not None:
        # Only the first page is looked at, because the pixels of the others follow without a gap.
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
        is_here = page.parent is keyframe.parent
        where = f"of page {number}" if is_here else f"of {page.parent.filename}"
        offsets = np.array(page.dataoffsets, dtype=np.uint64)
        counts = np.array(page.databytecounts, dtype=np.uint64)
        if not len(offsets) == len(counts) == expected:
            raise InputError(
                f"{path} is damaged: {len(offsets)} offsets and {len(counts)} byte counts {where} "
                f"for {expected} {what}s"
            )
        empty = np.flatnonzero((counts == 0) | (offsets == 0))
        if len(empty):
            first = empty[0]
            raise InputError(
                f"{path} is sparse or is damaged: a piece of {counts[first]} bytes at "
                f"{offsets[first]} leaves no pixels for {what} {first} {where} ({len(empty)} of "
                f"{expected} have a byte count or offset of zero); accepted are files with all of "
                "them, so rewrite a sparse TIFF, as GDAL makes them, in full"
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
