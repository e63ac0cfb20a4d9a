"""Folders that hold several OME-Zarr images, as programs write them."""

from __future__ import annotations

import zarr

from tests.helpers.slide_files import random_pixels, write_zarr

CYX = random_pixels((3, 64, 96))
FORMATS = {"0.4": 2, "0.5": 3}


def write_group(path, version, attributes=None, **others):
    """A group with OME attributes where their version keeps them, and others beside them."""
    group = zarr.open_group(path, mode="a", zarr_format=FORMATS[version])
    if attributes is not None:
        ome = attributes if version == "0.4" else {"ome": {"version": version, **attributes}}
        group.attrs.update(ome)
    group.attrs.update(others)
    return path


def name_image(name):
    def document(attributes):
        attributes["multiscales"][0]["name"] = name

    return document


def mark_labels(attributes):
    attributes["image-label"] = {}


def write_plate(path, version="0.5", wells=("A/1", "B/2"), fields=("0", "1")):
    """A plate whose images hold the number of their place in its list, each named after it."""
    write_group(path, version, {"plate": {"wells": [{"path": well} for well in wells]}})
    for row in {well.split("/")[0] for well in wells}:
        write_group(path / row, version)
    for well in wells:
        write_well(path / well, version, fields, well)
    return path


def write_well(path, version="0.5", fields=("0", "1"), name="well"):
    write_group(path, version, {"well": {"images": [{"path": field} for field in fields]}})
    for field in fields:
        document = name_image(f"{name} field {field}")
        write_zarr(path / field, CYX, "cyx", version, n_levels=2, document=document)
    return path


def write_series(path, version="0.5", names=("0", "1")):
    """A bioformats2raw folder."""
    write_group(path, version, {"bioformats2raw.layout": 3})
    for name in names:
        document = name_image(f"scan {name}")
        write_zarr(path / name, CYX, "cyx", version, document=document)
    return path


def write_store(path, version="0.5", images=("codex", "he"), labels=("cells", "nuclei")):
    """A SpatialData store."""
    write_group(path, version, spatialdata_attrs={"version": "0.2"})
    for group in ("images", "labels", "tables"):
        write_group(path / group, version)
    for name in images:
        write_zarr(path / "images" / name, CYX, "cyx", version, n_levels=2)
    for name in labels:
        write_zarr(path / "labels" / name, CYX[0], "yx", version, document=mark_labels)
    return path
