"""What makers of scanners write into TIFF files to tell the slide from pictures beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from tifffile import TiffPageSeries

from densebatch.base.errors import InputError
from densebatch.tiff.markup import child_text, children, descendants, parse_xml

if TYPE_CHECKING:
    from pathlib import Path

    from tifffile import TiffFile, TiffPage

# How tifffile calls what is no slide in the formats of these kinds.
_KINDS = ("svs", "qpi", "bif", "philips", "ndpi", "avs")
_PICTURES = {"thumbnail", "label", "macro", "map", "other", "overview", "unknown"}
_PAGE_NAME = 285
_MAX_NAME = 60
_FULL = "FullResolution"
# No slide has as many, and tifffile makes a list of them before it looks for any.
MAX_PLANES = 2**20


def name_series(series: TiffPageSeries) -> str:
    """Name of an image: of its metadata, of the tag for it, or a description that is a name."""
    if series.name and series.name not in ("Baseline", "Unknown"):
        return str(series.name)
    if series.kind not in ("generic", "uniform", "shaped"):
        return str(series.name)
    keyframe = series.keyframe
    names = [keyframe.tags.valueof(_PAGE_NAME)] if len(series) == 1 else []
    if series.kind != "shaped":
        names.append(keyframe.description)
    for name in names:
        if isinstance(name, str) and 0 < len(name.strip()) <= _MAX_NAME and name.isprintable():
            return name.strip()
    return ""


def name_pages(series: TiffPageSeries) -> str:
    """What an image is besides the slide, as its maker's format says; "" if it is the slide."""
    name = str(series.name).lower()
    if series.kind in _KINDS and name in _PICTURES:
        return name
    if series.kind == "scn" and series.parent is not None:
        return _read_scn(series)
    return ""


def _read_scn(series: TiffPageSeries) -> str:
    """Of a Leica SCN the macro is the image as large as the whole collection."""
    index = series.keyframe.index
    for collection in children(parse_xml(series.parent.pages.first.description), "collection"):
        size = collection.get("sizeX"), collection.get("sizeY")
        for image in children(collection, "image"):
            ifds = {e.get("ifd") for e in descendants(image, "dimension")}
            view = next(children(image, "view"), None)
            if str(index) in ifds and view is not None and None not in size:
                is_all = (view.get("sizeX"), view.get("sizeY")) == size
                return "macro" if is_all else ""
    return ""


def read_qpi(page: TiffPage) -> dict[str, str]:
    """What a page of a QPTIFF tells: `ImageType`, `Name`, `Biomarker`; "" for what it does not."""
    try:
        root = parse_xml(page.description)
    except ValueError:
        return {}
    return {key: child_text(root, key) for key in ("ImageType", "Name", "Biomarker")}


def refuse_absurd_stack(path: Path, tif: TiffFile) -> None:
    """Refuse a Micro-Manager file of more planes than tifffile can list in memory.

    Raises
    ------
    InputError
        With the number that it declares.
    """
    if not tif.is_mmstack:
        return
    meta = tif.micromanager_metadata
    summary = meta["Summary"] if isinstance(meta["Summary"], dict) else {}
    found = meta["IndexMap"][:, :4].max(axis=0).tolist()
    listed = [summary.get(key, 1) for key in ("Channels", "Slices", "Frames", "Positions")]
    n = math.prod(
        max(1 + index, count if isinstance(count, int) else 1)
        for index, count in zip(found, listed, strict=True)
    )
    if n > MAX_PLANES:
        raise InputError(f"{path} declares {n} planes; at most {MAX_PLANES} are accepted")


def say_partial(tif: TiffFile, series: TiffPageSeries) -> str:
    """What a Micro-Manager file lacks of the channels that its summary lists; "" if nothing.

    tifffile makes a smaller image of a file whose siblings are missing.
    """
    if series.kind != "mmstack":
        return ""
    try:
        listed = int(tif.micromanager_metadata["Summary"].get("Channels", 1))
    except (TypeError, ValueError, KeyError):
        return ""
    sizes = dict(zip(series.get_axes(squeeze=False), series.get_shape(squeeze=False), strict=True))
    if sizes.get("C", 1) >= listed:
        return ""
    return (
        f"holds {sizes.get('C', 1)} of the {listed} channels that its summary lists; the files of "
        "the others (_MMStack) must be beside it"
    )


def regroup(tif: TiffFile) -> list[TiffPageSeries]:
    """Series of a file, in which each is an image.

    Those of a QPTIFF go by the type that its pages tell: tifffile goes by the order that these
    files usually have, and would take a thumbnail that comes first for the slide, or an overview
    for a thumbnail. Positions of Micro-Manager are images, of which each mostly has a file.
    """
    all_series = list(tif.series)
    kind = all_series[0].kind if all_series else ""
    if kind == "mmstack":
        return _split_positions(tif, all_series[0])
    return _group_by_type(tif, all_series) if kind == "qpi" else all_series


def _split_positions(tif: TiffFile, series: TiffPageSeries) -> list[TiffPageSeries]:
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    if "R" not in axes or shape[axes.index("R")] == 1:
        return [series]
    at, n_stacked = axes.index("R"), len(axes) - len(series.keyframe.axes)
    pages = np.empty(math.prod(shape[:n_stacked]), object)
    pages[:] = list(series)
    pages = pages.reshape(shape[:n_stacked])
    result = []
    for r in range(shape[at]):
        of_position = pages.take(r, at).ravel().tolist()
        if any(page is not None for page in of_position):
            result.append(
                TiffPageSeries(
                    of_position,
                    (*shape[:at], *shape[at + 1 :]),
                    series.dtype,
                    axes.replace("R", ""),
                    parent=tif,
                    name=f"Pos{r}",
                    kind="mmstack",
                )
            )
    return result


def _group_by_type(tif: TiffFile, all_series: list[TiffPageSeries]) -> list[TiffPageSeries]:
    groups: dict[tuple[str, tuple[int, ...]], list[TiffPage]] = {}
    for page in tif.pages:
        groups.setdefault((read_qpi(page).get("ImageType", ""), page.shape), []).append(page)
    kinds = [kind for kind, _ in groups]
    if "" in kinds or _FULL not in kinds:
        return all_series
    result = []
    for (kind, _), pages in groups.items():
        if kind == _FULL:
            levels = [
                _make_series(smaller, "Resolution")
                for (other, _), smaller in groups.items()
                if other == "ReducedResolution" and len(smaller) == len(pages)
            ]
            series = _make_series(pages, "Baseline")
            series.levels.extend(levels if kinds.count(_FULL) == 1 else [])
            result.append(series)
        elif kind != "ReducedResolution":
            result += [_make_series([page], kind) for page in pages]
    return result


def _make_series(pages: list[TiffPage], name: str) -> TiffPageSeries:
    first = pages[0]
    shape, axes = (len(pages), *first.shape), "C" + first.axes
    return TiffPageSeries(pages, shape, first.dtype, axes, name=name, kind="qpi")
