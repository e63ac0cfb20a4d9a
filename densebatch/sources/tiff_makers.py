"""Names of channels and pixel sizes in the metadata of programs and of makers of scanners.

What these files tell is not standardised: each reader takes what it knows, and may fail in any way
for a file that is odd; the caller says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tifffile import TiffPage

from densebatch.sources.lengths import place_origin, place_um, square_pixel, to_um
from densebatch.tiff.makers import read_qpi
from densebatch.tiff.markup import children, descendants, parse_xml

if TYPE_CHECKING:
    from collections.abc import Callable
    from xml.etree.ElementTree import Element

    from tifffile import TiffFile, TiffFrame, TiffPageSeries

RESOLUTION_UNITS = {2: "inch", 3: "cm", 4: "mm", 5: "um"}
_PAGE_NAME, _XMP, _MICRO_MANAGER = 285, 700, 51123
_XPOSITION, _YPOSITION, _UNIT = 286, 287, 296


@dataclass(frozen=True)
class Told:
    """What metadata tell.

    Attributes
    ----------
    names
        Of channels, as many as were found.
    um_per_px
        None if it is not told.
    origin_um
        Where the first pixel lies along y and x; None if it is not told.
    """

    names: tuple[str | None, ...] = ()
    um_per_px: float | None = None
    origin_um: tuple[float, float] | None = None

    def or_else(self, other: Told) -> Told:
        """What this tells, and of the other what it does not."""
        return Told(
            self.names or other.names,
            other.um_per_px if self.um_per_px is None else self.um_per_px,
            self.origin_um or other.origin_um,
        )


def read_page_names(series: TiffPageSeries) -> tuple[str | None, ...]:
    """PageName tags of the pages, where the first has one."""
    if not series.keyframe.tags.get(_PAGE_NAME):
        return ()
    names = (_load(page).tags.valueof(_PAGE_NAME) for page in series)
    return tuple(name if isinstance(name, str) else None for name in names)


def _load(page: TiffPage | TiffFrame) -> TiffPage:
    """A page with its tags, which tifffile leaves out of pages that resemble the first."""
    return page if isinstance(page, TiffPage) else page.aspage()


def _read_qpi(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Akoya, PerkinElmer: a marker, else what the filter is called; tags for the place."""
    del tif
    told = [read_qpi(_load(page)) for page in series]
    tags = series.keyframe.tags
    unit = RESOLUTION_UNITS.get(tags.valueof(_UNIT, default=2))
    place = [_place_from_tag(tags.valueof(code), unit) for code in (_YPOSITION, _XPOSITION)]
    names = tuple(page.get("Biomarker") or page.get("Name") or None for page in told)
    return Told(names, None, place_origin(*place))


