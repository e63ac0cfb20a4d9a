"""What TIFF files tell of their channels and pixel size, in OME-XML or in a maker's own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tifffile import PHOTOMETRIC

from densebatch.base.errors import InputError, describe_cause
from densebatch.sources.lengths import place_origin, place_um, square_pixel, tell_oblong, to_um
from densebatch.sources.tiff_makers import READERS, RESOLUTION_UNITS, Told, read_page_names
from densebatch.tiff.markup import children

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from xml.etree.ElementTree import Element

    from tifffile import TiffFile, TiffPage, TiffPageSeries

    from densebatch.tiff.choice import ChosenImage
    from densebatch.tiff.images import OpenTiff
    from densebatch.tiff.ome import OmeImage

# Pixels of a microscope image whose cells can be told apart are of a size in between; those of a
# printer are not.
_PLAUSIBLE_UM = (0.01, 10.0)
_SAME_SIZE = 0.02  # of a pixel, by which tags that are rounded may differ
_JPEG = (6, 7, 33007, 34892)
_OME_SIZE = "PhysicalSizeX of the OME-XML"
_XRESOLUTION, _YRESOLUTION = 282, 283


@dataclass(frozen=True)
class TiffMetadata:
    """What a file tells of an image.

    Attributes
    ----------
    names
        Of channels as far as they are told, in the order of planes.
    um_per_px
        None if the file does not tell, or tells of a screen or printer.
    um_from
        Where it tells it, in words.
    notes
        A sentence for each part that could not be read.
    origin_um, origin_from
        Where the first pixel lies, as of `slides.source.Layout`.
    """

    names: tuple[str | None, ...]
    um_per_px: float | None
    um_from: str | None = None
    notes: tuple[str, ...] = ()
    origin_um: tuple[float, float] | None = None
    origin_from: str | None = None


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


def read_metadata(opened: OpenTiff, chosen: ChosenImage, n: int) -> TiffMetadata:
    """Names of channels and pixel size of an image.

    Parameters
    ----------
    opened
        The file.
    chosen
        The image.
    n
        Its number of planes.
    """
    tif, series = opened.tif, chosen.series
    told = Told()
    origin_from = None
    notes: list[str] = []
    kinds = [series.kind, *(["micromanager"] if tif.is_micromanager else [])]
    for kind in kinds:
        if kind not in READERS:
            continue
        try:
            told = told.or_else(READERS[kind](tif, series))
        # Whatever is odd about a maker's metadata, the pixels are what they are.
        except Exception as exc:
            notes.append(
                f"the file's own metadata ({kind}) cannot be read ({describe_cause(exc)}): names "
                "of channels and pixel size are taken from elsewhere or unknown"
            )
    if chosen.number is None:
        told = told.or_else(_read_stack(opened, n))
    elif series.kind == "ome":
        ome = chosen.image.ome
        if ome is None:
            notes.append(
                "which image of its OME-XML this is cannot be told: names of channels and pixel "
                "size are unknown"
            )
            return TiffMetadata((), None, None, tuple(notes))
        origin_um, origin_from, odd = _read_position(ome)
        notes += odd
        names = [e.get("Name") for e in children(ome.pixels, "Channel")]
        notes += _tell_misfit(names, n)
        if "PhysicalSizeX" in ome.pixels.attrib:
            lengths = _read_physical_size(ome.pixels)
            notes += tell_oblong(*lengths)
            if "PhysicalSizeY" not in ome.pixels.attrib:
                notes.append(
                    "the metadata give the width of a pixel, which is taken for its height too"
                )
            um = square_pixel(*lengths)
            names_told = _fit(names, n) or _page_names(series, n)
            um_from = _OME_SIZE if um else None
            notes += _tell_other_size(um, _OME_SIZE, tif, series)
            return TiffMetadata(names_told, um, um_from, tuple(notes), origin_um, origin_from)
        told = Told(_fit(names, n), None, origin_um).or_else(told)
    notes += _tell_misfit(told.names, n)
    names_told = _fit(told.names, n) or _page_names(series, n)
    um, origin_um = told.um_per_px, told.origin_um
    if origin_um is not None and origin_from is None:
        origin_from = f"the file's own metadata ({series.kind})"
    um_from = _OME_SIZE if chosen.number is None else f"the file's own metadata ({series.kind})"
    notes += _tell_other_size(um, um_from, tif, series)
    if um is None:
        um_from = "the resolution tags of the TIFF"
        lengths = _read_resolution(tif, series)
        um = square_pixel(*lengths)
        notes += tell_oblong(*lengths)
    um_from = um_from if um else None
    return TiffMetadata(names_told, um, um_from, tuple(notes), origin_um, origin_from)


def _tell_other_size(
    um: float | None, um_from: str, tif: TiffFile, series: TiffPageSeries
) -> tuple[str, ...]:
    """A note where the tags of the TIFF contradict what other metadata tell."""
    other = square_pixel(*_read_resolution(tif, series))
    if um is None or other is None or abs(um - other) <= _SAME_SIZE * um:
        return ()
    return (
        f"{um_from} gives {um:g} um/px and the resolution tags of the TIFF give {other:g} um/px: "
        "the first is taken, unless --pixel-size gives another",
    )


def tell_inverted(keyframe: TiffPage) -> tuple[str, ...]:
    """A note on grey values of which the file says that 0 is white."""
    if keyframe.photometric != PHOTOMETRIC.MINISWHITE:
        return ()
    return (
        "the file says that 0 is white; its values are taken as they are stored, so that the "
        "largest are the brightest",
    )


def _tell_misfit(names: Sequence[str | None], n: int) -> tuple[str, ...]:
    """A note on names that are told and cannot be given to the planes."""
    if len(names) == n or not any((name or "").strip() for name in names):
        return ()
    return (
        f"the metadata have names for {len(names)} channels and there are {n}, so the names do not "
        "count and channels are numbered from 0",
    )


def _fit(names: Iterable[str | None], n: int) -> tuple[str | None, ...]:
    """Names if there is one for each plane and not all are empty, else none."""
    found = tuple(name if name is None else str(name) for name in names)
    return found if len(found) == n and any((name or "").strip() for name in found) else ()


def _page_names(series: TiffPageSeries, n: int) -> tuple[str | None, ...]:
    names = _fit(read_page_names(series), n) if len(series) == n else ()
    # Some programs write the name of the file on every page.
    return names if n == 1 or len(set(names)) > 1 else ()


def _read_stack(opened: OpenTiff, n: int) -> Told:
    """Of images that are the channels of one: their names, and those of their only channels."""
    real = opened.real
    channels = []
    for image in real:
        elements = [] if image.ome is None else list(children(image.ome.pixels, "Channel"))
        name = (elements[0].get("Name") or "") if len(elements) == 1 else ""
        channels.append(name.strip() or image.name)
    sizes = [_read_physical_size(image.ome.pixels) for image in real if image.ome is not None]
    um = square_pixel(*sizes[0]) if len(sizes) == n and len(set(sizes)) == 1 else None
    return Told(tuple(channels) if len(set(channels)) == len(channels) else (), um)


def _read_physical_size(pixels: Element) -> tuple[float | None, float | None]:
    """Height and width of a pixel in um, as far as they are told; a lone width is both."""
    if pixels.get("PhysicalSizeX") is None:
        return None, None
    um_x = to_um(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "um"))
    if pixels.get("PhysicalSizeY") is None:
        return um_x, um_x
    return to_um(pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit", "um")), um_x


def _read_position(
    image: OmeImage,
) -> tuple[tuple[float, float] | None, str | None, tuple[str, ...]]:
    """Where OME-XML places an image, what of it tells so, and a note if planes differ.

    A coordinate without a unit is in a frame of the microscope's own, and no length.
    """
    places = [
        tuple(place_um(e.get(f"Position{a}"), e.get(f"Position{a}Unit")) for a in "YX")
        for e in children(image.pixels, "Plane")
    ]
    told = [(y, x) for y, x in places if y is not None and x is not None]
    if told:
        apart = max(max(abs(y - told[0][0]), abs(x - told[0][1])) for y, x in told)
        um = square_pixel(*_read_physical_size(image.pixels)) or 1.0
        note = (
            f"the metadata place the planes up to {apart:g} um apart; the first one's place is "
            "taken for the origin of all"
        )
        origin = place_origin(*told[0])
        source = "PositionX of the OME-XML" if origin else None
        return origin, source, (note,) if apart > um else ()
    if image.stage is None:
        return None, None, ()
    stage = image.stage
    origin = place_origin(*(place_um(stage.get(a), stage.get(f"{a}Unit")) for a in "YX"))
    return origin, "StageLabel of the OME-XML" if origin else None, ()


def _read_resolution(tif: TiffFile, series: TiffPageSeries) -> tuple[float | None, float | None]:
    """Height and width of a pixel in um from the tags of the first page, if a lens made it so."""
    tags = series.keyframe.tags
    unit: object = RESOLUTION_UNITS.get(tags.valueof(296, default=2))
    if series.kind == "imagej":
        unit = (tif.imagej_metadata or {}).get("unit", unit)
    um_y, um_x = (_um_from_tag(tags.valueof(code), unit) for code in (_YRESOLUTION, _XRESOLUTION))
    low, high = _PLAUSIBLE_UM
    is_plausible = um_x is not None and low <= um_x <= high
    return (um_y, um_x) if is_plausible else (None, None)


def _um_from_tag(resolution: tuple[int, int] | None, unit: object) -> float | None:
    """Length of a pixel from the fraction of pixels per unit."""
    try:
        numerator, denominator = resolution or (0, 1)
        return to_um(denominator / numerator, unit)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
