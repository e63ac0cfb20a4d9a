"""What the metadata documents of an OME-Zarr tell of its images, versions 0.4 and 0.5."""

from __future__ import annotations

import contextlib
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.slides.source import (
    Axes,
    Stamp,
    check_dtype,
    square_pixel,
    stamp_file,
    tell,
    to_um,
)

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")

Json = dict[str, Any]


def _read_json(path: Path, stamps: dict[Path, Stamp]) -> Json:
    stamps[path] = stamp_file(path)
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise InputError(f"{path} is not a readable JSON document ({tell(exc)})") from exc
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def _read_group(path: Path, stamps: dict[Path, Stamp]) -> tuple[Json, int]:
    """OME attributes of a group and its Zarr format."""
    if (path / "zarr.json").is_file():
        document = _read_json(path / "zarr.json", stamps)
        attributes, zarr_format = document.get("attributes", {}), 3
        attributes = attributes.get("ome", {}) if isinstance(attributes, dict) else {}
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
    return (attributes if isinstance(attributes, dict) else {}), zarr_format


def find_image(path: Path, stamps: dict[Path, Stamp]) -> tuple[Path, Json, int]:
    """Folder, OME attributes and Zarr format of the image at `path`, or of the only one in it.

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
        return path, attributes, zarr_format
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
                images.append((child, child_attributes, child_format))
    if len(images) != 1:
        names = ", ".join(image.name for image, _, _ in images) or "none"
        raise InputError(
            f"{path} is a bioformats2raw folder of {len(images)} images ({names}); "
            "accepted is one image: add its name to the path"
        )
    return images[0]


def find_version(path: Path, attributes: Json, image: Json, zarr_format: int) -> str:
    """Check that metadata and Zarr format belong together."""
    expected = "0.4" if zarr_format == 2 else "0.5"
    holder = image if zarr_format == 2 else attributes
    version = str(holder.get("version", expected))
    if version != expected:
        raise InputError(
            f"{path} is OME-Zarr {version} in Zarr format {zarr_format}; accepted are 0.4 in "
            "Zarr format 2 and 0.5 in Zarr format 3"
        )
    return version


def find_levels(path: Path, image: Json, zarr_format: int) -> list[Path]:
    """Array folders of all resolutions, the highest first."""
    datasets = image.get("datasets")
    if not (isinstance(datasets, list) and datasets):
        raise InputError(f"{path} has multiscales metadata without datasets")
    levels = []
    for dataset in datasets:
        name = dataset.get("path") if isinstance(dataset, dict) else None
        if not isinstance(name, str) or not name or {"..", "/"} & set(PurePosixPath(name).parts):
            raise InputError(f"{path} names a dataset {name!r}, which is no path inside it")
        document = ".zarray" if zarr_format == 2 else "zarr.json"
        if not (path / name / document).is_file():
            raise InputError(
                f"{path} lists {len(datasets)} resolutions of which '{name}' is missing: "
                f"there is no {name}/{document}"
            )
        levels.append(path / name)
    return levels


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


def read_axis_letters(path: Path, image: Json) -> list[str]:
    """Names of the axes in upper case, as `find_axes` takes them."""
    axes = image.get("axes")
    if not isinstance(axes, list) or not all(isinstance(axis, dict) for axis in axes):
        raise InputError(f"{path} has multiscales metadata without a list of axes")
    return [str(axis.get("name", "?")).upper() for axis in axes]


def read_channel_labels(attributes: Json) -> list[str | None]:
    """Labels in the rendering metadata (`omero`), as far as there are any."""
    omero = attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        return []
    labels = [channel.get("label") if isinstance(channel, dict) else None for channel in channels]
    return [label if isinstance(label, str) else None for label in labels]


def read_pixel_size(image: Json, axes: Axes) -> float | None:
    """Scale of the first dataset times that of the whole image, where the unit is a length."""

    def scales(holder: Json) -> list[Any]:
        transforms = holder.get("coordinateTransformations")
        for transform in transforms if isinstance(transforms, list) else []:
            if isinstance(transform, dict) and transform.get("type") == "scale":
                scale = transform.get("scale")
                if isinstance(scale, list) and len(scale) == axes.ndim:
                    return scale
        return [1] * axes.ndim

    def size(axis: int) -> float | None:
        unit = image["axes"][axis].get("unit")
        try:
            length = float(scales(image["datasets"][0])[axis]) * float(scales(image)[axis])
        except (TypeError, ValueError):
            return None
        return to_um(length, unit)

    return square_pixel(size(axes.y), size(axes.x))
