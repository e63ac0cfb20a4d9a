"""The container of CZI files (ZISRAW, by Zeiss): where its blocks of pixels are, and their bytes.

A file is a row of segments with a name and a length. The first names the places of the metadata,
which are XML, and of the directory, which lists the blocks: their place in the image, their place
in the file and how they are compressed. Opening reads no more than these three.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from densebatch.base.errors import InputError
from densebatch.tiff.markup import parse_xml

if TYPE_CHECKING:
    from pathlib import Path
    from xml.etree.ElementTree import Element

_SEGMENT = struct.Struct("<16sqq")  # name, bytes set aside, bytes in use
_ENTRY = struct.Struct("<2siqiiB5xi")
_DIMENSION = struct.Struct("<4siifi")
_SIZES = struct.Struct("<iiq")  # of a block's metadata, attachment and pixels
_DIRECTORY_HEAD, _METADATA_HEAD, _LEAST_BLOCK_HEAD = 128, 256, 256
_MAX_DIMENSIONS = 32
_MAX_SIDE_PX = 2**16
_MAX_PLACE = 2**30
_MAX_METADATA_BYTES = 2**29
_MAX_DIRECTORY_BYTES = 2**31
_MAX_COMPARED = 20_000  # blocks, which takes a fraction of a second
# There are hardly more places than blocks, and a large scene is not all gaps.
_SPARE_PLACES = 16
_LARGE_PX, _MOST_EMPTY = 10**8, 1000

# NumPy's type and the number of values of a pixel, by the number of its type.
PIXEL_TYPES = {
    0: ("uint8", 1), 1: ("uint16", 1), 2: ("float32", 1), 12: ("int32", 1),
    3: ("uint8", 3), 4: ("uint16", 3), 8: ("float32", 3), 9: ("uint8", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """Pixels that are stored together.

    Attributes
    ----------
    pixel_type : number, of `PIXEL_TYPES`
    compression : number
    position : of its segment in the file, bytes
    y, x : place in the image, first pixel and number of pixels at the highest resolution
    stored : rows and columns that it has, fewer where it belongs to a lower resolution
    places : start along each other axis
    order : what lies above what, where blocks overlap
    n_bytes : of its entry
    """

    pixel_type: int
    compression: int
    position: int
    y: tuple[int, int]
    x: tuple[int, int]
    stored: tuple[int, int]
    places: dict[str, int]
    order: int
    n_bytes: int

    @property
    def zoom(self) -> float:
        """Pixels of the highest resolution that one of it takes the place of, along an axis."""
        return max(self.y[1] / self.stored[0], self.x[1] / self.stored[1])

    @property
    def form(self) -> tuple[object, ...]:
        """What the directory and the block itself must agree on."""
        return self.pixel_type, self.compression, self.y, self.x, self.stored, self.places


@dataclass(frozen=True)
class CziFile:
    """A file's directory and metadata."""

    path: Path
    length: int
    blocks: tuple[Block, ...]
    metadata: Element


def open_czi(path: Path) -> CziFile:
    """Read the directory and the metadata of a CZI.

    Raises
    ------
    InputError
        With what is not where it should be.
    """
    with path.open("rb") as file:
        length = file.seek(0, 2)
        try:
            return _open(path, file, length)
        except (struct.error, EOFError) as error:
            raise InputError(f"{path} is damaged or cut: {error}") from error


def read_block(czi: CziFile, file: BinaryIO, block: Block) -> bytes:
    """The bytes of a block's pixels, compressed as they are.

    Parameters
    ----------
    czi, block
        As `open_czi` made them.
    file
        Open for reading.

    Raises
    ------
    EOFError
        If the block is not what the directory says.
    """
    position, n_data = _read_head(file, block, czi.length)
    return _read(file, position, n_data, czi.length, f"the block at byte {block.position}")


def _read_head(file: BinaryIO, block: Block, length: int) -> tuple[int, int]:
    """Where a block's pixels begin, and how many bytes they are."""
    used = _read_segment(file, block.position, "ZISRAWSUBBLOCK", length)
    what = f"the block at byte {block.position}"
    start = block.position + _SEGMENT.size
    head = _read(file, start, _SIZES.size + block.n_bytes, length, what)
    n_metadata, n_attachment, n_data = _SIZES.unpack_from(head)
    if _read_entry(head, _SIZES.size).form != block.form:
        raise EOFError(f"{what} describes itself otherwise than the directory does")
    front = max(_LEAST_BLOCK_HEAD, len(head)) + n_metadata
    if min(n_metadata, n_attachment) < 0 or n_data < 1 or front + n_data > used:
        raise EOFError(f"{what} claims {n_data} bytes of pixels and has {used}")
    return start + front, n_data


def _read(file: BinaryIO, position: int, n: int, length: int, what: str) -> bytes:
    if position < 0 or n < 0 or position + n > length:
        raise EOFError(f"{what} should be at byte {position}, of {length} that the file has")
    file.seek(position)
    data = file.read(n)
    if len(data) < n:
        raise EOFError(f"{what} ends early")
    return data


def _read_segment(file: BinaryIO, position: int, name: str, length: int) -> int:
    """Bytes in use of a segment that must have a name and lie in the file."""
    what = f"the segment {name}"
    raw, allocated, used = _SEGMENT.unpack(_read(file, position, _SEGMENT.size, length, what))
    if raw.rstrip(b"\0") != name.encode():
        raise EOFError(f"there is no segment {name} at byte {position}")
    used = used or allocated
    if not 0 <= used <= allocated or position + _SEGMENT.size + used > length:
        raise EOFError(f"{what} at byte {position} claims {used} of {allocated} bytes")
    return int(used)


