"""Synthetic slides of dense membrane-stained tissue with exact truth.

The demo, the tests and the benchmarks need tissue of any size whose cells are known. `render`
draws any region of a slide without drawing the rest, and the region's pixels and ids are those of
the whole slide bit for bit; `write_slide` uses it to write slides larger than memory.

A slide is built from global coordinates and a seed only (`simulate_kernels` says how):

1. a lattice offers candidate centres, thinned so that no two are closer than a cell's width;
2. a cell is an ellipse cut by the borders to its neighbours, under a smooth displacement of the
   plane. Two cells never overlap, and they touch where both are stained and near;
3. a share of the cells is stained, more in some places than in others; the others are dark gaps
   with a nucleus. The truth holds the stained cells;
4. membranes are bright rings, brighter where two meet, over a dim inside; then optical blur with
   a wide haze, uneven background, shot and read noise;
5. part of the slide may be empty: constant background and camera noise.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import zarr

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.slides import simulated_cells as kernels

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from numpy.typing import NDArray

CHANNELS = ("membrane", "DAPI")
"""Names of a slide's channels, in order."""

_PITCH = 0.76  # cell diameters between the sites of the lattice


@dataclass(frozen=True)
class Tissue:
    """A synthetic slide. Equal settings make equal slides.

    Attributes
    ----------
    height, width : size of the slide, px
    seed : of everything random, 0 <= seed < 2^64
    um_per_px : pixel size, µm; metadata only
    cell_diameter_px : median diameter of the stained cells, px
    stained_fraction : mean share of the cells that are stained, 0..1
    clustering : how unevenly stained cells are spread; 0 evenly, 1 from none to twice the mean
    cluster_px : size of clusters and gaps, px
    empty_fraction : share of the slide without tissue, 0..1; mostly its left part
    min_area_px : smaller cells are left out, px
    brightness : of a typical membrane, counts
    background : of the tissue outside stained cells, counts
    offset : of the camera, counts
    read_noise : standard deviation without light, counts
    shot_gain : variance per count of light; 0 for none
    """

    height: int
    width: int
    seed: int = 0
    um_per_px: float = 0.5
    cell_diameter_px: float = 15.0
    stained_fraction: float = 0.4
    clustering: float = 1.0
    cluster_px: float = 180.0
    empty_fraction: float = 0.0
    min_area_px: int = 30
    brightness: float = 3600.0
    background: float = 60.0
    offset: float = 100.0
    read_noise: float = 12.0
    shot_gain: float = 4.0

    def __post_init__(self) -> None:
        bounds = {
            "height": (1, 2**20),
            "width": (1, 2**20),
            "seed": (0, 2**64 - 1),
            "um_per_px": (1e-3, 1e3),
            "cell_diameter_px": (6, 200),
            "stained_fraction": (0, 1),
            "clustering": (0, 1),
            "cluster_px": (1, 1e6),
            "empty_fraction": (0, 1),
            "min_area_px": (1, 10**6),
            "brightness": (0, 2**15),
            "background": (0, 2**15),
            "offset": (0, 2**15),
            "read_noise": (0, 1e4),
            "shot_gain": (0, 1e3),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"tissue: {name} is {value}; accepted is {low} to {high}")
        pitch = _PITCH * self.cell_diameter_px
        # Eight more on each side hold the cells that are centred outside the slide.
        n_ids = (self.height / pitch + 16) * (self.width / pitch + 16)
        if n_ids >= 2**32:
            raise InputError(
                f"tissue: {self.height} by {self.width} px of cells of {self.cell_diameter_px} px "
                f"need {n_ids:.3g} ids; 32 bits hold {2**32 - 1}"
            )


