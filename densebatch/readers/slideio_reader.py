"""Files that slideio reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.names import Scene
from densebatch.readers.reader import ImageFacts, Reader, describe_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

# Of a file whose blocks are not known: slideio tells no block, and most files have such tiles.
_USUAL_BLOCK_PX = 512
_UM_PER_M = 1e6


class SlideioReader(Reader):
    """An open file.

    Parameters
    ----------
    slideio
        The library.
    path
        Of the file.
    driver
        As slideio calls the format.
    files
        All files that pixels come from.
    um_from
        Where the file tells the size of a pixel, in words.
    block_px
        Rows and columns of its blocks, if they are known.
    compression
        In words, if it is known.
    scene_names
        By the number that slideio's name of a scene has, if that is told elsewhere.
    """

    def __init__(
        self,
        slideio: Any,  # noqa: ANN401
        path: Path,
        driver: str,
        *,
        files: Sequence[Path],
        um_from: str,
        block_px: tuple[int, int] | None = None,
        compression: str | None = None,
        scene_names: Mapping[int, str] | None = None,
    ) -> None:
        self.files = files
        self._slide = slideio.open_slide(str(path), driver)
        self._um_from, self._block_px, self._compression = um_from, block_px, compression
        self._scenes = [self._slide.get_scene(k) for k in range(self._slide.num_scenes)]
        if not self._scenes:
            self.close()
            raise ValueError("it holds no image")
        places = [_read_place(scene.name) for scene in self._scenes]
        own = [place["s"] for place in places if place and "s" in place]
        is_numbered = len(own) == len(places) == len(set(own))
        self.scenes = []
        for scene, place in zip(self._scenes, places, strict=True):
            name = scene.name
            if place is not None:
                name = (scene_names or {}).get(place.get("s", -1), "") if is_numbered else name
            width, height = scene.rect[2:]
            what = describe_image(
                scene.num_channels, height, width, scene.num_z_slices, scene.num_t_frames
            )
            self.scenes.append(Scene(name, what))

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""
        of = self._scenes[scene]
        width, height = of.rect[2:]
        names = tuple((of.get_channel_name(k) or "").strip() for k in range(of.num_channels))
        dtypes = tuple(_name_dtype(of.get_channel_data_type(k)) for k in range(of.num_channels))
        # slideio repeats the name of a channel of colours for each of them.
        colour = of.num_channels in (3, 4) and len(set(names)) == 1
        um_x, um_y = (float(n) * _UM_PER_M or None for n in of.resolution)
        levels = [of.get_zoom_level_info(k).size for k in range(of.num_zoom_levels)]
        sizes = [(int(level.height), int(level.width)) for level in levels] or [(height, width)]
        block = self._block_px or (_USUAL_BLOCK_PX, _USUAL_BLOCK_PX)
        compression = self._compression or str(of.compression).rpartition(".")[2]
        return ImageFacts(
            height=height,
            width=width,
            channels=names,
            dtypes=tuple(dict.fromkeys(dtypes)),
            um_y=um_y,
            um_x=um_x,
            um_from=self._um_from if um_x or um_y else None,
            colour=colour,
            n_z=of.num_z_slices,
            n_t=of.num_t_frames,
            chunk_px=(min(block[0], height), min(block[1], width)),
            chunk_planes=of.num_channels if colour else 1,
            levels=((height, width), *sizes[1:]),
            compression=compression,
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
        of = self._scenes[scene]
        stacks = {"slices": (z, z + 1), "frames": (t, t + 1), "channel_indices": list(channels)}
        rect = region.x0, region.y0, region.width, region.height
        # Without a level slideio chooses the highest, whose size is asked for.
        block = (
            of.read_block_from_level(level, rect, **stacks)
            if level
            else of.read_block(rect, **stacks)
        )
        planes: NDArray[Any] = np.asarray(block).reshape(*region.shape, len(channels))
        return np.ascontiguousarray(np.moveaxis(planes, -1, 0))

    def close(self) -> None:
        """Let go of the file."""
        for scene in getattr(self, "_scenes", ()):
            scene.close()
        self._scenes = []
        self._slide.close()


def _read_place(name: str) -> dict[str, int] | None:
    """Numbers in a name that slideio makes of a scene's dimensions; None if it is none.

    Examples
    --------
    >>> _read_place("kidney(s:1 i:0 v:0 h:0 r:0 b:0)"), _read_place("20x_DAPI")
    ({'s': 1, 'i': 0, 'v': 0, 'h': 0, 'r': 0, 'b': 0}, None)
    """
    found = re.search(r"\(((?:[a-z]:\d+ ?)+)\)$", name)
    if found is None:
        return None
    parts = (part.split(":") for part in found[1].split())
    return {axis: int(number) for axis, number in parts}


def _name_dtype(kind: object) -> str:
    """NumPy's name of one of slideio's types.

    Examples
    --------
    >>> _name_dtype("DataType.DT_UInt16"), _name_dtype("DataType.DT_Byte")
    ('uint16', 'uint8')
    """
    name = str(kind).rpartition("DT_")[2].lower()
    return {"byte": "uint8"}.get(name, name)
