"""Lists of files with their SHA-256, as `sha256sum -c` reads them, that tell damage of themselves.

    # sha256 of the files of this folder
    9f86d081884c7d65...  cells.parquet
    # sha256 of the lines above: 2c26b46b68ffc68f...

Plain text in the format of a common tool, so that a result can be checked where densebatch is not.
"""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

ABSENT = "absent"
_HEAD = b"# sha256 of the files of a result of densebatch, for `sha256sum -c`\n"
_END = re.compile(rb"# sha256 of the lines above: ([0-9a-f]{64})\n")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def checksum_file(path: Path) -> str:
    """SHA-256 of a file's bytes; of a missing file, the word `absent`.

    Raises
    ------
    OSError
        If it is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT


def fits_checksum(path: Path, checksum: str) -> bool:
    """Whether a file is there, or absent, as a checksum says; what cannot be read does not fit."""
    try:
        return checksum_file(path) == checksum
    except OSError:
        return False


def format_checksums(checksums: Mapping[str, str]) -> bytes:
    """A list of files, by name, with its own checksum at its end; inverse of `parse_checksums`.

    Parameters
    ----------
    checksums
        Hexadecimal SHA-256 by the name of the file, which has no line break in it.
    """
    lines = (f"{checksums[name]}  {name}\n".encode() for name in sorted(checksums))
    text = _HEAD + b"".join(lines)
    return text + f"# sha256 of the lines above: {hashlib.sha256(text).hexdigest()}\n".encode()


def parse_checksums(text: bytes) -> dict[str, str]:
    """Names and checksums of a list.

    Raises
    ------
    InputError
        If a bit of the list is not as it was written.
    """
    start = text.rfind(b"\n", 0, -1) + 1
    end = _END.fullmatch(text[start:])
    if end is None or hashlib.sha256(text[:start]).hexdigest().encode() != end[1]:
        raise InputError("the list of checksums does not fit its own checksum")
    found = {}
    for line in text[:start].decode().splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:  # the others are comments
            found[match[2]] = match[1]
    return found


def map_in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int
) -> Iterator[tuple[_Item, _Result]]:
    """Call a function for many items at once; pairs of item and result in the items' order.

    No more than two items a thread are held, however many there are.

    Parameters
    ----------
    function
        Is called in several threads.
    items
        Are taken as they are needed.
    threads
        That work at once.
    """
    waiting: list[tuple[_Item, Future[_Result]]] = []
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= 2 * threads:
                    first, future = waiting.pop(0)
                    yield first, future.result()
            while waiting:
                first, future = waiting.pop(0)
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def list_files(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, relative to it and with slashes, without `.partial` ones.

    Those are of writers that were killed, and nobody reads them.
    """
    for path, _, names in os.walk(folder):
        inside = os.path.relpath(path, folder).replace(os.sep, "/")
        for name in names:
            if not name.endswith(".partial"):
                yield name if inside == "." else f"{inside}/{name}"
