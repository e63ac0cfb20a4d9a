"""Zeiss CZI, with nothing but codecs: blocks are read, decoded and put in their places.

slideio, which reads them too, knows no zstd, with which ZEN compresses since version 3.3, and ends
the process for some damaged files.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.names import Scene
from densebatch.readers.codecs import COMPRESSIONS, IMAGE_CODECS, JPEG_XR, decompress
from densebatch.readers.czi_file import PIXEL_TYPES, Block, CziFile, open_czi, read_block
from densebatch.readers.jpeg_xr import JpegXrDecoder
from densebatch.readers.reader import ImageFacts, Reader, describe_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_PLANE_AXES = ("C", "Z", "T")
_COLOURS = ("red", "green", "blue", "alpha")
_UM_PER_M = 1e6


class _Image:
    """The blocks of one scene, by resolution and plane."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self.starts = {
            axis: sorted({b.places.get(axis, 0) for b in blocks}) for axis in _PLANE_AXES
        }
        self.zooms = sorted({_round_zoom(b.zoom) for b in blocks})
        whole = [b for b in blocks if _round_zoom(b.zoom) == self.zooms[0]]
        self.whole = whole
        self.y0, self.x0 = min(b.y[0] for b in whole), min(b.x[0] for b in whole)
        self.height = max(sum(b.y) for b in whole) - self.y0
        self.width = max(sum(b.x) for b in whole) - self.x0
        self.samples = {PIXEL_TYPES[b.pixel_type][1] for b in blocks}
        self._by_plane: dict[tuple[int, ...], list[Block]] = defaultdict(list)
        for block in sorted(blocks, key=lambda b: b.order):
            places = (block.places.get(axis, 0) for axis in _PLANE_AXES)
            self._by_plane[(self.zooms.index(_round_zoom(block.zoom)), *places)].append(block)

    def plane(self, level: int, c: int, z: int, t: int) -> list[Block]:
        """Blocks of a plane, later ones above earlier ones."""
        wanted = zip(_PLANE_AXES, (c, z, t), strict=True)
        return self._by_plane.get((level, *(self.starts[axis][k] for axis, k in wanted)), [])


