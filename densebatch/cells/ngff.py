"""OME-Zarr pyramids as pure data: their geometry and the metadata documents that describe them.

Nothing here touches a disk: `labels` writes what these functions say.

Choices that the specification leaves open, and why they were made:

- *Scales are plain*, 2^level times the pixel size, the same for image and labels and without a
  translation. Strictly, a mean of 2×2 pixels sits half a pixel away from the pixel that labels
  keep, but viewers place levels by their scale (napari reads nothing else), and an overlay must
  not jump when one of the two layers changes level. Labels of an existing image copy its
  transformations to the letter for the same reason.
- *No `colors` in `image-label`*: the specification recommends one entry for every label, and
  viewers take the list for complete. With a single entry napari draws that one cell and hides all
  others; with a million the document is tens of megabytes that a reader parses before it draws.
  Without the list every cell gets a colour of its own, and the document is valid (`colors` is a
  SHOULD).
- *An unknown pixel size* is a scale of 1 at full resolution without a unit, rather than a wrong
  number of micrometres.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]
Version = Literal["0.4", "0.5"]
# One step: its kind and its numbers along y and x.
Transform = tuple[Literal["scale", "translation"], float, float]

SHARD_PX = 2048  # side of the unit of writing: enough tasks for a few cores on a small slide

ZARR_FORMATS: dict[str, Literal[2, 3]] = {"0.4": 2, "0.5": 3}
# More layers than this switched on at once slow every viewer down; the rest is one click away.
VISIBLE_CHANNELS = 4
CHANNEL_COLORS = ("0000FF", "00FF00", "FF0000", "FF00FF", "00FFFF", "FFFF00", "FFFFFF")


@dataclass(frozen=True)
class SlidePyramid:
    """How an OME-Zarr image is laid out, for labels of it.

    Attributes
    ----------
    shapes
        Height and width of every level, finest first.
    transforms
        Scale and translation of every level, along y and x.
    outer
        Transformations of the whole multiscale image, applied after those of a level.
    units
        Units of the y and x axes; None where the image gives none.
    """

    shapes: tuple[tuple[int, int], ...]
    transforms: tuple[tuple[Transform, ...], ...]
    outer: tuple[Transform, ...] = ()
    units: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True)
class PyramidSpec:
    """Everything a worker needs to write its part of the output: small, picklable, pure data.

    Attributes
    ----------
    root
        Folder of the image group that holds `labels/`: the output's own
        `segmentation.ome.zarr`, or the slide itself when `slide` is set.
    ngff
        OME-Zarr version: "0.5" (zarr 3, sharded, with checksums) or "0.4" (zarr 2).
    height, width
        Pixels at full resolution.
    n_levels
        Levels of labels and image alike (the specification wants them equal).
    um_per_px
        Pixel size at full resolution in µm; None if unknown.
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
    label_name: str = "cells"
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
    def zarr_format(self) -> Literal[2, 3]:
        """The zarr format that the OME-Zarr version is stored in."""
        return ZARR_FORMATS[self.ngff]

    def level_shape(self, level: int) -> tuple[int, int]:
        """Height and width of a level; each is half of the one before, rounded up."""
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


def label_document(spec: PyramidSpec) -> Json:
    """Attributes of the label image: `multiscales` and `image-label`."""
    label: Json = {"version": spec.ngff}
    if spec.image or spec.in_place:
        label["source"] = {"image": "../../"}
    multiscale = _multiscale(spec, name=spec.label_name, method="nearest", channel=False)
    return _versioned(spec, {"multiscales": [multiscale], "image-label": label})


def image_document(spec: PyramidSpec) -> Json:
    """Attributes of the group above `labels/`: those of the image, or none."""
    if not spec.image:
        return _versioned(spec, {})
    multiscale = _multiscale(spec, name=spec.image_name, method="mean", channel=True)
    colors = ("FFFFFF",) if len(spec.channels) == 1 else CHANNEL_COLORS
    channels = [
        {
            "label": name,
            "color": colors[index % len(colors)],
            "active": index < VISIBLE_CHANNELS,
            "window": _window(spec, index),
        }
        for index, name in enumerate(spec.channels)
    ]
    return _versioned(spec, {"multiscales": [multiscale], "omero": {"channels": channels}})


def listing_document(spec: PyramidSpec, names: Sequence[str]) -> Json:
    """Attributes of the `labels` group: the names of its label images."""
    return _versioned(spec, {"labels": list(names)})


def ome_attributes(attributes: Mapping[str, Any]) -> Json:
    """The OME part of a group's attributes: under `ome` from 0.5 on, at the top before.

    Examples
    --------
    >>> ome_attributes({"ome": {"labels": ["a"]}}) == ome_attributes({"labels": ["a"]})
    True
    """
    return dict(attributes.get("ome", attributes))


