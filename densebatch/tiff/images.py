"""Which images a TIFF holds: the series of tifffile, and what each of them is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.image_files import open_tiff_file
from densebatch.tiff.beside import tell_beside
from densebatch.tiff.image import UNNAMED_KINDS, TiffImage
from densebatch.tiff.makers import name_series, refuse_absurd_stack, regroup
from densebatch.tiff.ome import settle_ome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tifffile import TiffFile, TiffPageSeries

    from densebatch.tiff.ome import Ome


@dataclass(frozen=True, eq=False)
class OpenTiff:
    """An open TIFF file and the images that it holds.

    Attributes
    ----------
    path : of the file
    tif : open; whoever holds this closes it
    images : in the order of the file, pictures beside the slide included
    ome : its OME-XML, None if it has none
    notes : a sentence for each thing that is taken to be other than the file says
    """

    path: Path
    tif: TiffFile
    images: tuple[TiffImage, ...]
    ome: Ome | None
    notes: tuple[str, ...]

    @property
    def real(self) -> list[TiffImage]:
        """The images that are no pictures beside one."""
        return [image for image in self.images if not image.beside]


def open_tiff_images(path: Path, *, for_cells: bool = False) -> OpenTiff:
    """Open a TIFF file and list its images.

    Parameters
    ----------
    path
        Of the file.
    for_cells
        Whether a label image of cells is sought, so that an image named "label" is none of the
        glass.

    Raises
    ------
    InputError
        If it is damaged or truncated, holds no image, or keeps its metadata in a file that is
        missing.
    """
    tif, ome = open_tiff_file(path), None
    try:
        refuse_absurd_stack(path, tif)
        tif, ome = settle_ome(path, tif)
        images = _list_images(path, tif, ome, for_cells=for_cells)
    except (InputError, MemoryError):
        tif.close()
        raise
    # A damaged file makes tifffile fail in any way.
    except Exception as exc:
        tif.close()
        missing = f"; {ome.say_missing()}" if ome is not None and ome.missing else ""
        what = "by its OME-XML" if ome is not None else "as a TIFF file"
        raise InputError(f"{path} cannot be read {what} ({describe_cause(exc)}){missing}") from exc
    if not any(image.series is not None for image in images):
        tif.close()
        raise InputError(f"{path} is a TIFF file without an image; accepted is one with pixels")
    notes = () if ome is None else (*ome.notes, *_tell_unclaimed(tif, images))
    return OpenTiff(path, tif, tuple(images), ome, notes)


def _tell_unclaimed(tif: TiffFile, images: Sequence[TiffImage]) -> list[str]:
    """Say that pages of the file belong to no image of its OME-XML."""
    if any(image.series is None or image.series.kind != "ome" for image in images):
        return []
    claimed = {
        page.index
        for image in images
        if image.series is not None
        for level in (image.series, *image.series.levels)
        for page in level
        if page is not None and page.parent is tif
    }
    n = len(set(range(len(tif.pages))) - claimed)
    if not n or not claimed:
        return []
    return [f"the OME-XML describes all but {n} of the {len(tif.pages)} pages: those are left out"]


def _list_images(path: Path, tif: TiffFile, ome: Ome | None, *, for_cells: bool) -> list[TiffImage]:
    all_series = regroup(tif)
    if not (for_cells and len(tif.pages) == 1):
        # A program that drew labels may have kept the description of the slide.
        _refuse_lost_metadata(path, tif, all_series, ome)
    is_ome = ome is not None and bool(all_series) and all_series[0].kind == "ome"
    told = ome.find(path, tif) if ome is not None and is_ome else [None] * len(all_series)
    images = []
    for series, of_series in zip(all_series, told, strict=True):
        if not series.shape:
            continue
        top = max(series.levels, key=lambda level: math.prod(level.shape))
        name = of_series.name if of_series else name_series(series)
        images.append(TiffImage(top, name, "", _list_levels(series), of_series))
    if ome is not None and is_ome:
        images = _add_lost(images, ome)
    images = _set_others_aside(path, images)
    images = tell_beside(images, for_cells=for_cells)
    if not any(image.series is not None and not image.beside for image in images):
        # What is there is what is meant, whatever it calls itself.
        images = [replace(image, beside="") for image in images]
    return images


def _add_lost(images: list[TiffImage], ome: Ome) -> list[TiffImage]:
    """Add images that OME-XML describes and tifffile made no series of."""
    found = [image.ome for image in images]
    if len(images) >= len(ome.images) or None in found:
        return images
    lost = [TiffImage(None, of.name, "", (), of) for of in ome.images if of not in found]
    return sorted([*images, *lost], key=lambda image: ome.images.index(image.ome))


def _set_others_aside(path: Path, images: list[TiffImage]) -> list[TiffImage]:
    """Say of images that lie in other files alone that they do, if any lies in this one."""
    own = path.name.lower()

    def is_here(image: TiffImage) -> bool:
        if image.series is None:
            return image.ome is not None and image.ome.is_in("")
        files = {page.parent.filename.lower() for page in image.series if page is not None}
        return own in files

    here = [is_here(image) for image in images]
    if all(here) or not any(here):
        return images
    return [
        image if is_there else replace(image, beside="in other files")
        for image, is_there in zip(images, here, strict=True)
    ]


def _is_whole(tif: TiffFile) -> bool:
    """Whether all pages that tifffile's own metadata tell of are there, and others follow them.

    It gives up where pages that it did not write follow, and presents all pages as they come.
    """
    page = tif.pages.first
    told = json.loads(page.shaped_description or "{}").get("shape")
    if not isinstance(told, list | tuple) or not told or 0 in page.shape:
        return False
    n = math.prod(int(size) for size in told) // math.prod(page.shape)
    return 0 < n < len(tif.pages) and all(tif.pages[k].shape == page.shape for k in range(n))


def _refuse_lost_metadata(
    path: Path, tif: TiffFile, all_series: Sequence[TiffPageSeries], ome: Ome | None
) -> None:
    """Refuse a file whose own description of its planes tifffile had to give up.

    It then presents the pages as they come, which may be fewer, or channels as something else.
    """
    descriptions = {
        "OME-XML": tif.is_ome,
        "ImageJ metadata": tif.is_imagej,
        "tifffile metadata": tif.is_shaped,
    }
    found = " and ".join(name for name, is_there in descriptions.items() if is_there)
    if tif.is_shaped and not (tif.is_ome or tif.is_imagej) and _is_whole(tif):
        return
    if found and all_series and all_series[0].kind in UNNAMED_KINDS:
        if ome is not None and ome.missing:
            raise InputError(f"{path} is one of several files of one image; {ome.say_missing()}")
        raise InputError(
            f"{path} is truncated, damaged or one of several files: its {found} cannot be "
            f"followed with the {len(tif.pages)} pages that it has"
        )


def _list_levels(series: TiffPageSeries) -> tuple[tuple[int, int], ...]:
    """Rows and columns of the resolutions of a series, the highest first."""
    sizes = [TiffImage(level).size for level in series.levels]
    return tuple(sorted(sizes, reverse=True))
