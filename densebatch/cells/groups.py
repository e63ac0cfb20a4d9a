"""Zarr groups and arrays on disk, of both formats: found, opened, created once, compared."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import zarr
from zarr.storage import LocalStore, MemoryStore

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.ngff.folders import DOCUMENTS, has_more
from densebatch.ngff.metadata import version_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from densebatch.ngff.metadata import ZarrFormat


def find_format(folder: Path) -> ZarrFormat | None:
    """The zarr format of the group or array in a folder, None if there is none."""
    if (folder / "zarr.json").is_file():
        return 3
    return 2 if (folder / ".zgroup").is_file() or (folder / ".zarray").is_file() else None


def open_group(folder: Path) -> zarr.Group:
    """Open a group to read and write attributes, past consolidated metadata, which may be stale.

    Raises
    ------
    InputError
        If there is none, or it cannot be read.
    """
    zarr_format = find_format(folder)
    if zarr_format is None:
        raise InputError(f"{folder} is not a zarr group.")
    try:
        return zarr.open_group(
            LocalStore(folder), mode="r+", zarr_format=zarr_format, use_consolidated=False
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(f"{folder} is not a readable zarr group: {error}.") from error


def read_attributes(folder: Path) -> dict[str, Any]:
    """All attributes of a group; errors as of `open_group`."""
    return dict(open_group(folder).attrs.asdict())


def is_blank(group: zarr.Group) -> bool:
    """Whether a group has neither attributes nor members."""
    return not group.attrs.asdict() and next(iter(group.keys()), None) is None


def require_group(folder: Path, zarr_format: ZarrFormat) -> zarr.Group:
    """Open a group, or create it where there is nothing.

    Raises
    ------
    InputError
        If there is something of the other format, or that cannot be read.
    """
    found = find_format(folder)
    if found is None:
        return zarr.create_group(LocalStore(folder), zarr_format=zarr_format)
    if found != zarr_format:
        raise InputError(
            f"{folder} is stored in zarr format {found}; OME-Zarr {version_of(zarr_format)} needs "
            f"format {zarr_format}."
        )
    return open_group(folder)


def open_array(folder: Path) -> zarr.Array[Any]:
    """Open an array for reading.

    Raises
    ------
    InputError
        If there is none.
    """
    try:
        array = zarr.open_array(LocalStore(folder, read_only=True), mode="r")
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(f"{folder} is not a readable zarr array: {error}.") from error
    # To decode other values may run what a file says; pixels are numbers.
    if array.dtype.kind not in "buif":
        raise InputError(f"{folder} holds values of type {array.dtype}; accepted are numbers.")
    return array


def require_array(folder: Path, settings: dict[str, Any]) -> None:
    """Create an array where there is nothing, else see that it is the one that is wanted.

    Parameters
    ----------
    folder
        Of the array.
    settings
        Arguments of `zarr.create_array`.

    Raises
    ------
    InputError
        If there is another array; with the differences.
    """
    if find_format(folder) is not None:
        differences = compare_array(folder, settings)
        if differences:
            raise InputError(f"{folder} exists and differs ({differences}).")
    renew_array(folder, settings)


def renew_array(folder: Path, settings: dict[str, Any]) -> None:
    """Create an array, or its documents again where they are not those of a new one; chunks stay.

    Whoever was killed leaves a folder without some of them, and a bad disk may change a bit.

    Parameters
    ----------
    folder
        Of the array.
    settings
        Arguments of `zarr.create_array`.
    """
    with TemporaryDirectory() as name:
        new = Path(name)
        zarr.create_array(LocalStore(new), **settings)
        documents = {path.name: path.read_bytes() for path in new.iterdir() if path.is_file()}
    for name, content in documents.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_atomic(path, content)


def compare_array(folder: Path, settings: dict[str, Any]) -> str:
    """How the metadata of an array differ from those it would be created with; "" if they do not.

    Parameters and errors as for `require_array`.
    """
    given = dict(zarr.create_array(MemoryStore(), **settings).metadata.to_dict())
    return describe_differences(dict(open_array(folder).metadata.to_dict()), given)


def describe_differences(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Entries that differ between what is on disk and what was given, for an error."""
    keys = sorted(key for key in {*found, *given} if found.get(key) != given.get(key))
    return ", ".join(f"{key}: {found.get(key)!r} there, {given.get(key)!r} here" for key in keys)


