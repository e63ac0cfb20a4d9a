"""The output side: OME-Zarr label images and, where wanted, the image pyramid beside them.

`create`, then the tasks of `pyramid` in any order within a level, then `finalize`. Nothing is
recognisable as a label image before `finalize`: a viewer never opens half a result, and a run that
is interrupted inside a slide leaves the slide's list of labels as it was.

Storage. OME-Zarr 0.5: chunks of 512² compressed with zstd and guarded by a crc32c checksum, 16 of
them in a shard file of 2048². OME-Zarr 0.4: the same chunks as files of their own, compressed by
Blosc's zstd, for labels without shuffle. There is no checksum in 0.4: zarr 2 could carry one as a
filter, but the readers that are the reason to write 0.4 at all (Bio-Formats, and QuPath with it)
know Blosc and no filters. `digest_unit` guards both. Chunks of background are not stored and read
as zero, so the absence of a file says nothing: only a digest says that a unit is done.

What to open. `viewer_path`: the image group when there is an image, else the label image itself,
for napari-ome-zarr shows nothing for a group that has labels but no image of its own.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore, MemoryStore

from densebatch.base.errors import InputError
from densebatch.cells.ngff import (
    SHARD_PX,
    PyramidSpec,
    SlidePyramid,
    count_levels,
    image_document,
    label_document,
    listing_document,
    multiscale_of,
    ome_attributes,
    parse_slide,
    shard_grid,
)
from densebatch.cells.pyramid import (
    array_settings,
    digest_pixels,
    digest_unit,
    downsample_image,
    downsample_labels,
    label_path,
    level_path,
    open_array,
    source_region,
    write_image_shard,
    write_label_shard,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from zarr.abc.store import Store

__all__ = [
    "PyramidSpec",
    "SlidePyramid",
    "check_place",
    "count_levels",
    "create",
    "digest_pixels",
    "digest_unit",
    "downsample_image",
    "downsample_labels",
    "finalize",
    "in_place_spec",
    "read_labels",
    "read_run",
    "shard_grid",
    "slide_layout",
    "source_region",
    "viewer_path",
    "write_image_shard",
    "write_label_shard",
]

# Our own key in a group's attributes: tells our groups from others', and one run from another.
OWNER = "densebatch"

_IN_THE_WAY = "{} exists and was not written by densebatch; remove it or choose another place."
_FOREIGN = "{} was not written by densebatch and is not deleted."


def in_place_spec(
    image: str | Path, *, label_name: str = "cells", chunk_px: int = 512, shard_px: int = SHARD_PX
) -> PyramidSpec:
    """Describe labels that go into an existing OME-Zarr image: same version, levels and scales.

    Parameters
    ----------
    image
        The image group, OME-Zarr 0.4 or 0.5, with axes y and x among others.
    label_name, chunk_px, shard_px
        As in `PyramidSpec`.

    Raises
    ------
    InputError
        If `image` is no such group.
    """
    root = Path(image)
    attributes = _attributes(root)
    datasets = multiscale_of(attributes, str(root))["datasets"]
    shapes = [open_array(root / dataset["path"]).shape for dataset in datasets]
    version, layout = parse_slide(attributes, shapes, str(root))
    return PyramidSpec(
        root=str(root),
        ngff=version,
        height=layout.shapes[0][0],
        width=layout.shapes[0][1],
        n_levels=len(shapes),
        label_name=label_name,
        chunk_px=chunk_px,
        shard_px=shard_px,
        slide=layout,
        in_place=True,
    )


def slide_layout(image: str | Path) -> SlidePyramid | None:
    """Layout of an OME-Zarr image whose labels go elsewhere; None if labels cannot copy it."""
    try:
        return in_place_spec(image).slide
    except InputError:
        return None


def check_place(spec: PyramidSpec, *, label_attrs: Mapping[str, Any], restart: bool) -> None:
    """Refuse, before anything is written or deleted, what `create` would refuse inside a slide.

    Parameters and errors as for `create`.
    """
    label = label_path(spec)
    if not spec.in_place or _format_of(label) is None:
        return
    attributes = _attributes(label)
    if OWNER in attributes:
        if not restart:
            _compare_runs(label, attributes, dict(label_attrs))
    elif restart:
        raise InputError(_FOREIGN.format(label))
    elif attributes or next(iter(_open_group(label).keys()), None) is not None:
        raise InputError(_IN_THE_WAY.format(label))


def create(spec: PyramidSpec, *, label_attrs: Mapping[str, Any], restart: bool = False) -> None:
    """Create groups and empty arrays; what an earlier call with the same arguments left is kept.

    Parameters
    ----------
    spec
        What to create. A slide's own arrays and metadata are never touched.
    label_attrs
        What identifies the run, JSON-serialisable: an existing label image is continued only if it
        was created with equal ones.
    restart
        Delete what an earlier run of densebatch wrote at this place. Label images and groups that
        densebatch did not write are never deleted.

    Raises
    ------
    InputError
        If something else is in the way or the folder cannot be written.
    """
    root, label = Path(spec.root), label_path(spec)
    run = json.loads(json.dumps(dict(label_attrs)))
    try:
        if restart:
            _delete_earlier(spec)
        if not spec.in_place:
            _claim(root, spec, {"run": {"content": "segmentation"}})
        elif _format_of(root) != spec.zarr_format:
            raise InputError(f"{root} is not an OME-Zarr {spec.ngff} image to write labels into.")
        _require_group(label.parent, spec)
        _claim(label, spec, {"run": run, "complete": False})
        for level in range(spec.n_levels):
            _require_array(level_path(spec, level), array_settings(spec, level))
            if spec.image:
                settings = array_settings(spec, level, image=True)
                _require_array(level_path(spec, level, image=True), settings)
    except OSError as error:
        raise InputError(f"cannot write {root}: {error.strerror or error}.") from error


def finalize(spec: PyramidSpec, *, n_cells: int, provenance: Mapping[str, Any]) -> None:
    """Write the metadata that makes the arrays an image and a label image; may be repeated.

    Parameters
    ----------
    spec
        What was created and filled.
    n_cells
        Labels are 1 to this number.
    provenance
        How the labels were made, JSON-serialisable, kept with them. Leave times and paths out of it
        where results are compared byte by byte.
    """
    root, label = Path(spec.root), label_path(spec)
    for level in range(spec.n_levels):
        for image in (False, True) if spec.image else (False,):
            # A writer that was killed leaves the file that it had not yet renamed.
            for unfinished in level_path(spec, level, image=image).rglob("*.partial"):
                unfinished.unlink(missing_ok=True)
    if not spec.in_place:
        _open_group(root).update_attributes(image_document(spec))
    about = _attributes(label)[OWNER] | {
        "complete": True,
        "cells": n_cells,
        "provenance": dict(provenance),
    }
    _open_group(label).update_attributes(label_document(spec) | {OWNER: about})
    names = _listed_labels(label.parent)
    if spec.label_name not in names:
        _list_labels(spec, [*names, spec.label_name])
    _refresh_consolidated(spec)


def read_labels(path: str | Path, level: int = 0, *, label_name: str = "cells") -> zarr.Array[Any]:
    """Open one level of a finished label image for reading.

    Parameters
    ----------
    path
        The label image itself, or the image group above its `labels/`.
    level
        0 is full resolution.
    label_name
        Which of the labels, where `path` is the group above.

    Returns
    -------
    zarr.Array
        Labels as they are stored, read on access.

    Raises
    ------
    InputError
        If there is no finished label image or no such level.
    """
    label = Path(path)
    if (label / "labels" / label_name).is_dir():
        label = label / "labels" / label_name
    attributes = _attributes(label)
    if attributes.get(OWNER, {}).get("complete") is False:
        raise InputError(f"{label} is not finished; run the same command again to finish it.")
    datasets = multiscale_of(attributes, str(label))["datasets"]
    if "image-label" not in ome_attributes(attributes):
        raise InputError(f"{label} is an OME-Zarr image but not a label image.")
    if not 0 <= level < len(datasets):
        raise InputError(f"{label} has levels 0 to {len(datasets) - 1}, not {level}.")
    return open_array(label / datasets[level]["path"])


def read_run(path: str | Path, *, label_name: str = "cells") -> dict[str, Any]:
    """What identifies the run that wrote a label image, as it was given to `create`.

    Parameters
    ----------
    path
        The image group above `labels/`.
    label_name
        Which of the labels.

    Raises
    ------
    InputError
        If there is no such group.
    """
    return dict(_attributes(Path(path) / "labels" / label_name).get(OWNER, {}).get("run", {}))


def viewer_path(spec: PyramidSpec) -> Path:
    """The path that viewers open: with the image if there is one, else the label image alone."""
    return Path(spec.root) if spec.image or spec.in_place else label_path(spec)


def _format_of(folder: Path) -> Literal[2, 3] | None:
    """The zarr format of the node in a folder, None if there is none."""
    if (folder / "zarr.json").is_file():
        return 3
    return 2 if (folder / ".zgroup").is_file() or (folder / ".zarray").is_file() else None


def _open_group(folder: Path) -> zarr.Group:
    """Open a group to read and write attributes, past consolidated metadata, which may be stale."""
    zarr_format = _format_of(folder)
    if zarr_format is None:
        raise InputError(f"{folder} is not a zarr group.")
    try:
        return zarr.open_group(
            LocalStore(folder), mode="r+", zarr_format=zarr_format, use_consolidated=False
        )
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(f"{folder} is not a readable zarr group: {error}.") from error


def _attributes(folder: Path) -> dict[str, Any]:
    return dict(_open_group(folder).attrs.asdict())


def _require_group(folder: Path, spec: PyramidSpec) -> zarr.Group:
    found = _format_of(folder)
    if found is None:
        return zarr.create_group(LocalStore(folder), zarr_format=spec.zarr_format)
    if found != spec.zarr_format:
        raise InputError(
            f"{folder} is stored in zarr format {found}; OME-Zarr {spec.ngff} needs format"
            f" {spec.zarr_format}."
        )
    return _open_group(folder)


def _claim(folder: Path, spec: PyramidSpec, about: dict[str, Any]) -> None:
    """Mark a new or blank group as ours; accept one that already carries the same run's mark."""
    group = _require_group(folder, spec)
    attributes = _attributes(folder)
    if not attributes and next(iter(group.keys()), None) is None:
        group.update_attributes({OWNER: about})
        return
    if OWNER not in attributes:
        raise InputError(_IN_THE_WAY.format(folder))
    _compare_runs(folder, attributes, about["run"])


