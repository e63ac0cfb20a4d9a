"""Debris put into images, `(..., h, w)`: what it covers comes back too."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from densebatch.planning.survey_kernels import BLOCK_PX


def brightness(pixels, times):
    """A value so many times the range of the tissue above its ground."""
    low, high = np.percentile(pixels, [1, 99])
    return low + times * (high - low)


def choose_places(shape, n_blocks, rng):
    """A corner in each of some blocks."""
    rows, cols = (n // BLOCK_PX for n in shape)
    for block in rng.choice(rows * cols, min(n_blocks, rows * cols), replace=False):
        row, col = divmod(int(block), cols)
        yield tuple(BLOCK_PX * np.array([row, col]) + rng.integers(0, BLOCK_PX, 2))


def lay(pixels, covered, value):
    """Pixels with one value where something covers them."""
    limit = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else np.inf
    return np.where(covered, min(value, limit), pixels).astype(pixels.dtype), covered


def put_specks(pixels, times, side, n_blocks=3, seed=0):
    """Squares of one brightness."""
    covered = np.zeros(pixels.shape[-2:], bool)
    for y, x in choose_places(covered.shape, n_blocks, np.random.default_rng(seed)):
        covered[y : y + side, x : x + side] = True
    return lay(pixels, covered, brightness(pixels, times))


def put_discs(pixels, times, diameter, n_blocks=3, seed=0):
    """Discs out of focus: covered is where they add a tenth of the tissue's range."""
    centres = np.zeros(pixels.shape[-2:], bool)
    for y, x in choose_places(centres.shape, n_blocks, np.random.default_rng(seed)):
        centres[y, x] = True
    distance = ndimage.distance_transform_edt(~centres)
    light = ndimage.gaussian_filter((distance <= diameter / 2).astype(float), 1.5)
    low, high = np.percentile(pixels, [1, 99])
    bright = pixels + light * times * (high - low)
    limit = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else np.inf
    return np.minimum(bright, limit).astype(pixels.dtype), light * times > 0.1


def put_strewn(pixels, times, side, n_blocks=3, seed=0):
    """Squares of every size up to a side and every brightness from 5 times the tissue's."""
    rng = np.random.default_rng(seed)
    covered = np.zeros(pixels.shape[-2:], bool)
    for y, x in choose_places(covered.shape, n_blocks, rng):
        square = np.zeros_like(covered)
        size = int(rng.integers(1, side + 1))
        square[y : y + size, x : x + size] = True
        pixels, _ = lay(
            pixels, square, brightness(pixels, np.exp(rng.uniform(np.log(5), np.log(times))))
        )
        covered |= square
    return pixels, covered


def put_columns(pixels, times, n=2, axis=1, seed=0):
    """Hot columns of a camera, or rows."""
    covered = np.zeros(pixels.shape[-2:], bool)
    chosen = np.random.default_rng(seed).choice(covered.shape[axis], n, replace=False)
    covered[(slice(None),) * axis + (chosen,)] = True
    return lay(pixels, covered, brightness(pixels, times))


def put_area(pixels, value, side=70, seed=0):
    """A square of one value."""
    covered = np.zeros(pixels.shape[-2:], bool)
    y, x = np.random.default_rng(seed).integers(0, np.array(covered.shape) - side)
    covered[y : y + side, x : x + side] = True
    return lay(pixels, covered, value)


def put_dead_area(pixels, seed=0):
    """A square without any light."""
    return put_area(pixels, 0, seed=seed)


def put_saturated_area(pixels, seed=0):
    """A square of as much as the camera can count."""
    return put_area(pixels, np.iinfo(pixels.dtype).max, seed=seed)
