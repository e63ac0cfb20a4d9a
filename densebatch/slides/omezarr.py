"""OME-Zarr 0.4 and 0.5: the highest resolution of an image group."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import ShardingCodec

from densebatch.base.errors import InputError, StoreError, UnreachableError, describe_cause
from densebatch.base.machine import measure_memory
from densebatch.ngff.chunks import open_chunks, refuse_odd_chunk, refuse_other_chunks
from densebatch.ngff.folders import DOCUMENTS, read_json
from densebatch.ngff.metadata import (
    Json,
    check_version,
    list_channel_labels,
)
from densebatch.ngff.scales import find_pixel_lengths, find_translation
from densebatch.remote.store import MISSING, ChunkStore
from densebatch.remote.tree import RemotePath
from densebatch.slides.axes import ArraySource, Axes, name_channels, tell_stacks
from densebatch.slides.omezarr_axes import find_omezarr_axes
from densebatch.slides.omezarr_metadata import find_image, find_levels, stamp_place
from densebatch.slides.source import (
    MAX_CHUNK_BYTES,
    Layout,
    Selection,
    Stamp,
    check_chunk,
    check_size,
    place_origin,
    place_um,
    square_pixel,
    tell_oblong,
    to_um,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from zarr.storage import LocalStore

    from densebatch.base.geometry import Region
    from densebatch.remote.tree import Listing, Place


MAX_STATS = 200_000
_INDEX_BYTES_PER_CHUNK = 16
_LOOK_S = 60  # after which the documents of an open image at an address are compared again
_SPARE = 4  # times as much memory as chunks take decoded, and it was not for want of it


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
    lower
        Folders of the levels below the highest resolution.
    """

    def __init__(
        self,
        path: Place,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        array: zarr.Array[Any],
        axes: Axes,
        level_0: Path,
        metadata: str,
        lower: Sequence[Place],
    ) -> None:
        super().__init__(path, layout, stamps, array, axes)
        self._level_0, self._metadata, self._lower = level_0, metadata, lower

    def _open_level(self, level: int) -> zarr.Array[Any]:
        folder = self._lower[level - 1]
        zarr_format = 2 if (folder / ".zarray").is_file() else 3
        document = read_json(folder / (".zarray" if zarr_format == 2 else "zarr.json"))
        array = _open_array(open_chunks(folder, document), folder, zarr_format)
        _check_chunks(self.path, array)
        return array

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        keys = list(self._list_keys(first, stop, region))
        self._refuse_odd_chunks(keys)
        try:
            return super().read(first, stop, region)
        except MemoryError as error:
            steps = self._array.shards or self._array.chunks
            decoded = len(keys) * math.prod(steps) * self._array.dtype.itemsize
            if _SPARE * decoded > measure_memory().available:
                raise
            # Codecs allocate what a chunk says of itself.
            raise ValueError("a chunk says that it holds more than there is memory for") from error

    def _refuse_odd_chunks(self, keys: Iterable[str]) -> None:
        """Refuse what zarr takes for chunks that are absent."""
        for key in keys:
            refuse_odd_chunk(self._level_0 / key)

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
        return (self._level_0 / key for key in self._list_keys(first, stop, region))

    def _list_keys(self, first: int, stop: int, region: Region) -> Iterator[str]:
        """Names, below the folder of the array, of chunks or shards with pixels of a region."""
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
            yield self._array.metadata.encode_chunk_key(place)


