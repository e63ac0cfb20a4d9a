"""3DHISTECH MRXS, by OpenSlide: a file and a folder of its name beside it.

OpenSlide shows the slide in 8 bits of red, green and blue, whatever the scanner's filters were. It
ends the process that reads some damaged files, so that it reads in one of its own:

    python -m densebatch.readers.mrxs SLIDE
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
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_COLOURS = ("red", "green", "blue")
_USUAL_TILE_PX = 512


class OpenSlideReader(Reader):
    """An open file that OpenSlide knows."""

    def __init__(self, path: Path) -> None:
        openslide = import_library(path, "openslide", "3DHISTECH MRXS", "mrxs")
        self.files = [path]
        self._open: Callable[[], Any] = lambda: openslide.OpenSlide(str(path))
        self._slide = self._open()
        width, height = self._slide.dimensions
        self.scenes = [Scene("", describe_image(len(_COLOURS), height, width))]

    def describe(self, scene: int) -> ImageFacts:
        """What is known of the image."""
        del scene
        told = self._slide.properties
        tiles = [told.get(f"openslide.level[0].tile-{side}") for side in ("height", "width")]
        width, height = self._slide.dimensions
        rows, cols = (int(tile) if tile else _USUAL_TILE_PX for tile in tiles)
        um_y, um_x = (_read_um(told.get(f"openslide.mpp-{axis}")) for axis in "yx")
        return ImageFacts(
            height=height,
            width=width,
            channels=_COLOURS,
            dtypes=("uint8",),
            um_y=um_y,
            um_x=um_x,
            um_from="openslide.mpp-x of the slide's properties",
            colour=True,
            chunk_px=(min(rows, height), min(cols, width)),
            chunk_planes=8,  # red, green, blue and opacity, once as they come and once in order
            levels=tuple((rows, cols) for cols, rows in self._slide.level_dimensions),
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
        """Read a region of some channels; the slide's background where nothing was scanned."""
        del scene, z, t
        zoom = self._slide.level_downsamples[level]
        corner = round(region.x0 * zoom), round(region.y0 * zoom)
        size = region.width, region.height
        try:
            pixels = np.asarray(self._slide.read_region(corner, level, size))
        except Exception:
            # After one damaged tile OpenSlide answers whatever it is asked with that error.
            self._slide.close()
            self._slide = self._open()
            raise
        colour = self._slide.properties.get("openslide.background-color") or "ffffff"
        background = np.frombuffer(bytes.fromhex(colour), np.uint8)
        shown = np.where(pixels[..., 3:] == 0, background, pixels[..., :3])
        return np.ascontiguousarray(np.moveaxis(shown[..., list(channels)], -1, 0))

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()


def open_reader(path: Path) -> ProcessReader:
    """Open an MRXS file.

    Raises
    ------
    InputError
        If OpenSlide is not there, or the folder beside the file.
    ValueError
        If OpenSlide cannot open the file.
    """
    import_library(path, "openslide", "3DHISTECH MRXS", "mrxs")
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise InputError(
            f"{path} has no folder {folder.name} beside it, in which its pixels are: both are "
            "needed"
        )
    files = [path, *sorted(p for p in folder.iterdir() if p.is_file())]
    return ProcessReader(path, files, __name__, "OpenSlide")


def _read_um(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 < value < np.inf else None


if __name__ == "__main__":
    # Now, because the first request may not take as long as this does from a slow disk.
    import_library(Path(sys.argv[1]), "openslide", "3DHISTECH MRXS", "mrxs")
    serve_reader(lambda: OpenSlideReader(Path(sys.argv[1])))
