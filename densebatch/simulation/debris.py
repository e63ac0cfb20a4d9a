"""Debris put into images: specks, discs out of focus, hot columns, dead and saturated areas.

And rare bright cells, which are none. For tests and benchmarks of what they do to the cells beside
them. Brightness of debris is given in ranges of the tissue, from the 1st to the 99th percentile of
the image. Every function takes pixels `(..., h, w)` and gives them back with a mask `(h, w)` of
what the debris covers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Dirty = tuple[NDArray[Any], NDArray[np.bool_]]

BLOCK_PX = 32
"""Side of the blocks of which each may get one piece of debris."""

_FAINTEST = 5.0  # ranges of the tissue, of what `put_strewn` puts
_BLUR_PX = 1.5
_RIM_PX = 1.5
_SEEN = 0.1  # ranges of the tissue that a blurred edge adds where it counts as covering


def _choose_places(
    shape: tuple[int, ...], n_blocks: int, rng: np.random.Generator
) -> Iterator[tuple[int, int]]:
    """A pixel in each of some blocks."""
    rows, cols = (n // BLOCK_PX for n in shape)
    for block in rng.choice(rows * cols, min(n_blocks, rows * cols), replace=False):
        y, x = BLOCK_PX * np.array(divmod(int(block), cols)) + rng.integers(0, BLOCK_PX, 2)
        yield int(y), int(x)


def _range(pixels: NDArray[Any]) -> tuple[float, float]:
    low, high = np.percentile(pixels, [1, 99])
    return float(low), float(high - low)


def _limit(pixels: NDArray[Any]) -> float:
    return float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in "iu" else np.inf


def lay(pixels: NDArray[Any], covered: NDArray[np.bool_], value: float) -> Dirty:
    """One value, as far as the type reaches, where something covers the image."""
    return np.where(covered, min(value, _limit(pixels)), pixels).astype(pixels.dtype), covered


def put_specks(
    pixels: NDArray[Any], times: float, side: int, n_blocks: int, seed: int = 0
) -> Dirty:
    """Squares of one brightness and side, each beginning in a block of its own."""
    covered = np.zeros(pixels.shape[-2:], bool)
    for y, x in _choose_places(covered.shape, n_blocks, np.random.default_rng(seed)):
        covered[y : y + side, x : x + side] = True
    low, span = _range(pixels)
    return lay(pixels, covered, low + times * span)


def put_discs(
    pixels: NDArray[Any], times: float, diameter: int, n_blocks: int, seed: int = 0
) -> Dirty:
    """Discs out of focus, whose light adds to that of the tissue."""
    centres = np.zeros(pixels.shape[-2:], bool)
    for y, x in _choose_places(centres.shape, n_blocks, np.random.default_rng(seed)):
        centres[y, x] = True
    distance = ndimage.distance_transform_edt(~centres)
    light = times * ndimage.gaussian_filter((distance <= diameter / 2).astype(float), _BLUR_PX)
    bright = np.minimum(pixels + light * _range(pixels)[1], _limit(pixels))
    return bright.astype(pixels.dtype), light > _SEEN


def put_strewn(
    pixels: NDArray[Any], times: float, side: int, n_blocks: int, seed: int = 0
) -> Dirty:
    """Squares of any side up to one, and of any brightness up to one."""
    rng = np.random.default_rng(seed)
    low, span = _range(pixels)
    covered = np.zeros(pixels.shape[-2:], bool)
    for y, x in _choose_places(covered.shape, n_blocks, rng):
        square = np.zeros_like(covered)
        size = int(rng.integers(1, side + 1))
        square[y : y + size, x : x + size] = True
        brightness = np.exp(rng.uniform(np.log(_FAINTEST), np.log(times)))
        pixels, _ = lay(pixels, square, low + brightness * span)
        covered |= square
    return pixels, covered


def put_columns(pixels: NDArray[Any], times: float, n: int, axis: int = 1, seed: int = 0) -> Dirty:
    """Hot columns of a camera, or rows (`axis` 0)."""
    covered = np.zeros(pixels.shape[-2:], bool)
    chosen = np.random.default_rng(seed).choice(covered.shape[axis], n, replace=False)
    covered[(slice(None),) * axis + (chosen,)] = True
    low, span = _range(pixels)
    return lay(pixels, covered, low + times * span)


def put_area(pixels: NDArray[Any], value: float, side: int = 70, seed: int = 0) -> Dirty:
    """A square of one value: 0 for a dead area, the type's largest for a saturated one."""
    covered = np.zeros(pixels.shape[-2:], bool)
    y, x = np.random.default_rng(seed).integers(0, np.array(covered.shape) - side)
    covered[y : y + side, x : x + side] = True
    return lay(pixels, covered, value)


def put_bright_cells(
    pixels: NDArray[Any],
    n: int,
    counts: float,
    *,
    radius: float = 7.0,
    inside: float = 0.0,
    seed: int = 0,
) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Rare bright cells, of a brightness that varies as stain does.

    Parameters
    ----------
    pixels
        `(h, w)`.
    n, counts, seed
        How many, and how bright their rims are about; where they lie.
    radius
        Of the middle of the rim, in pixels.
    inside
        Brightness of the inside, of that of the rim; 1 for cells that are solid.

    Returns
    -------
    pixels, labels : ndarray
        `(h, w)` uint16 and uint32; of cells that overlap the later one is on top.
    """
    rng = np.random.default_rng(seed)
    reach = int(radius) + 4
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(y, x)
    rim = np.exp(-(((distance - radius) / _RIM_PX) ** 2))
    cell = np.where(distance < radius, np.maximum(rim, inside), rim)
    bright, labels = pixels.astype(np.float64), np.zeros(pixels.shape, np.uint32)
    for label in range(1, n + 1):
        y0, x0 = rng.integers(0, np.array(pixels.shape) - 2 * reach)
        at = (slice(y0, y0 + 2 * reach + 1), slice(x0, x0 + 2 * reach + 1))
        bright[at] += counts * rng.lognormal(0, 0.4) * cell
        labels[at][distance < radius + _RIM_PX] = label
    return np.minimum(bright, 65535).astype(np.uint16), labels


def count_beside(
    clean: NDArray[Any], found: NDArray[Any], covered: NDArray[np.bool_], margin_px: int
) -> tuple[int, int]:
    """How many cells debris leaves untouched, and how many of them are found in spite of it.

    Parameters
    ----------
    clean, found
        `(h, w)` labels of the image without debris, and with it.
    covered
        `(h, w)` where it is.
    margin_px
        A cell so near to it counts as touched.

    Returns
    -------
    beside, again : int
        Found again is a cell with which one of `found` has an IoU of 0.5 or more.
    """
    touched = clean[ndimage.binary_dilation(covered, iterations=margin_px)]
    beside = np.setdiff1d(clean, np.append(touched, 0))
    return beside.size, np.intersect1d(beside, _find_again(clean, found)).size


def count_found(truth: NDArray[Any], found: NDArray[Any]) -> int:
    """How many cells of some labels `(h, w)` are found again in others, with an IoU of 0.5."""
    return int(_find_again(truth, found).size)


def _find_again(truth: NDArray[Any], found: NDArray[Any]) -> NDArray[Any]:
    pairs, n = np.unique(np.stack([truth.ravel(), found.ravel()]), axis=1, return_counts=True)
    areas, found_areas = np.bincount(truth.ravel()), np.bincount(found.ravel())
    iou = n / (areas[pairs[0]] + found_areas[pairs[1]] - n)
    again: NDArray[Any] = np.unique(pairs[0][(iou >= 0.5) & (pairs != 0).all(axis=0)])
    return again
