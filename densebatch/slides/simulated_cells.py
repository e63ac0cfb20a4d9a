"""Compiled loops of the simulator: hashed randomness, cell shapes, blur and camera.

Every number is a function of the seed and of global coordinates, never of the rendered region, so
that any region equals the same part of the whole slide bit for bit. Two habits keep it so:

- randomness is a hash of (seed, stream, row, column), not the next draw of a generator;
- floating point uses only ``+ - * /``, square root and floor, which IEEE 754 rounds in one way.
  Exponentials, logarithms and sines differ in the last bit between the vectorised body of a loop
  and its scalar rest, hence the polynomial bumps and the sum of four uniforms where a textbook
  has Gaussians. No ``fastmath`` for the same reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from densebatch.slides.simulated_light import (
    BLUR_RADIUS,
    STREAM_CLUSTER,
    STREAM_FINE,
    STREAM_LOOK,
    STREAM_PAIR,
    STREAM_PLACE,
    STREAM_SHAPE,
    STREAM_STAIN,
    Scene,
    _ease,
    _hash,
    _mix,
    _noise_at,
    _unit,
    outline_score,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


# What a lattice cell holds.
EMPTY = 0.0
UNSTAINED = 1.0
STAINED = 2.0

# Half-axes are at most this many diameters: largest size and largest elongation below.
_SIZE = 0.585
_SIZE_SPREAD = 0.62
_ASPECT = (1.05, 0.45, 1.1)
MAX_HALF_AXIS = _SIZE * (1 + _SIZE_SPREAD) * sum(_ASPECT) ** 0.5


# Lattice cells around one whose candidates can be nearer than `Scene.separation`.
_THINNING_REACH = 1

# An unstained cell meets a stained neighbour with this share of its width.
_YIELD = 0.6
# Depth and half-width of the membrane inside a free border, px: annotators of the real fields
# draw their outlines two pixels outside the brightest ring. At a shared border the membrane is
# nearer by `_SHARED_DEPTH` and up to `_SHARED_SPREAD` more.
_RING_DEPTH = 2.4
_RING_HALF_WIDTH = 2.0
_SHARED_DEPTH = 1.3
_SHARED_SPREAD = 3.5


class Cells(NamedTuple):
    """Cells of a block of the lattice that begins at row `i0`, column `j0`; arrays `(ni, nj)`."""

    i0: int
    j0: int
    kind: NDArray[np.float64]  # EMPTY, UNSTAINED or STAINED
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    major: NDArray[np.float64]  # half-axes
    minor: NDArray[np.float64]
    axis_y: NDArray[np.float64]  # unit vector of the major axis
    axis_x: NDArray[np.float64]
    light: NDArray[np.float64]  # relative brightness of the membrane
    fill: NDArray[np.float64]  # brightness of the inside, relative to the membrane
    polar_y: NDArray[np.float64]  # gradient of the membrane's brightness across the cell
    polar_x: NDArray[np.float64]
    nucleus: NDArray[np.float64]  # relative brightness


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _is_clear(scene: Scene, y: float, x: float) -> bool:
    """Whether no light of a cell centred here can reach an empty part of the slide."""
    reach = MAX_HALF_AXIS * scene.diameter + scene.warp + BLUR_RADIUS + 1.0
    above: float = outline_score(scene.seed, scene.outline, scene.width, y, x) - scene.outline_level
    if above <= 0.0 or above >= reach * 1.42 * scene.outline_slope:
        return above > 0.0
    # Samples near enough for the slope's bound to vouch for the points between them.
    n = int(np.ceil(reach / 4.0))
    step = reach / n
    for i in range(-n, n + 1):
        for j in range(-n, n + 1):
            at_y, at_x = y + i * step, x + j * step
            score = outline_score(scene.seed, scene.outline, scene.width, at_y, at_x)
            if score - scene.outline_level < 0.75 * step * scene.outline_slope:
                return False
    return True


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def place_cells(scene: Scene, i0: int, j0: int, ni: int, nj: int) -> Cells:
    """Draw the cells of a block of the lattice.

    Each lattice cell offers one candidate centre, anywhere inside it. Of candidates nearer than
    `separation` only the one with the smallest mark stays (Matern's second hard-core process),
    which any block can decide from the neighbouring candidates alone.
    """
    reach = _THINNING_REACH
    seed = scene.seed
    cy = np.empty((ni + 2 * reach, nj + 2 * reach), np.float64)
    cx = np.empty_like(cy)
    mark = np.empty(cy.shape, np.uint64)
    for i in range(cy.shape[0]):
        for j in range(cy.shape[1]):
            bits = _hash(seed, STREAM_PLACE, i0 + i - reach, j0 + j - reach)
            mark[i, j] = bits
            cy[i, j] = (i0 + i - reach + _unit(_mix(bits + np.uint64(1)))) * scene.pitch
            cx[i, j] = (j0 + j - reach + _unit(_mix(bits + np.uint64(2)))) * scene.pitch
    data = np.zeros((12, ni, nj), np.float64)
    near = scene.separation * scene.separation
    for i in range(ni):
        for j in range(nj):
            y = cy[i + reach, j + reach]
            x = cx[i + reach, j + reach]
            own = mark[i + reach, j + reach]
            kept = True
            for k in range(i, i + 2 * reach + 1):
                for m in range(j, j + 2 * reach + 1):
                    if mark[k, m] < own:
                        gap_y = cy[k, m] - y
                        gap_x = cx[k, m] - x
                        if gap_y * gap_y + gap_x * gap_x < near:
                            kept = False
            if not kept:
                continue
            if scene.outline_level >= -1.0 and not _is_clear(scene, y, x):
                continue
            cluster = _noise_at(seed, STREAM_CLUSTER, scene.cluster, y, x)
            fine = _noise_at(seed, STREAM_FINE, 0.4 * scene.cluster, y, x)
            # Two octaves rarely leave the middle: stretch them to fill 0..1.
            share = min(max(0.5 + 1.7 * (0.6 * cluster + 0.4 * fine - 0.5), 0.0), 1.0)
            share = scene.stained * (1.0 + scene.clustering * (2.0 * share - 1.0))
            bits = _hash(seed, STREAM_STAIN, i0 + i, j0 + j)
            stained = _unit(bits) < share
            data[0, i, j] = STAINED if stained else UNSTAINED
            data[1, i, j] = y
            data[2, i, j] = x
            bits = _hash(seed, STREAM_SHAPE, i0 + i, j0 + j)
            u = _unit(bits)
            v = _unit(_mix(bits + np.uint64(1)))
            w = _unit(_mix(bits + np.uint64(2)))
            half = _SIZE * scene.diameter * (1.0 + _SIZE_SPREAD * (u + v - 1.0))
            aspect = _ASPECT[0] + _ASPECT[1] * w + _ASPECT[2] * w * w
            root = np.sqrt(aspect)
            data[3, i, j] = half * root
            data[4, i, j] = half / root
            # Direction of a point drawn in a square, away from its middle.
            ay = _unit(_mix(bits + np.uint64(3))) - 0.5
            ax = _unit(_mix(bits + np.uint64(4))) - 0.5
            norm = np.sqrt(ay * ay + ax * ax) + 1e-9
            data[5, i, j] = ay / norm
            data[6, i, j] = np.sqrt(max(1.0 - (ay / norm) * (ay / norm), 0.0)) * (
                1.0 if ax >= 0 else -1.0
            )
            bits = _hash(seed, STREAM_LOOK, i0 + i, j0 + j)
            u = _unit(bits)
            v = u * u * u * u
            # Few of the others glow, dimly and without belonging to the truth.
            data[7, i, j] = 0.07 + 0.80 * u if stained else 0.10 * v * v * v * v
            u = _unit(_mix(bits + np.uint64(1)))
            data[8, i, j] = 0.15 + 0.90 * u * np.sqrt(u)
            data[9, i, j] = 2.0 * (_unit(_mix(bits + np.uint64(2))) - 0.5)
            data[10, i, j] = 2.0 * (_unit(_mix(bits + np.uint64(3))) - 0.5)
            u = _unit(_mix(bits + np.uint64(4)))
            data[11, i, j] = 0.25 + 0.75 * u
    return Cells(
        i0, j0, data[0], data[1], data[2], data[3], data[4], data[5], data[6], data[7], data[8],
        data[9], data[10], data[11],
    )  # fmt: skip


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _half_width(cells: Cells, i: int, j: int, uy: float, ux: float) -> float:
    """Distance from a cell's centre to its ellipse in a direction."""
    along = uy * cells.axis_y[i, j] + ux * cells.axis_x[i, j]
    across = uy * cells.axis_x[i, j] - ux * cells.axis_y[i, j]
    p = along / cells.major[i, j]
    q = across / cells.minor[i, j]
    return float(1.0 / np.sqrt(p * p + q * q))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_borders(
    seed: np.uint64, cells: Cells, i: int, j: int, reach: int, lines: NDArray[np.float64]
) -> int:
    """Lines between a cell and its neighbours, into `lines`; returns how many.

    A line crosses the segment between two centres at right angles, where it divides the segment
    as the two ellipses' widths. Its numbers are computed from the earlier cell of the pair, so
    both cells get the same bits and no pixel belongs to both.
    A row is (origin y, origin x, unit y, unit x, distance, sign, lift): the depth of a point
    inside the border is ``sign * (distance - (point - origin) . unit)``.
    """
    n = 0
    for k in range(max(i - reach, 0), min(i + reach + 1, cells.kind.shape[0])):
        for m in range(max(j - reach, 0), min(j + reach + 1, cells.kind.shape[1])):
            if cells.kind[k, m] == EMPTY or (k == i and m == j):
                continue
            first = i < k or (i == k and j < m)
            ai, aj, bi, bj = (i, j, k, m) if first else (k, m, i, j)
            gap_y = cells.y[bi, bj] - cells.y[ai, aj]
            gap_x = cells.x[bi, bj] - cells.x[ai, aj]
            gap = np.sqrt(gap_y * gap_y + gap_x * gap_x)
            if gap >= cells.major[i, j] + cells.major[k, m]:
                continue
            uy = gap_y / gap
            ux = gap_x / gap
            wide_a = _half_width(cells, ai, aj, uy, ux)
            wide_b = _half_width(cells, bi, bj, uy, ux)
            # An unstained neighbour yields: single stained cells are round in real tissue.
            if cells.kind[ai, aj] == STAINED and cells.kind[bi, bj] == UNSTAINED:
                wide_b *= _YIELD
            elif cells.kind[bi, bj] == STAINED and cells.kind[ai, aj] == UNSTAINED:
                wide_a *= _YIELD
            lines[n, 0] = cells.y[ai, aj]
            lines[n, 1] = cells.x[ai, aj]
            lines[n, 2] = uy
            lines[n, 3] = ux
            lines[n, 4] = gap * (wide_a / (wide_a + wide_b))
            lines[n, 5] = 1.0 if first else -1.0
            lines[n, 6] = 0.0
            if cells.kind[i, j] == STAINED and cells.kind[k, m] == STAINED:
                # Two membranes lie back to back on a shared border, where a free one would lie
                # inside; some borders are out of focus and hardly seen.
                bits = _hash(seed, STREAM_PAIR, cells.i0 + ai, cells.j0 + aj) ^ _hash(
                    seed, STREAM_PAIR, cells.i0 + bi, cells.j0 + bj
                )
                u = _unit(_mix(bits))
                lines[n, 6] = _SHARED_DEPTH + _SHARED_SPREAD * u * u
            n += 1
    return n


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _keep_connected(depth: NDArray[np.float32], y: int, x: int, stack: NDArray[np.int64]) -> int:
    """Mark the 4-connected part that holds (y, x) by adding 1000 to its depth; its area."""
    height, width = depth.shape
    if depth[y, x] <= 0.0:
        return 0
    depth[y, x] += 1000.0
    stack[0] = y * width + x
    n = 1
    area = 1
    while n > 0:
        n -= 1
        at_y, at_x = divmod(stack[n], width)
        for step in range(4):
            next_y = at_y + (step == 0) - (step == 1)
            next_x = at_x + (step == 2) - (step == 3)
            if next_y < 0 or next_x < 0 or next_y >= height or next_x >= width:
                continue
            value = depth[next_y, next_x]
            if 0.0 < value < 1000.0:
                depth[next_y, next_x] = value + 1000.0
                stack[n] = next_y * width + next_x
                n += 1
                area += 1
    return area


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def paint_cells(
    scene: Scene,
    cells: Cells,
    first_id: int,
    id_stride: int,
    reach: int,
    y0: int,
    x0: int,
    warp_margin: int,
    warp_y: NDArray[np.float32],
    warp_x: NDArray[np.float32],
    texture: NDArray[np.float32],
    light: NDArray[np.float32],
    labels: NDArray[np.uint32],
) -> None:
    """Draw all cells that touch a region: labels, and light of both channels before the blur.

    `light` is `(2, h, w)` and `labels` `(h, w)`, both of the region that begins at (y0, x0);
    so is `texture`; `warp_y` and `warp_x` have `warp_margin` pixels more on each side. A cell is
    drawn whole in a scratch image, so its area and connectedness do not depend on the region.
    """
    height, width = labels.shape
    side = 2 * int(np.ceil(MAX_HALF_AXIS * scene.diameter + scene.warp)) + 5
    scratch = np.empty((side, side), np.float32)
    stack = np.empty(side * side, np.int64)
    lines = np.empty(((2 * reach + 1) * (2 * reach + 1), 7), np.float64)
    for i in range(cells.kind.shape[0]):
        for j in range(cells.kind.shape[1]):
            if cells.kind[i, j] == EMPTY:
                continue
            stained = cells.kind[i, j] == STAINED
            cy, cx = cells.y[i, j], cells.x[i, j]
            a, b = cells.major[i, j], cells.minor[i, j]
            ay, ax = cells.axis_y[i, j], cells.axis_x[i, j]
            half_y = np.sqrt(a * ay * a * ay + b * ax * b * ax) + scene.warp + 1.0
            half_x = np.sqrt(a * ax * a * ax + b * ay * b * ay) + scene.warp + 1.0
            top = max(int(np.floor(cy - half_y)), 0)
            left = max(int(np.floor(cx - half_x)), 0)
            bottom = min(int(np.ceil(cy + half_y)) + 1, scene.height)
            right = min(int(np.ceil(cx + half_x)) + 1, scene.width)
            if top >= bottom or left >= right:
                continue
            if top >= y0 + height or bottom <= y0 or left >= x0 + width or right <= x0:
                continue
            n_lines = _find_borders(scene.seed, cells, i, j, reach, lines)
            depth = scratch[: bottom - top, : right - left]
            a2, b2 = 1.0 / (a * a), 1.0 / (b * b)
            for y in range(top, bottom):
                wy = y - y0 + warp_margin
                for x in range(left, right):
                    wx = x - x0 + warp_margin
                    py = y + warp_y[wy, wx]
                    px = x + warp_x[wy, wx]
                    along = (py - cy) * ay + (px - cx) * ax
                    across = (py - cy) * ax - (px - cx) * ay
                    q = along * along * a2 + across * across * b2
                    if q >= 1.0:
                        depth[y - top, x - left] = -1.0
                        continue
                    rho = np.sqrt(q)
                    slope = np.sqrt(along * along * a2 * a2 + across * across * b2 * b2)
                    value = (1.0 - rho) * (rho / slope if slope > 1e-6 else b)
                    for n in range(n_lines):
                        inside = lines[n, 4] - (
                            (py - lines[n, 0]) * lines[n, 2] + (px - lines[n, 1]) * lines[n, 3]
                        )
                        # On the line itself a point is the later cell's.
                        if lines[n, 5] > 0:
                            if inside <= 0.0:
                                value = -1.0
                                break
                        else:
                            inside = -inside
                            if inside < 0.0:
                                value = -1.0
                                break
                        value = min(value, inside + lines[n, 6])
                    depth[y - top, x - left] = max(value, 1e-3) if value >= 0.0 else -1.0
            start_y = min(max(int(np.floor(cy + 0.5)), 0), scene.height - 1) - top
            start_x = min(max(int(np.floor(cx + 0.5)), 0), scene.width - 1) - left
            if _keep_connected(depth, start_y, start_x, stack) < scene.min_area:
                continue
            label = np.uint32(first_id + i * id_stride + j)
            membrane = scene.brightness * cells.light[i, j]
            fill = cells.fill[i, j]
            nucleus = scene.nuclei * cells.nucleus[i, j]
            for y in range(max(top, y0), min(bottom, y0 + height)):
                for x in range(max(left, x0), min(right, x0 + width)):
                    value = depth[y - top, x - left] - 1000.0
                    if value <= 0.0:
                        continue
                    grain = texture[y - y0, x - x0]
                    if stained:
                        labels[y - y0, x - x0] = label
                    if membrane > 0.0:
                        t = (value - _RING_DEPTH) / _RING_HALF_WIDTH
                        ring = (1.0 - t * t) * (1.0 - t * t) if -1.0 < t < 1.0 else 0.0
                        inner = _ease(min(value / (2.0 * _RING_DEPTH), 1.0)) * fill
                        tilt = cells.polar_y[i, j] * (y - cy) + cells.polar_x[i, j] * (x - cx)
                        shade = max(1.0 + tilt / a, 0.2) * (0.1 + 1.8 * grain)
                        light[0, y - y0, x - x0] = membrane * shade * (ring + (1.0 - ring) * inner)
                    t = _ease(min(max((value - 2.0) / 1.5, 0.0), 1.0))
                    light[1, y - y0, x - x0] = nucleus * t * (0.6 + 0.8 * grain)
