"""Olympus VSI, by slideio: a small file, and a folder beside it with the pixels.

No file of a microscope is at hand, so this reader is untried. slideio ends the process that reads
some damaged files, so that it reads in one of its own:

    python -m densebatch.readers.vsi SLIDE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.names import Scene
from densebatch.readers.own_process import ProcessReader, serve_reader
from densebatch.readers.reader import ImageFacts, Reader, describe_image, import_library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

# Of a file whose tiles are not known, most files have such.
_USUAL_TILE_PX = 512
_UM_PER_M = 1e6


class SlideioReader(Reader):
    """An open file.

    Parameters
    ----------
    path
        Of the file.
    """

    def __init__(self, path: Path) -> None:
        slideio = import_library(path, "slideio", "Olympus VSI", "vsi")
        self.files = [path]
        self._slide = slideio.open_slide(str(path), "VSI")
        self._scenes = [self._slide.get_scene(k) for k in range(self._slide.num_scenes)]
        if not self._scenes:
            raise ValueError("it holds no image")
        self.scenes = []
        for scene in self._scenes:
            _try_colours(scene)
            width, height = scene.rect[2:]
            what = describe_image(
                scene.num_channels, height, width, scene.num_z_slices, scene.num_t_frames
            )
            self.scenes.append(Scene(scene.name, what))

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""
        of = self._scenes[scene]
        width, height = of.rect[2:]
        names = tuple((of.get_channel_name(k) or "").strip() for k in range(of.num_channels))
        dtypes = tuple(_name_dtype(of.get_channel_data_type(k)) for k in range(of.num_channels))
        # slideio repeats the name of a channel of colours for each of them.
        colour = of.num_channels in (3, 4) and len(set(names)) == 1
        um_x, um_y = (float(n) * _UM_PER_M or None for n in of.resolution)
        levels = [of.get_zoom_level_info(k) for k in range(of.num_zoom_levels)]
        sizes = tuple((int(level.size.height), int(level.size.width)) for level in levels)
        tile = levels[0].tile_size if levels else None
        rows, cols = (int(tile.height), int(tile.width)) if tile is not None else (0, 0)
        return ImageFacts(
            height=height,
            width=width,
            channels=names,
            dtypes=tuple(dict.fromkeys(dtypes)),
            um_y=um_y,
            um_x=um_x,
            um_from="the VSI metadata" if um_x or um_y else None,
            colour=colour,
            n_z=of.num_z_slices,
            n_t=of.num_t_frames,
            chunk_px=(min(rows or _USUAL_TILE_PX, height), min(cols or _USUAL_TILE_PX, width)),
            chunk_planes=of.num_channels if colour else 1,
            levels=((height, width), *sizes[1:]),
            compression=str(of.compression).rpartition(".")[2],
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
        """Read a region of some channels; slideio's background where there is no tile."""
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
        for scene in self._scenes:
            scene.close()
        self._scenes = []
        self._slide.close()


def open_reader(path: Path) -> ProcessReader:
    """Open a VSI file.

    Raises
    ------
    InputError
        If slideio is not there, or the folder beside the file.
    ValueError
        If slideio cannot open the file.
    """
    import_library(path, "slideio", "Olympus VSI", "vsi")
    folder = path.with_name(f"_{path.stem}_")
    if not folder.is_dir():
        raise InputError(
            f"{path} has no folder {folder.name} beside it, in which its pixels are: both are "
            "needed"
        )
    return ProcessReader(path, [path, *sorted(folder.rglob("*.ets"))], __name__, "slideio")


def _try_colours(scene: Any) -> None:  # noqa: ANN401
    """Refuse uncompressed tiles of colours: slideio knows one, and gives 255 for all at once."""
    if not str(scene.compression).endswith("Uncompressed") or scene.num_channels == 1:
        return
    stacks = {"slices": (0, 1), "frames": (0, 1), "channel_indices": [scene.num_channels - 1]}
    try:
        scene.read_block((0, 0, 1, 1), **stacks)
    except RuntimeError as error:
        raise ValueError(
            "its tiles are uncompressed, and slideio reads no colours of such"
        ) from error


def _name_dtype(kind: object) -> str:
    """NumPy's name of one of slideio's types.

    Examples
    --------
    >>> _name_dtype("DataType.DT_UInt16"), _name_dtype("DataType.DT_Byte")
    ('uint16', 'uint8')
    """
    name = str(kind).rpartition("DT_")[2].lower()
    return {"byte": "uint8"}.get(name, name)


if __name__ == "__main__":
    # Now, because the first request may not take as long as this does from a slow disk.
    import_library(Path(sys.argv[1]), "slideio", "Olympus VSI", "vsi")
    serve_reader(lambda: SlideioReader(Path(sys.argv[1])))