@functools.lru_cache(maxsize=16)
def _build_scene(tissue: Tissue) -> kernels.Scene:
    diameter = float(tissue.cell_diameter_px)
    seed = np.uint64(tissue.seed)
    outline = max(tissue.height, tissue.width, 64) / 4.0
    if tissue.empty_fraction == 0:
        level = -10.0
    elif tissue.empty_fraction == 1:
        level = 10.0
    else:
        scores = kernels.sample_outline(seed, outline, tissue.height, tissue.width, 128)
        level = float(np.sort(scores)[int(tissue.empty_fraction * scores.size)])
    return kernels.Scene(
        seed=seed,
        height=int(tissue.height),
        width=int(tissue.width),
        pitch=_PITCH * diameter,
        separation=0.58 * diameter,
        diameter=diameter,
        min_area=int(tissue.min_area_px),
        stained=float(tissue.stained_fraction),
        clustering=float(tissue.clustering),
        cluster=float(tissue.cluster_px),
        outline=outline,
        outline_level=level,
        outline_ramp=60.0 / tissue.width,
        # Smoothly joined values in 0..1 change by at most 1.5 per wavelength along each axis.
        outline_slope=1.0 / tissue.width + kernels.OUTLINE_RELIEF * 1.5 * math.sqrt(2) / outline,
        warp=0.22 * diameter,
        texture_wave=2.3,
        background_wave=240.0,
        brightness=float(tissue.brightness),
        nuclei=0.5 * float(tissue.brightness),
        background=float(tissue.background),
        offset=float(tissue.offset),
        read_noise=float(tissue.read_noise),
        shot_gain=float(tissue.shot_gain),
        ceiling=4095.0,
    )


def _check_region(tissue: Tissue, region: Region) -> None:
    if region.area == 0 or region != region.clip(tissue.height, tissue.width):
        raise InputError(
            f"{region} is not a part of a slide of {tissue.height} by {tissue.width} px"
        )


