"""OME-Zarr 0.4 and 0.5: the highest resolution of an image group."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.ngff.chunks import open_chunks, refuse_other_chunks
from densebatch.ngff.metadata import (
    Json,
    check_version,
    list_channel_labels,
)
from densebatch.ngff.scales import find_pixel_lengths, find_translation
from densebatch.remote.store import ChunkStore
from densebatch.remote.tree import RemotePath
from densebatch.sources.axes import Axes, name_channels, tell_stacks
from densebatch.sources.lengths import place_origin, place_um, square_pixel, tell_oblong, to_um
from densebatch.sources.omezarr_axes import find_omezarr_axes
from densebatch.sources.omezarr_metadata import find_image, find_levels
from densebatch.sources.omezarr_remote import RemoteZarrSource
from densebatch.sources.omezarr_source import ZarrSource, check_zarr_chunks, open_zarr_array
from densebatch.sources.source import (
    Layout,
    Selection,
    Stamp,
    check_size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.remote.tree import Place


def open_omezarr(path: Place, selection: Selection) -> ZarrSource:
    """Open the image group at `path`, or an image in a plate, well, store or bioformats2raw folder.

    Raises
    ------
    InputError
        If there is no image of version 0.4 or 0.5, or several and none was chosen, or its axes,
        type or sizes are not accepted.
    """
    stamps: dict[Place, Stamp] = {}
    found = find_image(path, selection.scene, stamps)
    path, attributes = found.path, found.attributes
    ngff = check_version(
        attributes,
        found.multiscale,
        found.zarr_format,
        path,
        older=selection.axes is not None,
    )
    image, level_0, document, shapes = find_levels(found, stamps)
    store = open_chunks(level_0, document)
    array = open_zarr_array(store, level_0, found.zarr_format)
    axes, letters = find_omezarr_axes(path, image, array.shape, selection)
    height, width = array.shape[axes.y], array.shape[axes.x]
    n = 1 if axes.channel is None else array.shape[axes.channel]
    check_size(path, height, width, n)
    check_zarr_chunks(path, array)
    refuse_other_chunks(level_0, array)
    um_per_px, size_notes = _read_pixel_size(image, axes)
    origin_um = None if um_per_px is None else _find_origin(image, axes)
    channels, channel_notes = _name_channels(list_channel_labels(attributes), n)
    layout = Layout(
        kind="ome-zarr",
        height=height,
        width=width,
        channels=channels,
        colour=False,
        dtype=array.dtype.newbyteorder("="),
        um_per_px=um_per_px,
        chunk_px=(min(array.chunks[axes.y], height), min(array.chunks[axes.x], width)),
        chunk_planes=math.prod(array.chunks) // (array.chunks[axes.y] * array.chunks[axes.x]),
        levels=tuple((shape[axes.y], shape[axes.x]) for shape in shapes if len(shape) == axes.ndim),
        um_from="scale of the OME-Zarr metadata" if um_per_px else None,
        origin_um=origin_um,
        origin_from="translation of the OME-Zarr metadata" if origin_um else None,
        compression=_name_compression(document),
        ngff=ngff,
        selection=Selection(
            found.scene,
            None if selection.axes is None else letters,
            *tell_stacks(axes, letters, array.shape),
        ),
        notes=(*size_notes, *channel_notes),
    )
    described = {
        "multiscales": found.multiscale,
        "omero": attributes.get("omero"),
        "array": document,
    }
    metadata = json.dumps(described, sort_keys=True)
    lower = [path / dataset["path"] for dataset in image["datasets"][1:]]
    if isinstance(store, ChunkStore):
        assert isinstance(path, RemotePath)
        assert isinstance(level_0, RemotePath)
        return RemoteZarrSource(path, layout, stamps, array, axes, level_0, metadata, lower, store)
    assert isinstance(level_0, Path)
    files = {file: stamp for file, stamp in stamps.items() if isinstance(file, Path)}
    return ZarrSource(path, layout, files, array, axes, level_0, metadata, lower)


def _read_pixel_size(image: Json, axes: Axes) -> tuple[float | None, tuple[str, ...]]:
    """Pixel size in um, None if it is unknown; and what a user should know of it."""
    found = find_pixel_lengths(image, axes.y, axes.x, axes.ndim)
    um_per_px, problem = None, found.problem
    if found.lengths is not None:
        um_y, um_x = map(to_um, found.lengths, found.units)
        um_per_px = square_pixel(um_y, um_x)
        if um_y is None or um_x is None:
            scale = " x ".join(f"{length:g}" for length in dict.fromkeys(found.lengths))
            units = " and ".join(map(_quote_unit, dict.fromkeys(map(str, found.units))))
            problem = f"a scale of {scale} {units}, which is no length"
        elif um_per_px is None:
            return None, tell_oblong(um_y, um_x)
    if problem is not None:
        return None, (
            f"the metadata give {problem}: the pixel size counts as unknown, unless --pixel-size "
            "gives it",
        )
    return um_per_px, found.notes


def _find_origin(image: Json, axes: Axes) -> tuple[float, float] | None:
    """Where the first pixel lies, in um."""
    found = find_translation(image, axes.y, axes.x, axes.ndim)
    units = find_pixel_lengths(image, axes.y, axes.x, axes.ndim).units
    return None if found is None else place_origin(*map(place_um, found, units))


def _quote_unit(unit: str) -> str:
    return "without a unit" if unit in ("None", "") else f"in {unit!r}"


def _name_channels(labels: Sequence[object], n: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the channels, and what a user should know of them."""
    names = [label.strip() if isinstance(label, str) else "" for label in labels]
    odd = [label for label in labels if not isinstance(label, str | None)]
    notes = []
    if any(names) and len(names) != n:
        notes.append(
            f"the metadata have labels for {len(names)} channels and there are {n}, so the labels "
            "do not count and channels are numbered from 0"
        )
    elif odd or (any(names) and not all(names)):
        lacking = ", ".join(str(index) for index, name in enumerate(names) if not name)
        notes.append(
            f"the metadata have no text as label of channel {lacking}, which is named by its index"
        )
    return name_channels(names, n), tuple(notes)


def _name_compression(document: Json) -> str | None:
    """Names of the codecs of an array that are no serialiser, inside shards too."""
    names: list[str] = []
    pending = [document.get("codecs"), document.get("compressor")]
    while pending:
        match pending.pop():
            case list(codecs):
                pending += codecs
            case {"name": "sharding_indexed", "configuration": {"codecs": inner}}:
                pending.append(inner)
            case {"name": str(name)} | {"id": str(name)}:
                if name not in ("bytes", "transpose", "crc32c", "endian"):
                    names.append(name)
    return " and ".join(dict.fromkeys(names)) or "none"
