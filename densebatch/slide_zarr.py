"""OME-Zarr 0.4 and 0.5: the highest resolution of an image group."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import ShardingCodec

from densebatch.errors import InputError
from densebatch.slide_source import (
    MAX_CHUNK_BYTES,
    Axes,
    Layout,
    Source,
    Stamp,
    check_chunk,
    check_dtype,
    check_size,
    find_axes,
    name_channels,
    square_pixel,
    stamp_file,
    tell,
    to_um,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from densebatch.geometry import Region

MAX_STATS = 200_000
_DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_INDEX_BYTES_PER_CHUNK = 16

Json = dict[str, Any]


class ZarrSource(Source):
    """An open OME-Zarr image."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        array: zarr.Array[Any],
        axes: Axes,
        level_0: Path,
        metadata: str,
    ) -> None:
        super().__init__(path, layout, stamps)
        self._array, self._axes, self._level_0 = array, axes, level_0
        self._metadata = metadata

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        block = self._axes.pick(self._array, first, stop, region)
        return block.astype(self.layout.dtype, copy=False)

    def content(self) -> list[object]:
        """Image metadata and a digest over names, sizes and times of the level's chunk files.

        Labels written into the image, and consolidated metadata, are no part of it: a run that
        writes into its own slide must find that slide unchanged when it continues.
        """
        digest = hashlib.sha256()
        for count, entry in enumerate(_walk(self._level_0)):
            name = os.path.relpath(entry.path, self._level_0)
            if count < MAX_STATS:
                stat = entry.stat()
                name = f"{name} {stat.st_size} {stat.st_mtime_ns}"
            digest.update(name.encode(errors="surrogateescape") + b"\n")
        return [self._metadata, digest.hexdigest()]


def open_zarr(path: Path) -> ZarrSource:
    """Open the image group at `path`, or the only image of a bioformats2raw layout there.

    Raises
    ------
    InputError
        If there is no image of version 0.4 or 0.5, or its axes, type or sizes are not accepted.
    """
    stamps: dict[Path, Stamp] = {}
    path, attributes, zarr_format = _find_image(path, stamps)
    multiscales = attributes["multiscales"]
    if not (isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict)):
        raise InputError(f"{path} has multiscales metadata that list no image")
    image = multiscales[0]
    ngff = _find_version(path, attributes, image, zarr_format)
    levels = _find_levels(path, image, zarr_format)
    document = _read_document(levels[0], zarr_format, stamps)
    array = _open_array(path, levels[0], zarr_format, document)
    axes = find_axes(path, _axis_letters(path, image), array.shape, "C", "TZ")
    height, width = array.shape[axes.y], array.shape[axes.x]
    n = 1 if axes.channel is None else array.shape[axes.channel]
    check_size(path, height, width, n)
    _check_chunks(path, array)
    layout = Layout(
        kind="ome-zarr",
        height=height,
        width=width,
        channels=name_channels(_channel_labels(attributes), n),
        colour=False,
        dtype=array.dtype.newbyteorder("="),
        um_per_px=_pixel_size(image, axes),
        chunk_px=(min(array.chunks[axes.y], height), min(array.chunks[axes.x], width)),
        n_levels=len(levels),
        ngff=ngff,
    )
    described = {"multiscales": image, "omero": attributes.get("omero"), "array": document}
    metadata = json.dumps(described, sort_keys=True)
    return ZarrSource(path, layout, stamps, array, axes, levels[0], metadata)


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
    elif any((path / name).is_file() for name in _DOCUMENTS):
        has_attributes = (path / ".zattrs").is_file()
        attributes, zarr_format = (
            _read_json(path / ".zattrs", stamps) if has_attributes else {},
            2,
        )
        is_array = (path / ".zarray").is_file()
    else:
        raise InputError(
            f"{path} is a folder without Zarr metadata (zarr.json, .zgroup); accepted folders "
            "are OME-Zarr 0.4 and 0.5 images"
        )
    if is_array:
        raise InputError(f"{path} is a single Zarr array; accepted is the image group above it")
    return (attributes if isinstance(attributes, dict) else {}), zarr_format


def _find_image(path: Path, stamps: dict[Path, Stamp]) -> tuple[Path, Json, int]:
    attributes, zarr_format = _read_group(path, stamps)
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
        if any((child / name).is_file() for name in _DOCUMENTS):
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


def _find_version(path: Path, attributes: Json, image: Json, zarr_format: int) -> str:
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


def _find_levels(path: Path, image: Json, zarr_format: int) -> list[Path]:
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


def _read_document(level: Path, zarr_format: int, stamps: dict[Path, Stamp]) -> Json:
    """Array metadata; read apart from Zarr, which cannot open every type that it can declare."""
    document = _read_json(level / (".zarray" if zarr_format == 2 else "zarr.json"), stamps)
    declared = document.get("dtype" if zarr_format == 2 else "data_type")
    name = json.dumps(declared) if not isinstance(declared, str) else declared
    if zarr_format == 2:
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            name = np.dtype(name).name
    check_dtype(level, name)
    return document


def _open_array(path: Path, level: Path, zarr_format: int, document: Json) -> zarr.Array[Any]:
    shape = document.get("shape")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"{level} declares the shape {shape!r}; accepted are sizes of 1 and more")
    try:
        array = zarr.open_array(str(level), mode="r", zarr_format=2 if zarr_format == 2 else 3)
        chunks = array.chunks
    except Exception as exc:
        raise InputError(f"{level} cannot be opened as a Zarr array ({tell(exc)})") from exc
    if 0 in chunks or 0 in (array.shards or ()):
        raise InputError(f"{level} declares chunks of {chunks}, which hold nothing")
    return array


def _check_chunks(path: Path, array: zarr.Array[Any]) -> None:
    itemsize = array.dtype.itemsize
    check_chunk(path, "chunks", array.chunks, itemsize)
    if array.shards is None:
        return
    n = math.prod(array.shards) // math.prod(array.chunks)
    if n * _INDEX_BYTES_PER_CHUNK > MAX_CHUNK_BYTES:
        raise InputError(
            f"{path} is stored in shards of {n} chunks; "
            f"at most {MAX_CHUNK_BYTES // _INDEX_BYTES_PER_CHUNK} chunks are accepted"
        )
    codecs: Any = getattr(array.metadata, "codecs", ())
    if len(codecs) != 1 or not isinstance(codecs[0], ShardingCodec):
        # a shard that is itself encoded cannot be read in parts
        check_chunk(path, "encoded shards", array.shards, itemsize)


def _axis_letters(path: Path, image: Json) -> list[str]:
    axes = image.get("axes")
    if not isinstance(axes, list) or not all(isinstance(axis, dict) for axis in axes):
        raise InputError(f"{path} has multiscales metadata without a list of axes")
    return [str(axis.get("name", "?")).upper() for axis in axes]


def _channel_labels(attributes: Json) -> list[str | None]:
    omero = attributes.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        return []
    labels = [channel.get("label") if isinstance(channel, dict) else None for channel in channels]
    return [label if isinstance(label, str) else None for label in labels]


def _pixel_size(image: Json, axes: Axes) -> float | None:
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


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """Chunk files below a folder, in one order everywhere."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as exc:
        raise InputError(f"{folder} cannot be listed: {exc.strerror}") from exc
    for entry in found:
        if entry.is_dir():
            yield from _walk(entry.path)
        elif entry.name not in _DOCUMENTS:
            yield entry
