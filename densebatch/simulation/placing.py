"""Cells of a simulated slide before they are drawn: where they are, how they look.

A lattice offers one candidate centre per site. What a site holds depends on the seed and on the
sites next to it, so any block of the lattice can be drawn alone (`fields` says how).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from densebatch.simulation.fields import (
    LEAST_SCORE,
    STREAM_CLUSTER,
    STREAM_FINE,
    STREAM_LOOK,
    STREAM_PLACE,
    STREAM_SHAPE,
    STREAM_STAIN,
    hash_place,
    mix_bits,
    sample_noise,
    score_outline,
    to_unit,
)
from densebatch.simulation.light import BLUR_RADIUS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.simulation.fields import Scene

# What a site holds: `Cells.kind`.
EMPTY = 0.0
UNSTAINED = 1.0
STAINED = 2.0

# Half-axes are at most this many diameters: largest size and largest elongation below.
_SIZE = 0.585
_SIZE_SPREAD = 0.62
_ASPECT = (1.05, 0.45, 1.1)
MAX_HALF_AXIS: float = _SIZE * (1 + _SIZE_SPREAD) * sum(_ASPECT) ** 0.5

# Sites around one whose candidates can be nearer than `Scene.separation`.
_THINNING_REACH = 1


class Sites(NamedTuple):
    """A block of the lattice: all cells that may touch a region, and all that border on these."""

    i0: int  # first row and column of the block in the lattice
    j0: int
    rows: int
    cols: int
    first_id: int  # label of the cell at the block's first site
    id_stride: int  # labels per row of the lattice
    reach: int  # cells may border on each other when their sites are this many rows or cols apart


class Cells(NamedTuple):
    """Cells of a block of the lattice; arrays `(rows, cols)` float64, 0 where there is no cell."""

    kind: NDArray[np.float64]  # EMPTY, UNSTAINED or STAINED
    y: NDArray[np.float64]  # centre, px
    x: NDArray[np.float64]
    major: NDArray[np.float64]  # half-axes, px
    minor: NDArray[np.float64]
    axis_y: NDArray[np.float64]  # unit vector of the major axis
    axis_x: NDArray[np.float64]
    light: NDArray[np.float64]  # relative brightness of the membrane
    fill: NDArray[np.float64]  # brightness of the inside, relative to the membrane
    polar_y: NDArray[np.float64]  # gradient of the membrane's brightness across the cell
    polar_x: NDArray[np.float64]
    nucleus: NDArray[np.float64]  # relative brightness


class _Candidates(NamedTuple):
    """Candidate centres of a block and of a margin of `_THINNING_REACH` sites around it."""

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    mark: NDArray[np.uint64]  # of two that are too near the one with the smaller mark stays


def place_cells(scene: Scene, sites: Sites) -> Cells:
    """Draw the cells of a block of the lattice.

    Each site offers one candidate centre, anywhere inside it. Of candidates nearer than
    `separation` only the one with the smallest mark stays (Matern's second hard-core process),
    which any block can decide from the neighbouring candidates alone.
    """
    shape = (len(Cells._fields), sites.rows, sites.cols)
    cells = Cells(*np.zeros(shape, np.float64))
    _place_all(scene, sites, cells)
    return cells


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _place_all(scene: Scene, sites: Sites, cells: Cells) -> None:
    """Write what each site holds into `cells`."""
    candidates = _offer_centres(scene, sites)
    for i in range(sites.rows):
        for j in range(sites.cols):
            if not _stays(candidates, i + _THINNING_REACH, j + _THINNING_REACH, scene.separation):
                continue
            y = candidates.y[i + _THINNING_REACH, j + _THINNING_REACH]
            x = candidates.x[i + _THINNING_REACH, j + _THINNING_REACH]
            if scene.outline_level >= LEAST_SCORE and not _is_clear(scene, y, x):
                continue
            bits = hash_place(scene.seed, STREAM_STAIN, sites.i0 + i, sites.j0 + j)
            stained = to_unit(bits) < _share_stained(scene, y, x)
            cells.kind[i, j] = STAINED if stained else UNSTAINED
            cells.y[i, j] = y
            cells.x[i, j] = x
            _draw_shape(scene, sites, cells, i, j)
            _draw_look(scene, sites, cells, i, j)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _offer_centres(scene: Scene, sites: Sites) -> _Candidates:
    shape = (sites.rows + 2 * _THINNING_REACH, sites.cols + 2 * _THINNING_REACH)
    candidates = _Candidates(
        np.empty(shape, np.float64), np.empty(shape, np.float64), np.empty(shape, np.uint64)
    )
    for i in range(shape[0]):
        for j in range(shape[1]):
            row, col = sites.i0 + i - _THINNING_REACH, sites.j0 + j - _THINNING_REACH
            bits = hash_place(scene.seed, STREAM_PLACE, row, col)
            candidates.mark[i, j] = bits
            candidates.y[i, j] = (row + to_unit(mix_bits(bits + np.uint64(1)))) * scene.pitch
            candidates.x[i, j] = (col + to_unit(mix_bits(bits + np.uint64(2)))) * scene.pitch
    return candidates


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _stays(candidates: _Candidates, i: int, j: int, separation: float) -> bool:
    """Whether no candidate with a smaller mark is too near."""
    near = separation * separation
    for k in range(i - _THINNING_REACH, i + _THINNING_REACH + 1):
        for m in range(j - _THINNING_REACH, j + _THINNING_REACH + 1):
            if candidates.mark[k, m] < candidates.mark[i, j]:
                gap_y = candidates.y[k, m] - candidates.y[i, j]
                gap_x = candidates.x[k, m] - candidates.x[i, j]
                if gap_y * gap_y + gap_x * gap_x < near:
                    return False
    return True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _is_clear(scene: Scene, y: float, x: float) -> bool:
    """Whether no light of a cell centred here can reach an empty part of the slide."""
    reach = MAX_HALF_AXIS * scene.diameter + scene.warp + BLUR_RADIUS + 1.0
    above: float = score_outline(scene.seed, scene.outline, scene.width, y, x) - scene.outline_level
    if above <= 0.0 or above >= reach * 1.42 * scene.outline_slope:
        return above > 0.0
    # Samples near enough for the slope's bound to vouch for the points between them.
    n = int(np.ceil(reach / 4.0))
    step = reach / n
    for i in range(-n, n + 1):
        for j in range(-n, n + 1):
            at_y, at_x = y + i * step, x + j * step
            score = score_outline(scene.seed, scene.outline, scene.width, at_y, at_x)
            if score - scene.outline_level < 0.75 * step * scene.outline_slope:
                return False
    return True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _share_stained(scene: Scene, y: float, x: float) -> float:
    """Share of the cells that are stained around here, 0 to 1 or, with a high mean, more."""
    cluster = sample_noise(scene.seed, STREAM_CLUSTER, scene.cluster, y, x)
    fine = sample_noise(scene.seed, STREAM_FINE, 0.4 * scene.cluster, y, x)
    # Two octaves rarely leave the middle: stretch them to fill 0..1.
    share: float = min(max(0.5 + 1.7 * (0.6 * cluster + 0.4 * fine - 0.5), 0.0), 1.0)
    return scene.stained * (1.0 + scene.clustering * (2.0 * share - 1.0))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw_shape(scene: Scene, sites: Sites, cells: Cells, i: int, j: int) -> None:
    """Write one cell's half-axes and their direction."""
    bits = hash_place(scene.seed, STREAM_SHAPE, sites.i0 + i, sites.j0 + j)
    u = to_unit(bits)
    v = to_unit(mix_bits(bits + np.uint64(1)))
    w = to_unit(mix_bits(bits + np.uint64(2)))
    half = _SIZE * scene.diameter * (1.0 + _SIZE_SPREAD * (u + v - 1.0))
    aspect = _ASPECT[0] + _ASPECT[1] * w + _ASPECT[2] * w * w
    root = np.sqrt(aspect)
    cells.major[i, j] = half * root
    cells.minor[i, j] = half / root
    # Direction of a point drawn in a square, away from its middle.
    ay = to_unit(mix_bits(bits + np.uint64(3))) - 0.5
    ax = to_unit(mix_bits(bits + np.uint64(4))) - 0.5
    norm = np.sqrt(ay * ay + ax * ax) + 1e-9
    cells.axis_y[i, j] = ay / norm
    cells.axis_x[i, j] = np.sqrt(max(1.0 - (ay / norm) * (ay / norm), 0.0)) * (
        1.0 if ax >= 0 else -1.0
    )


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _draw_look(scene: Scene, sites: Sites, cells: Cells, i: int, j: int) -> None:
    """Write how bright one cell's parts are; its kind is known."""
    bits = hash_place(scene.seed, STREAM_LOOK, sites.i0 + i, sites.j0 + j)
    u = to_unit(bits)
    v = u * u * u * u
    if cells.kind[i, j] == STAINED:
        cells.light[i, j] = 0.07 + 0.80 * u
    else:  # a few unstained cells glow, dimly and without belonging to the truth
        cells.light[i, j] = 0.10 * v * v * v * v
    u = to_unit(mix_bits(bits + np.uint64(1)))
    cells.fill[i, j] = 0.15 + 0.90 * u * np.sqrt(u)
    cells.polar_y[i, j] = 2.0 * (to_unit(mix_bits(bits + np.uint64(2))) - 0.5)
    cells.polar_x[i, j] = 2.0 * (to_unit(mix_bits(bits + np.uint64(3))) - 0.5)
    u = to_unit(mix_bits(bits + np.uint64(4)))
    cells.nucleus[i, j] = 0.25 + 0.75 * u