def refresh_consolidated(folder: Path) -> None:
    """Renew what consolidated metadata say of a group below it, and of the group itself.

    A reader of consolidated metadata sees nothing that they do not list. Any group above may have
    them: the image, and the plate, store or folder that holds the image. Only what they say of this
    group is replaced, because the rest belongs to others, and zarr cannot open all that it can be.

    Parameters
    ----------
    folder
        A group that was changed, or whose members were.
    """
    zarr_format = find_format(folder)
    if zarr_format is None:
        return
    for holder in list_consolidated(folder):
        path = holder.path / holder.document
        with _locked(holder.path):
            document = json.loads(path.read_bytes())
            known = _list_known(document, zarr_format)
            within = f"{holder.inside}/" if holder.inside else ""
            for key in [key for key in known if key == holder.inside or key.startswith(within)]:
                del known[key]
            known |= dict(_list_documents(folder, holder.inside, zarr_format))
            known.pop("", None)  # in format 3 a group does not list itself
            write_atomic(path, json.dumps(document, indent=2).encode())


def find_stale(folder: Path, *, deep: bool = True) -> list[Path]:
    """Documents whose consolidated metadata tell of a group otherwise than the group does itself.

    That others have added to a document meanwhile is no such thing.

    Parameters
    ----------
    folder
        The group, or an array.
    deep
        Whether what is below it is looked at too.
    """
    zarr_format = find_format(folder)
    stale = []
    for holder in list_consolidated(folder) if zarr_format is not None else ():
        path = holder.path / holder.document
        within = f"{holder.inside}/" if holder.inside else ""
        own = {holder.inside, *(f"{within}{name}" for name in DOCUMENTS)}
        known, wanted = (
            # Attributes that are empty have a document of their own or none.
            {
                key: {name: part for name, part in entry.items() if name != "consolidated_metadata"}
                for key, entry in told.items()
                if entry and (key in own or (deep and key.startswith(within)))
            }
            for told in (
                _list_known(json.loads(path.read_bytes()), zarr_format or 3),
                dict(_list_documents(folder, holder.inside, zarr_format or 3)),
            )
        )
        wanted.pop("", None)
        if known.keys() != wanted.keys() or any(
            wanted[key] != known[key] and not has_more(wanted[key], known[key]) for key in wanted
        ):
            stale.append(path)
    return stale


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out: those of two images of a plate must not undo what the other wrote."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _list_known(document: dict[str, Any], zarr_format: ZarrFormat) -> dict[str, Any]:
    """Entries of consolidated metadata, by their path; KeyError or TypeError if there are none."""
    if zarr_format == 3:
        document = document["consolidated_metadata"]
    known: dict[str, Any] = document["metadata"]
    return known


class Holder(NamedTuple):
    """A group with consolidated metadata that tell, or should tell, of another.

    Attributes
    ----------
    path : its folder
    document : name of the file that has them
    inside : path of the other group in it; "" if it is that group
    """

    path: Path
    document: str
    inside: str


def list_consolidated(folder: Path) -> list[Holder]:
    """The groups above a group, and itself, that have consolidated metadata which list it.

    A group that is not listed itself belongs to one that is: `labels` to its image.
    """
    zarr_format = find_format(folder) or find_format(folder.parent) or 3
    name = ".zmetadata" if zarr_format == 2 else "zarr.json"
    found = {}
    # A link to the folder may stand in a group, or the folder itself.
    for start in (folder.absolute(), folder.resolve()):
        for path in (start, *start.parents):
            try:
                known = set(_list_known(json.loads((path / name).read_bytes()), zarr_format))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            inside = start.relative_to(path).as_posix()
            inside = "" if inside == "." else inside
            image = inside.rpartition("/")[0]
            if not image or any(key == image or key.startswith(f"{image}/") for key in known):
                found[path.resolve()] = Holder(path, name, inside)
    return list(found.values())


def _list_documents(
    folder: Path, inside: str, zarr_format: ZarrFormat
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What consolidated metadata list of a group and its members: keys and documents."""
    if zarr_format == 2:
        for name in (".zgroup", ".zarray", ".zattrs"):
            if (folder / name).is_file():
                key = f"{inside}/{name}" if inside else name
                yield key, json.loads((folder / name).read_bytes())
        is_array = (folder / ".zarray").is_file()
    else:
        document = json.loads((folder / "zarr.json").read_bytes())
        is_array = document["node_type"] == "array"
        if not is_array:
            # As zarr writes it: members stand beside the group and not in it.
            empty = {"kind": "inline", "must_understand": False, "metadata": {}}
            document["consolidated_metadata"] = empty
        yield inside, document
    if is_array:
        return
    for child in folder.iterdir():
        # A name that begins with a dot is that of something to be deleted.
        is_member = child.is_dir() and not child.name.startswith(".")
        if is_member and find_format(child) == zarr_format:
            path = f"{inside}/{child.name}" if inside else child.name
            yield from _list_documents(child, path, zarr_format)
