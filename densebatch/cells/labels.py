"""Label images as OME-Zarr, from the first empty array to the metadata that viewers read.

`create`, then the tasks of `pyramid` in any order within a level, then `finalize`. Nothing is
recognisable as a label image before `finalize`: a viewer never opens half a result, and a run that
is interrupted inside a slide leaves the slide's list of labels as it was. An image pyramid is
written beside the labels where one is wanted.

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
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError
from densebatch.base.files import is_disk_trouble
from densebatch.base.log import log_event
from densebatch.cells.groups import (
    describe_differences,
    find_format,
    is_blank,
    list_consolidated,
    open_array,
    open_group,
    read_attributes,
    refresh_consolidated,
    require_array,
    require_group,
)
from densebatch.cells.listing import FOREIGN, delete_earlier, read_names, remove, write_names
from densebatch.cells.pyramid import (
    array_settings,
    checksum_unit,
    digest_pixels,
    digest_unit,
    downsample_image,
    downsample_labels,
    label_path,
    level_path,
    source_region,
    write_image_shard,
    write_label_shard,
)
from densebatch.cells.pyramid_spec import (
    LABEL_NAME,
    MAX_PROPERTIES,
    MISSING_NAME,
    OWNER,
    PyramidSpec,
    count_levels,
    image_document,
    label_document,
    shard_grid,
)
from densebatch.ngff.choice import require_multiscale
from densebatch.ngff.folders import Node, read_node, read_shape
from densebatch.ngff.metadata import (
    SlidePyramid,
    find_fault,
    ome_attributes,
    order_levels,
    rank_levels,
)
from densebatch.ngff.scales import parse_pyramid
from densebatch.remote.tree import find_place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import zarr

    from densebatch.ngff.metadata import Json, Version
    from densebatch.remote.tree import Place

__all__ = [
    "PyramidSpec",
    "SlidePyramid",
    "check_place",
    "checksum_unit",
    "count_levels",
    "create",
    "digest_pixels",
    "digest_unit",
    "downsample_image",
    "downsample_labels",
    "finalize",
    "in_place_spec",
    "label_path",
    "read_labels",
    "read_run",
    "remove",
    "shard_grid",
    "slide_layout",
    "source_region",
    "viewer_path",
    "write_image_shard",
    "write_label_shard",
]

log = logging.getLogger(__name__)

_IN_THE_WAY = "{} exists and was not written by densebatch; remove it or choose another place."


def in_place_spec(
    image: str | Path, scene: str | None = None, axes: str | None = None
) -> PyramidSpec:
    """Describe labels that go into an existing OME-Zarr image: same version, levels and scales.

    Parameters
    ----------
    image
        The image group, OME-Zarr 0.4 or 0.5, with axes y and x among others.
    scene
        Which image, where the group describes several.
    axes
        A letter for each axis, where a user said what they are.

    Raises
    ------
    InputError
        If `image` is no such group, or labels cannot copy its scales.
    """
    root = Path(image)
    version, pyramid = _read_layout(root, scene, axes, bare=True)
    return PyramidSpec(
        root=str(root),
        ngff=version,
        height=pyramid.shapes[0][0],
        width=pyramid.shapes[0][1],
        n_levels=len(pyramid.shapes),
        slide=pyramid,
        in_place=True,
    )


def _read_layout(
    root: Place, scene: str | None, axes: str | None, *, bare: bool
) -> tuple[Version, SlidePyramid]:
    """Version and layout of an image; see `parse_pyramid` for `bare`."""
    node = read_node(root)
    if node is None or node.is_array:
        raise InputError(f"{root} is not a zarr group.")
    multiscale, shapes = _order_levels(root, require_multiscale(node, scene))
    return parse_pyramid(node.document, multiscale, shapes, str(root), axes=axes, bare=bare)


def _order_levels(root: Place, multiscale: Json) -> tuple[Json, list[tuple[int, ...]]]:
    """An image whose levels are listed from the largest on, and their shapes."""
    shapes = [_read_shape(root / dataset["path"]) for dataset in multiscale["datasets"]]
    ranked = [shapes[level] for level in rank_levels(multiscale, shapes)]
    return order_levels(multiscale, shapes), ranked


def _read_shape(level: Place) -> tuple[int, ...]:
    node = read_node(level)
    if node is None or not node.is_array:
        raise InputError(f"{level} is not a readable zarr array.")
    return tuple(read_shape(node))


def slide_layout(
    image: str | Place, scene: str | None = None, axes: str | None = None
) -> SlidePyramid | None:
    """Layout of an OME-Zarr image whose labels go elsewhere; None if labels cannot copy it.

    Parameters as for `in_place_spec`.
    """
    try:
        return _read_layout(find_place(image), scene, axes, bare=False)[1]
    except InputError as error:
        log_event(
            log,
            "labels get levels of their own",
            level=logging.DEBUG,
            image=str(image),
            reason=str(error),
        )
        return None


def check_place(spec: PyramidSpec, *, label_attrs: Mapping[str, Any], restart: bool) -> None:
    """Refuse, before anything is written or deleted, what `create` would refuse inside a slide.

    Parameters
    ----------
    spec, label_attrs, restart
        As for `create`.

    Raises
    ------
    InputError
        If labels of another run or of somebody else are in the way.
    """
    label = label_path(spec)
    if not spec.in_place:
        return
    for holder in list_consolidated(label.parent):
        if not os.access(holder.path, os.W_OK):
            raise InputError(
                f"{holder.path} has consolidated metadata, without which nobody sees labels in "
                f"{spec.root}, and cannot be written; accepted are labels that are not written in "
                "place"
            )
    if find_format(label) is None:
        return
    group = open_group(label)
    attributes = read_attributes(label)
    if OWNER in attributes:
        if not restart:
            _compare_runs(label, attributes, dict(label_attrs))
    elif restart:
        raise InputError(FOREIGN.format(label))
    elif not is_blank(group):
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
    OSError
        If the disk is full or fails.
    """
    root, label = Path(spec.root), label_path(spec)
    run = json.loads(json.dumps(dict(label_attrs)))
    _check_metadata(spec)
    try:
        if restart:
            delete_earlier(spec)
        if not spec.in_place:
            _claim(root, spec, {"run": {"content": "segmentation"}})
        elif find_format(root) != spec.zarr_format:
            raise InputError(f"{root} is not an OME-Zarr {spec.ngff} image to write labels into.")
        require_group(label.parent, spec.zarr_format)
        _claim(label, spec, {"run": run, "complete": False})
        for level in range(spec.n_levels):
            require_array(level_path(spec, level), array_settings(spec, level))
            if spec.image:
                settings = array_settings(spec, level, image=True)
                require_array(level_path(spec, level, image=True), settings)
    except OSError as error:
        if is_disk_trouble(error):
            raise
        raise InputError(f"cannot write {root}: {error.strerror or error}.") from error