def render(tissue: Tissue, region: Region) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Draw one region of a slide.

    Parameters
    ----------
    tissue
        The slide.
    region
        Any non-empty part of it.

    Returns
    -------
    image
        `(2, h, w)` uint16, the channels of `CHANNELS`, at most 4095 counts.
    truth
        `(h, w)` uint32 ids of the stained cells, 0 elsewhere. An id is unique on the slide; ids
        have gaps. Each cell is one 4-connected piece of the slide, of `min_area_px` or more.

    Raises
    ------
    InputError
        If the region is empty or leaves the slide.

    Notes
    -----
    Equal to the same region of the whole slide bit for bit. Thread-safe, and most of the work
    releases the interpreter's lock. Takes about 60 bytes per pixel of the region and of five cell
    diameters around it.

    Examples
    --------
    >>> tissue = Tissue(200, 300, seed=1)
    >>> image, truth = render(tissue, Region(0, 0, 200, 300))
    >>> part, _ = render(tissue, Region(50, 70, 90, 200))
    >>> bool((part == image[:, 50:90, 70:200]).all())
    True
    """
    _check_region(tissue, region)
    scene = _build_scene(tissue)
    outer = region.expand(kernels.BLUR_RADIUS)
    light, truth = _paint(scene, outer)
    background = kernels.noise_field(
        scene.seed, kernels.STREAM_BACKGROUND, scene.background_wave, *_origin_and_shape(region)
    )
    ramp = kernels.tissue_ramp(scene, *_origin_and_shape(region))
    image = np.empty((len(CHANNELS), *region.shape), np.uint16)
    for channel, haze in enumerate((0.22, 0.45)):
        sharp = kernels.smooth(light[channel], 1, 0.5, 0.25, 0.0)
        wide = sharp
        for step in kernels.BLUR_STEPS[1:]:
            wide = kernels.smooth(wide, step, 6 / 16, 4 / 16, 1 / 16)
        cut = (sharp.shape[0] - region.height) // 2
        sharp = sharp[cut : cut + region.height, cut : cut + region.width]
        kernels.expose(
            scene, channel, region.y0, region.x0, sharp, wide, haze, background, ramp,
            image[channel],
        )  # fmt: skip
    cut = kernels.BLUR_RADIUS
    return image, truth[cut : cut + region.height, cut : cut + region.width].copy()


def mask_tissue(tissue: Tissue, region: Region) -> NDArray[np.bool_]:
    """Where a region of a slide is tissue rather than empty.

    Parameters
    ----------
    tissue
        The slide.
    region
        Any non-empty part of it.

    Returns
    -------
    ndarray
        `(h, w)` bool. Where it is False the image is the camera's offset and read noise, and
        there are no cells.

    Raises
    ------
    InputError
        If the region is empty or leaves the slide.
    """
    _check_region(tissue, region)
    ramp: NDArray[np.float32] = kernels.tissue_ramp(
        _build_scene(tissue), *_origin_and_shape(region)
    )
    return ramp > 0


def _origin_and_shape(region: Region) -> tuple[int, int, int, int]:
    return region.y0, region.x0, region.height, region.width


def _paint(scene: kernels.Scene, region: Region) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Light of both channels before the blur, and labels; the region may leave the slide."""
    half_cell = math.ceil(kernels.MAX_HALF_AXIS * scene.diameter + scene.warp) + 2
    margin = 2 * half_cell
    warped = _origin_and_shape(region.expand(margin))
    warp_y = kernels.displacement(scene, kernels.STREAM_WARP_Y, kernels.STREAM_WARP_Y_FINE, *warped)
    warp_x = kernels.displacement(scene, kernels.STREAM_WARP_X, kernels.STREAM_WARP_X_FINE, *warped)
    texture = kernels.noise_field(
        scene.seed, kernels.STREAM_TEXTURE, scene.texture_wave, *_origin_and_shape(region)
    )
    # Cells centred outside the slide may reach into it; ids count from the first of those.
    outside = math.ceil(half_cell / scene.pitch)
    id_stride = math.ceil(scene.width / scene.pitch) + 2 * outside
    reach = math.ceil(2 * half_cell / scene.pitch)
    around = math.ceil(half_cell / scene.pitch) + reach
    i0 = max(math.floor(region.y0 / scene.pitch) - around, -outside)
    j0 = max(math.floor(region.x0 / scene.pitch) - around, -outside)
    rows = math.ceil(scene.height / scene.pitch) + 2 * outside
    i1 = min(math.floor(region.y1 / scene.pitch) + around + 1, rows - outside)
    j1 = min(math.floor(region.x1 / scene.pitch) + around + 1, id_stride - outside)
    cells = kernels.place_cells(scene, i0, j0, i1 - i0, j1 - j0)
    light = np.zeros((len(CHANNELS), *region.shape), np.float32)
    labels = np.zeros(region.shape, np.uint32)
    kernels.paint_cells(
        scene, cells, (i0 + outside) * id_stride + j0 + outside + 1, id_stride, reach,
        region.y0, region.x0, margin, warp_y, warp_x, texture, light, labels,
    )  # fmt: skip
    return light, labels


