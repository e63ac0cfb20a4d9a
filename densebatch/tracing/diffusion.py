"""Flows that a cell mask ought to have: heat diffused from the cell's centre, then its gradient.

Training regresses these flows and quality control compares the network's flows with them
(Stringer et al. 2021, Methods, "Gradient flow representation"; agreement with cellpose 3.1.1.3
`dynamics.masks_to_flows_cpu` is tested).

Everything about a cell is computed in the cell's own bounding box, in an order given by the cell
alone: the result does not depend on where the surrounding tile begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def count_rounds(height: Any, width: Any) -> Any:  # noqa: ANN401
    """Rounds of diffusion for a bounding box of that size, in pixels; or for several."""
    return 2 * (height + width + 4)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def diffuse_cell(
    inside: NDArray[np.bool_], dy: NDArray[np.float32], dx: NDArray[np.float32]
) -> None:
    """Unit flows towards the centre of one cell.

    Parameters
    ----------
    inside
        `(h, w)` mask of the cell in its bounding box.
    dy, dx
        `(h, w)` float32, overwritten inside the mask only.

    Notes
    -----
    The centre is the mask pixel nearest to the mean position (the first in raster order on a tie).
    Each of `count_rounds(h, w)` rounds adds one unit at the centre, then replaces every mask pixel
    by the mean of its 3x3 neighbourhood, pixels outside counting zero; the flow is the normalised
    central difference. The box grows by one pixel on each side, hence `h + 2` and `w + 2`.
    """
    height, width = inside.shape
    stride = width + 2
    # The grown box is one run of memory, so that every loop below is one long vector operation.
    kept = np.zeros((height + 2) * stride, np.float64)
    n_pixels = 0
    sum_y = 0
    sum_x = 0
    for y in range(height):
        for x in range(width):
            if inside[y, x]:
                kept[(y + 1) * stride + x + 1] = 1.0
                n_pixels += 1
                sum_y += y
                sum_x += x
    if n_pixels == 0:
        return
    # Positions are counted in the grown box, as in stock Cellpose, so that distances which differ
    # by rounding alone decide alike.
    mean_y = (sum_y + n_pixels) / n_pixels
    mean_x = (sum_x + n_pixels) / n_pixels
    nearest = 1e300
    centre = 0
    for y in range(height):
        for x in range(width):
            if inside[y, x]:
                distance = (x + 1 - mean_x) ** 2 + (y + 1 - mean_y) ** 2
                if distance < nearest:
                    nearest = distance
                    centre = (y + 1) * stride + x + 1
    heat = np.zeros((height + 2) * stride, np.float64)
    sums = np.zeros((height + 2) * stride, np.float64)
    first = stride + 1  # of the box's own pixels; the last one is n - 1 further
    n = height * stride - 2
    here = heat[first : first + n]
    left = heat[first - 1 : first - 1 + n]
    right = heat[first + 1 : first + 1 + n]
    row = sums[first : first + n]
    above = sums[first - stride : first - stride + n]
    below = sums[first + stride : first + stride + n]
    inner = kept[first : first + n]
    scale = 1.0 / 9.0
    # The 3x3 sum is separable. Factors of 1 and 0 change no bit of a sum that is not negative.
    for _ in range(count_rounds(height, width)):
        heat[centre] += 1.0
        for p in range(n):
            row[p] = left[p] + here[p] + right[p]
        for p in range(n):
            here[p] = scale * (above[p] + row[p] + below[p]) * inner[p]
    for y in range(height):
        for x in range(width):
            if inside[y, x]:
                p = (y + 1) * stride + x + 1
                down = heat[p + stride] - heat[p - stride]
                across = heat[p + 1] - heat[p - 1]
                norm = np.sqrt(down * down + across * across) + 1e-60
                dy[y, x] = down / norm
                dx[y, x] = across / norm


class _Boxes(NamedTuple):
    """Half-open bounding box of each cell, `(n,)` int32."""

    y0: NDArray[np.int32]
    x0: NDArray[np.int32]
    y1: NDArray[np.int32]
    x1: NDArray[np.int32]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _find_boxes(labels: NDArray[np.int32], n_cells: int) -> _Boxes:
    """Of the cells 1..n_cells, each of which has a pixel."""
    height, width = labels.shape
    boxes = _Boxes(
        np.full(n_cells, height, np.int32),
        np.full(n_cells, width, np.int32),
        np.zeros(n_cells, np.int32),
        np.zeros(n_cells, np.int32),
    )
    for y in range(height):
        for x in range(width):
            cell = labels[y, x] - 1
            if cell >= 0:
                boxes.y0[cell] = min(boxes.y0[cell], y)
                boxes.x0[cell] = min(boxes.x0[cell], x)
                boxes.y1[cell] = max(boxes.y1[cell], y + 1)
                boxes.x1[cell] = max(boxes.x1[cell], x + 1)
    return boxes


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _diffuse_all(labels: NDArray[np.int32], n_cells: int, flows: NDArray[np.float32]) -> None:
    """Write the flows of the cells 1..n_cells into `flows`, `(2, h, w)`."""
    boxes = _find_boxes(labels, n_cells)
    for cell in range(n_cells):
        y0, x0, y1, x1 = boxes.y0[cell], boxes.x0[cell], boxes.y1[cell], boxes.x1[cell]
        inside = labels[y0:y1, x0:x1] == cell + 1
        diffuse_cell(inside, flows[0, y0:y1, x0:x1], flows[1, y0:y1, x0:x1])


def compute_flows(labels: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Unit flows of every cell of a label image.

    Parameters
    ----------
    labels
        `(h, w)` integer label image, 0 for background; ids may have gaps.

    Returns
    -------
    ndarray
        `(2, h, w)` float32: (dy, dx), unit length inside cells, zero outside. Where heat is level,
        as at the centre of a symmetric cell, the direction is that of rounding errors, or zero.

    Raises
    ------
    ValueError
        For negative labels.
    """
    ids, compact = np.unique(labels, return_inverse=True)
    compact = compact.reshape(labels.shape).astype(np.int32)
    if ids.size and ids[0] < 0:
        raise ValueError(f"label {ids[0]} is negative; accepted are 0 for background and ids above")
    if ids.size and ids[0] != 0:
        compact += 1
    n_cells = int(np.count_nonzero(ids))
    flows = np.zeros((2, *labels.shape), np.float32)
    _diffuse_all(compact, n_cells, flows)
    return flows
