"""Stores of the chunks of an array, in a folder or at an address; and what is no chunk of it."""

from __future__ import annotations

import contextlib
import itertools
import operator
import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore

from densebatch.base.errors import InputError
from densebatch.ngff.folders import DOCUMENTS
from densebatch.remote.store import ChunkStore
from densebatch.remote.tree import RemotePath

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from densebatch.ngff.metadata import Json
    from densebatch.remote.tree import Place

_BLOSC_HEADER_BYTES = 16
_CHUNK_NAME = re.compile(r"(c[/.])?\d+([/.]\d+)*")
_MAX_NAMES = 1000  # of chunk files that are compared with those of the metadata


def open_chunks(level: Place, document: Json) -> LocalStore | ChunkStore:
    """The store of an array.

    Parameters
    ----------
    level
        Of the array.
    document
        Its metadata.

    Raises
    ------
    InputError
        As `remote.store.open_store`.
    """
    is_blosc = _is_blosc(document)
    if isinstance(level, RemotePath):
        return ChunkStore(level.address, _check_length if is_blosc else None)
    return (WholeChunkStore if is_blosc else LocalStore)(level, read_only=True)


def _is_blosc(document: Json) -> bool:
    """Whether chunk files are the output of Blosc: not inside shards, not under a checksum."""
    codecs = document.get("codecs")
    last = codecs[-1] if isinstance(codecs, list) and codecs else document.get("compressor")
    name = last.get("name", last.get("id")) if isinstance(last, dict) else None
    return name in ("blosc", "numcodecs.blosc")


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
        if data is not None and byte_range is None:
            _check_length(key, data)
        return data


def _check_length(key: str, data: Buffer) -> None:
    """Refuse what Blosc has compressed and is not as long as it says itself."""
    if PurePosixPath(key).name in DOCUMENTS:
        return
    expected = int.from_bytes(data[12:_BLOSC_HEADER_BYTES].to_bytes(), "little")
    if len(data) < _BLOSC_HEADER_BYTES or len(data) != expected:
        raise ValueError(f"chunk {key} has {len(data)} bytes and should have {expected}")


def refuse_other_chunks(level: Place, array: zarr.Array[Any]) -> None:
    """Refuse an array whose folder has files of chunks, but of names that none of its chunks has.

    Its metadata say where chunks are, and if that is not true all of it reads as the fill value,
    because chunks may be absent.

    Parameters
    ----------
    level
        Folder of the array, or its address; a store that lists nothing is believed.
    array
        As it was opened.

    Raises
    ------
    InputError
        If the first thousand names that look like a chunk's are none of this array.
    """
    steps = array.shards or array.chunks
    n_chunks = [-(-size // step) for size, step in zip(array.shape, steps, strict=True)]
    encode, other = array.metadata.encode_chunk_key, None
    names = level.list_names(_MAX_NAMES) if isinstance(level, RemotePath) else (
        itertools.islice(_list_chunk_names(level, ""), _MAX_NAMES)
    )  # fmt: skip
    for name in filter(_CHUNK_NAME.fullmatch, names):
        place = tuple(int(number) for number in re.findall(r"\d+", name))
        is_inside = len(place) == len(n_chunks) and all(map(operator.lt, place, n_chunks))
        if is_inside and encode(place) == name:
            return
        other = other or name
    if other is not None:
        raise InputError(
            f"{level} has chunks such as {other}, and by its metadata there are "
            f"{' x '.join(map(str, n_chunks))} chunks named as {encode((0,) * len(n_chunks))}, of "
            "which none is there: either the metadata or the names of the files are wrong"
        )


def refuse_odd_chunk(path: Path, most_bytes: int | None = None) -> None:
    """Refuse what is no chunk in the place of a chunk or shard; zarr takes it for an absent one.

    Parameters
    ----------
    path
        Where the file is, or nothing.
    most_bytes
        That a chunk may take; None if any number will do.

    Raises
    ------
    ValueError
        If it is no file, a link to nothing, empty, as a crash leaves files behind, or too large.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError(f"{path} is a link to a file that is not there") from None
        return
    except OSError as error:
        raise ValueError(f"{path} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no file, where a chunk is to be")
    if found.st_size == 0:
        raise ValueError(f"{path} is an empty file, where a chunk is to be")
    if most_bytes is not None and found.st_size > most_bytes:
        raise ValueError(f"{path} has {found.st_size} bytes, and no such chunk has as many")


def _list_chunk_names(folder: Path, above: str) -> Iterator[str]:
    """Names of files that look like chunks, relative to the array; in no order."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = above + entry.name
            if name != "c" and _CHUNK_NAME.fullmatch(name) is None:
                continue
            if entry.is_dir():
                yield from _list_chunk_names(folder / entry.name, f"{name}/")
            else:
                yield name
