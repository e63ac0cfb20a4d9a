"""Draw the cells of a simulated slide: their borders, labels, and light before the blur.

A cell is an ellipse cut by straight lines to its neighbours, in a plane whose pixels are displaced
a little. How deep a pixel lies inside decides its light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from densebatch.simulation.fields import STREAM_PAIR, ease, hash_place, mix_bits, to_unit
from densebatch.simulation.placing import EMPTY, MAX_HALF_AXIS, STAINED, UNSTAINED

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.simulation.fields import Scene
    from densebatch.simulation.placing import Cells, Sites

# An unstained cell meets a stained neighbour with this share of its width.
_YIELD = 0.6
# Depth and half-width of the membrane inside a free border, px: annotators of the real fields
# draw their outlines two pixels outside the brightest ring. At a shared border the membrane is
# nearer by `_SHARED_DEPTH` and up to `_SHARED_SPREAD` more.
_RING_DEPTH = 2.4
_RING_HALF_WIDTH = 2.0
_SHARED_DEPTH = 1.3
_SHARED_SPREAD = 3.5

# A nucleus begins where its light does, and is as bright as it gets where that ends. Its outline is
# halfway, where it is half as bright. Of a cell with fewer pixels inside that there is no nucleus.
_NUCLEUS_BEGINS = 2.0
_NUCLEUS_RAMP = 1.5
_NUCLEUS_DEPTH = _NUCLEUS_BEGINS + _NUCLEUS_RAMP / 2
_LEAST_NUCLEUS = 12

# A line between a cell and a neighbour is a row of numbers with these columns. The depth of a point
# inside the border is ``side * (distance - (point - origin) . unit)``.
_N_COLUMNS = 7
(
    _ORIGIN_Y,  # centre of the earlier cell of the pair, px
    _ORIGIN_X,
    _UNIT_Y,  # direction to the later cell
    _UNIT_X,
    _DISTANCE,  # of the line from the origin, px
    _SIDE,  # 1 for the earlier cell of the pair, -1 for the later one
    _LIFT,  # by how much less deep the membrane lies than at a free border, px
) = range(_N_COLUMNS)

# Depth of a pixel that is not inside, and of one on a border: inside, but barely.
_OUTSIDE = -1.0
_LEAST_DEPTH = 1e-3
# Added to the depth of the pixels that are connected with the centre; deeper than any.
_CONNECTED = 1000.0


class Canvas(NamedTuple):
    """The region that is painted, `(h, w)`, and what lies under the paint.

    Attributes
    ----------
    y0, x0 : first row and column of the region on the slide
    warp_margin : pixels that the displacements have more on each side than the region
    warp_y, warp_x : `(h + 2 warp_margin, w + 2 warp_margin)` float32; displacements, px
    texture : `(h, w)` float32; grain of the light, 0..1
    light : `(2, h, w)` float32; light of membranes and of nuclei is written here, counts
    labels : `(h, w)` uint32; ids of the stained cells are written here
    nuclei : `(h, w)` uint32; ids of all cells are written here, where their nuclei are
    """

    y0: int
    x0: int
    warp_margin: int
    warp_y: NDArray[np.float32]
    warp_x: NDArray[np.float32]
    texture: NDArray[np.float32]
    light: NDArray[np.float32]
    labels: NDArray[np.uint32]
    nuclei: NDArray[np.uint32]


class _Box(NamedTuple):
    """Pixels of the slide, half-open."""

    top: int
    left: int
    bottom: int
    right: int


def paint_cells(scene: Scene, sites: Sites, cells: Cells, canvas: Canvas) -> None:
    """Draw all cells that touch a region: labels, and light of both channels before the blur.

    A cell is drawn whole in a scratch image, so that its area and connectedness do not depend on
    the region.

    Parameters
    ----------
    scene
        The slide.
    sites
        A block of the lattice that holds all cells that touch the region, and their neighbours.
    cells
        What the block holds.
    canvas
        The region.
    """
    most = (2 * sites.reach + 1) ** 2
    borders = np.empty((most, _N_COLUMNS), np.float64)
    _paint_all(scene, sites, cells, canvas, borders)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _paint_all(
    scene: Scene, sites: Sites, cells: Cells, canvas: Canvas, borders: NDArray[np.float64]
) -> None:
    """As `paint_cells`; `borders` is scratch."""
    height, width = canvas.labels.shape
    region = _Box(canvas.y0, canvas.x0, canvas.y0 + height, canvas.x0 + width)
    side = 2 * int(np.ceil(MAX_HALF_AXIS * scene.diameter + scene.warp)) + 5
    scratch = np.empty((side, side), np.float32)
    inside = np.empty((side, side), np.bool_)
    stack = np.empty(side * side, np.int64)
    for i in range(sites.rows):
        for j in range(sites.cols):
            if cells.kind[i, j] == EMPTY:
                continue
            box = _bound_cell(scene, cells, i, j)
            if box.top >= box.bottom or box.left >= box.right:
                continue
            if box.top >= region.bottom or box.bottom <= region.top:
                continue
            if box.left >= region.right or box.right <= region.left:
                continue
            n_borders = _find_borders(scene.seed, sites, cells, i, j, borders)
            depth = scratch[: box.bottom - box.top, : box.right - box.left]
            _measure_depth(cells, i, j, borders, n_borders, canvas, box, depth)
            y = min(max(int(np.floor(cells.y[i, j] + 0.5)), 0), scene.height - 1)
            x = min(max(int(np.floor(cells.x[i, j] + 0.5)), 0), scene.width - 1)
            area = _keep_connected(depth, y - box.top, x - box.left, stack)
            if area >= scene.min_area:
                label = np.uint32(sites.first_id + i * sites.id_stride + j)
                nucleus = inside[: box.bottom - box.top, : box.right - box.left]
                _find_nucleus(depth, nucleus, stack)
                _shade_cell(scene, cells, i, j, label, canvas, box, depth, nucleus)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _bound_cell(scene: Scene, cells: Cells, i: int, j: int) -> _Box:
    """Pixels that a cell may touch, cut at the slide's borders; empty if it is beyond them."""
    cy, cx = cells.y[i, j], cells.x[i, j]
    a, b = cells.major[i, j], cells.minor[i, j]
    ay, ax = cells.axis_y[i, j], cells.axis_x[i, j]
    half_y = np.sqrt(a * ay * a * ay + b * ax * b * ax) + scene.warp + 1.0
    half_x = np.sqrt(a * ax * a * ax + b * ay * b * ay) + scene.warp + 1.0
    return _Box(
        max(int(np.floor(cy - half_y)), 0),
        max(int(np.floor(cx - half_x)), 0),
        min(int(np.ceil(cy + half_y)) + 1, scene.height),
        min(int(np.ceil(cx + half_x)) + 1, scene.width),
    )


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_borders(
    seed: np.uint64, sites: Sites, cells: Cells, i: int, j: int, borders: NDArray[np.float64]
) -> int:
    """Write the lines between a cell and its neighbours into `borders`; returns how many.

    A line crosses the segment between two centres at right angles, where it divides the segment
    as the two ellipses' widths. Its numbers are computed from the earlier cell of the pair, so
    both cells get the same bits and no pixel belongs to both.
    """
    n = 0
    reach = sites.reach
    for k in range(max(i - reach, 0), min(i + reach + 1, sites.rows)):
        for m in range(max(j - reach, 0), min(j + reach + 1, sites.cols)):
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
            borders[n, _ORIGIN_Y] = cells.y[ai, aj]
            borders[n, _ORIGIN_X] = cells.x[ai, aj]
            borders[n, _UNIT_Y] = uy
            borders[n, _UNIT_X] = ux
            borders[n, _DISTANCE] = gap * (wide_a / (wide_a + wide_b))
            borders[n, _SIDE] = 1.0 if first else -1.0
            borders[n, _LIFT] = 0.0
            if cells.kind[i, j] == STAINED and cells.kind[k, m] == STAINED:
                # Two membranes lie back to back on a shared border, where a free one would lie
                # inside; some borders are out of focus and hardly seen.
                bits = hash_place(seed, STREAM_PAIR, sites.i0 + ai, sites.j0 + aj) ^ hash_place(
                    seed, STREAM_PAIR, sites.i0 + bi, sites.j0 + bj
                )
                u = to_unit(mix_bits(bits))
                borders[n, _LIFT] = _SHARED_DEPTH + _SHARED_SPREAD * u * u
            n += 1
    return n


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _half_width(cells: Cells, i: int, j: int, uy: float, ux: float) -> float:
    """Distance from a cell's centre to its ellipse in a direction."""
    along = uy * cells.axis_y[i, j] + ux * cells.axis_x[i, j]
    across = uy * cells.axis_x[i, j] - ux * cells.axis_y[i, j]
    p = along / cells.major[i, j]
    q = across / cells.minor[i, j]
    return float(1.0 / np.sqrt(p * p + q * q))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _measure_depth(
    cells: Cells,
    i: int,
    j: int,
    borders: NDArray[np.float64],
    n_borders: int,
    canvas: Canvas,
    box: _Box,
    depth: NDArray[np.float32],
) -> None:
    """Write how deep each pixel of a box lies inside a cell, px; negative outside of it."""
    cy, cx = cells.y[i, j], cells.x[i, j]
    b = cells.minor[i, j]
    ay, ax = cells.axis_y[i, j], cells.axis_x[i, j]
    a2, b2 = 1.0 / (cells.major[i, j] * cells.major[i, j]), 1.0 / (b * b)
    for y in range(box.top, box.bottom):
        wy = y - canvas.y0 + canvas.warp_margin
        for x in range(box.left, box.right):
            wx = x - canvas.x0 + canvas.warp_margin
            py = y + canvas.warp_y[wy, wx]
            px = x + canvas.warp_x[wy, wx]
            along = (py - cy) * ay + (px - cx) * ax
            across = (py - cy) * ax - (px - cx) * ay
            q = along * along * a2 + across * across * b2
            if q >= 1.0:
                depth[y - box.top, x - box.left] = _OUTSIDE
                continue
            # To first order the distance to the ellipse; in its middle the minor half-axis.
            rho = np.sqrt(q)
            slope = np.sqrt(along * along * a2 * a2 + across * across * b2 * b2)
            value = (1.0 - rho) * (rho / slope if slope > 1e-6 else b)
            for n in range(n_borders):
                inside = borders[n, _DISTANCE] - (
                    (py - borders[n, _ORIGIN_Y]) * borders[n, _UNIT_Y]
                    + (px - borders[n, _ORIGIN_X]) * borders[n, _UNIT_X]
                )
                # On the line itself a point is the later cell's.
                if borders[n, _SIDE] > 0:
                    if inside <= 0.0:
                        value = _OUTSIDE
                        break
                else:
                    inside = -inside
                    if inside < 0.0:
                        value = _OUTSIDE
                        break
                value = min(value, inside + borders[n, _LIFT])
            value = max(value, _LEAST_DEPTH) if value >= 0.0 else _OUTSIDE
            depth[y - box.top, x - box.left] = value


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _keep_connected(depth: NDArray[np.float32], y: int, x: int, stack: NDArray[np.int64]) -> int:
    """Add `_CONNECTED` to the depth of the 4-connected part that holds (y, x); its area, px."""
    height, width = depth.shape
    if depth[y, x] <= 0.0:
        return 0
    depth[y, x] += _CONNECTED
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
            if 0.0 < value < _CONNECTED:
                depth[next_y, next_x] = value + _CONNECTED
                stack[n] = next_y * width + next_x
                n += 1
                area += 1
    return area


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_nucleus(
    depth: NDArray[np.float32], nucleus: NDArray[np.bool_], stack: NDArray[np.int64]
) -> None:
    """Mark the 4-connected part that holds the deepest pixel, if it is large enough."""
    height, width = depth.shape
    nucleus[:] = False
    deepest = depth.argmax()
    least = _CONNECTED + _NUCLEUS_DEPTH
    if depth[deepest // width, deepest % width] <= least:
        return
    nucleus[deepest // width, deepest % width] = True
    stack[0] = deepest
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
            if depth[next_y, next_x] > least and not nucleus[next_y, next_x]:
                nucleus[next_y, next_x] = True
                stack[n] = next_y * width + next_x
                n += 1
                area += 1
    if area < _LEAST_NUCLEUS:
        nucleus[:] = False


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shade_cell(
    scene: Scene,
    cells: Cells,
    i: int,
    j: int,
    label: np.uint32,
    canvas: Canvas,
    box: _Box,
    depth: NDArray[np.float32],
    nucleus: NDArray[np.bool_],
) -> None:
    """Write a cell's label, nucleus and light where its connected part lies in the canvas."""
    cy, cx = cells.y[i, j], cells.x[i, j]
    stained = cells.kind[i, j] == STAINED
    membrane = scene.brightness * cells.light[i, j]
    fill, major = cells.fill[i, j], cells.major[i, j]
    polar_y, polar_x = cells.polar_y[i, j], cells.polar_x[i, j]
    nuclear = scene.nuclei * cells.nucleus[i, j]
    height, width = canvas.labels.shape
    for y in range(max(box.top, canvas.y0), min(box.bottom, canvas.y0 + height)):
        for x in range(max(box.left, canvas.x0), min(box.right, canvas.x0 + width)):
            value = depth[y - box.top, x - box.left] - _CONNECTED
            if value <= 0.0:
                continue
            at_y, at_x = y - canvas.y0, x - canvas.x0
            grain = canvas.texture[at_y, at_x]
            if stained:
                canvas.labels[at_y, at_x] = label
            if membrane > 0.0:
                t = (value - _RING_DEPTH) / _RING_HALF_WIDTH
                ring = (1.0 - t * t) * (1.0 - t * t) if -1.0 < t < 1.0 else 0.0
                inner = ease(min(value / (2.0 * _RING_DEPTH), 1.0)) * fill
                tilt = polar_y * (y - cy) + polar_x * (x - cx)
                shade = max(1.0 + tilt / major, 0.2) * (0.1 + 1.8 * grain)
                canvas.light[0, at_y, at_x] = membrane * shade * (ring + (1.0 - ring) * inner)
            if nucleus[y - box.top, x - box.left]:
                canvas.nuclei[at_y, at_x] = label
            t = ease(min(max((value - _NUCLEUS_BEGINS) / _NUCLEUS_RAMP, 0.0), 1.0))
            canvas.light[1, at_y, at_x] = nuclear * t * (0.6 + 0.8 * grain)
