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
    from densebatch.tiff.image import TiffImage

# Names of pictures beside a slide, as words of a name. A label image is something else for cells.
_PICTURES = "thumbnail|thumb|macro|overview|preview|barcode|navigation"
_LABELS = "label|slide label|label image"


def tell_alone(image: TiffImage) -> str:
    """What an image is if it says itself that it is no image of its own."""
    keyframe = image.series.keyframe  # type: ignore[union-attr]
    if keyframe.is_mask:
        return "transparency mask"
    if keyframe.is_reduced:
        return "reduced image"
    return ""


def tell_together(images: list[TiffImage], *, for_cells: bool) -> list[TiffImage]:
    """Say of small images beside a larger one what they are."""
    words = _PICTURES if for_cells else f"{_PICTURES}|{_LABELS}"
    pattern = re.compile(rf"(?:^|[^a-z])({words})(?:$|[^a-z])")

    def read_name(image: TiffImage) -> str:
        names = [image.name.lower(), *_only_channel(image)]
        found = next((m for m in map(pattern.search, names) if m), None)
        if found is None and image.series is not None:
            maker = name_pages(image.series)
            return "" if for_cells and maker == "label" else maker
        return found[1] if found else ""

    candidates = [image for image in images if not image.beside and image.series is not None]
    named = {id(image): read_name(image) for image in candidates}
    plain = [image for image in candidates if not named[id(image)]]
    if not plain:
        return images
    main = max(plain, key=lambda image: image.area)
    result = []
    for image in images:
        beside = image.beside
        if not beside and image is not main and image.series is not None:
            if named[id(image)] and image.area < main.area:
                beside = named[id(image)]
            elif _is_copy(image, main):
                beside = "smaller copy"
        result.append(replace(image, beside=beside) if beside != image.beside else image)
    n_copies = sum(
        image.beside == "smaller copy" and image.is_colour == main.is_colour for image in result
    )
    at = result.index(main)
    result[at] = replace(main, n_levels=main.n_levels + n_copies)
    return result


def _only_channel(image: TiffImage) -> list[str]:
    """The name of the channel of an OME image with one."""
    if image.ome is None:
        return []
    names = [e.get("Name") or "" for e in image.ome.pixels if e.tag.endswith("Channel")]
    return [names[0].lower()] if len(names) == 1 else []


def _is_copy(small: TiffImage, large: TiffImage) -> bool:
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
    if small.is_colour and not large.is_colour:
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
