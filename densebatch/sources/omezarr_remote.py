"""The pixels of an OME-Zarr image at an address."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import StoreError
from densebatch.ngff.folders import DOCUMENTS
from densebatch.remote.store import MISSING, ChunkStore
from densebatch.sources.omezarr_metadata import stamp_place
from densebatch.sources.omezarr_source import ZarrSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import zarr
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.remote.tree import Listing, Place, RemotePath
    from densebatch.sources.axes import Axes
    from densebatch.sources.source import Layout, Stamp

_LOOK_S = 60  # after which the documents of an open image at an address are compared again


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

    def read_level(self, level: int, first: int, stop: int, region: Region) -> NDArray[Any]:
        """As `read`, of a level that can be read; 0 is the highest resolution."""
        try:
            return super().read_level(level, first, stop, region)
        except StoreError:
            self._compare_documents()  # which tells whether there is anything to be had
            raise

    def _refuse_odd_chunks(self, level: int, keys: Iterable[str]) -> None:
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
