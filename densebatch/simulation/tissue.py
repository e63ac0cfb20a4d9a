"""Synthetic slides of dense membrane-stained tissue with exact truth.

The demo, the tests and the benchmarks need tissue of any size whose cells are known. `render`
draws any region of a slide without drawing the rest, and the region's pixels and ids are those of
the whole slide bit for bit; `write_slide` uses it to write slides larger than memory.

A slide is built from global coordinates and a seed only (`fields` says how):

1. a lattice offers candidate centres, thinned so that no two are closer than a cell's width
   (`placing`);
2. a share of the cells is stained, more in some places than in others; the others are dark gaps
   with a nucleus. The truth holds the stained cells (`placing`);
3. a cell is an ellipse cut by the borders to its neighbours, under a smooth displacement of the
   plane. Two cells never overlap, and they touch where both are stained and near. Membranes are
   bright rings, brighter where two meet, over a dim inside (`painting`);
4. optical blur with a wide haze, uneven background, shot and read noise follow
   (`light`);
5. part of the slide may be empty: constant background and camera noise (`fields`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.errors import InputError
from densebatch.simulation.fields import (
    LEAST_SCORE,
    OUTLINE_RELIEF,
    STREAM_BACKGROUND,
    STREAM_TEXTURE,
    STREAM_WARP_X,
    STREAM_WARP_X_FINE,
    STREAM_WARP_Y,
    STREAM_WARP_Y_FINE,
    Extent,
    Scene,
    displace_pixels,
    draw_noise,
    ramp_tissue,
    sample_outline,
)
from densebatch.simulation.light import BLUR_RADIUS, Light, blur, expose
from densebatch.simulation.painting import Canvas, paint_cells
from densebatch.simulation.placing import MAX_HALF_AXIS, Sites, place_cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

CHANNELS = ("membrane", "DAPI")
"""Names of a slide's channels, in order."""

# Lengths in cell diameters.
_PITCH = 0.76  # between the sites of the lattice
_SEPARATION = 0.58  # least distance of two centres
_WARP = 0.22  # largest displacement of borders
# Lengths in px that do not grow with the cells.
_OUTLINE_RAMP_PX = 60.0
_TEXTURE_WAVE_PX = 2.3
_BACKGROUND_WAVE_PX = 240.0

