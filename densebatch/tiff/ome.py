"""OME-XML of a TIFF: which image of it each series of tifffile is, and which files it asks for.

tifffile leaves out images without pixels and those whose sizes contradict the pages, so that the
numbers of series and images may differ. They are matched by the pages that both name.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import tifffile

from densebatch.base.errors import InputError
from densebatch.base.image_files import open_tiff_file
from densebatch.tiff.makers import MAX_PLANES
from densebatch.tiff.markup import children, descendants, parse_xml, read_int

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tifffile import TiffFile, TiffPageSeries

_MAX_COMPANION_BYTES = 2**28
_N_SHOWN = 5


@dataclass(frozen=True, eq=False)
class OmeImage:
    """An `Image` of OME-XML that lists pixels in TIFF files.

    Attributes
    ----------
    name : "" if it has none
    pixels : its `Pixels` element
    stage : its `StageLabel` element; None if it has none
    pages : file name ("" for the file itself), first page, and the page after the last or None
    """

    name: str
    pixels: ET.Element
    stage: ET.Element | None
    pages: tuple[tuple[str, int, int | None], ...]

    def is_in(self, file: str) -> bool:
        """Whether any of its planes lies in a file; "" for the file itself."""
        return any(name == file for name, _, _ in self.pages)

    @property
    def n_pages(self) -> int:
        """Number of planes that are listed; 0 if any entry takes all pages of its file."""
        if any(stop is None for _, _, stop in self.pages):
            return 0
        return sum((stop or 0) - first for _, first, stop in self.pages)

    def holds(self, file: str, page: int) -> bool:
        """Whether a page is one of its planes."""
        return any(
            name == file and first <= page and (stop is None or page < stop)
            for name, first, stop in self.pages
        )

    def describes(self, size: tuple[str, str], pages: Sequence[tuple[str, int]]) -> bool:
        """Whether it is of a size (rows and columns, as XML has them) and has all of the pages."""
        if (self.pixels.get("SizeY"), self.pixels.get("SizeX")) != size:
            return False
        return all(self.holds(file, page) for file, page in pages)


@dataclass(frozen=True, eq=False)
class Ome:
    """The OME-XML of a file.

    Attributes
    ----------
    root : the `OME` element
    images : those that list pixels, in order
    missing : names of the files that it asks for and that are not there
    companion : the file that the XML came from, if it is another one
    notes : a sentence for each thing that is taken to be other than it says
    """

    root: ET.Element
    images: tuple[OmeImage, ...]
    missing: tuple[str, ...]
    companion: Path | None
    notes: tuple[str, ...]

    def find(self, path: Path, tif: TiffFile) -> list[OmeImage | None]:
        """The image that each series of a file is; None where that cannot be told."""
        facts = [_tell_series(series, path.name.lower()) for series in tif.series]
        found: list[OmeImage | None] = []
        for series, fact in zip(tif.series, facts, strict=True):
            fitting = [image for image in self.images if image.describes(*fact)]
            named = [image for image in fitting if image.name and image.name == series.name]
            fitting = named or fitting
            # One that lists no more pages is nearer than one that takes all of the file.
            fitting = [image for image in fitting if image.n_pages == len(fact[1])] or fitting
            # Images that name the same pages become series in the same order.
            left = [image for image in fitting if image not in found]
            same = [
                other
                for other, other_fact in zip(tif.series, facts, strict=True)
                if other_fact == fact and (not named or other.name == series.name)
            ]
            found.append(left[0] if left and len(same) == len(fitting) else None)
        return found

    def say_missing(self, image: OmeImage | None = None) -> str:
        """Which files are missing, of an image or of any; "" if none."""
        missing = [
            name for name in self.missing if image is None or image.is_in(_last_part(name).lower())
        ]
        if not missing:
            return ""
        more = len(missing) - _N_SHOWN
        names = ", ".join(missing[:_N_SHOWN]) + (f" and {more} more" if more > 0 else "")
        return f"{names} {'is' if len(missing) == 1 else 'are'} missing beside it"


def _tell_series(
    series: TiffPageSeries, own: str
) -> tuple[tuple[str, str], tuple[tuple[str, int], ...]]:
    """Size of a series as XML has it, and its pages; `own` is the name of the file."""
    height, width = (str(series.shape[series.axes.index(axis)]) for axis in "YX")
    names = ((page.parent.filename.lower(), page.index) for page in series if page is not None)
    return (height, width), tuple(("" if name == own else name, index) for name, index in names)


def settle_ome(path: Path, tif: TiffFile) -> tuple[TiffFile, Ome | None]:
    """Read the OME-XML of an open file, and mend where it says that the planes lie.

    A companion file is read, a file that was renamed is taken for the one that is meant if it can
    be no other, and planes that name no file are taken from this one.

    Parameters
    ----------
    path
        Of the file.
    tif
        The open file, closed if another one is returned.

    Returns
    -------
    tif
        The same, or opened again with mended XML.
    ome
        None if the file has no OME-XML, or one that cannot be parsed: tifffile does without it.

    Raises
    ------
    InputError
        If a companion file is missing or is none, or planes lie in a file that has no name.
    """
    # Files of Micro-Manager have OME-XML of the whole set too, and an index of their own pages.
    if not tif.is_ome or tif.is_mmstack:
        return tif, None
    try:
        root = parse_xml(tif.ome_metadata)
    except ValueError:
        return tif, None
    companion = None
    own_uuid = root.get("UUID")
    if (binary := next(children(root, "BinaryOnly"), None)) is not None:
        companion = _find_companion(path, binary)
        root = _read_companion(path, companion)
        # Else tifffile would take planes of the file that the XML came from for this one's.
        root.attrib.pop("UUID", None)
    _refuse_absurd(path, root)
    mending = _Mending(path, tif, root, own_uuid)
    is_changed = _drop_empty(root) | mending.mend()
    if companion is not None or is_changed:
        tif.close()
        # Opened for the second time, because tifffile takes other XML than its own only then.
        tif = tifffile.TiffFile(path, omexml=ET.tostring(root, encoding="unicode"))
    images = tuple(_list_images(path, root))
    if companion is not None and not any(image.is_in("") for image in images):
        tif.close()
        raise InputError(
            f"{path} keeps its OME-XML in the companion file {companion.name}, which does not list "
            "it (FileName of UUID)"
        )
    ome = Ome(root, images, tuple(mending.missing), companion, tuple(mending.notes))
    return tif, ome


def _drop_empty(root: ET.Element) -> bool:
    """Remove images without planes whose sizes tifffile would want all the same; whether any."""
    needed = {"DimensionOrder", *(f"Size{axis}" for axis in "XYCZT")}
    empty = [
        image
        for image in children(root, "Image")
        if any(needed - pixels.attrib.keys() for pixels in children(image, "Pixels"))
        and not any(True for _ in descendants(image, "TiffData"))
    ]
    for image in empty:
        root.remove(image)
    return bool(empty)


def _refuse_absurd(path: Path, root: ET.Element) -> None:
    """Refuse numbers of planes for which tifffile would make a list larger than memory."""
    for pixels in descendants(root, "Pixels"):
        n = math.prod(max(1, read_int(pixels.get(f"Size{axis}"), 1)) for axis in "CZT")
        counts = [
            read_int(data.get(key), 0)
            for data in children(pixels, "TiffData")
            for key in ("NumPlanes", "PlaneCount")
        ]
        if (most := max(n, *counts, 0)) > MAX_PLANES:
            raise InputError(
                f"{path} declares {most} planes in its OME-XML; at most {MAX_PLANES} are accepted"
            )


def _find_companion(path: Path, binary: ET.Element) -> Path:
    name = _last_part(binary.get("MetadataFile") or "")
    if not name:
        raise InputError(f"{path} keeps its OME-XML in another file and does not say in which")
    companion = path.parent / name
    if not companion.is_file():
        raise InputError(
            f"{path} keeps its OME-XML in the companion file {name}, which is missing beside it; "
            "both must be in one folder"
        )
    return companion


def _read_companion(path: Path, companion: Path) -> ET.Element:
    """The `OME` element of a companion file, which is XML, or a TIFF with XML of its own."""
    what = f"{path} keeps its OME-XML in the companion file {companion.name}, which"
    with companion.open("rb") as file:
        start = file.read(4)
    if start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        with open_tiff_file(companion) as tif:
            text = tif.ome_metadata or ""
    elif companion.stat().st_size > _MAX_COMPANION_BYTES:
        raise InputError(f"{what} has more than {_MAX_COMPANION_BYTES} bytes")
    else:
        text = companion.read_bytes().decode(errors="replace")
    try:
        root = parse_xml(text)
    except ValueError as exc:
        raise InputError(f"{what} cannot be read ({exc})") from exc
    if not any(True for _ in children(root, "Image")):
        raise InputError(f"{what} describes no image")
    return root


class _Mending:
    """Finds the files that OME-XML asks for, and changes it where this file is meant."""

    def __init__(self, path: Path, tif: TiffFile, root: ET.Element, own_uuid: str | None) -> None:
        self.path, self.tif, self.root = path, tif, root
        self.own_uuid = own_uuid
        self.missing: list[str] = []
        self.notes: list[str] = []

    def mend(self) -> bool:
        """Whether the XML was changed."""
        places = [
            (data, uuid)
            for data in descendants(self.root, "TiffData")
            for uuid in list(children(data, "UUID"))[:1]
        ]
        # tifffile knows the file by its name and UUID where both are as the file has them.
        is_odd = self.root.get("UUID") != self.own_uuid
        strangers = {
            (uuid.get("FileName"), _text(uuid)) for _, uuid in places if not self._is_own(uuid)
        }
        nameless = {text for name, text in strangers if not name}
        named = {name for name, _ in strangers if name}
        self.missing = sorted(name for name in named if self._find(name) is None)
        if nameless:
            # Without a UUID of its own a file may be the one that is meant.
            if self.own_uuid is not None or len(nameless) > 1 or named:
                raise InputError(
                    f"{self.path} says in its OME-XML that planes lie in another file "
                    f"({sorted(nameless)[0] or 'without a UUID'}), but not in which; give the "
                    "file's name there (FileName of UUID)"
                )
            self.notes.append("its OME-XML names no file: all planes are taken from this one")
            return _strip(places)
        is_alone = len(strangers) == 1 and not any(self._is_own(uuid) for _, uuid in places)
        if self.own_uuid is None and is_alone and self.missing and self._has_all():
            self.notes.append(
                f"its OME-XML calls the file {self.missing[0]}, which is not there: this one is "
                "taken for it, renamed"
            )
            self.missing = []
            return _strip(places)
        is_changed = False
        own = [(data, uuid) for data, uuid in places if self._is_own(uuid)]
        own_name = self.path.name.lower()
        if is_odd or any((uuid.get("FileName") or "").lower() != own_name for _, uuid in own):
            is_changed = _strip(own)
        for _, uuid in places:
            name = uuid.get("FileName") or ""
            found = self._find(name) if name and not self._is_own(uuid) else None
            if found is not None and found != name:
                uuid.set("FileName", found)
                is_changed = True
        return is_changed

    def _is_own(self, uuid: ET.Element) -> bool:
        name = _last_part(uuid.get("FileName") or "").lower()
        is_named = name == self.path.name.lower()
        return is_named or (self.own_uuid is not None and _text(uuid) == self.own_uuid)

    def _find(self, name: str) -> str | None:
        """How tifffile finds the file of a name, which another system may have written."""
        for found in (name, _last_part(name)):
            # A name may be longer than any file's.
            with contextlib.suppress(OSError, ValueError):
                if (self.path.parent / found).is_file():
                    return found
        return None

    def _has_all(self) -> bool:
        """Whether the file has as many pages as the XML lists."""
        stops = [
            stop or first + 1
            for image in _list_images(self.path, self.root)
            for _, first, stop in image.pages
        ]
        return max(stops, default=1) <= len(self.tif.pages)


def _strip(places: Sequence[tuple[ET.Element, ET.Element]]) -> bool:
    """Remove UUIDs, so that the planes are sought in the file itself; whether there were any."""
    for data, uuid in places:
        data.remove(uuid)
    return bool(places)


def _list_images(path: Path, root: ET.Element) -> list[OmeImage]:
    images = []
    for image in children(root, "Image"):
        stage = next(children(image, "StageLabel"), None)
        for pixels in children(image, "Pixels"):
            pages = tuple(_list_pages(path, root, pixels))
            if pages:
                images.append(OmeImage(image.get("Name") or "", pixels, stage, pages))
    return images


def _list_pages(
    path: Path, root: ET.Element, pixels: ET.Element
) -> list[tuple[str, int, int | None]]:
    """Pages of an image as tifffile counts them."""
    pages: list[tuple[str, int, int | None]] = []
    for data in children(pixels, "TiffData"):
        file = ""
        uuid = next(children(data, "UUID"), None)
        if uuid is not None and _text(uuid) != root.get("UUID"):
            name = _last_part(uuid.get("FileName") or "").lower()
            file = "" if name == path.name.lower() else name
        first = read_int(data.get("IFD"), 0)
        n = read_int(data.get("NumPlanes"), 1 if "IFD" in data.attrib else 0)
        n = read_int(data.get("PlaneCount"), n)
        pages.append((file, first, first + n if n else None))
    return pages


def _text(uuid: ET.Element) -> str:
    return (uuid.text or "").strip()


def _last_part(name: str) -> str:
    """Name of a file without its folders, whichever system wrote it."""
    return re.split(r"[\\/]", name)[-1]
