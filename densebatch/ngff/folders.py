"""Folders of OME-Zarr: what a folder is by its documents, and which images are above and below it.

Documents are read apart from zarr, which tells neither what is wrong with one nor that those of
the two Zarr formats disagree.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import os
import re
import stat
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from densebatch.base.errors import InputError, describe_cause
from densebatch.ngff.metadata import Json, ome_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import zarr

DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_N_NAMED = 3  # paths in an error
_MAX_DEPTH = 5
_MAX_FOLDERS = 2000  # that are looked into for the paths of an error
_MAX_NAMES = 1000  # of chunk files that are compared with those of the metadata
# What tells images apart, where a folder has metadata of both Zarr formats.
_COMPARED = (
    *("multiscales", "omero", "image-label", "labels", "plate", "well"),
    *("bioformats2raw.layout", "series"),
)


class Node(NamedTuple):
    """A group or an array.

    Attributes
    ----------
    path : its folder
    zarr_format : 2 or 3
    is_array : whether it is an array
    document : metadata of an array, attributes of a group
    """

    path: Path
    zarr_format: int
    is_array: bool
    document: Json

    @property
    def ome(self) -> Json:
        """OME attributes of a group: where its format keeps them, else where they are."""
        if self.is_array:
            return {}
        found = ome_attributes(self.document, self.zarr_format)
        return found if found.keys() & _COMPARED else ome_attributes(self.document)

    @property
    def is_label(self) -> bool:
        """Whether it is a label image: marked, or an image in a group `labels`."""
        ome, parent = self.ome, self.path.parent
        if "image-label" in ome or "multiscales" not in ome or parent.name != "labels":
            return "image-label" in ome
        return any((parent / name).is_file() for name in DOCUMENTS)

    @property
    def is_image(self) -> bool:
        """Whether it is an image and no label image."""
        return "multiscales" in self.ome and not self.is_label


def read_json(path: Path, look: Callable[[Path], object] | None = None) -> Json:
    """Read a metadata document.

    Parameters
    ----------
    path
        Of the file.
    look
        Is called with it before it is read.

    Raises
    ------
    InputError
        If it cannot be read or is no JSON object.
    """
    if look is not None:
        look(path)
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError(f"{path} is not a readable JSON document ({describe_cause(exc)})") from exc
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def read_node(path: Path, look: Callable[[Path], object] | None = None) -> Node | None:
    """Read what a folder is; None if it has no Zarr metadata.

    Parameters
    ----------
    path
        The folder.
    look
        Is called with every document before it is read.

    Raises
    ------
    InputError
        If a document cannot be read, or documents of both Zarr formats disagree.
    """
    old, names = _read_node_2(path, look)
    if not (path / "zarr.json").is_file():
        return old
    document = read_json(path / "zarr.json", look)
    is_array = document.get("node_type") == "array"
    attributes = document.get("attributes")
    new = Node(
        path, 3, is_array,
        document if is_array else attributes if isinstance(attributes, dict) else {},
    )  # fmt: skip
    if old is not None:
        _compare_formats(new, old, names)
    return new


def has_more(now: object, before: object) -> bool:
    """Whether the document of a group says all that it said, and more that others may add.

    They may add attributes, names to the list of label images, and consolidated metadata, into
    which nobody looks here. A bit that changes never does that.

    Parameters
    ----------
    now, before
        The document, as JSON has it.
    """
    if not isinstance(now, dict) or not isinstance(before, dict) or now == before:
        return False
    if "zarr_format" not in before:  # format 2 keeps attributes apart
        return _keeps(now, before)
    attributes = before.get("attributes")
    is_added = now.keys() - before.keys() <= {"consolidated_metadata", "attributes"}
    rest = {key: value for key, value in before.items() if key != "attributes"}
    return (
        before.get("node_type") == "group"
        and is_added
        and _keeps(now, rest)
        and (attributes is None or _keeps(now.get("attributes"), attributes))
    )


def _keeps(now: object, before: Json) -> bool:
    """Whether attributes have all that they had, in lists of names in the same order."""
    if not isinstance(now, dict):
        return False

    def is_kept(key: str) -> bool:
        new, old = now.get(key), before[key]
        if key == "ome" and isinstance(old, dict):
            return _keeps(new, old)
        if key == "labels" and isinstance(new, list) and isinstance(old, list):
            rest = iter(new)
            return all(name in rest for name in old)
        return json.dumps(new, sort_keys=True) == json.dumps(old, sort_keys=True)

    return all(key in now and is_kept(key) for key in before)


def read_shape(node: Node) -> list[int]:
    """Sizes of an array along its axes.

    Raises
    ------
    InputError
        If its metadata declare none.
    """
    shape = node.document.get("shape")
    if not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(
            f"{node.path} declares the shape {shape!r}; accepted are sizes of 1 and more"
        )
    return shape


def refuse_other_chunks(level: Path, array: zarr.Array[Any]) -> None:
    """Refuse an array whose folder has files of chunks, but of names that none of its chunks has.

    Its metadata say where chunks are, and if that is not true all of it reads as the fill value,
    because chunks may be absent.

    Parameters
    ----------
    level
        Folder of the array.
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
    for name in itertools.islice(_list_chunk_names(level, ""), _MAX_NAMES):
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


