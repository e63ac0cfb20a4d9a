"""Nikon ND2, by nd2: a frame has all channels of a place, a focal plane and a point in time."""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.names import Scene
from densebatch.readers.reader import ImageFacts, Reader, describe_image, import_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_BAND_BYTES = 2**24
_MOST_PADDING = 64  # bytes of a row
_MARK = 0x0ABECEDA
_CHUNK, _END = struct.Struct("<IIQ"), struct.Struct("<32sQ")
_MAP_END = b"ND2 CHUNK MAP SIGNATURE 0000001!"
_MAX_MAP_BYTES = 2**28
_KNOWN = "TPZCYXS"
_COLOURS = ("red", "green", "blue")


class _FrameChecks:
    """Whether frames are where the file's map says; the library takes what lies there for pixels.

    A file (but those of before 2010, which are JPEG 2000) is a row of chunks, each with a mark, the
    lengths of its name and its data, and the name. The map at the end lists names and places.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[int, int] | None = None
        with path.open("rb") as file:
            if struct.unpack("<I", file.read(4))[0] != _MARK:
                return
            length = file.seek(0, 2)
            file.seek(max(0, length - _END.size))
            name, where = _END.unpack(file.read(_END.size))
            if name != _MAP_END or where >= length:
                raise ValueError("it has no map of its parts at its end")
            file.seek(where)
            table = file.read(min(length - where, _MAX_MAP_BYTES))
        found = re.finditer(rb"ImageDataSeq\|(\d{1,9})!(.{8})", table, re.DOTALL)
        self._places = {int(m[1]): int.from_bytes(m[2], "little") for m in found}

    def check(self, frame: int, n_bytes: int) -> None:
        """Refuse a frame of which the map does not tell the place, or another part is there."""
        if self._places is None:
            return
        wanted = f"ImageDataSeq|{frame}!".encode()
        head = b""
        if frame in self._places:
            with self._path.open("rb") as file:
                file.seek(min(self._places[frame], 2**62))
                head = file.read(_CHUNK.size + len(wanted))
        mark, _, n_data = _CHUNK.unpack(head[: _CHUNK.size].ljust(_CHUNK.size, b"\0"))
        if mark != _MARK or head[_CHUNK.size :] != wanted or n_data < n_bytes:
            raise ValueError(f"frame {frame} is not where the map of the file's parts says")


class Nd2Reader(Reader):
    """An open file; its positions are its images."""

    def __init__(self, path: Path) -> None:
        nd2 = import_library(path, "nd2", "Nikon ND2", "nd2")
        self.files = [path]
        self._path = path
        self._checks = _FrameChecks(path)
        self._nd2 = nd2.ND2File(str(path))
        try:
            self._sizes = dict(self._nd2.sizes)
            names = self._read_positions()
            n_positions = self._sizes.get("P", 1)
            what = describe_image(
                self._n_planes(), self._sizes.get("Y", 1), self._sizes.get("X", 1),
                self._sizes.get("Z", 1), self._sizes.get("T", 1),
            )  # fmt: skip
            names = names if len(names) == n_positions else [""] * n_positions
            self.scenes = [Scene(name, what) for name in names]
            self._frames = {
                tuple(loop.get(axis, 0) for axis in "PTZ"): index
                for index, loop in enumerate(self._nd2.loop_indices)
            } or {(0, 0, 0): 0}
        except BaseException:
            self.close()
            raise

    def _n_planes(self) -> int:
        n: int = self._sizes.get("C", 1) * self._sizes.get("S", 1)
        return n

    def _read_positions(self) -> list[str]:
        for loop in self._nd2.experiment:
            if loop.type == "XYPosLoop":
                return [point.name or "" for point in loop.parameters.points]
        return []

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""
        del scene
        sizes, dtype = self._sizes, np.dtype(self._nd2.dtype)
        others = {axis: n for axis, n in sizes.items() if axis not in _KNOWN and n > 1}
        if others:
            listed = " and ".join(f"{n} images along {axis}" for axis, n in others.items())
            raise InputError(
                f"{self._path} holds {listed}; accepted are rows, columns, channels, focal planes, "
                "points in time and positions"
            )
        height, width, samples = sizes.get("Y", 1), sizes.get("X", 1), sizes.get("S", 1)
        n = self._n_planes()
        row_bytes, told = width * n * dtype.itemsize, self._nd2.attributes.widthBytes
        if told is not None and not 0 <= told - row_bytes < _MOST_PADDING:
            raise ValueError(f"rows of {row_bytes} bytes are said to take {told}")
        names, um_y, um_x, notes = self._read_metadata()
        colour = samples > 1 and n == len(_COLOURS)
        names = _COLOURS if colour else names if len(names) == n else (None,) * n
        coded = self._nd2.attributes.compressionType
        rows = height if coded else max(1, _BAND_BYTES // (width * n * dtype.itemsize))
        return ImageFacts(
            height=height,
            width=width,
            channels=names,
            dtypes=(dtype.newbyteorder("=").name,),
            um_y=um_y,
            um_x=um_x,
            um_from="axesCalibration of the ND2 metadata",
            colour=colour,
            n_z=sizes.get("Z", 1),
            n_t=sizes.get("T", 1),
            chunk_px=(min(rows, height), width),
            chunk_planes=n,
            levels=((height, width),),
            compression=str(coded) if coded else "none",
            notes=notes,
        )

    def _read_metadata(
        self,
    ) -> tuple[tuple[str | None, ...], float | None, float | None, tuple[str, ...]]:
        """Names of channels, size of a pixel, and what a user should know of them."""
        try:
            channels = self._nd2.metadata.channels or ()
            names = tuple(channel.channel.name or None for channel in channels)
            lengths: list[float | None] = [None, None]
            if channels and all(channels[0].volume.axesCalibrated[:2]):
                um_x, um_y, _ = channels[0].volume.axesCalibration
                lengths = [float(um) if um > 0 else None for um in (um_y, um_x)]
        # Whatever is odd about the metadata, the pixels are what they are.
        except Exception as error:
            note = (
                f"the file's metadata cannot be read ({describe_cause(error)}): names of channels "
                "and pixel size are unknown"
            )
            return (), None, None, (note,)
        return names, lengths[0], lengths[1], ()

    def read(
        self,
        scene: int,
        channels: Sequence[int],
        region: Region,
        *,
        level: int = 0,
        z: int = 0,
        t: int = 0,
    ) -> NDArray[Any]:
        """Read a region of some channels; a frame that is not compressed is mapped."""
        del level
        index = self._frames.get((scene, t, z))
        if index is None:
            raise ValueError(f"it has no frame of position {scene}, time {t} and plane {z}")
        sizes = self._sizes
        is_coded = self._nd2.attributes.compressionType is not None
        n_values = math.prod(sizes.get(axis, 1) for axis in "CYXS")
        self._checks.check(index, 1 if is_coded else n_values * np.dtype(self._nd2.dtype).itemsize)
        frame = np.asarray(self._nd2.read_frame(index))
        # (channels, rows, columns, samples), of which the library leaves out those of length 1.
        shape = (sizes.get("C", 1), sizes.get("Y", 1), sizes.get("X", 1), sizes.get("S", 1))
        # Components of one channel come last, and count as channels unless they are three.
        if shape[0] > 1 and frame.shape == (*shape[1:3], shape[0]):
            frame = np.moveaxis(frame, -1, 0)
        if frame.shape != tuple(n for n in shape if n > 1):
            raise ValueError(f"a frame has {frame.shape} values and should have {shape}")
        planes = frame.reshape(shape)
        rows, cols = region.slices
        samples = shape[3]
        return np.stack([planes[c // samples, rows, cols, c % samples] for c in channels])

    def close(self) -> None:
        """Let go of the file."""
        self._nd2.close()


def open_reader(path: Path) -> Nd2Reader:
    """Open an ND2 file.

    Raises
    ------
    InputError
        If nd2 is not there.
    Exception
        Of any kind, where the file is damaged.
    """
    return Nd2Reader(path)