def write_slide(
    tissue: Tissue,
    image_path: str | PathLike[str],
    truth_path: str | PathLike[str] | None = None,
    *,
    chunk: int = 512,
    shard: int = 4096,
    ngff: Literal["0.4", "0.5"] = "0.5",
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
    Memory is about 25 bytes per pixel of a shard plus 100 per pixel of `threads` tiles, whatever
    the slide's size: 500 MB by default.
    """
    if ngff not in ("0.4", "0.5"):
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
    zarr_format: Literal[2, 3] = 2 if ngff == "0.4" else 3
    root = Path(image_path)
    create = functools.partial(
        _create_level, tissue, chunk=chunk, shard=shard, zarr_format=zarr_format
    )
    image = zarr.open_group(root, mode="w-", zarr_format=zarr_format)
    images = [create(root / str(k), level=k, dtype="uint16") for k in range(n_levels)]
    if truth_path is None:
        labels = image.create_group("labels")
        truth = labels.create_group("truth")
        truths = [
            create(root / "labels" / "truth" / str(k), level=k, dtype="uint32")
            for k in range(n_levels)
        ]
    else:
        truths = [create(Path(truth_path), level=0, dtype="uint32")]

    blocks = Grid(tissue.height, tissue.width, shard, shard)
    with ThreadPoolExecutor(threads) as pool:
        for index in blocks:
            pixels, ids = _render_block(tissue, blocks[index], tile, pool)
            _write_levels(images, pixels, blocks[index], _halve_image)
            _write_levels(truths, ids, blocks[index], _halve_labels)

    # Metadata last: a slide that was not finished does not open.
    _set_attributes(image, ngff, _describe_multiscale(tissue, ngff, n_levels, "image"))
    if truth_path is None:
        _set_attributes(labels, ngff, {"labels": ["truth"]})
        _set_attributes(truth, ngff, _describe_multiscale(tissue, ngff, n_levels, "truth"))


def _create_level(
    tissue: Tissue,
    path: Path,
    *,
    level: int,
    dtype: Literal["uint16", "uint32"],
    chunk: int,
    shard: int,
    zarr_format: Literal[2, 3],
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
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    pixels = np.empty((len(CHANNELS), *block.shape), np.uint16)
    ids = np.empty(block.shape, np.uint32)
    tiles = Grid(block.height, block.width, tile, tile)

    def fill(index: tuple[int, int]) -> None:
        part = tiles[index]
        pixels[:, *part.slices], ids[part.slices] = render(tissue, part.shift(block.y0, block.x0))

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


def _halve_image(image: NDArray[Any]) -> NDArray[Any]:
    """Mean of 2x2 pixels, the last row and column of an odd image counting twice."""
    padded = np.pad(image, ((0, 0), *((0, n % 2) for n in image.shape[1:])), mode="edge")
    total = np.full((image.shape[0], padded.shape[1] // 2, padded.shape[2] // 2), 2, np.uint32)
    for dy in (0, 1):
        for dx in (0, 1):
            total += padded[:, dy::2, dx::2]
    return (total // 4).astype(image.dtype)


def _halve_labels(labels: NDArray[Any]) -> NDArray[Any]:
    return labels[::2, ::2]


def _describe_multiscale(
    tissue: Tissue, ngff: str, n_levels: int, name: Literal["image", "truth"]
) -> dict[str, Any]:
    """Metadata of an image or label group (OME-Zarr specification, "multiscales")."""
    channel = [{"name": "c", "type": "channel"}] if name == "image" else []
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
    datasets = []
    for k in range(n_levels):
        scale = [1.0] * len(channel) + [tissue.um_per_px * 2**k] * 2
        transform = {"type": "scale", "scale": scale}
        datasets.append({"path": str(k), "coordinateTransformations": [transform]})
    multiscale: dict[str, Any] = {"name": name, "axes": channel + space, "datasets": datasets}
    version = {"version": "0.4"} if ngff == "0.4" else {}
    described: dict[str, Any] = {"multiscales": [multiscale | version]}
    if name == "image":
        window = {"min": 0, "max": 4095, "start": 0, "end": 4095}
        channels = [
            {"label": label, "color": color, "active": True, "window": window}
            for label, color in zip(CHANNELS, ("FFFFFF", "0000FF"), strict=True)
        ]
        described["omero"] = {"channels": channels}
    else:
        colors = [{"label-value": 0, "rgba": [0, 0, 0, 0]}]
        source = {"image": "../../"}
        described["image-label"] = {"colors": colors, "source": source} | version
    return described


def _set_attributes(group: zarr.Group, ngff: str, attributes: dict[str, Any]) -> None:
    if ngff == "0.5":
        attributes = {"ome": {"version": ngff, **attributes}}
    group.attrs.update(attributes)
