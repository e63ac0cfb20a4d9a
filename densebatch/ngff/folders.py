"""Folders of OME-Zarr: what a folder is by its documents, and which images are above and below it.

Documents are read apart from zarr, which tells neither what is wrong with one nor that those of
the two Zarr formats disagree.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from densebatch.base.errors import DensebatchError, InputError, describe_cause
from densebatch.ngff.metadata import Json, ome_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from densebatch.remote.tree import Place

DOCUMENTS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
_N_NAMED = 3  # paths in an error
_MOST_BYTES = 2**28  # of a document; consolidated metadata of a large plate take a tenth
_MAX_DEPTH = 5
_MAX_FOLDERS = 2000  # that are looked into for the paths of an error
_MAX_REMOTE = 20  # the same in a store, where each takes several requests
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

    path: Place
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


def read_json(path: Place, look: Callable[[Place], object] | None = None) -> Json:
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
        If it cannot be read, is no JSON object, or larger than any.
    """
    if look is not None:
        look(path)
    try:
        n_bytes = path.stat().st_size if isinstance(path, Path) else 0
        if n_bytes > _MOST_BYTES:
            raise InputError(
                f"{path} has {n_bytes} bytes; accepted are documents of up to {_MOST_BYTES}"
            )
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError(f"{path} is not a readable JSON document ({describe_cause(exc)})") from exc
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a JSON {type(document).__name__}, not an object")
    return document


def read_node(path: Place, look: Callable[[Place], object] | None = None) -> Node | None:
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


def _read_node_2(path: Place, look: Callable[[Place], object] | None) -> tuple[Node | None, str]:
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


def list_folders(path: Place) -> list[Place]:
    """The folders right inside a folder, sorted by name.

    Raises
    ------
    InputError
        If it cannot be listed.
    """
    if not isinstance(path, Path):
        return [*path.list_folders()]
    try:
        with os.scandir(path) as entries:
            return [path / name for name in sorted(e.name for e in entries if e.is_dir())]
    except OSError as exc:
        raise InputError(f"{path} cannot be listed: {exc.strerror}") from exc


def is_folder(path: Place) -> bool:
    """Whether there is a folder; in a store one with documents, because others are none there."""
    return path.is_dir() if isinstance(path, Path) else _try_node(path) is not None


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
    if found is None and "spatialdata_attrs" in node.document and is_folder(node.path / "images"):
        found = "a SpatialData store"
    return found or "a Zarr group without multiscales metadata"


def suggest_paths(path: Place, *, labels: bool = False) -> str:
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


def _list_below(path: Place, what: str, where: str, *, labels: bool) -> str:
    below = [str(node.path) for node in _search_below(path, labels=labels)]
    if len(below) <= 1:
        return f"; give the {what} in {where}, {below[0]}" if below else ""
    more = len(below) - _N_NAMED
    named = ", ".join(below[:_N_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"; give one of the {len(below)} {what}s in {where}: {named}"


def _try_node(path: Place) -> Node | None:
    try:
        return read_node(path)
    except (DensebatchError, OSError):
        return None


def _search_below(path: Place, *, labels: bool) -> Iterator[Node]:
    """Images below a folder, level by level; not inside arrays, nor images inside images."""
    queue = deque([(path, 0)])
    looked, most = 0, _MAX_FOLDERS if isinstance(path, Path) else _MAX_REMOTE
    while queue and looked < most:
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
