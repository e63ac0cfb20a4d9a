"""Which files of a finished result are not as they were written, by the lists of `cells.kept`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.checksums import (
    ABSENT,
    checksum_file,
    fits_checksum,
    list_files,
    map_in_threads,
)
from densebatch.cells.kept import read_list
from densebatch.ngff.folders import DOCUMENTS, has_more

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from densebatch.cells.kept import Tree

# What zarr reads of an array: a chunk or shard.
_CHUNK = re.compile(r"(?:.*/)?\d+/(?:c/)?(?:\d+/)?\d+/\d+")


@dataclass(frozen=True)
class Fault:
    """A file that is not as it was written.

    Attributes
    ----------
    tree, name : which file
    what : in words
    is_copy : whether it is the second copy of that file
    """

    tree: Tree
    name: str
    what: str
    is_copy: bool = False

    @property
    def path(self) -> Path:
        """The file itself."""
        copy = self.tree.copy_of(self.name) if self.is_copy else None
        return self.tree.base / self.name if copy is None else copy


def find_faults(
    tree: Tree, listed: Mapping[str, str], threads: int, *, copies: bool = True
) -> Iterator[Fault | str]:
    """Compare every file of a tree with its checksum.

    Parameters
    ----------
    tree
        Which files.
    listed
        Their checksums.
    threads
        That read at once.
    copies
        Whether second copies are compared too.

    Yields
    ------
    Fault or str
        A file that is damaged, missing, or one too many; or a note of a document that somebody
        has added to.
    """
    wanted = [(name, False) for name in listed]
    if copies:
        wanted += [(name, True) for name in listed if tree.copy_of(name) is not None]

    def look(item: tuple[str, bool]) -> Fault | str | None:
        name, is_copy = item
        fault = Fault(tree, name, "", is_copy)
        try:
            found = checksum_file(fault.path)
        except OSError as error:
            return Fault(tree, name, f"cannot be read ({error.strerror})", is_copy)
        if found == listed[name]:
            return None
        if found == ABSENT:
            return Fault(tree, name, "is missing", is_copy)
        if not is_copy and _was_added_to(tree, name, listed[name]):
            return f"{tree.shown(name)}: has more in it than the run wrote, and all of that"
        return Fault(tree, name, "is damaged: it does not fit its checksum", is_copy)

    for _, fault in map_in_threads(look, wanted, threads):
        if fault is not None:
            yield fault
    yield from _find_extra(tree, listed)


def _find_extra(tree: Tree, listed: Mapping[str, str]) -> Iterator[Fault]:
    """Files that zarr would read of the result's groups and arrays, and that are not the run's."""
    folders = {name.rpartition("/")[0] for name in listed if Path(name).name in DOCUMENTS}
    tops = {folder.partition("/")[0] for folder in folders if folder}
    for top in sorted(tops):
        for inside in list_files(tree.base / top):
            name = f"{top}/{inside}"
            if name in listed:
                continue
            folder, _, last = name.rpartition("/")
            if last in DOCUMENTS:
                if folder in folders:
                    yield Fault(tree, name, "is not a file of the run, and changes what is read")
            elif _CHUNK.fullmatch(name) and any(
                name.startswith(f"{array}/") and _is_array(listed, array) for array in folders
            ):
                yield Fault(tree, name, "is not a file of the run: there is background here")


def _is_array(listed: Mapping[str, str], folder: str) -> bool:
    """Whether a folder is an array of the result: its name is that of a level."""
    return folder.rpartition("/")[2].isdigit() and (
        f"{folder}/zarr.json" in listed or f"{folder}/.zarray" in listed
    )


def _was_added_to(tree: Tree, name: str, checksum: str) -> bool:
    """Whether the document of a group says all that it said, and more: somebody's own metadata."""
    copy = tree.copy_of(name)
    try:
        if copy is None or not fits_checksum(copy, checksum):
            return False
        now, before = (json.loads(path.read_bytes()) for path in (tree.base / name, copy))
    except (OSError, ValueError):
        return False
    return has_more(now, before)


def find_fault(trees: Sequence[Tree], threads: int) -> str | None:
    """The first file of a finished result that is not as it was written; None if all are.

    Parameters
    ----------
    trees
        Of the result.
    threads
        That read at once.
    """
    for tree in trees:
        listed, faults = read_list(tree)
        if listed is None:
            return faults[0]
        for fault in find_faults(tree, listed, threads, copies=False):
            if isinstance(fault, Fault):
                return f"{tree.shown(fault.name)}: {fault.what}"
    return None
