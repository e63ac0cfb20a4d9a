"""Label images of the tests: small ones written, and what other readers say of them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import zarr

from densebatch.cells import labels as out

# Marks of a module whose tests open label images in other readers.
OTHER_READERS = [
    # napari's plugin engine declares its pydantic models in a way that pydantic 2 is about to drop
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),
    # ome-zarr's own default of a Scaler, built and deprecated in the same package
    pytest.mark.filterwarnings("ignore:.*Scaler.*:DeprecationWarning"),
]
VERSIONS = ["0.5", "0.4"]
NO_SOURCE = {"slide": "a"}


def make_spec(root, ngff_version="0.5", shape=(150, 105), **changes):
    settings = {
        "n_levels": out.count_levels(*shape, top_px=64),
        "um_per_px": 0.5,
        "chunk_px": 32,
        "shard_px": 64,
        "image": True,
        "channels": ("CD3", "DAPI"),
        "image_dtype": "uint16",
    }
    return out.PyramidSpec(str(root), ngff_version, *shape, **(settings | changes))


def make_pixels(spec, seed=0):
    """Block labels with an empty quarter, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: spec.height, : spec.width]
    labels = ((y // 7) * 1000 + x // 7 + 1).astype(np.uint32)
    labels[: spec.height // 2, : spec.width // 2] = 0
    if not spec.image:
        return labels, None
    shape = (len(spec.channels), spec.height, spec.width)
    if np.dtype(spec.image_dtype).kind == "f":
        return labels, rng.normal(size=shape).astype(spec.image_dtype)
    info = np.iinfo(spec.image_dtype)
    return labels, rng.integers(info.min, info.max, shape, spec.image_dtype, endpoint=True)


def fill(spec, labels, image=None, order=1):
    for level in range(spec.n_levels):
        grid = out.shard_grid(spec, level)
        for index in list(grid)[::order]:
            region = grid[index]
            if level == 0:
                out.write_label_shard(spec, 0, region, labels[region.slices])
            else:
                out.downsample_labels(spec, level, region)
            for channel in range(len(spec.channels) if spec.image else 0):
                if level == 0:
                    pixels = image[channel][region.slices]
                    out.write_image_shard(spec, channel, 0, region, pixels)
                else:
                    out.downsample_image(spec, channel, level, region)


def write_all(spec, **kwargs):
    labels, image = make_pixels(spec)
    out.create(spec, label_attrs=NO_SOURCE)
    fill(spec, labels, image, **kwargs)
    out.finalize(spec, n_cells=int(labels.max()), provenance={"model": "m"})
    return labels, image


def files_of(folder):
    folder = Path(folder)
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def open_in_napari(path):
    from napari_ome_zarr._reader import napari_get_reader

    with contextlib.redirect_stdout(io.StringIO()):
        return napari_get_reader(str(path))(str(path))


def open_in_ome_zarr(path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    return [node for node in Reader(parse_url(path))() if node.data]


def validate(spec):
    """What ome-zarr-models says of every group that it has a model for."""
    from ome_zarr_models import v04, v05
    from ome_zarr_models.v04.image_label import ImageLabel as ImageLabel04
    from ome_zarr_models.v04.labels import Labels as Labels04
    from ome_zarr_models.v05.image_label import ImageLabel as ImageLabel05
    from ome_zarr_models.v05.labels import Labels as Labels05

    image, labels, label = {
        "0.4": (v04.Image, Labels04, ImageLabel04),
        "0.5": (v05.Image, Labels05, ImageLabel05),
    }[spec.ngff]
    root = zarr.open_group(spec.root, mode="r")
    listed = labels.from_zarr(root["labels"]).attributes
    assert spec.label_name in getattr(listed, "ome", listed).labels
    label.from_zarr(root["labels"][spec.label_name])
    if spec.image or spec.in_place:
        image.from_zarr(root)