def _open(path: Path, file: BinaryIO, length: int) -> CziFile:
    _read_segment(file, 0, "ZISRAWFILE", length)
    head = _read(file, _SEGMENT.size, 80, length, "the file's header")
    part, directory, metadata, pending, _ = struct.unpack("<iqqiq", head[48:80])
    if part:
        raise InputError(f"{path} is part {part} of a CZI in several files, which are not accepted")
    if pending:
        raise EOFError("it was not written to its end (an update is pending)")
    used = _read_segment(file, directory, "ZISRAWDIRECTORY", length)
    if used > _MAX_DIRECTORY_BYTES:
        raise EOFError(f"its directory claims {used} bytes")
    table = _read(file, directory + _SEGMENT.size, used, length, "the directory")
    (count,) = struct.unpack_from("<i", table)
    if count < 1:
        raise InputError(f"{path} holds no pixels: its directory has {count} blocks")
    blocks, offset = [], _DIRECTORY_HEAD
    for _ in range(count):
        block = _read_entry(table, offset)
        offset += block.n_bytes
        blocks.append(block)
    if table[offset : offset + 2] == b"DV":
        raise EOFError(f"its directory has more blocks than the {count} that it counts")
    if len({block.position for block in blocks}) < count:
        raise EOFError("two blocks are said to be in one place")
    _check_spread(blocks)
    # A block that the directory puts elsewhere would leave a hole without an error.
    if count <= _MAX_COMPARED:
        for block in blocks:
            _read_head(file, block, length)
    return CziFile(path, length, tuple(blocks), _read_metadata(file, metadata, length))


def _read_entry(table: bytes, offset: int) -> Block:
    schema, pixel_type, position, part, compression, _, n = _ENTRY.unpack_from(table, offset)
    if schema != b"DV" or not 2 <= n <= _MAX_DIMENSIONS:
        raise EOFError(f"an entry of the directory makes no sense ({schema!r}, {n} dimensions)")
    if part:
        raise EOFError(f"a block lies in part {part} of several files, which are not accepted")
    if pixel_type not in PIXEL_TYPES:
        raise EOFError(f"pixels are of type number {pixel_type}, which is not accepted")
    spans: dict[str, tuple[int, int]] = {}
    stored_px = {}
    end = offset + _ENTRY.size + n * _DIMENSION.size
    for at in range(offset + _ENTRY.size, end, _DIMENSION.size):
        name, start, size, _, stored = _DIMENSION.unpack_from(table, at)
        axis = name.rstrip(b"\0").decode("ascii", errors="replace")
        most = min(size, _MAX_SIDE_PX) if axis in ("X", "Y") else 1
        least = 1 if axis in ("X", "Y") else 0
        is_plane = axis in ("X", "Y") or 0 <= size <= 1
        known = axis in spans or abs(start) > _MAX_PLACE or size > _MAX_PLACE
        if known or not is_plane or not least <= stored <= most:
            raise EOFError(
                f"a block is said to begin at {start} of {axis!r} and to have {stored} of {size}"
            )
        spans[axis], stored_px[axis] = (start, size), stored
    if not {"X", "Y"} <= set(spans):
        raise EOFError("a block has no rows or no columns")
    places = {a: start for a, (start, _) in sorted(spans.items()) if a not in ("X", "Y", "M")}
    return Block(
        pixel_type, compression, position, spans["Y"], spans["X"],
        (stored_px["Y"], stored_px["X"]), places, spans.get("M", (0, 0))[0], end - offset,
    )  # fmt: skip


def _check_spread(blocks: list[Block]) -> None:
    """Blocks of a file lie near each other: there are hardly more places than blocks."""
    for axis in sorted({axis for block in blocks for axis in block.places}):
        starts = [block.places[axis] for block in blocks if axis in block.places]
        if min(starts) < 0 or max(starts) - min(starts) >= len(blocks) + _SPARE_PLACES:
            raise EOFError(
                f"{len(blocks)} blocks are said to lie from {min(starts)} to {max(starts)} of "
                f"{axis}"
            )
    scenes: dict[int, list[Block]] = {}
    for block in blocks:
        scenes.setdefault(block.places.get("S", 0), []).append(block)
    for scene, members in scenes.items():
        sides = [
            max(start + size for start, size in spans) - min(start for start, _ in spans)
            for spans in ([b.y for b in members], [b.x for b in members])
        ]
        covered = sum(b.y[1] * b.x[1] for b in members)
        if math.prod(sides) > _LARGE_PX and math.prod(sides) > _MOST_EMPTY * covered:
            raise EOFError(
                f"the blocks of scene {scene} are said to be spread over {sides[0]} x {sides[1]} "
                f"px, of which they cover {covered} px"
            )


def _read_metadata(file: BinaryIO, position: int, length: int) -> Element:
    _read_segment(file, position, "ZISRAWMETADATA", length)
    head = _read(file, position + _SEGMENT.size, 4, length, "the metadata")
    (n_xml,) = struct.unpack("<i", head)
    if not 0 < n_xml <= _MAX_METADATA_BYTES:
        raise EOFError(f"the metadata claim {n_xml} bytes")
    xml = _read(file, position + _SEGMENT.size + _METADATA_HEAD, n_xml, length, "the metadata")
    try:
        return parse_xml(xml.decode().lstrip("\ufeff"))
    except ValueError as error:
        raise EOFError(f"its metadata cannot be read ({error})") from error