_NUCLEI = 0.5  # brightness of nuclei, relative to that of membranes
_CEILING = 4095.0  # of a camera with 12 bits, counts
_OUTLINE_GRID = 128  # rows and columns of positions from which the outline's level is found


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
def _build_scene(tissue: Tissue) -> Scene:
    diameter = float(tissue.cell_diameter_px)
    seed = np.uint64(tissue.seed)
    outline = max(tissue.height, tissue.width, 64) / 4.0
    if tissue.empty_fraction == 0:
        level = 10 * LEAST_SCORE  # below every score
    elif tissue.empty_fraction == 1:
        level = -10 * LEAST_SCORE  # above every score
    else:
        scores = sample_outline(seed, outline, tissue.height, tissue.width, _OUTLINE_GRID)
        level = float(np.sort(scores)[int(tissue.empty_fraction * scores.size)])
    return Scene(
        seed=seed,
        height=int(tissue.height),
        width=int(tissue.width),
        pitch=_PITCH * diameter,
        separation=_SEPARATION * diameter,
        diameter=diameter,
        min_area=int(tissue.min_area_px),
        stained=float(tissue.stained_fraction),
        clustering=float(tissue.clustering),
        cluster=float(tissue.cluster_px),
        outline=outline,
        outline_level=level,
        outline_ramp=_OUTLINE_RAMP_PX / tissue.width,
        # Smoothly joined values in 0..1 change by at most 1.5 per wavelength along each axis.
        outline_slope=1.0 / tissue.width + OUTLINE_RELIEF * 1.5 * math.sqrt(2) / outline,
        warp=_WARP * diameter,
        texture_wave=_TEXTURE_WAVE_PX,
        background_wave=_BACKGROUND_WAVE_PX,
        brightness=float(tissue.brightness),
        nuclei=_NUCLEI * float(tissue.brightness),
        background=float(tissue.background),
        offset=float(tissue.offset),
        read_noise=float(tissue.read_noise),
        shot_gain=float(tissue.shot_gain),
        ceiling=_CEILING,
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
    >>> from densebatch.base.geometry import Region
    >>> tissue = Tissue(200, 300, seed=1)
    >>> image, truth = render(tissue, Region(0, 0, 200, 300))
    >>> part, _ = render(tissue, Region(50, 70, 90, 200))
    >>> bool((part == image[:, 50:90, 70:200]).all())
    True
    """
    image, truth, _ = render_with_nuclei(tissue, region)
    return image, truth


def render_with_nuclei(
    tissue: Tissue, region: Region
) -> tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.uint32]]:
    """Draw one region of a slide, with the truth of its second channel.

    Parameters
    ----------
    tissue, region
        As of `render`; errors too.

    Returns
    -------
    image, truth
        As of `render`.
    nuclei
        `(h, w)` uint32: ids of the nuclei, of stained and of dark cells, which are those of their
        cells. A nucleus ends where it is half as bright as inside, before the blur; of cells in
        which it would have fewer than 12 px there is none.
    """
    _check_region(tissue, region)
    scene = _build_scene(tissue)
    light, truth, nuclei = _paint(scene, region.expand(BLUR_RADIUS))
    extent = _extent(region)
    background = draw_noise(scene.seed, STREAM_BACKGROUND, scene.background_wave, extent)
    ramp = ramp_tissue(scene, extent)
    image = np.empty((len(CHANNELS), *region.shape), np.uint16)
    for channel, counts in enumerate(image):
        expose(
            scene,
            channel,
            region.y0,
            region.x0,
            Light(*blur(light[channel]), background, ramp),
            counts,
        )
    inner = slice(BLUR_RADIUS, -BLUR_RADIUS)
    return image, truth[inner, inner].copy(), nuclei[inner, inner].copy()


def _check_region(tissue: Tissue, region: Region) -> None:
    if region.area == 0 or region != region.clip(tissue.height, tissue.width):
        raise InputError(
            f"{region} is not a part of a slide of {tissue.height} by {tissue.width} px"
        )


def _extent(region: Region) -> Extent:
    return Extent(region.y0, region.x0, region.height, region.width)


def _paint(
    scene: Scene, region: Region
) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.uint32]]:
    """Light of both channels before the blur, cells, nuclei; the region may leave the slide."""
    half_cell = _find_half_cell(scene)
    warp_margin = 2 * half_cell
    warped = _extent(region.expand(warp_margin))
    canvas = Canvas(
        y0=region.y0,
        x0=region.x0,
        warp_margin=warp_margin,
        warp_y=displace_pixels(scene, STREAM_WARP_Y, STREAM_WARP_Y_FINE, warped),
        warp_x=displace_pixels(scene, STREAM_WARP_X, STREAM_WARP_X_FINE, warped),
        texture=draw_noise(scene.seed, STREAM_TEXTURE, scene.texture_wave, _extent(region)),
        light=np.zeros((len(CHANNELS), *region.shape), np.float32),
        labels=np.zeros(region.shape, np.uint32),
        nuclei=np.zeros(region.shape, np.uint32),
    )
    sites = _cover(scene, region)
    paint_cells(scene, sites, place_cells(scene, sites), canvas)
    return canvas.light, canvas.labels, canvas.nuclei


def _find_half_cell(scene: Scene) -> int:
    """Pixels that no cell reaches beyond, from its centre along an axis."""
    return math.ceil(MAX_HALF_AXIS * scene.diameter + scene.warp) + 2


def _cover(scene: Scene, region: Region) -> Sites:
    """The sites of all cells that may touch a region, and of all that border on these."""
    half_cell = _find_half_cell(scene)
    # Cells centred outside the slide may reach into it; ids count from the first of those.
    outside = math.ceil(half_cell / scene.pitch)
    id_stride = math.ceil(scene.width / scene.pitch) + 2 * outside
    rows = math.ceil(scene.height / scene.pitch) + 2 * outside
    reach = math.ceil(2 * half_cell / scene.pitch)
    around = math.ceil(half_cell / scene.pitch) + reach
    i0 = max(math.floor(region.y0 / scene.pitch) - around, -outside)
    j0 = max(math.floor(region.x0 / scene.pitch) - around, -outside)
    i1 = min(math.floor(region.y1 / scene.pitch) + around + 1, rows - outside)
    j1 = min(math.floor(region.x1 / scene.pitch) + around + 1, id_stride - outside)
    return Sites(
        i0=i0,
        j0=j0,
        rows=i1 - i0,
        cols=j1 - j0,
        first_id=(i0 + outside) * id_stride + j0 + outside + 1,
        id_stride=id_stride,
        reach=reach,
    )
