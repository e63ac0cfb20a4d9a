"""A label image and the image beside it as pure data: levels, chunks, shards, metadata.

Nothing here touches a disk: `pyramid` and `labels` write what these functions say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.geometry import Grid
from densebatch.ngff.metadata import (
    ZARR_FORMATS,
    Json,
    SlidePyramid,
    Version,
    ZarrFormat,
    describe_channel,
    describe_multiscale,
    image_attributes,
    label_attributes,
    place_attributes,
    plain_pyramid,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

LABEL_NAME = "cells"
MISSING_NAME = "missing"
"""Of the label image that marks the area without a result, where there is such an area."""
COMPARTMENT_LABELS = {"nucleus": "nuclei", "cytoplasm": "cytoplasm", "membrane": "membrane"}
"""Of the label images of what lies within cells, by the name of the compartment."""
OWNER = "densebatch"
"""Our own key in a group's attributes tells our groups from others', and one run from another."""
SHARD_PX = 2048  # side of the unit of writing: enough tasks for a few processors on a small slide

MAX_PROPERTIES = 10_000
"""Up to so many cells metadata tell of each; every reader parses them, some 40 bytes a cell."""
# More layers than this switched on at once slow every viewer down; the rest is one click away.
VISIBLE_CHANNELS = 4
CHANNEL_COLORS = ("0000FF", "00FF00", "FF0000", "FF00FF", "00FFFF", "FFFF00", "FFFFFF")


@dataclass(frozen=True)
class PyramidSpec:
    """Everything a worker needs to write its part of the output: small, picklable, pure data.

    Attributes
    ----------
    root
        Folder of the image group that holds `labels/`: the output's own
        `segmentation.ome.zarr`, or the slide itself when `in_place`.
    ngff
        OME-Zarr version: "0.5" (zarr 3, sharded, with checksums) or "0.4" (zarr 2).
    height, width
        Pixels at full resolution.
    n_levels
        Levels of labels and image alike (the specification wants them equal).
    um_per_px
        Pixel size at full resolution in µm; None if unknown.
    origin_um
        Where the first pixel lies along y and x; None if that is nowhere else than at 0.
    label_name
        Name of the label image inside `labels/`.
    image
        Whether an image pyramid is written beside the labels.
    channels
        Channel names of that image, in order.
    image_dtype
        Its numpy data type: any integer or real type.
    windows
        Display range (start, end) of each channel; the range of the data type if None.
    image_name
        Name that viewers show for the image.
    chunk_px
        Side of a chunk, the unit of reading.
    shard_px
        Side of a shard, the unit of writing; a multiple of `chunk_px`.
    slide
        Layout of an existing image that the labels are of: their levels and scales are its own.
    in_place
        Whether that image is the one at `root`, and labels go into it.
    """

    root: str
    ngff: Version
    height: int
    width: int
    n_levels: int
    um_per_px: float | None = None
    origin_um: tuple[float, float] | None = None
    label_name: str = LABEL_NAME
    image: bool = False
    channels: tuple[str, ...] = ()
    image_dtype: str | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    image_name: str = "image"
    chunk_px: int = 512
    shard_px: int = SHARD_PX
    slide: SlidePyramid | None = None
    in_place: bool = False

    def __post_init__(self) -> None:
        if self.ngff not in ZARR_FORMATS:
            raise ValueError(f"OME-Zarr version is one of {', '.join(ZARR_FORMATS)}: {self.ngff}")
        if min(self.height, self.width, self.n_levels, self.chunk_px) < 1:
            raise ValueError(f"sizes and levels are positive: {self}")
        if self.shard_px < 1 or self.shard_px % self.chunk_px:
            raise ValueError(f"a shard of {self.shard_px} px is no multiple of {self.chunk_px} px")
        if not re.fullmatch(r"\w[\w.-]*", self.label_name):
            raise ValueError(
                f"a label name has letters, digits, _, - and . only: {self.label_name}"
            )
        if self.in_place and self.slide is None:
            raise ValueError("labels written into an image have its layout")
        if self.slide is not None:
            if self.image:
                raise ValueError("labels of an existing image bring no image of their own")
            if not len(self.slide.shapes) == len(self.slide.transforms) == self.n_levels:
                raise ValueError(f"{self.n_levels} levels are not those of {self.slide}")
            if self.slide.shapes[0] != (self.height, self.width):
                raise ValueError(f"{self.height} by {self.width} px are not those of {self.slide}")
        if self.image:
            if not self.channels or self.image_dtype is None:
                raise ValueError("an image has channels and a data type")
            if np.dtype(self.image_dtype).kind not in "uif":
                raise ValueError(f"an image is of integer or real type, not {self.image_dtype}")
            if self.windows is not None and len(self.windows) != len(self.channels):
                raise ValueError(f"{len(self.channels)} channels have {len(self.windows)} windows")

    @property
    def zarr_format(self) -> ZarrFormat:
        """The zarr format that the OME-Zarr version is stored in."""
        return ZARR_FORMATS[self.ngff]

    def level_shape(self, level: int) -> tuple[int, int]:
        """Height and width of a level; each is half of the one before, rounded up.

        Raises
        ------
        ValueError
            If there is no such level.
        """
        if not 0 <= level < self.n_levels:
            raise ValueError(f"levels are 0 to {self.n_levels - 1}, not {level}")
        if self.slide is not None:
            return self.slide.shapes[level]
        return -(-self.height // 2**level), -(-self.width // 2**level)

    def chunk_shape(self, level: int) -> tuple[int, int]:
        """Pixels of a chunk: no larger than the level."""
        height, width = self.level_shape(level)
        return min(self.chunk_px, height), min(self.chunk_px, width)

    def unit_shape(self, level: int) -> tuple[int, int]:
        """Pixels that one task writes whole: a shard, no larger than the level needs."""
        return tuple(  # type: ignore[return-value]
            min(self.shard_px, -(-size // chunk) * chunk)
            for size, chunk in zip(self.level_shape(level), self.chunk_shape(level), strict=True)
        )


def count_levels(height: int, width: int, top_px: int = 512) -> int:
    """Levels until the longest side is at most `top_px`, so that an overview is one chunk.

    Examples
    --------
    >>> count_levels(1040, 1392), count_levels(512, 512), count_levels(1, 513)
    (3, 1, 2)
    """
    longest = max(height, width)
    levels = 1
    while longest > top_px:
        longest = -(-longest // 2)
        levels += 1
    return levels


def shard_grid(spec: PyramidSpec, level: int) -> Grid:
    """The units of a level: each is written whole by one task and by no other.

    Two writers inside one shard lose data without an error. OME-Zarr 0.4 has no shards; there the
    units are blocks of whole chunks of the same size.
    """
    return Grid(*spec.level_shape(level), *spec.unit_shape(level))


def label_document(spec: PyramidSpec, areas: Sequence[int] = ()) -> Json:
    """Attributes of the label image: `multiscales` and `image-label`.

    Parameters
    ----------
    spec
        Of the label image.
    areas
        Pixels of the labels 1..N, which become their properties; none if they are many.
    """
    pyramid = _pyramid(spec)
    multiscale = describe_multiscale(spec.ngff, spec.label_name, pyramid, method="nearest")
    properties = [{"label-value": i, "area_px": n} for i, n in enumerate(areas, start=1)]
    of_image = spec.image or spec.in_place
    return label_attributes(spec.ngff, multiscale, of_image=of_image, properties=properties)


def image_document(spec: PyramidSpec) -> Json:
    """Attributes of the group above `labels`: those of the image, or no more than the version."""
    if not spec.image:
        return place_attributes(spec.ngff, {})
    multiscale = describe_multiscale(
        spec.ngff, spec.image_name, _pyramid(spec), method="mean", channel=True
    )
    colors = ("FFFFFF",) if len(spec.channels) == 1 else CHANNEL_COLORS
    channels = []
    for index, name in enumerate(spec.channels):
        limits, shown = _window(spec, index)
        active = index < VISIBLE_CHANNELS
        color = colors[index % len(colors)]
        channels.append(describe_channel(name, color, active=active, limits=limits, shown=shown))
    return image_attributes(spec.ngff, multiscale, channels)


def _pyramid(spec: PyramidSpec) -> SlidePyramid:
    return spec.slide or plain_pyramid(spec.um_per_px, spec.n_levels, spec.origin_um)


def _window(spec: PyramidSpec, index: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of a channel's values, and the range that viewers show."""
    dtype = np.dtype(spec.image_dtype)
    limits = None if spec.windows is None else spec.windows[index]
    if dtype.kind in "ui":
        low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    else:
        low, high = limits or (0.0, 1.0)
    start, end = limits or (low, high)
    return (low, high), (float(start), float(end))