def multiscale_of(attributes: Mapping[str, Any], where: str) -> Json:
    """The first multiscale entry of a group's attributes.

    Raises
    ------
    InputError
        If the group is no multiscale image.
    """
    match ome_attributes(attributes):
        case {"multiscales": [{"datasets": [{"path": str()}, *_]} as multiscale, *_]}:
            return dict(multiscale)
    raise InputError(f"{where} is not an OME-Zarr image: it has no multiscales with datasets.")


def parse_slide(
    attributes: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], where: str
) -> tuple[Version, SlidePyramid]:
    """Version and layout of an existing image, from its attributes and the shapes of its arrays.

    Raises
    ------
    InputError
        If the version is neither 0.4 nor 0.5, there are no y and x axes, or a transformation is of
        a kind that labels cannot copy.
    """
    multiscale = multiscale_of(attributes, where)
    version = attributes["ome"].get("version") if "ome" in attributes else multiscale.get("version")
    if version not in ZARR_FORMATS:
        raise InputError(f"{where} is OME-Zarr {version}; labels go into 0.4 and 0.5 only.")
    axes = [
        axis if isinstance(axis, dict) else {"name": axis} for axis in multiscale.get("axes", ())
    ]
    names = [axis.get("name") for axis in axes]
    if not {"y", "x"} <= set(names) or any(len(shape) != len(names) for shape in shapes):
        raise InputError(f"{where} has axes {names} for shapes {list(shapes)}; y and x are needed.")
    y, x = names.index("y"), names.index("x")

    def plane(steps: Sequence[Json]) -> tuple[Transform, ...]:
        result: list[Transform] = []
        for step in steps:
            match step:
                case {"type": "scale", "scale": list(numbers)} if len(numbers) == len(names):
                    result.append(("scale", float(numbers[y]), float(numbers[x])))
                case {"type": "translation", "translation": list(n)} if len(n) == len(names):
                    result.append(("translation", float(n[y]), float(n[x])))
                case {"type": "identity"}:
                    pass
                case _:
                    raise InputError(f"{where} has the transformation {step}, which is not known.")
        return tuple(result)

    layout = SlidePyramid(
        shapes=tuple((shape[y], shape[x]) for shape in shapes),
        transforms=tuple(
            plane(dataset.get("coordinateTransformations", ()))
            for dataset in multiscale["datasets"]
        ),
        outer=plane(multiscale.get("coordinateTransformations") or ()),
        units=(axes[y].get("unit"), axes[x].get("unit")),
    )
    if not all(layout.transforms):
        raise InputError(f"{where} has a level without a scale.")
    return version, layout


def _versioned(spec: PyramidSpec, document: Json) -> Json:
    """Put a document where its version keeps it."""
    if spec.ngff == "0.4":
        return document
    return {"ome": {"version": spec.ngff, **document}}


def _multiscale(spec: PyramidSpec, *, name: str, method: str, channel: bool) -> Json:
    if spec.slide is not None:
        layout = spec.slide
    else:
        pixel = 1.0 if spec.um_per_px is None else spec.um_per_px
        unit = None if spec.um_per_px is None else "micrometer"
        scales = [pixel * 2**level for level in range(spec.n_levels)]
        layout = SlidePyramid((), tuple((("scale", s, s),) for s in scales), (), (unit, unit))

    def steps(transforms: tuple[Transform, ...]) -> list[Json]:
        return [
            {"type": kind, kind: [1.0 if kind == "scale" else 0.0] * channel + [y, x]}
            for kind, y, x in transforms
        ]

    axes: list[Json] = [{"name": "c", "type": "channel"}] if channel else []
    for axis, unit in zip("yx", layout.units, strict=True):
        axes.append({"name": axis, "type": "space"} | ({} if unit is None else {"unit": unit}))
    document: Json = {"name": name, "type": method, "axes": axes}
    document["datasets"] = [
        {"path": str(level), "coordinateTransformations": steps(transforms)}
        for level, transforms in enumerate(layout.transforms)
    ]
    if layout.outer:
        document["coordinateTransformations"] = steps(layout.outer)
    return {"version": spec.ngff, **document} if spec.ngff == "0.4" else document


def _window(spec: PyramidSpec, index: int) -> dict[str, float]:
    dtype = np.dtype(spec.image_dtype)
    limits = None if spec.windows is None else spec.windows[index]
    if dtype.kind in "ui":
        low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    else:
        low, high = limits or (0.0, 1.0)
    start, end = limits or (low, high)
    return {"min": low, "max": high, "start": float(start), "end": float(end)}