def _compare_runs(folder: Path, attributes: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    found = attributes[OWNER].get("run", {})
    if found != given:
        raise InputError(
            f"{folder} belongs to another run ({_differences(found, given)}); use --restart to"
            " replace it."
        )


def _require_array(folder: Path, settings: dict[str, Any]) -> None:
    def new(store: Store) -> dict[str, Any]:
        return dict(zarr.create_array(store, **settings).metadata.to_dict())

    if _format_of(folder) is None:
        new(LocalStore(folder))
        return
    found, given = dict(open_array(folder).metadata.to_dict()), new(MemoryStore())
    if found != given:
        raise InputError(f"{folder} exists and differs ({_differences(found, given)}).")
    if settings["zarr_format"] == 2 and not (folder / ".zattrs").is_file():
        # Its second file: whoever created the array was killed between the two.
        zarr.open_array(LocalStore(folder), mode="r+").update_attributes({})


def _differences(found: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*found, *given} if found.get(key) != given.get(key))
    return ", ".join(f"{key}: {found.get(key)!r} there, {given.get(key)!r} here" for key in keys)


def _delete_earlier(spec: PyramidSpec) -> None:
    """Remove what an earlier run wrote, and nothing that is not marked as ours."""
    target = label_path(spec) if spec.in_place else Path(spec.root)
    # Out of the way in one step, then deleted: a kill in between leaves no half of an output that
    # still carries its mark.
    trash = target.with_name(f".{target.name}.deleted")
    if trash.is_dir():
        shutil.rmtree(trash)
    if _format_of(target) is None:
        return
    if OWNER not in _attributes(target):
        raise InputError(_FOREIGN.format(target))
    if spec.in_place:
        # Unlisted first: a reader must not follow the list to labels that are gone.
        names = _listed_labels(target.parent)
        if spec.label_name in names:
            _list_labels(spec, [name for name in names if name != spec.label_name])
    target.rename(trash)
    shutil.rmtree(trash)
    if spec.in_place:
        _refresh_consolidated(spec)


def _listed_labels(folder: Path) -> list[str]:
    return list(ome_attributes(_attributes(folder)).get("labels", []))


def _list_labels(spec: PyramidSpec, names: list[str]) -> None:
    """Replace the list of label images and keep whatever else the group says."""
    folder = label_path(spec).parent
    document = listing_document(spec, names)
    if "ome" in document:
        document = {"ome": _attributes(folder).get("ome", {}) | document["ome"]}
    _open_group(folder).update_attributes(document)


def _refresh_consolidated(spec: PyramidSpec) -> None:
    """Renew consolidated metadata where a slide has them: readers would not see new labels."""
    for folder in (label_path(spec).parent, Path(spec.root)):
        if spec.zarr_format == 2:
            consolidated = (folder / ".zmetadata").is_file()
        else:
            node = json.loads((folder / "zarr.json").read_text())
            consolidated = node.get("consolidated_metadata") is not None
        if consolidated:
            with warnings.catch_warnings():
                # zarr remarks that format 3 does not specify them; the slide has them all the same.
                warnings.simplefilter("ignore")
                zarr.consolidate_metadata(LocalStore(folder), zarr_format=spec.zarr_format)
