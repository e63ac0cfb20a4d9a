"""The pixels of an OME-Zarr image, in a folder."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.codecs import ShardingCodec

from densebatch.base.errors import InputError, StoreError, UnreachableError, describe_cause
from densebatch.base.machine import measure_memory
from densebatch.ngff.chunks import open_chunks, refuse_odd_chunk
from densebatch.ngff.folders import DOCUMENTS, read_json
from densebatch.sources.axes import ArraySource, Axes
from densebatch.sources.source import MAX_CHUNK_BYTES, Layout, Stamp, check_chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from zarr.storage import LocalStore

    from densebatch.base.geometry import Region
    from densebatch.remote.store import ChunkStore
    from densebatch.remote.tree import Place

MAX_STATS = 200_000
_INDEX_BYTES_PER_CHUNK = 16
# Of what a chunk decodes to, that its file may take: codecs add little where they cannot compress.
_MOST_TIMES, _MOST_MORE_BYTES = 2, 2**20
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
        array = open_zarr_array(open_chunks(folder, document), folder, zarr_format)
        check_zarr_chunks(self.path, array)
        return array

    def read_level(self, level: int, first: int, stop: int, region: Region) -> NDArray[Any]:
        """As `read`, of a level that can be read; 0 is the highest resolution."""
        keys = list(self._list_keys(first, stop, region, level))
        self._refuse_odd_chunks(level, keys)
        try:
            return super().read_level(level, first, stop, region)
        except MemoryError as error:
            steps = self._levels[level].shards or self._levels[level].chunks
            decoded = len(keys) * math.prod(steps) * self._array.dtype.itemsize
            if _SPARE * decoded > measure_memory().available:
                raise
            # Codecs allocate what a chunk says of itself.
            raise ValueError("a chunk says that it holds more than there is memory for") from error

    def _refuse_odd_chunks(self, level: int, keys: Iterable[str]) -> None:
        """Refuse what zarr takes for chunks that are absent, and files too large to be chunks."""
        array, folder = self._levels[level], self._lower[level - 1] if level else self._level_0
        assert isinstance(folder, Path)
        most_bytes = None
        if array.shards is None:  # of a shard no more is read than is wanted
            decoded = math.prod(array.chunks) * array.dtype.itemsize
            most_bytes = _MOST_TIMES * decoded + _MOST_MORE_BYTES
        for key in keys:
            refuse_odd_chunk(folder / key, most_bytes)

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
                try:
                    stat = entry.stat()
                except OSError:  # a link to nothing, which is told where it is to be read
                    stat = entry.stat(follow_symlinks=False)
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

    def _list_keys(self, first: int, stop: int, region: Region, level: int = 0) -> Iterator[str]:
        """Names, below the folder of a level, of chunks or shards with pixels of a region of it."""
        array = self._levels[level]
        steps = array.shards or array.chunks
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
            yield array.metadata.encode_chunk_key(place)


def open_zarr_array(
    store: LocalStore | ChunkStore, level: Place, zarr_format: int
) -> zarr.Array[Any]:
    """Open an array of an image.

    Parameters
    ----------
    store
        Of its chunks.
    level
        Where it is, for the error.
    zarr_format
        2 or 3.

    Raises
    ------
    InputError
        If zarr cannot open it, or its chunks hold nothing.
    StoreError
        If a store does not give its metadata.
    """
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


def check_zarr_chunks(path: Place, array: zarr.Array[Any]) -> None:
    """Refuse an array whose chunks, or shards that cannot be read in parts, are too large.

    Parameters
    ----------
    path
        Of the image, for the error.
    array
        As it was opened.

    Raises
    ------
    InputError
        As `check_chunk`; also for shards of more chunks than an index may have.
    """
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
        if _is_folder(entry):
            yield from _walk(entry.path)
        elif entry.name not in DOCUMENTS:
            yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
