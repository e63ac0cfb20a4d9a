"""OME-Zarr 0.4 and 0.5: the highest resolution of an image group."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import ShardingCodec
from zarr.storage import LocalStore

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.machine import measure_memory
from densebatch.ngff.folders import DOCUMENTS, refuse_odd_chunk, refuse_other_chunks
from densebatch.ngff.metadata import (
    Json,
    check_version,
    list_channel_labels,
)
from densebatch.ngff.scales import find_pixel_lengths
from densebatch.slides.axes import ArraySource, Axes, tell_stacks
from densebatch.slides.omezarr_axes import find_omezarr_axes
from densebatch.slides.omezarr_metadata import find_image, find_levels
from densebatch.slides.source import (
    MAX_CHUNK_BYTES,
    Layout,
    Selection,
    Stamp,
    check_chunk,
    check_size,
    name_channels,
    square_pixel,
    tell_oblong,
    to_um,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from densebatch.base.geometry import Region


MAX_STATS = 200_000
_INDEX_BYTES_PER_CHUNK = 16
_BLOSC_HEADER_BYTES = 16
_SPARE = 4  # times as much memory as chunks take decoded, and it was not for want of it


class WholeChunkStore(LocalStore):
    """A folder whose chunks, each compressed by Blosc, must be as long as they say themselves.

    Blosc does not know how long its input is: of a chunk that was cut it decodes whatever lies
    behind in memory, without an error.
    """

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read a chunk or a document."""
        data = await super().get(key, prototype, byte_range)
        if data is None or byte_range is not None or PurePosixPath(key).name in DOCUMENTS:
            return data
        expected = int.from_bytes(data[12:_BLOSC_HEADER_BYTES].to_bytes(), "little")
        if len(data) < _BLOSC_HEADER_BYTES or len(data) != expected:
            raise ValueError(f"chunk {key} has {len(data)} bytes and should have {expected}")
        return data


class ZarrSource(ArraySource):
    """An open OME-Zarr image.

    Parameters
    ----------
    path, layout, stamps, array, axes
        As of `ArraySource`.
    level_0
        Folder of the array.
    metadata
        What the image's documents say of it.
    """

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
        super().__init__(path, layout, stamps, array, axes)
        self._level_0, self._metadata = level_0, metadata

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        files = list(self.list_files(first, stop, region))
        for path in files:
            refuse_odd_chunk(path)
        try:
            return super().read(first, stop, region)
        except MemoryError as error:
            steps = self._array.shards or self._array.chunks
            decoded = len(files) * math.prod(steps) * self._array.dtype.itemsize
            if _SPARE * decoded > measure_memory().available:
                raise
            # Codecs allocate what a chunk says of itself.
            raise ValueError("a chunk says that it holds more than there is memory for") from error

    def content(self) -> list[object]:
        """Image metadata and a digest over names, sizes and times of the level's chunk files.

        Labels written into the image, and consolidated metadata, are no part of it: a run that
        writes into its own slide must find that slide unchanged when it continues.
        """
        digest, newest = self._walk_chunks()
        self._newest_ns = newest if self._newest_ns is None else self._newest_ns
        return [self._metadata, digest]

    def _walk_chunks(self) -> tuple[str, int]:
        """Digest of the chunk files, and the latest change of one of them or of a folder."""
        digest = hashlib.sha256()
        newest, folder = self._level_0.stat().st_ctime_ns, self._level_0
        for count, entry in enumerate(_walk(self._level_0)):
            name = os.path.relpath(entry.path, self._level_0)
            if count < MAX_STATS:
                stat = entry.stat()
                newest = max(newest, stat.st_ctime_ns)
                if (above := Path(entry.path).parent) != folder:
                    folder = above
                    newest = max(newest, _find_newest_folder(folder, self._level_0))
                name = f"{name} {stat.st_size} {stat.st_mtime_ns}"
            else:
                newest = max(newest, time.time_ns())  # files that nobody looks at are older
            digest.update(name.encode(errors="surrogateescape") + b"\n")
        return digest.hexdigest(), newest

    def describe(self) -> list[object]:
        """What the documents say: labels and consolidated metadata may be written meanwhile."""
        return [self._metadata]

    def _find_newest(self) -> int:
        return self._walk_chunks()[1]

    def list_files(self, first: int, stop: int, region: Region) -> Iterator[Path]:
        """Chunk or shard files with the pixels of planes `first..stop` of a region."""
        steps = self._array.shards or self._array.chunks
        axes = self._axes
        wanted = {axes.y: (region.y0, region.y1), axes.x: (region.x0, region.x1)}
        if axes.channel is not None:
            wanted[axes.channel] = (first, stop)
        seen: set[tuple[int, ...]] = set()
        for stack in axes.list_places():
            at = wanted | {axis: (index, index + 1) for axis, index in stack.items()}
            ranges = [
                range(start // step, -(-end // step))
                for axis, step in enumerate(steps)
                for start, end in [at.get(axis, (0, 1))]
            ]
            seen.update(itertools.product(*ranges))
        for place in sorted(seen):
            yield self._level_0 / self._array.metadata.encode_chunk_key(place)


def open_omezarr(path: Path, selection: Selection) -> ZarrSource:
    """Open the image group at `path`, or an image in a plate, well, store or bioformats2raw folder.

    Raises
    ------
    InputError
        If there is no image of version 0.4 or 0.5, or several and none was chosen, or its axes,
        type or sizes are not accepted.
    """
    stamps: dict[Path, Stamp] = {}
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
    array = _open_array(path, level_0, found.zarr_format, document)
    axes, letters = find_omezarr_axes(path, image, array.shape, selection)
    height, width = array.shape[axes.y], array.shape[axes.x]
    n = 1 if axes.channel is None else array.shape[axes.channel]
    check_size(path, height, width, n)
    _check_chunks(path, array)
    refuse_other_chunks(level_0, array)
    um_per_px, size_notes = _read_pixel_size(image, axes)
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
    return ZarrSource(path, layout, stamps, array, axes, level_0, metadata)


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


def _open_array(path: Path, level: Path, zarr_format: int, document: Json) -> zarr.Array[Any]:
    store = WholeChunkStore if _is_blosc(document) else LocalStore
    try:
        array = zarr.open_array(
            store(level, read_only=True), mode="r", zarr_format=2 if zarr_format == 2 else 3
        )
        chunks = array.chunks
    except Exception as exc:
        raise InputError(
            f"{level} cannot be opened as a Zarr array ({describe_cause(exc)})"
        ) from exc
    if 0 in chunks or 0 in (array.shards or ()):
        raise InputError(f"{level} declares chunks of {chunks}, which hold nothing")
    return array


def _is_blosc(document: Json) -> bool:
    """Whether chunk files are the output of Blosc: not inside shards, not under a checksum."""
    codecs = document.get("codecs")
    last = codecs[-1] if isinstance(codecs, list) and codecs else document.get("compressor")
    name = last.get("name", last.get("id")) if isinstance(last, dict) else None
    return name in ("blosc", "numcodecs.blosc")


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
        # A shard that is itself encoded cannot be read in parts.
        check_chunk(path, "encoded shards", array.shards, itemsize)


def _find_newest_folder(folder: Path, top: Path) -> int:
    """The latest change of a folder, or of one of those that it lies in, below `top`."""
    newest = 0
    while folder != top:
        newest = max(newest, folder.stat().st_ctime_ns)
        folder = folder.parent
    return newest


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
        elif entry.name not in DOCUMENTS:
            yield entry
