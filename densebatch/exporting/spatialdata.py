"""A SpatialData store: the labels with their levels, and the table that annotates them.

Container format 0.2, as of SpatialData 0.5 and later: OME-Zarr 0.5 in Zarr format 3, with
coordinate transformations as SpatialData has them until OME-Zarr 0.6. It is written here shard by
shard.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.cells.groups import require_array, require_group
from densebatch.cells.labels import shard_grid, write_label_shard
from densebatch.cells.pyramid import array_settings, level_path, read_unit
from densebatch.cells.pyramid_spec import LABEL_NAME, PyramidSpec
from densebatch.cells.verify import read_spec
from densebatch.exporting.annotated import ZarrFolder, write_tree

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

_TABLE = "table"
_REGION_KEY, _INSTANCE_KEY = "region", "id"


def write_spatialdata(source: Source, path: Path, options: Options) -> None:
    """Write labels and table; coordinates are pixels (`global`) and, if the size is known, um."""
    root = require_group(path, 3)
    about = {
        "version": "0.2",
        "spatialdata_software_version": f"densebatch {version('densebatch')}",
    }
    root.update_attributes({"spatialdata_attrs": about, "densebatch": source.provenance})
    require_group(path / "labels", 3).update_attributes(
        {"ome": {"version": "0.5", "labels": list(source.names)}}
    )
    for name in source.names:
        _copy_labels(source, path, name)
    keys = {"region_key": _REGION_KEY, "instance_key": _INSTANCE_KEY}
    require_group(path / "tables", 3)
    table = require_group(path / "tables" / _TABLE, 3)
    write_tree(
        source,
        ZarrFolder(table),
        region=LABEL_NAME,
        uns={"spatialdata_attrs": {"region": LABEL_NAME, **keys}},
    )
    table.update_attributes(
        {
            "spatialdata-encoding-type": "ngff:regions_table",
            "region": LABEL_NAME,
            "version": "0.2",
            **keys,
        }
    )


def _copy_labels(source: Source, path: Path, name: str) -> None:
    """Write a label image of the result, level by level and shard by shard."""
    stored = replace(
        read_spec(source.root, in_place=True), label_name=name, um_per_px=source.um_per_px
    )
    made = PyramidSpec(
        root=str(path),
        ngff="0.5",
        height=stored.height,
        width=stored.width,
        n_levels=stored.n_levels,
        label_name=name,
        slide=stored.slide,
    )
    group = require_group(path / "labels" / name, 3)
    for level in range(made.n_levels):
        require_array(level_path(made, level), array_settings(made, level))
        grid = shard_grid(made, level)
        for index in grid:
            labels = read_unit(stored, level, grid[index])
            if labels.any():
                write_label_shard(made, level, grid[index], labels.astype(np.uint32))
    group.update_attributes(
        {
            "ome": {
                "version": "0.5-dev-spatialdata",
                "multiscales": [_describe_multiscale(made, name, source)],
                "image-label": {"version": "0.5"},
            },
            "spatialdata_attrs": {"version": "0.3"},
        }
    )


def _describe_multiscale(spec: PyramidSpec, name: str, source: Source) -> dict[str, Any]:
    """Levels as OME-Zarr has them, and the transformations of the whole as SpatialData has them."""
    datasets = []
    for level in range(spec.n_levels):
        height, width = spec.level_shape(level)
        scale = [spec.height / height, spec.width / width]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": scale}],
            }
        )
    steps = [{"type": "identity", **_describe_systems("global", "unit")}]
    if source.um_per_px is not None:
        steps.append(_describe_um(source.um_per_px, source.origin_um))
    return {
        "name": name,
        "axes": [{"name": axis, "type": "space"} for axis in "yx"],
        "datasets": datasets,
        "coordinateTransformations": steps,
    }


def _describe_um(um: float, origin_um: tuple[float, float] | None) -> dict[str, Any]:
    """The transformation from pixels to um, where the slide lies."""
    systems = _describe_systems("um", "micrometer")
    if origin_um is None:
        return {"type": "scale", "scale": [um, um], **systems}
    y, x = origin_um
    return {"type": "affine", "affine": [[um, 0.0, y], [0.0, um, x]], **systems}


def _describe_systems(name: str, unit: str) -> dict[str, Any]:
    """The coordinate systems between which a transformation leads."""
    axes = [{"name": axis, "type": "space", "unit": unit} for axis in "yx"]
    return {"input": {"name": "yx", "axes": axes}, "output": {"name": name, "axes": axes}}
