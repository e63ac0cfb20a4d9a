"""What a cohort consists of: rows, each a slide with a name and settings of its own."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.cells.pairs import COMPOUND_SUFFIXES
from densebatch.slides.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from densebatch.planning.settings import SegmentSettings
    from densebatch.remote.tree import Place

RECORD = "cohort.json"
_LONGEST = 200  # bytes of a folder's name; file systems take 255, and temporary names add to it
_ODD = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # which Windows takes for itself


@dataclass(frozen=True)
class Row:
    """A slide of a cohort.

    Attributes
    ----------
    sample : its name, and that of its folder in the output
    slide : its file or folder, or address
    settings : of its run
    listed : names of settings in which commas stand between channels, as the command line and a
        sheet have them; a settings file names them exactly
    """

    sample: str
    slide: Place
    settings: SegmentSettings
    listed: frozenset[str] = frozenset()

    def read_settings(self) -> SegmentSettings:
        """The settings with names of channels one by one, for which the slide is opened.

        Raises
        ------
        InputError
            If the slide cannot be opened, or names can be read in more than one way.
        """
        return split_names(self.slide, self.settings, self.listed)


def split_names(path: Place, settings: SegmentSettings, listed: Collection[str]) -> SegmentSettings:
    """Read commas in names of channels, which only the slide's names tell from those between.

    Parameters
    ----------
    path
        The slide.
    settings
        Of its run.
    listed
        Names of the settings that are read so.

    Raises
    ------
    InputError
        If the slide cannot be opened, or names can be read in more than one way.
    """
    for option in sorted(listed):
        if any("," in text for text in getattr(settings, option)):
            slide = open_slide(
                path, settings.scene, settings.axes, z=settings.z, t=settings.t,
                panel=settings.panel,
            )  # fmt: skip
            names = [
                name for text in getattr(settings, option) for name in slide.split_channels(text)
            ]
            settings = settings.model_copy(update={option: tuple(names)})
    return settings


def list_slides(
    slides: Sequence[Place], settings: SegmentSettings, listed: frozenset[str]
) -> list[Row]:
    """Rows of several slides that share all settings, named by their files.

    Parameters
    ----------
    slides
        Files, folders and addresses.
    settings, listed
        Of all rows.

    Raises
    ------
    InputError
        If two have one name, or one's name is none of a folder.
    """
    rows = [Row(name_sample(slide), slide, settings, listed) for slide in slides]
    seen: dict[str, Place] = {}
    for row in rows:
        fault = find_fault(row.sample)
        if fault is not None:
            raise InputError(f"{row.slide}: its name {fault}; name its output in a sample sheet")
        other = seen.setdefault(fold_name(row.sample), row.slide)
        if other is not row.slide:
            raise InputError(
                f"{other} and {row.slide} would both be written to {row.sample!r}; accepted are "
                "slides whose names differ, or a sample sheet (--sheet) that names them"
            )
    return rows


def name_sample(slide: Place) -> str:
    """The name of a slide's file, or the last of its address, without its type.

    Examples
    --------
    >>> from pathlib import Path
    >>> name_sample(Path("a/s01.ome.tif")), name_sample(Path("b/s02_img.zarr/"))
    ('s01', 's02_img')
    """
    name = slide.absolute().name
    suffix = next((s for s in COMPOUND_SUFFIXES if name.lower().endswith(s)), slide.suffix)
    return name[: len(name) - len(suffix)] or name


def fold_name(sample: str) -> str:
    """What is equal for names that some file systems take for one.

    Examples
    --------
    >>> fold_name("S01") == fold_name("s01")
    True
    """
    return unicodedata.normalize("NFC", sample).casefold()


def find_fault(sample: str) -> str | None:
    """Why a name is none of a folder, on whatever system; None if it is one.

    Examples
    --------
    >>> find_fault("s01"), find_fault("a/b")
    (None, "has '/' in it")
    """
    odd = _ODD.search(sample)
    if odd is not None:
        return f"has {odd[0]!r} in it"
    if not sample:
        return "is empty"
    if sample.startswith("."):
        return "begins with a point"
    if sample.endswith((".", " ")):
        return "ends with a point or a space"
    if _DEVICES.fullmatch(sample) or fold_name(sample) == RECORD:
        return "is taken by the system or by densebatch"
    try:
        n_bytes = len(sample.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    return f"has {n_bytes} bytes of {_LONGEST} at most" if n_bytes > _LONGEST else None
