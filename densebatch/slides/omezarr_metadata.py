"""Metadata documents of an OME-Zarr, versions 0.4 and 0.5: found and read, of either Zarr format.

What their OME attributes say is the business of `base.ngff`.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.ngff import Json, list_level_paths, ome_attributes
from densebatch.slides.source import Stamp, check_dtype, stamp_file

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


def _read_json(path: Path, stamps: dict[Path, Stamp]) -> Json:
    stamps[path] = stamp_file(path)
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} is not a readable JSON document ({describe_cause(exc)})") from exc
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def _read_group(path: Path, stamps: dict[Path, Stamp]) -> tuple[Json, int]:
    """OME attributes of a group and its Zarr format."""
    if (path / "zarr.json").is_file():
        document = _read_json(path / "zarr.json", stamps)
        attributes, zarr_format = document.get("attributes"), 3
        is_array = document.get("node_type") == "array"
    elif any((path / name).is_file() for name in DOCUMENTS):
        zattrs = path / ".zattrs"
        attributes, zarr_format = _read_json(zattrs, stamps) if zattrs.is_file() else {}, 2
        is_array = (path / ".zarray").is_file()
    else:
        raise InputError(
            f"{path} is a folder without Zarr metadata (zarr.json, .zgroup); accepted folders "
            "are OME-Zarr 0.4 and 0.5 images"
        )
    if is_array:
        raise InputError(f"{path} is a single Zarr array; accepted is the image group above it")
    attributes = attributes if isinstance(attributes, dict) else {}
    return ome_attributes(attributes, zarr_format), zarr_format


class FoundImage(NamedTuple):
    """An image in a Zarr hierarchy.

    Attributes
    ----------
    path : folder of its group
    attributes : its OME attributes
    zarr_format : 2 or 3
    """

    path: Path
    attributes: Json
    zarr_format: int


def find_image(path: Path, stamps: dict[Path, Stamp]) -> FoundImage:
    """Find the image at `path`, or the only one in it.

    The documents that are read are added to `stamps`.

    Raises
    ------
    InputError
        If there is no image, or several.
    """
    attributes, zarr_format = _read_group(path, stamps)
    if "image-label" in attributes:
        raise InputError(f"{path} is a label image; accepted are images")
    if "multiscales" in attributes:
        return FoundImage(path, attributes, zarr_format)
    if "bioformats2raw.layout" not in attributes:
        what = "a plate: name one of its images" if "plate" in attributes else "no image"
        raise InputError(
            f"{path} is a Zarr group without multiscales metadata, so {what}; accepted are "
            "OME-Zarr 0.4 and 0.5 image groups"
        )
    images = []
    for child in sorted(path.iterdir()):
        if any((child / name).is_file() for name in DOCUMENTS):
            child_attributes, child_format = _read_group(child, stamps)
            if "multiscales" in child_attributes:
                images.append(FoundImage(child, child_attributes, child_format))
    if len(images) != 1:
        names = ", ".join(image.path.name for image in images) or "none"
        raise InputError(
            f"{path} is a bioformats2raw folder of {len(images)} images ({names}); "
            "accepted is one image: add its name to the path"
        )
    return images[0]


def find_levels(path: Path, image: Json, zarr_format: int) -> list[Path]:
    """Array folders of all resolutions, the highest first.

    Raises
    ------
    InputError
        If the metadata list none, or one that is missing.
    """
    names = list_level_paths(image, path)
    document = ".zarray" if zarr_format == 2 else "zarr.json"
    for name in names:
        if not (path / name / document).is_file():
            raise InputError(
                f"{path} lists {len(names)} resolutions of which '{name}' is missing: "
                f"there is no {name}/{document}"
            )
    return [path / name for name in names]


def read_array_document(level: Path, zarr_format: int, stamps: dict[Path, Stamp]) -> Json:
    """Array metadata; read apart from Zarr, which cannot open every type that it can declare."""
    document = _read_json(level / (".zarray" if zarr_format == 2 else "zarr.json"), stamps)
    declared = document.get("dtype" if zarr_format == 2 else "data_type")
    name = json.dumps(declared) if not isinstance(declared, str) else declared
    if zarr_format == 2:
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            name = np.dtype(name).name
    check_dtype(level, name)
    return document