class CziReader(Reader):
    """An open file."""

    def __init__(self, path: Path) -> None:
        self.files = [path]
        self._czi = open_czi(path)
        keys: dict[tuple[tuple[str, int], ...], list[Block]] = defaultdict(list)
        for block in self._czi.blocks:
            items = block.places.items()
            keys[tuple(item for item in items if item[0] not in _PLANE_AXES)].append(block)
        # Lower resolutions may belong to all scenes together, and are no scene.
        keys = {
            k: blocks for k, blocks in keys.items() if any(_is_whole(b) for b in blocks)
        } or keys
        ordered = sorted(keys, key=repr if len({len(k) for k in keys}) > 1 else None)
        self._images = [_Image(keys[key]) for key in ordered]
        names = _read_scene_names(self._czi)
        self.scenes = []
        for key, image in zip(ordered, self._images, strict=True):
            places = dict(key)
            what = describe_image(
                len(image.starts["C"]) * max(image.samples), image.height, image.width,
                len(image.starts["Z"]), len(image.starts["T"]),
            )  # fmt: skip
            others = [f"{axis} {start}" for axis, start in places.items() if start and axis != "S"]
            self.scenes.append(Scene(names.get(places.get("S", 0), ""), ", ".join((what, *others))))
        self._file = path.open("rb")
        self._jpeg_xr = JpegXrDecoder()

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""
        image = self._images[scene]
        path = self._czi.path
        if image.zooms[0] != 1:
            raise InputError(f"{path} has no blocks of the highest resolution of this image")
        if len(image.samples) > 1:
            raise InputError(f"{path} has grey and coloured channels in one image")
        (samples,) = image.samples
        unknown = {b.compression for b in image.blocks} - set(COMPRESSIONS)
        if unknown:
            raise InputError(
                f"{path} is compressed in a way of number {min(unknown)}; accepted are "
                f"{', '.join(dict.fromkeys(COMPRESSIONS.values()))}"
            )
        colour = samples > 1
        names = self._read_channel_names(image.starts["C"])
        if colour:
            before = [f"{name or ''} " for name in names] if len(names) > 1 else [""]
            names = [f"{name}{c}" for name in before for c in _COLOURS[:samples]]
        um_y, um_x = (self._read_scaling(axis) for axis in "YX")
        found = {COMPRESSIONS[b.compression]: None for b in image.whole}
        block = max(b.stored[0] for b in image.whole), max(b.stored[1] for b in image.whole)
        return ImageFacts(
            height=image.height,
            width=image.width,
            channels=tuple(names),
            dtypes=tuple({PIXEL_TYPES[b.pixel_type][0]: None for b in image.blocks}),
            um_y=um_y,
            um_x=um_x,
            um_from="Scaling of the CZI metadata" if um_x or um_y else None,
            colour=colour and len(image.starts["C"]) == 1,
            n_z=len(image.starts["Z"]),
            n_t=len(image.starts["T"]),
            chunk_px=(min(block[0], image.height), min(block[1], image.width)),
            chunk_planes=samples,
            levels=tuple(
                (math.ceil(image.height / zoom), math.ceil(image.width / zoom))
                for zoom in image.zooms
            ),
            compression=" and ".join(found),
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
        """Read a region of some channels; 0 where no block lies."""
        image = self._images[scene]
        (samples,) = image.samples
        zoom = image.zooms[level]
        dtype = PIXEL_TYPES[image.blocks[0].pixel_type][0]
        out = np.zeros((len(channels), *region.shape), dtype)
        for c in dict.fromkeys(channel // samples for channel in channels):
            wanted = [(k, ch % samples) for k, ch in enumerate(channels) if ch // samples == c]
            for block in image.plane(level, c, z, t):
                top = round((block.y[0] - image.y0) / zoom)
                left = round((block.x[0] - image.x0) / zoom)
                y0, y1 = max(top, region.y0), min(top + block.stored[0], region.y1)
                x0, x1 = max(left, region.x0), min(left + block.stored[1], region.x1)
                if y0 >= y1 or x0 >= x1:
                    continue
                pixels = self._decode(block)[y0 - top : y1 - top, x0 - left : x1 - left]
                for k, sample in wanted:
                    out[k, y0 - region.y0 : y1 - region.y0, x0 - region.x0 : x1 - region.x0] = (
                        pixels[..., sample]
                    )
        return out

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        self._jpeg_xr.close()

    def _decode(self, block: Block) -> NDArray[Any]:
        """Pixels of a block, (rows, columns, samples), colours as red, green, blue."""
        data = read_block(self._czi, self._file, block)
        dtype, samples = PIXEL_TYPES[block.pixel_type]
        shape = (*block.stored, samples)
        if block.compression == JPEG_XR:
            return self._jpeg_xr.decode(data, np.dtype(dtype), shape)
        pixels = decompress(data, block.compression, np.dtype(dtype), shape)
        if samples > 1 and block.compression not in IMAGE_CODECS:
            pixels = pixels[..., [2, 1, 0, 3][:samples]]
        return pixels

    def _read_channel_names(self, starts: Sequence[int]) -> list[str | None]:
        """Names of the channels that there are, by their numbers."""
        root = self._czi.metadata
        names: dict[int, str] = {}
        for place in ("DisplaySetting/Channels", "Information/Image/Dimensions/Channels"):
            for index, element in enumerate(root.iterfind(f"./Metadata/{place}/Channel")):
                number = element.get("Id", "").removeprefix("Channel:")
                name = element.get("Name") or ""
                if name.strip():
                    names[int(number) if number.isdecimal() else index] = name.strip()
        return [names.get(start) for start in starts]

    def _read_scaling(self, axis: str) -> float | None:
        element = self._czi.metadata.find(f"./Metadata/Scaling/Items/Distance[@Id='{axis}']/Value")
        try:
            value = float((element.text if element is not None else None) or "nan") * _UM_PER_M
        except ValueError:
            return None
        return value if math.isfinite(value) and value > 0 else None


def open_reader(path: Path) -> CziReader:
    """Open a CZI file.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    return CziReader(path)


def _round_zoom(zoom: float) -> int:
    return max(1, round(zoom))


def _is_whole(block: Block) -> bool:
    return _round_zoom(block.zoom) == 1


def _read_scene_names(czi: CziFile) -> dict[int, str]:
    found = czi.metadata.iterfind("./Metadata/Information/Image/Dimensions/S/Scenes/Scene")
    return {
        int(scene.get("Index", "")): (scene.get("Name") or "").strip()
        for scene in found
        if scene.get("Index", "").isdecimal()
    }