def refuse_odd_chunk(path: Path) -> None:
    """Refuse what is no chunk in the place of a chunk or shard; zarr takes it for an absent one.

    Parameters
    ----------
    path
        Where the file is, or nothing.

    Raises
    ------
    ValueError
        If it is no file, a link to nothing, or empty, as a crash leaves files behind.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError(f"{path} is a link to a file that is not there") from None
        return
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no file, where a chunk is to be")
    if found.st_size == 0:
        raise ValueError(f"{path} is an empty file, where a chunk is to be")


def _list_chunk_names(folder: Path, above: str) -> Iterator[str]:
    """Names of files that look like chunks, relative to the array; in no order."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = above + entry.name
            if re.fullmatch(r"c|(c[/.])?\d+([/.]\d+)*", name) is None:
                continue
            if entry.is_dir():
                yield from _list_chunk_names(folder / entry.name, f"{name}/")
            elif entry.name != "c":
                yield name


def _read_node_2(path: Path, look: Callable[[Path], object] | None) -> tuple[Node | None, str]:
    """What documents of Zarr format 2 say, and the names of those that say it."""
    names = [name for name in DOCUMENTS[1:] if (path / name).is_file()]
    if not names:
        return None, ""
    told = [name for name in names if name != ".zgroup"] or names
    if ".zarray" in names:
        return Node(path, 2, True, read_json(path / ".zarray", look)), ".zarray"
    document = read_json(path / ".zattrs", look) if ".zattrs" in names else {}
    return Node(path, 2, False, document), " and ".join(told)


def _compare_formats(new: Node, old: Node, names: str) -> None:
    def describe(node: Node) -> str:
        if node.is_array:
            return f"an array of shape {node.document.get('shape')}"
        return "an image" if "multiscales" in node.ome else "a group without an image"

    differing = []
    if new.is_array == old.is_array:
        keys = ("shape",) if new.is_array else _COMPARED
        mine, theirs = (n.document if n.is_array else n.ome for n in (new, old))
        differing = [k for k in keys if _plain(mine.get(k)) != _plain(theirs.get(k))]
        if not differing:
            return
    what = [describe(node) for node in (new, old)]
    found = (
        f"zarr.json tells of {what[0]}, {names} of {what[1]}"
        if what[0] != what[1]
        else f"zarr.json and {names} differ in {', '.join(differing)}"
    )
    raise InputError(
        f"{new.path} has metadata of both Zarr formats that disagree ({found}); remove those that "
        "are not right"
    )


def _plain(value: Any) -> Any:  # noqa: ANN401
    """A value without the versions in it, which differ between the formats."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key != "version"}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def list_folders(path: Path) -> list[Path]:
    """The folders right inside a folder, sorted by name.

    Raises
    ------
    InputError
        If it cannot be listed.
    """
    try:
        with os.scandir(path) as entries:
            return [path / name for name in sorted(e.name for e in entries if e.is_dir())]
    except OSError as exc:
        raise InputError(f"{path} cannot be listed: {exc.strerror}") from exc


def describe_node(node: Node | None) -> str:
    """What a folder is, with an article."""
    if node is None:
        return "a folder without Zarr metadata"
    if node.is_array:
        return "a single Zarr array"
    ome = node.ome
    if node.is_label:
        return "a label image"
    kinds = {
        "multiscales": "an image",
        "plate": "a plate",
        "well": "a well",
        "bioformats2raw.layout": "a bioformats2raw folder",
    }
    found = next((what for key, what in kinds.items() if key in ome), None)
    if found is None and "spatialdata_attrs" in node.document and (node.path / "images").is_dir():
        found = "a SpatialData store"
    return found or "a Zarr group without multiscales metadata"


def suggest_paths(path: Path, *, labels: bool = False) -> str:
    """The end of a sentence that refuses a folder: which images are below or above it.

    Parameters
    ----------
    path
        The folder.
    labels
        Whether label images are wanted, or images.

    Returns
    -------
    str
        Empty if there are none; else it begins with a semicolon.
    """
    what = "label image" if labels else "image"
    if inside := _list_below(path, what, "it", labels=labels):
        return inside
    top = None
    for parent in path.parents:
        node = _try_node(parent)
        if node is not None and (node.is_label if labels else node.is_image):
            return f"; give the {what} above it, {parent}"
        top = parent if node is not None else top
    return "" if top is None else _list_below(top, what, str(top), labels=labels)


def _list_below(path: Path, what: str, where: str, *, labels: bool) -> str:
    below = [str(node.path) for node in _search_below(path, labels=labels)]
    if len(below) <= 1:
        return f"; give the {what} in {where}, {below[0]}" if below else ""
    more = len(below) - _N_NAMED
    named = ", ".join(below[:_N_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"; give one of the {len(below)} {what}s in {where}: {named}"


def _try_node(path: Path) -> Node | None:
    try:
        return read_node(path)
    except (InputError, OSError):
        return None


def _search_below(path: Path, *, labels: bool) -> Iterator[Node]:
    """Images below a folder, level by level; not inside arrays, nor images inside images."""
    queue = deque([(path, 0)])
    looked = 0
    while queue and looked < _MAX_FOLDERS:
        folder, depth = queue.popleft()
        try:
            children = list_folders(folder)
        except InputError:
            continue
        for child in children:
            looked += 1
            node = _try_node(child)
            if node is not None and (node.is_label if labels else node.is_image):
                yield node
            elif node is not None and (node.is_array or node.is_label):
                continue
            elif depth < _MAX_DEPTH:
                queue.append((child, depth + 1))
