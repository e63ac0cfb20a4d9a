"""Zarr groups and arrays on disk, of both formats: found, opened, created once, compared."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore, MemoryStore

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from densebatch.base.ngff import ZarrFormat


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
        version = "0.4" if zarr_format == 2 else "0.5"
        raise InputError(
            f"{folder} is stored in zarr format {found}; OME-Zarr {version} needs format"
            f" {zarr_format}."
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
        return zarr.open_array(LocalStore(folder, read_only=True), mode="r")
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(f"{folder} is not a readable zarr array: {error}.") from error


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

    def create(store: LocalStore | MemoryStore) -> dict[str, Any]:
        return dict(zarr.create_array(store, **settings).metadata.to_dict())

    if find_format(folder) is None:
        create(LocalStore(folder))
        return
    found, given = dict(open_array(folder).metadata.to_dict()), create(MemoryStore())
    if found != given:
        raise InputError(f"{folder} exists and differs ({describe_differences(found, given)}).")
    if settings["zarr_format"] == 2 and not (folder / ".zattrs").is_file():
        # An array of format 2 has two files, and whoever created this one was killed between them.
        zarr.open_array(LocalStore(folder), mode="r+").update_attributes({})


def describe_differences(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Entries that differ between what is on disk and what was given, for an error."""
    keys = sorted(key for key in {*found, *given} if found.get(key) != given.get(key))
    return ", ".join(f"{key}: {found.get(key)!r} there, {given.get(key)!r} here" for key in keys)


def refresh_consolidated(folder: Path) -> None:
    """Renew a group's consolidated metadata if it has them: readers would not see what is new."""
    zarr_format = find_format(folder)
    if zarr_format == 2:
        has_them = (folder / ".zmetadata").is_file()
    else:
        node = json.loads((folder / "zarr.json").read_text())
        has_them = node.get("consolidated_metadata") is not None
    if has_them:
        with warnings.catch_warnings():
            # zarr remarks that format 3 does not specify them, but this group has them.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(LocalStore(folder), zarr_format=zarr_format)