class RemoteZarrSource(ZarrSource):
    """An open OME-Zarr image at an address.

    Parameters
    ----------
    path, layout, array, axes, metadata, lower
        As of `ZarrSource`.
    documents
        That were read, as they were.
    level_0
        Of the array.
    chunks
        The store of the array.
    """

    def __init__(
        self,
        path: RemotePath,
        layout: Layout,
        documents: Mapping[Place, Stamp],
        array: zarr.Array[Any],
        axes: Axes,
        level_0: RemotePath,
        metadata: str,
        lower: Sequence[Place],
        chunks: ChunkStore,
    ) -> None:
        super().__init__(path, layout, {}, array, axes, Path(), metadata, lower)
        self._documents, self._at, self._chunks = dict(documents), level_0, chunks
        self._looked_s = time.monotonic()
        self._listing: Listing | None = None
        self._is_listed = False
        self._lists = threading.Lock()

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        try:
            return super().read(first, stop, region)
        except StoreError:
            self._compare_documents()  # which tells whether there is anything to be had
            raise

    def _refuse_odd_chunks(self, keys: Iterable[str]) -> None:
        """None is, for the store of the chunks looks at what comes."""

    def content(self) -> list[object]:
        """Image metadata, and a digest of the level's objects where the store lists them."""
        listing = self._list()
        if self._newest_ns is None:
            self._newest_ns = self._find_newest()
        return [self._metadata, None if listing is None else listing.digest]

    def _find_newest(self) -> int:
        # Of what is not listed nobody knows how new it is, and any change from now on is newer.
        listing = self._list()
        return time.time_ns() if listing is None else listing.newest_ns

    def _list(self, *, anew: bool = False) -> Listing | None:
        with self._lists:
            if anew or not self._is_listed:
                self._listing = self._at.list_objects(DOCUMENTS)
                self._is_listed = True
                self.listed = None if self._listing is None else self._listing.digest
            return self._listing

    def renew(self) -> None:
        """As `Source.renew`."""
        super().renew()
        self.look_again()

    def look_again(self) -> None:
        """As `Source.look_again`."""
        super().look_again()
        self._is_listed = False

    def find_newer(
        self, first: int, stop: int, region: Region, newest_ns: int, listed: str | None
    ) -> object:
        """A chunk of a region that has changed or is gone since; None without one.

        Raises
        ------
        StoreError
            If a chunk is missing, and the store does not tell whether it always was.
        """
        for key in self._list_keys(first, stop, region):
            time_ns = self._chunks.find_time(key)
            is_gone = time_ns == MISSING and listed is not None and self._had(key, listed)
            if is_gone or time_ns > newest_ns:
                return self._at / key
        return None

    def _had(self, key: str, listed: str) -> bool:
        """Whether a chunk that is missing was there when the chunks were as `listed`."""
        listing = self._list()
        if listing is None or listing.digest != listed:
            listing = self._list(anew=True)
        if listing is None:
            raise StoreError(f"{self._at}: cannot be listed here, as it could where it was planned")
        return listing.digest != listed or listing.has(key)

    def is_current(self) -> bool:
        """Whether the documents are those that were opened; they are compared now and then."""
        if time.monotonic() - self._looked_s < _LOOK_S:
            return True
        return self._compare_documents()

    def _compare_documents(self) -> bool:
        try:
            same = all(stamp_place(p, anew=True) == s for p, s in self._documents.items())
        except FileNotFoundError:
            return False
        self._looked_s = time.monotonic()
        return same


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
    array = _open_array(store, level_0, found.zarr_format)
    axes, letters = find_omezarr_axes(path, image, array.shape, selection)
    height, width = array.shape[axes.y], array.shape[axes.x]
    n = 1 if axes.channel is None else array.shape[axes.channel]
    check_size(path, height, width, n)
    _check_chunks(path, array)
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


def _open_array(store: LocalStore | ChunkStore, level: Place, zarr_format: int) -> zarr.Array[Any]:
    try:
        array = zarr.open_array(store, mode="r", zarr_format=2 if zarr_format == 2 else 3)
        chunks = array.chunks
    except StoreError as error:
        raise UnreachableError(str(error), error.is_denied) from None
    except Exception as exc:
        raise InputError(
            f"{level} cannot be opened as a Zarr array ({describe_cause(exc)})"
        ) from exc
    if 0 in chunks or 0 in (array.shards or ()):
        raise InputError(f"{level} declares chunks of {chunks}, which hold nothing")
    return array


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


def _check_chunks(path: Place, array: zarr.Array[Any]) -> None:
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
