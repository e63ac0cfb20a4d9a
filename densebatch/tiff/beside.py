"""Pictures that a TIFF holds beside a slide: a thumbnail, the label on the glass, a macro.

They are told by the tag for reduced images, by what the makers of scanners write, by names, and by
being a small copy.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from densebatch.tiff.image import UNNAMED_KINDS
from densebatch.tiff.makers import name_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.tiff.image import TiffImage

# Names of pictures beside a slide, as words of a name. A label image is something else for cells.
_PICTURES = "thumbnail|thumb|macro|overview|preview|barcode|navigation"
_LABELS = "label|slide label|label image"
REDUCED, LEVEL, COPY = "reduced image", "lower resolution", "smaller copy"


def tell_beside(images: Sequence[TiffImage], *, for_cells: bool) -> list[TiffImage]:
    """Say of each image what it is if it is no image of its own, and count resolutions.

    Parameters
    ----------
    images
        Of one file, in order.
    for_cells
        Whether a label image of cells is sought, so that an image named "label" is none of the
        glass.
    """
    told = {id(image): _tell_alone(image) for image in images}
    names = {id(image): _read_name(image, for_cells=for_cells) for image in images}
    plain = [
        image
        for image in images
        if not (image.beside or told[id(image)] or names[id(image)]) and image.series is not None
    ]
    if not plain:
        marked = [told[id(image)] or image.beside for image in images]
        return [replace(i, beside=beside) for i, beside in zip(images, marked, strict=True)]
    main = max(plain, key=lambda image: image.area)
    result = []
    for image in images:
        beside, name = image.beside or told[id(image)], names[id(image)]
        if image.series is not None and image is not main and image.beside == "":
            is_level = _is_copy(image, main, is_marked=bool(beside)) and _has_planes_of(image, main)
            if name and image.area < main.area:
                beside = name
            elif is_level and (beside == REDUCED or image.series.keyframe.is_subifd):
                beside = LEVEL
            elif not beside and _is_copy(image, main):
                beside = COPY if image.is_colour == main.is_colour else "smaller colour copy"
        result.append(replace(image, beside=beside))
    levels = [
        level
        for image in result
        if image.beside in (LEVEL, COPY) and _has_planes_of(image, main)
        for level in image.levels
    ]
    at = next(i for i, image in enumerate(images) if image is main)
    result[at] = replace(main, levels=main.levels + tuple(sorted(levels, reverse=True)))
    return result


def _tell_alone(image: TiffImage) -> str:
    """What an image is if a tag says that it is no image of its own."""
    if image.series is None:
        return ""
    keyframe = image.series.keyframe
    if keyframe.is_mask:
        return "transparency mask"
    return REDUCED if keyframe.is_reduced else ""


def _read_name(image: TiffImage, *, for_cells: bool) -> str:
    """What an image is by its maker's format, or by words of its name or of its only channel's."""
    maker = "" if image.series is None else name_pages(image.series)
    if maker and not (for_cells and maker == "label"):
        return maker
    words = _PICTURES if for_cells else f"{_PICTURES}|{_LABELS}"
    pattern = re.compile(rf"(?:^|[^a-z])({words})(?:$|[^a-z])")
    found = (pattern.search(name) for name in (image.name.lower(), *_only_channel(image)))
    return next((match[1] for match in found if match), "")


def _has_planes_of(small: TiffImage, large: TiffImage) -> bool:
    counts = [
        0 if image.series is None else math.prod(image.series.shape) // max(1, image.area)
        for image in (small, large)
    ]
    return counts[0] == counts[1] and small.is_colour == large.is_colour


def _only_channel(image: TiffImage) -> list[str]:
    """The name of the channel of an OME image with one."""
    if image.ome is None:
        return []
    names = [e.get("Name") or "" for e in image.ome.pixels if e.tag.endswith("Channel")]
    return [names[0].lower()] if len(names) == 1 else []


def _is_copy(small: TiffImage, large: TiffImage, *, is_marked: bool = False) -> bool:
    """Whether an image seems to be a smaller one of another.

    Images that a file describes one by one may well be several fields, one smaller than the other,
    so that only a colour picture of grey planes, or an equal area in micrometres, tells of a copy.
    """
    (h, w), (height, width) = small.size, large.size
    factor = width / max(1, w)
    if factor < 1.5 or abs(height / factor - h) > 1:
        return False
    if small.series is None or large.series is None:
        return False
    if is_marked or (small.is_colour and not large.is_colour):
        return True
    if small.series.keyframe.is_subifd or small.series.kind in (*UNNAMED_KINDS, "ndpi"):
        return True
    extents = [_read_extent(image) for image in (small, large)]
    return None not in extents and math.isclose(*extents, rel_tol=0.02)  # type: ignore[arg-type]


def _read_extent(image: TiffImage) -> float | None:
    """Width of an OME image in its unit of length, None if it is not told."""
    if image.ome is None or "PhysicalSizeX" not in image.ome.pixels.attrib:
        return None
    try:
        return float(image.ome.pixels.attrib["PhysicalSizeX"]) * image.size[1]
    except ValueError:
        return None
