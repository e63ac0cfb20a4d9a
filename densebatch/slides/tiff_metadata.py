"""What TIFF files tell of their channels and pixel size, in OME-XML, ImageJ's way or in tags."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tifffile import PHOTOMETRIC

from densebatch.base.errors import InputError
from densebatch.slides.source import square_pixel, to_um

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tifffile import TiffFile, TiffPage, TiffPageSeries

# Pixels of a microscope image whose cells can be told apart are of a size in between; those of a
# printer are not.
_PLAUSIBLE_UM = (0.01, 10.0)
_RESOLUTION_UNITS = {2: "inch", 3: "cm", 4: "mm", 5: "um"}
_JPEG = (6, 7, 33007, 34892)
_XRESOLUTION, _YRESOLUTION = 282, 283


def refuse_lost_metadata(path: Path, tif: TiffFile, series: TiffPageSeries) -> None:
    """Refuse a file whose own description of its planes tifffile had to give up.

    It then presents the pages as they come, which may be fewer, or channels as something else.

    Raises
    ------
    InputError
        Naming the kind of description.
    """
    descriptions = {
        "OME-XML": tif.is_ome,
        "ImageJ metadata": tif.is_imagej,
        "tifffile metadata": tif.is_shaped,
    }
    found = " and ".join(name for name, is_there in descriptions.items() if is_there)
    if found and series.kind in ("generic", "uniform"):
        raise InputError(
            f"{path} is truncated, damaged or one of several files: its {found} cannot be "
            f"followed with the {len(tif.pages)} pages that it has"
        )


def is_colour(keyframe: TiffPage) -> bool:
    """Whether the samples of a page are colours."""
    return bool(keyframe.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR))


def refuse_photometric(path: Path, keyframe: TiffPage) -> None:
    """Refuse pages whose values are no intensities of light or of colours.

    Raises
    ------
    InputError
        With what they are.
    """
    accepted = "accepted are grey values, and red, green and blue"
    photometric = keyframe.photometric
    if photometric == PHOTOMETRIC.PALETTE:
        # A lookup table that rises in all colours is accepted, because it only tints intensities,
        # as ImageJ does.
        colormap = keyframe.colormap
        if colormap is None or (colormap[:, 1:] < colormap[:, :-1]).any():
            raise InputError(
                f"{path} has a palette, whose values are no intensities; "
                "accepted are grey values, and red, green and blue"
            )
    elif photometric == PHOTOMETRIC.YCBCR and keyframe.compression not in _JPEG:
        raise InputError(f"{path} holds luma and chroma without JPEG compression; {accepted}")
    elif photometric in (PHOTOMETRIC.SEPARATED, PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB):
        name = PHOTOMETRIC(photometric).name
        raise InputError(f"{path} is of photometric interpretation {name}; {accepted}")


def read_channel_names(path: Path, tif: TiffFile, series: TiffPageSeries) -> list[str | None]:
    """Names as far as the file tells them, in the order of its planes."""
    if series.kind == "ome":
        pixels = _find_pixels(path, tif, series)
        return [] if pixels is None else [e.get("Name") for e in _children(pixels, "Channel")]
    if series.kind == "imagej":
        labels = (tif.imagej_metadata or {}).get("Labels")
        return [str(label) for label in labels] if isinstance(labels, list) else []
    return []


def read_pixel_size(path: Path, tif: TiffFile, series: TiffPageSeries) -> float | None:
    """Micrometres per pixel, None if the file does not tell or tells of a screen or printer."""
    if series.kind == "ome":
        pixels = _find_pixels(path, tif, series)
        if pixels is not None and pixels.get("PhysicalSizeX") is not None:
            um_x = to_um(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "um"))
            if pixels.get("PhysicalSizeY") is None:
                return um_x
            um_y = to_um(pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit", "um"))
            return square_pixel(um_y, um_x)
    tags = series.keyframe.tags
    unit = _RESOLUTION_UNITS.get(tags.valueof(296, default=2))
    if series.kind == "imagej":
        unit = (tif.imagej_metadata or {}).get("unit", unit)
    um = [_um_from_tag(tags.valueof(code), unit) for code in (_YRESOLUTION, _XRESOLUTION)]
    size = square_pixel(um[0], um[1])
    low, high = _PLAUSIBLE_UM
    return size if size is not None and low <= size <= high else None


def _um_from_tag(resolution: tuple[int, int] | None, unit: object) -> float | None:
    """Length of a pixel from the fraction of pixels per unit."""
    try:
        numerator, denominator = resolution or (0, 1)
        return to_um(denominator / numerator, unit)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    """Child elements of a name in whichever version of the OME name space."""
    return (child for child in element if child.tag.rpartition("}")[2] == name)


def _find_pixels(path: Path, tif: TiffFile, series: TiffPageSeries) -> ET.Element | None:
    """The `Pixels` element of the first image of the series' size.

    tifffile leaves out images without data, so the numbers of series and images may differ.
    """
    try:
        root = ET.fromstring(tif.ome_metadata)
    except ET.ParseError as exc:
        raise InputError(f"{path} has OME-XML that cannot be parsed: {exc}") from exc
    size = [str(series.shape[series.axes.index(axis)]) for axis in "YX"]
    for image in _children(root, "Image"):
        for pixels in _children(image, "Pixels"):
            if [pixels.get("SizeY"), pixels.get("SizeX")] == size:
                return pixels
    return None