def finalize(
    spec: PyramidSpec,
    *,
    n_cells: int | None,
    provenance: Mapping[str, Any],
    table: Path | None = None,
) -> None:
    """Write the metadata that makes the arrays an image and a label image; may be repeated.

    Parameters
    ----------
    spec
        What was created and filled.
    n_cells
        Labels are 1 to this number; None if they are no cells.
    provenance
        How the labels were made, JSON-serialisable, kept with them. Leave times and paths out of it
        where results are compared byte by byte.
    table
        The table of the cells. Where they are few, their areas become properties of the labels.
    """
    root, label = Path(spec.root), label_path(spec)
    for level in range(spec.n_levels):
        for image in (False, True) if spec.image else (False,):
            # A writer that was killed leaves the file that it had not yet renamed.
            for unfinished in level_path(spec, level, image=image).rglob("*.partial"):
                unfinished.unlink(missing_ok=True)
    if not spec.in_place:
        open_group(root).update_attributes(image_document(spec))
    about = {"run": read_attributes(label)[OWNER]["run"], "complete": True}
    if n_cells is not None:
        about["cells"] = n_cells
    about["provenance"] = dict(provenance)
    areas: Sequence[int] = ()
    if table is not None and n_cells is not None and n_cells <= MAX_PROPERTIES:
        import pyarrow.parquet as pq  # which workers, who write shards only, can do without

        # `read_table` would import pandas.
        areas = pq.ParquetFile(table).read(["area_px"])["area_px"].to_pylist()
    open_group(label).update_attributes(label_document(spec, areas) | {OWNER: about})
    names = read_names(label.parent)
    if spec.label_name not in names:
        # Cells come before what marks their gaps, because viewers show the first.
        last = [name for name in names if name == MISSING_NAME]
        write_names(spec, [*(n for n in names if n not in last), spec.label_name, *last])
    refresh_consolidated(label_path(spec).parent)
    log_event(log, "labels finished", path=str(label), cells=n_cells)


