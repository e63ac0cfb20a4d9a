"""Folders and documents at an address, with what `Path` does for them; and what lies beneath."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from densebatch.base.errors import InputError, StoreError, UnreachableError
from densebatch.base.process import traffic
from densebatch.remote.address import Address, is_address, parse_address

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

_HASH_BYTES = 8
_PAGE = 1000  # objects that stores list at once


class Listing(NamedTuple):
    """The objects beneath a folder, as a store lists them.

    Attributes
    ----------
    digest : of their names, sizes and contents
    newest_ns : when the last of them changed, in whole seconds
    names : hash of each name below the folder, ascending
    """

    digest: str
    newest_ns: int
    names: NDArray[np.uint64]

    def has(self, name: str) -> bool:
        """Whether an object was there."""
        wanted = np.uint64(_hash(name))
        place = int(np.searchsorted(self.names, wanted))
        return place < len(self.names) and bool(self.names[place] == wanted)


class _Tree:
    """A bucket or host. Documents are asked for once; who wants them anew makes another."""

    def __init__(self, root: Address) -> None:
        self._root = root
        self._store: Any = None
        self._known: dict[str, bytes | None] = {}
        self.refusal: str | None = None  # of a document, which may be there

    @property
    def store(self) -> Any:  # noqa: ANN401
        """The store, opened by the first who needs it."""
        if self._store is None:
            from densebatch.remote.store import open_store

            self._store = open_store(self._root)
        return self._store

    def read(self, address: Address, *, anew: bool = False) -> bytes | None:
        """Bytes of a document, None without one; a few kB, so that it comes with the question."""
        from densebatch.remote.store import errors_told

        key = address.key
        if not key:
            return None
        if anew or key not in self._known:
            store = self.store  # which tells what to install where the library is missing
            import obstore

            try:
                traffic.add(requests=1)
                with errors_told(address):
                    found = bytes(obstore.get(store, key).bytes())
                traffic.add(n_bytes=len(found))
                self._known[key] = found
            except FileNotFoundError:
                self._known[key] = None
            except StoreError as error:
                if anew or not error.is_denied:
                    raise UnreachableError(str(error), error.is_denied) from None
                # So a store that may not be listed speaks of what is missing.
                self.refusal, self._known[key] = str(error), None
        return self._known[key]


class RemotePath:
    """A folder or file at an address.

    Not pickled with what is known of it: another process asks for itself.

    Parameters
    ----------
    address
        As a user gives it.

    Raises
    ------
    InputError
        As `parse_address`.
    """

    def __init__(self, address: str | Address, _tree: _Tree | None = None) -> None:
        self._address = parse_address(address) if isinstance(address, str) else address
        self._tree = _tree or _Tree(Address(self._address.scheme, self._address.host))

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str]]:
        return RemotePath, (str(self),)

    def __str__(self) -> str:
        return str(self._address)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

    def __truediv__(self, name: str) -> RemotePath:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        return self._with(self._address.parts + parts)

    def _with(self, parts: tuple[str, ...]) -> RemotePath:
        return RemotePath(Address(self._address.scheme, self._address.host, parts), self._tree)

    @property
    def address(self) -> Address:
        """The address, taken apart."""
        return self._address

    @property
    def name(self) -> str:
        """The last name of it; that of bucket or host, where it is one."""
        return (self._address.host, *self._address.key.split("/"))[-1] or self._address.host

    @property
    def suffix(self) -> str:
        """The last ending of its name, with the point."""
        return Path(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in; itself, where it is a bucket or host."""
        return self._with(self._address.parts[:-1])

    @property
    def parents(self) -> list[RemotePath]:
        """The folders that it lies in, the nearest first."""
        parts = self._address.parts
        return [self._with(parts[:n]) for n in range(len(parts) - 1, -1, -1)]

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def is_file(self) -> bool:
        """Whether there is an object of this name; a small one, because it is read.

        Raises
        ------
        UnreachableError
            If the store does not tell.
        """
        return self._tree.read(self._address) is not None

    def read_bytes(self, *, anew: bool = False) -> bytes:
        """Content of an object.

        Parameters
        ----------
        anew
            Whether it is asked for also where it is known.

        Raises
        ------
        FileNotFoundError
            If there is none.
        UnreachableError
            If the store does not tell.
        """
        found = self._tree.read(self._address, anew=anew)
        if found is None:
            raise FileNotFoundError(2, "is not there", str(self))
        return found

    def check_answer(self) -> None:
        """Make sure that the store answers, in some seconds and not after all tries.

        Raises
        ------
        UnreachableError
            If it does not; a refusal is an answer.
        """
        from densebatch.remote.store import errors_told, open_store

        store = open_store(Address(self._address.scheme, self._address.host), is_trial=True)
        import obstore

        document = self / "zarr.json"
        try:
            traffic.add(requests=1)
            with errors_told(document):
                obstore.get(store, document.address.key)
        except FileNotFoundError:
            pass
        except StoreError as error:
            if not error.is_denied:
                raise UnreachableError(str(error)) from None

    def check_refusal(self) -> None:
        """Tell that documents were refused, where they were found to be missing.

        Raises
        ------
        UnreachableError
            If one was.
        """
        if self._tree.refusal is not None:
            raise UnreachableError(self._tree.refusal, is_denied=True)

    def list_folders(self) -> list[RemotePath]:
        """The folders right inside, sorted by name.

        Raises
        ------
        InputError
            If the store does not list.
        """
        import obstore

        from densebatch.remote.store import errors_told

        if self._address.is_web:
            raise InputError(f"{self} cannot be listed: web servers do not list")
        try:
            with errors_told(self):
                traffic.add(requests=1)
                found = obstore.list_with_delimiter(self._tree.store, self._prefix)
        except (StoreError, FileNotFoundError) as error:
            raise InputError(f"{self} cannot be listed: {error}") from None
        names = {str(prefix).rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]}
        return [self / name for name in sorted(names)]

    def _list_pages(self, page: int) -> Iterator[Sequence[Any]]:
        """What lies beneath, so many objects at once.

        Raises
        ------
        StoreError
            If the store does not list, or not to us: `is_denied`.
        UnreachableError
            If it does not answer.
        """
        import obstore

        from densebatch.remote.store import errors_told

        if self._address.is_web:
            raise StoreError(f"{self}/: web servers do not list", is_denied=True)
        try:
            with errors_told(f"{self}/"):
                for batch in obstore.list(self._tree.store, self._prefix, chunk_size=page):
                    traffic.add(requests=1)
                    yield batch
        except (StoreError, FileNotFoundError) as error:
            if isinstance(error, StoreError) and error.is_denied:
                raise
            raise UnreachableError(str(error)) from None

    def list_names(self, most: int) -> list[str]:
        """Names of some objects beneath, below this folder; none where the store does not list.

        Raises
        ------
        UnreachableError
            If the store does not answer.
        """
        start = len(self._prefix or "")
        try:
            return [entry["path"][start:] for entry in next(self._list_pages(most), ())]
        except StoreError as error:
            if error.is_denied:
                return []
            raise

    @property
    def _prefix(self) -> str | None:
        return f"{self._address.key}/" if self._address.key else None

    def list_objects(self, leave_out: Collection[str]) -> Listing | None:
        """What lies beneath; None where the store does not list, or not to us.

        Parameters
        ----------
        leave_out
            Names of objects, in whatever folder, that are no part of it.

        Raises
        ------
        UnreachableError
            If the store does not answer.
        """
        from densebatch.remote.store import seconds_as_ns

        names: list[int] = []
        contents: list[int] = []
        newest, start = 0, len(self._prefix or "")
        try:
            for batch in self._list_pages(_PAGE):
                for entry in batch:
                    name = entry["path"][start:]
                    if name.rpartition("/")[2] in leave_out:
                        continue
                    time_ns = seconds_as_ns(entry["last_modified"])
                    newest = max(newest, time_ns)
                    mark = entry["e_tag"] or time_ns
                    names.append(_hash(name))
                    contents.append(_hash(f"{name} {entry['size']} {mark}"))
        except StoreError as error:
            if error.is_denied:
                return None
            raise
        digest = hashlib.sha256(np.sort(np.array(contents, np.uint64)).tobytes()).hexdigest()
        return Listing(digest, newest, np.sort(np.array(names, np.uint64)))


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_HASH_BYTES)
    return int.from_bytes(digest.digest(), "little")


Place = Path | RemotePath
"""Where a slide is: a file or folder, or an address."""


def find_place(path: str | os.PathLike[str] | RemotePath) -> Place:
    """A path or an address, of which nothing is known yet.

    Raises
    ------
    InputError
        As `parse_address`.
    """
    if isinstance(path, RemotePath):
        return RemotePath(path.address)
    if is_address(path):
        return RemotePath(str(path))
    return Path(path)
