"""What is known of a slide before its pixels are read, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SlideInfo:
    """What is known of a slide before its pixels are read; plain data.

    Attributes
    ----------
    path
        Absolute, or an address; of an OME-Zarr the image group itself.
    kind
        "ome-zarr", "tiff", "png", or one of `readers.formats`.
    height, width
        Pixels of the highest resolution.
    channels
        Names from the metadata, else "0", "1", and so on; "red", "green", "blue" and perhaps
        "alpha" for a colour image.
    dtype
        NumPy name of the pixels' type.
    um_per_px
        From the metadata; None if they do not tell or pixels are not square.
    chunk_px
        Rows and columns that are cheapest to read together.
    chunk_planes
        Planes that are decoded with them, whichever is wanted.
    n_levels
        Resolutions in the file, the highest included.
    ngff
        "0.4" or "0.5" for OME-Zarr, else None.
    scene, axes
        With which `open_slide` opens the same image of `path` again.
    notes
        What a user should know of how the metadata were taken, a sentence each.
    z, t, panel
        As `scene`.
    um_per_px_from
        Where the metadata tell the pixel size, in words.
    levels
        Height and width of each resolution, the highest first.
    compression
        In words, None if it is not known.
    origin_um, origin_from
        As of `Layout`.
    identity
        Hex digest that changes when the content may have changed: layout, and size and time (in
        stores ETag) of the file or of the highest resolution's chunk files.
    """

    path: str
    kind: str
    height: int
    width: int
    channels: tuple[str, ...]
    dtype: str
    um_per_px: float | None
    chunk_px: tuple[int, int]
    chunk_planes: int
    n_levels: int
    ngff: str | None
    scene: str | None
    axes: str | None
    notes: tuple[str, ...]
    identity: str
    z: str | None = None
    t: str | None = None
    panel: str | None = None
    um_per_px_from: str | None = None
    levels: tuple[tuple[int, int], ...] = ()
    compression: str | None = None
    origin_um: tuple[float, float] | None = None
    origin_from: str | None = None

    def describe(self) -> dict[str, Any]:
        """The slide as `densebatch info` tells it: plain data, of metadata alone."""
        n_bytes = self.height * self.width * len(self.channels) * np.dtype(self.dtype).itemsize
        same = ("path", "dtype", "um_per_px", "um_per_px_from", "chunk_planes", "compression",
                "ngff", "scene", "axes", "z", "t", "panel", "origin_from")  # fmt: skip
        lists = ("channels", "chunk_px", "notes")
        return {
            "format": self.kind,
            "shape": [self.height, self.width],
            "levels": [list(level) for level in self.levels],
            "bytes": n_bytes,
            "origin_um": None if self.origin_um is None else list(self.origin_um),
            **{name: getattr(self, name) for name in same},
            **{name: list(getattr(self, name)) for name in lists},
        }


def decoded_bytes(slide: SlideInfo, rows: int, cols: int) -> int:
    """Of the chunks that a region of a slide reaches into: they are decoded whole."""
    chunk_y, chunk_x = slide.chunk_px
    area = min(slide.height, rows + 2 * chunk_y) * min(slide.width, cols + 2 * chunk_x)
    return area * slide.chunk_planes * np.dtype(slide.dtype).itemsize