def read_labels(path: str | Path, level: int = 0) -> zarr.Array[Any]:
    """Open one level of a finished label image for reading.

    Parameters
    ----------
    path
        The label image itself, or the image group above its `labels/`.
    level
        0 is full resolution.

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
    if (label / "labels" / LABEL_NAME).is_dir():
        label = label / "labels" / LABEL_NAME
    attributes = read_attributes(label)
    if attributes.get(OWNER, {}).get("complete") is False:
        raise InputError(f"{label} is not finished; run the same command again to finish it.")
    node = Node(label, find_format(label) or 3, False, attributes)
    multiscale = require_multiscale(node)
    if "image-label" not in ome_attributes(attributes):
        raise InputError(f"{label} is an OME-Zarr image but not a label image.")
    datasets = _order_levels(label, multiscale)[0]["datasets"]
    if not 0 <= level < len(datasets):
        raise InputError(f"{label} has levels 0 to {len(datasets) - 1}, not {level}.")
    return open_array(label / datasets[level]["path"])


def read_run(path: str | Path) -> dict[str, Any]:
    """What identifies the run that wrote a label image, as it was given to `create`.

    Parameters
    ----------
    path
        The image group above `labels/`.

    Raises
    ------
    InputError
        If there is no such group.
    """
    attributes = read_attributes(Path(path) / "labels" / LABEL_NAME)
    return dict(attributes.get(OWNER, {}).get("run", {}))


def viewer_path(spec: PyramidSpec) -> Path:
    """The path that viewers open: with the image if there is one, else the label image alone."""
    return Path(spec.root) if spec.image or spec.in_place else label_path(spec)


def _check_metadata(spec: PyramidSpec) -> None:
    """Check the metadata that `finalize` will write, before anything else is done.

    Labels copy the metadata of a slide, faults included, because an overlay must lie as the slide
    does; the log tells of them. Any other fault is a mistake of ours.
    """
    for attributes in (label_document(spec), *([image_document(spec)] if spec.image else [])):
        fault = find_fault(attributes)
        if fault is None:
            continue
        if spec.slide is None:
            raise ValueError(f"{spec.root} would not be valid OME-Zarr: {fault}")
        log_event(log, "labels copy a fault of the slide's metadata", root=spec.root, fault=fault)


def _claim(folder: Path, spec: PyramidSpec, about: dict[str, Any]) -> None:
    """Mark a new or blank group as ours; accept one that already carries the same run's mark."""
    group = require_group(folder, spec.zarr_format)
    if is_blank(group):
        group.update_attributes({OWNER: about})
        return
    attributes = read_attributes(folder)
    if OWNER not in attributes:
        raise InputError(_IN_THE_WAY.format(folder))
    _compare_runs(folder, attributes, about["run"])


def _compare_runs(folder: Path, attributes: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    found = attributes[OWNER].get("run", {})
    if found != given:
        raise InputError(
            f"{folder} belongs to another run ({describe_differences(found, given)}); use --restart"
            " to replace it."
        )
