"""A simulated slide as OME-Zarr, with its true labels beside it, written block by block."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.base.resampling import mean_of_four
from densebatch.ngff.metadata import (
    ZARR_FORMATS,
    ZarrFormat,
    describe_channel,
    describe_multiscale,
    image_attributes,
    label_attributes,
    labels_attributes,
    plain_pyramid,
)
from densebatch.simulation.tissue import CHANNELS, Tissue, render_with_nuclei

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from numpy.typing import NDArray

    from densebatch.ngff.metadata import Version

_RANGE = (0, 4095)  # values of the simulated camera


def write_slide(
    tissue: Tissue,
    image_path: str | PathLike[str],
    truth_path: str | PathLike[str] | None = None,
    *,
    nuclei: bool = False,
    chunk: int = 512,
    shard: int = 4096,
    ngff: Version = "0.5",
    tile: int = 1024,
    threads: int = 1,
) -> None:
    """Write a slide as OME-Zarr, region by region.

    Parameters
    ----------
    tissue
        The slide.
    image_path
        OME-Zarr image to create: axes c, y, x; uint16; channels named as in `CHANNELS`; levels
        halved until one chunk holds the slide, or as many as a shard allows.
    truth_path
        Zarr array to create for the truth, `(height, width)` uint32. Without it the truth becomes
        the image's label group ``labels/truth``, with the image's levels.
    nuclei
        Write the truth of the nuclei too, as the label group ``labels/nuclei``.
    chunk, shard
        Sides of chunks and shards, px; a shard is a whole number of chunks. OME-Zarr 0.4 has no
        shards.
    ngff
        Version of OME-Zarr.
    tile
        Side of the regions drawn at once, px; changes memory and time, not the slide.
    threads
        Regions drawn at the same time.

    Raises
    ------
    InputError
        If a path exists or a size cannot work.

    Notes
    -----
    Memory is about 30 bytes per pixel of a shard plus 100 per pixel of `threads` tiles, whatever
    the slide's size: 500 MB by default.
    """
    if ngff not in ZARR_FORMATS:
        raise InputError(f"OME-Zarr version {ngff!r} is unknown; accepted are '0.4' and '0.5'")
    if min(chunk, tile, threads) < 1 or shard < 1 or shard % chunk:
        raise InputError(
            f"chunk {chunk}, shard {shard}, tile {tile} and threads {threads} cannot work; "
            "all are positive and a shard is a whole number of chunks"
        )
    for path in (image_path, truth_path):
        if path is not None and Path(path).exists():
            raise InputError(f"{path} exists already")
    n_levels = 1
    while max(tissue.height, tissue.width) > chunk << (n_levels - 1) and not shard % (
        chunk << n_levels
    ):
        n_levels += 1
    zarr_format = ZARR_FORMATS[ngff]
    root = Path(image_path)
    create = functools.partial(
        _create_level, tissue, chunk=chunk, shard=shard, zarr_format=zarr_format
    )
    image = zarr.open_group(root, mode="w-", zarr_format=zarr_format)
    images = [create(root / str(k), level=k, dtype="uint16") for k in range(n_levels)]
    names = (["truth"] if truth_path is None else []) + (["nuclei"] if nuclei else [])
    groups, arrays = {}, {}
    if names:
        labels = image.create_group("labels")
        groups = {name: labels.create_group(name) for name in names}
        arrays = {
            name: [
                create(root / "labels" / name / str(k), level=k, dtype="uint32")
                for k in range(n_levels)
            ]
            for name in names
        }
    if truth_path is not None:
        arrays["truth"] = [create(Path(truth_path), level=0, dtype="uint32")]

    blocks = Grid(tissue.height, tissue.width, shard, shard)
    with ThreadPoolExecutor(threads) as pool:
        for index in blocks:
            pixels, ids = _render_block(tissue, blocks[index], tile, pool)
            _write_levels(images, pixels, blocks[index], mean_of_four)
            for name, levels in arrays.items():
                _write_levels(levels, ids[name], blocks[index], _halve_labels)

    # Metadata come last, because a slide that was not finished must not open.
    image.attrs.update(_describe_image(tissue, ngff, n_levels))
    for name, group in groups.items():
        group.attrs.update(_describe_labels(tissue, ngff, name, n_levels))
    if groups:
        labels.attrs.update(labels_attributes(ngff, names))


def _create_level(
    tissue: Tissue,
    path: Path,
    *,
    level: int,
    dtype: Literal["uint16", "uint32"],
    chunk: int,
    shard: int,
    zarr_format: ZarrFormat,
) -> zarr.Array[Any]:
    """An empty array for one level; channels lead those of pixels, labels have none."""
    leading = (len(CHANNELS),) if dtype == "uint16" else ()
    ones = (1,) * len(leading)
    names = (("c",) if leading else ()) + ("y", "x")
    # A shard shrinks with the level, so that one block of the slide fills whole shards of all.
    return zarr.create_array(
        path,
        shape=(*leading, -(-tissue.height >> level), -(-tissue.width >> level)),
        dtype=dtype,
        chunks=(*ones, chunk, chunk),
        shards=(*ones, shard >> level, shard >> level) if zarr_format == 3 else None,
        chunk_key_encoding={"name": "v2" if zarr_format == 2 else "default", "separator": "/"},
        dimension_names=names if zarr_format == 3 else None,
        fill_value=0,
        zarr_format=zarr_format,
    )


def _render_block(
    tissue: Tissue, block: Region, tile: int, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint16], dict[str, NDArray[np.uint32]]]:
    """Pixels, and ids of cells and nuclei by the name of their label image."""
    pixels = np.empty((len(CHANNELS), *block.shape), np.uint16)
    ids = {name: np.empty(block.shape, np.uint32) for name in ("truth", "nuclei")}
    tiles = Grid(block.height, block.width, tile, tile)

    def fill(index: tuple[int, int]) -> None:
        part = tiles[index]
        drawn = render_with_nuclei(tissue, part.shift(block.y0, block.x0))
        pixels[:, *part.slices], ids["truth"][part.slices], ids["nuclei"][part.slices] = drawn

    for _ in pool.map(fill, tiles):
        pass
    return pixels, ids


def _write_levels(
    levels: list[zarr.Array[Any]],
    values: NDArray[Any],
    block: Region,
    halve: Callable[[NDArray[Any]], NDArray[Any]],
) -> None:
    for k, level in enumerate(levels):
        if k:
            values = halve(values)
        y0, x0 = block.y0 >> k, block.x0 >> k
        height, width = values.shape[-2:]
        level[..., y0 : y0 + height, x0 : x0 + width] = values


def _halve_labels(labels: NDArray[Any]) -> NDArray[Any]:
    return labels[::2, ::2]


def _describe_image(tissue: Tissue, ngff: str, n_levels: int) -> dict[str, Any]:
    """Attributes of the image group."""
    pyramid = plain_pyramid(tissue.um_per_px, n_levels)
    multiscale = describe_multiscale(ngff, "image", pyramid, method="mean", channel=True)
    channels = [
        describe_channel(label, color, active=True, limits=_RANGE, shown=_RANGE)
        for label, color in zip(CHANNELS, ("FFFFFF", "0000FF"), strict=True)
    ]
    return image_attributes(ngff, multiscale, channels)


def _describe_labels(tissue: Tissue, ngff: str, name: str, n_levels: int) -> dict[str, Any]:
    """Attributes of the group of true labels."""
    pyramid = plain_pyramid(tissue.um_per_px, n_levels)
    multiscale = describe_multiscale(ngff, name, pyramid, method="nearest")
    return label_attributes(ngff, multiscale, of_image=True)