def _place_from_tag(position: tuple[int, int] | None, unit: object) -> float | None:
    """A coordinate from the fraction of a tag; None if it is none."""
    try:
        numerator, denominator = position or (0, 1)
        return place_um(numerator / denominator, unit)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _read_svs(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Aperio: micrometres per pixel among fields between bars."""
    del tif
    found = re.search(r"\bMPP\s*=\s*([^|\s]+)", series.keyframe.description)
    # Computers of some countries write a comma.
    return Told((), to_um(found[1].replace(",", "."), "um") if found else None)


def _read_scn(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Leica: views are in nanometres; names stand beside channels in the settings of the scan."""
    index = series.keyframe.index
    root = parse_xml(tif.pages.first.description)
    for image in descendants(root, "image"):
        if str(index) not in {e.get("ifd") for e in descendants(image, "dimension")}:
            continue
        channels = [e for e in descendants(image, "channel") if e.get("name")]
        channels.sort(key=lambda e: int(e.get("index", 0)))
        view = next(children(image, "view"), None)
        sizes: list[float | None] = [None, None]
        place: list[float | None] = [None, None]
        if view is not None:
            counts = dict(zip(series.axes, series.shape, strict=True))
            sizes = [to_um(float(view.get(f"size{axis}", 0)) / counts[axis], "nm") for axis in "YX"]
            place = [place_um(view.get(f"offset{axis}"), "nm") for axis in "YX"]
        names = tuple(e.get("name") for e in channels)
        return Told(names, square_pixel(*sizes), place_origin(*place))
    return Told()


def _read_imagej(tif: TiffFile, series: TiffPageSeries) -> Told:
    """ImageJ: a label for each image of a stack."""
    del series
    labels = (tif.imagej_metadata or {}).get("Labels")
    return Told(tuple(str(label) for label in labels) if isinstance(labels, list) else ())


def _read_micro_manager(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Micro-Manager: OME-XML of the set, its summary, or what each page tells."""
    told = Told()
    pages = [tif.pages[i].aspage() for i in range(min(len(tif.pages), len(series)))]
    if tif.is_ome and (pixels := _only_pixels(tif)) is not None:
        um = [
            to_um(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um"))
            for axis in "YX"
        ]
        names = tuple(e.get("Name") for e in children(pixels, "Channel"))
        told = Told(names if all(names) else (), square_pixel(*um))
    summary = (tif.micromanager_metadata or {}).get("Summary") or {}
    found = summary.get("ChNames")
    names = tuple(map(str, found)) if isinstance(found, list) else ()
    told = told.or_else(Told(names, to_um(summary.get("PixelSize_um"), "um")))
    tags = [page.tags.valueof(_MICRO_MANAGER) for page in pages]
    dicts = [tag for tag in tags if isinstance(tag, dict)]
    if not dicts or len(dicts) < len(tags):
        return told
    sizes = [to_um(dicts[0].get(key), "um") for key in ("PixelSizeUm", "PixelSize_um")]
    size = next((um for um in sizes if um is not None), None)
    names = tuple(tag.get("Channel") or tag.get("Channel-Name") for tag in dicts)
    return told.or_else(Told(tuple(map(str, names)) if all(names) else (), size))


def _only_pixels(tif: TiffFile) -> Element | None:
    """`Pixels` of OME-XML, if all of its images are of one kind; None if they differ."""
    found = list(descendants(parse_xml(tif.ome_metadata), "Pixels"))
    kinds = {
        (
            *(pixels.get(key) for key in ("SizeX", "SizeY", "SizeC", "PhysicalSizeX")),
            *(channel.get("Name") for channel in children(pixels, "Channel")),
        )
        for pixels in found
    }
    return found[0] if len(kinds) == 1 else None


def _read_shaped(tif: TiffFile, series: TiffPageSeries) -> Told:
    """tifffile: what was given to it with the pixels, as for OME-TIFF."""
    all_metadata = tif.shaped_metadata or ()
    shape = list(series.get_shape(squeeze=False))
    found = [meta for meta in all_metadata if list(meta.get("shape", ())) == shape]
    if len({repr(meta) for meta in found}) != 1:
        return Told()
    (meta, *_) = found
    channel = meta.get("Channel")
    names = channel.get("Name") if isinstance(channel, dict) else meta.get("Labels")
    um = [
        to_um(meta.get(f"PhysicalSize{axis}"), meta.get(f"PhysicalSize{axis}Unit", "um"))
        for axis in "YX"
    ]
    return Told(
        tuple(map(str, names)) if isinstance(names, list) else (),
        square_pixel(*um) if "PhysicalSizeY" in meta else um[1],
    )


def _read_philips(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Philips: millimetres between rows and columns, of each level, the highest first."""
    del series
    found = re.search(
        r'"DICOM_PIXEL_SPACING"[^>]*>\s*(?:"|&quot;)([\d.eE+-]+)', tif.philips_metadata or ""
    )
    return Told((), to_um(found[1], "mm") if found else None)


def _read_bif(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Roche, Ventana: micrometres per pixel in the XMP of the first page that has one."""
    del series
    for page in tif.pages:
        xmp = _load(page).tags.valueof(_XMP)
        text = xmp.decode(errors="replace") if isinstance(xmp, bytes) else str(xmp or "")
        if found := re.search(r'ScanRes="([\d.]+)"', text):
            return Told((), to_um(found[1], "um"))
    return Told()


def _read_plain(tif: TiffFile, series: TiffPageSeries) -> Told:
    """Indica Labs, which write names into XML of the first page of a plain TIFF."""
    del series
    if not tif.is_indica:
        return Told()
    channels = descendants(parse_xml(tif.indica_metadata), "channel")
    return Told(tuple(channel.get("name") for channel in channels))


# By the kind that tifffile calls a series.
READERS: dict[str, Callable[[TiffFile, TiffPageSeries], Told]] = {
    "qpi": _read_qpi,
    "svs": _read_svs,
    "scn": _read_scn,
    "imagej": _read_imagej,
    "mmstack": _read_micro_manager,
    "micromanager": _read_micro_manager,
    "shaped": _read_shaped,
    "philips": _read_philips,
    "bif": _read_bif,
    "generic": _read_plain,
    "uniform": _read_plain,
}
