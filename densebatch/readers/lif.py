"""Leica LIF, by liffile: images are mapped, so that a region reads its own pages of the file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.names import Scene
from densebatch.readers.reader import ImageFacts, Reader, describe_image, import_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_BAND_BYTES = 2**24
_UM_PER_M = 1e6
_KNOWN = "TZCYXS"
_WORDS = {"M": "mosaic tiles, which would have to be stitched"}
_COLOURS = ("red", "green", "blue")


class LifReader(Reader):
    """An open file."""

    def __init__(self, path: Path) -> None:
        liffile = import_library(path, "liffile", "Leica LIF", "lif")
        self.files = [path]
        self._path = path
        self._lif = liffile.LifFile(path)
        try:
            self._images = [image for image in self._lif.images if not image.is_flim]
            self.scenes = [Scene(image.path, self._describe(image)) for image in self._images]
        except BaseException:
            self.close()
            raise
        if not self._images:
            self.close()
            raise ValueError("it holds no image")

    @staticmethod
    def _describe(image: Any) -> str:  # noqa: ANN401
        sizes = image.sizes
        n = sizes.get("C", 1) * sizes.get("S", 1)
        return describe_image(
            n, sizes.get("Y", 1), sizes.get("X", 1), sizes.get("Z", 1), sizes.get("T", 1)
        )

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""
        image = self._images[scene]
        sizes = dict(image.sizes)
        others = {axis: n for axis, n in sizes.items() if axis not in _KNOWN and n > 1}
        if others or not {"Y", "X"} <= set(sizes):
            listed = " and ".join(
                f"{n} images along {axis} ({_WORDS.get(axis, 'of another kind')})"
                for axis, n in others.items()
            )
            raise InputError(
                f"{self._path} holds {listed or 'no rows and columns'} in {image.path!r}; accepted "
                "are rows, columns, channels, focal planes and points in time"
            )
        height, width, samples = sizes["Y"], sizes["X"], sizes.get("S", 1)
        n = sizes.get("C", 1) * samples
        dtype = np.dtype(image.dtype)
        colour = samples > 1
        names: tuple[str | None, ...] = _read_names(image)
        if colour:
            names = _COLOURS if n == len(_COLOURS) else (None,) * n
        um_y, um_x = (_read_length(image, number) for number in (2, 1))
        rows = max(1, _BAND_BYTES // (width * samples * dtype.itemsize))
        return ImageFacts(
            height=height,
            width=width,
            channels=names if len(names) == n else (None,) * n,
            dtypes=(dtype.newbyteorder("=").name,),
            um_y=um_y,
            um_x=um_x,
            um_from="DimensionDescription of the LIF metadata",
            colour=colour and n == len(_COLOURS),
            n_z=sizes.get("Z", 1),
            n_t=sizes.get("T", 1),
            chunk_px=(min(rows, height), width),
            chunk_planes=samples,
            levels=((height, width),),
            compression="none",
        )

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
        """Read a region of some channels."""
        del level
        image = self._images[scene]
        sizes = dict(image.sizes)
        samples = sizes.get("S", 1)
        n_bytes = math.prod(sizes.values()) * np.dtype(image.dtype).itemsize
        block = image.memory_block
        if block.offset < 0 or block.size < n_bytes:
            raise ValueError(f"the block of {image.path!r} has {block.size} of {n_bytes} bytes")
        if samples > 1:
            return self._read_colours(image, channels, region, z, t)
        pixels = image.asarray(out="memmap")
        rows, cols = region.slices
        place: dict[str, int | slice] = {"Z": z, "T": t, "Y": rows, "X": cols}
        planes = []
        for channel in channels:
            index = tuple((place | {"C": channel}).get(axis, 0) for axis in sizes)
            plane = np.asarray(pixels[index])
            axes = [axis for axis in sizes if axis in "YX"]
            planes.append(plane if axes == ["Y", "X"] else plane.T)
        return np.stack(planes)

    @staticmethod
    def _read_colours(
        image: Any,  # noqa: ANN401
        channels: Sequence[int],
        region: Region,
        z: int,
        t: int,
    ) -> NDArray[Any]:
        """Colours are read by the frame, since the library puts them in order."""
        samples = image.sizes["S"]
        rows, cols = region.slices
        planes = []
        for channel in channels:
            place = {"C": channel // samples, "Z": z, "T": t}
            frame = image.frame(**{axis: k for axis, k in place.items() if axis in image.sizes})
            planes.append(np.asarray(frame)[rows, cols, channel % samples])
        return np.stack(planes)

    def close(self) -> None:
        """Let go of the file."""
        self._lif.close()


def open_reader(path: Path) -> LifReader:
    """Open a LIF file.

    Raises
    ------
    InputError
        If liffile is not there.
    Exception
        Of any kind, where the file is damaged.
    """
    return LifReader(path)


def _read_names(image: Any) -> tuple[str | None, ...]:  # noqa: ANN401
    """Dyes of the channels, else the colours that they are shown in."""
    names = []
    for channel in image.xml_element.iterfind(
        "./Data/Image/ImageDescription/Channels/ChannelDescription"
    ):
        told = {
            (p.findtext("Key") or ""): (p.findtext("Value") or "").strip()
            for p in channel.iterfind("ChannelProperty")
        }
        names.append(told.get("DyeName") or channel.get("LUTName") or None)
    return tuple(names)


def _read_length(image: Any, number: int) -> float | None:  # noqa: ANN401
    """Length of a pixel along a dimension in um: between the first and the last pixel's middle."""
    for dimension in image.xml_element.iterfind(
        "./Data/Image/ImageDescription/Dimensions/DimensionDescription"
    ):
        if dimension.get("DimID") == str(number) and dimension.get("Unit") == "m":
            n = int(dimension.get("NumberOfElements", 0))
            length = abs(float(dimension.get("Length", 0)))
            return length * _UM_PER_M / (n - 1) if n > 1 and length > 0 else None
    return None
