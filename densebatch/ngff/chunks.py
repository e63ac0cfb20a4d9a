"""Stores of the chunks of an array: in a folder, or at an address."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from zarr.storage import LocalStore

from densebatch.ngff.folders import DOCUMENTS
from densebatch.remote.store import ChunkStore
from densebatch.remote.tree import RemotePath

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from densebatch.ngff.metadata import Json
    from densebatch.remote.tree import Place

_BLOSC_HEADER_BYTES = 16


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
