"""Which label images a group lists, and how those of ours are removed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.log import log_event
from densebatch.cells.groups import (
    find_format,
    open_group,
    read_attributes,
    refresh_consolidated,
)
from densebatch.cells.pyramid import label_path
from densebatch.cells.pyramid_spec import OWNER
from densebatch.ngff.metadata import labels_attributes, list_labels, ome_attributes

if TYPE_CHECKING:
    from densebatch.cells.pyramid_spec import PyramidSpec

log = logging.getLogger(__name__)

FOREIGN = "{} was not written by densebatch and is not deleted."


def remove(spec: PyramidSpec) -> bool:
    """Remove a label image that densebatch wrote, and what lists it; whether there was one.

    Parameters
    ----------
    spec
        Of the label image. One that somebody else wrote is left alone.
    """
    label = label_path(spec)
    if find_format(label) is None or OWNER not in read_attributes(label):
        return False
    _remove_label(spec)
    return True


def delete_earlier(spec: PyramidSpec) -> None:
    """Remove what an earlier run wrote, and nothing that is not marked as ours."""
    target = label_path(spec) if spec.in_place else Path(spec.root)
    # The folder is moved out of the way in one step and deleted then, because a kill must not leave
    # half of an output that still carries its mark.
    trash = target.with_name(f".{target.name}.deleted")
    if trash.is_dir():
        shutil.rmtree(trash)
    if find_format(target) is None:
        return
    if OWNER not in read_attributes(target):
        raise InputError(FOREIGN.format(target))
    log_event(log, "labels of an earlier run deleted", path=str(target))
    if spec.in_place:
        _remove_label(spec)
        return
    target.rename(trash)
    shutil.rmtree(trash)


def _remove_label(spec: PyramidSpec) -> None:
    label = label_path(spec)
    trash = label.with_name(f".{label.name}.deleted")
    if trash.is_dir():
        shutil.rmtree(trash)
    # The list is shortened first, because a reader must not follow it to labels that are gone.
    names = read_names(label.parent)
    if spec.label_name in names:
        write_names(spec, [name for name in names if name != spec.label_name])
    label.rename(trash)
    shutil.rmtree(trash)
    refresh_consolidated(label.parent)


def read_names(folder: Path) -> list[str]:
    """Names of the label images that a group `labels` lists."""
    return list_labels(ome_attributes(read_attributes(folder)))


def write_names(spec: PyramidSpec, names: list[str]) -> None:
    """Replace the list of label images and keep whatever else the group says."""
    folder = label_path(spec).parent
    attributes = labels_attributes(spec.ngff, names)
    if "ome" in attributes:
        attributes = {"ome": read_attributes(folder).get("ome", {}) | attributes["ome"]}
    open_group(folder).update_attributes(attributes)
