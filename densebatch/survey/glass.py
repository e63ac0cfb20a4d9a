"""Whether what is dark on a low level is glass in full resolution, looked at in a few places.

Brightness alone does not know: an area without debris, or without the cells that a marker stains,
is dark beside them and may be tissue all the same. Structures tell. What a camera adds to glass is
noise that means over more pixels lose, while cells are as large as these means and larger. So
brightness is averaged over squares of 2, 4 and 8 um, without its slope and its curvature, and
without the stripes of a line camera: of noise each next step keeps a fourth of the variance, of
real tissue 60 to 80 % and 35 to 65 % (`tests/survey/test_tissue.py`). The second step is asked for
as well, because JPEG makes squares of 8 px of noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.machine import count_cores
from densebatch.survey.reader import MAX_THREADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.slides.slide import Slide

_N_PLACES = 32
_PLACE_BLOCKS, _SQUARES_IN_BLOCK = 4, 8
_LEAST_SQUARES = 16  # along each side of a place
_LEAST_KEPT = (0.45, 0.32)  # of the variance, by the first and the second step
_LEAST_RELATIVE = 1e-6  # deviation, of the mean, that is no rounding


class GlassLook(NamedTuple):
    """What places look like that are taken for glass.

    Attributes
    ----------
    is_dark : whether all can be read, and none is brighter than its channel's threshold
    like_tissue : share of the places that have structures as large as cells in any channel
    """

    is_dark: bool
    like_tissue: float


def look_at_glass(
    slide: Slide,
    channels: Sequence[int],
    thresholds: Sequence[float | None],
    glass: NDArray[np.bool_],
    block_px: float,
) -> GlassLook:
    """Look at places in full resolution.

    Parameters
    ----------
    slide
        That is open.
    channels
        Indices.
    thresholds
        Of each channel, the mean of a block that is glass in it; None if nothing is known.
    glass
        `(rows, cols)` of blocks that divide the slide evenly.
    block_px
        Side of a block.
    """
    rows, cols = np.nonzero(glass)
    if not rows.size:
        return GlassLook(is_dark=True, like_tissue=0.0)
    info = slide.info
    chosen = np.unique(np.linspace(0, rows.size - 1, _N_PLACES).round().astype(np.int64))
    height, width = info.height / glass.shape[0], info.width / glass.shape[1]
    reach = round(_PLACE_BLOCKS * block_px / 2)

    def look(place: tuple[int, int]) -> GlassLook:
        block = Region(
            *(int(n * side) for n, side in zip(place, (height, width), strict=True)),
            *(int((n + 1) * side) for n, side in zip(place, (height, width), strict=True)),
        )
        y, x = (block.y0 + block.y1) // 2, (block.x0 + block.x1) // 2
        around = Region(y - reach, x - reach, y + reach, x + reach).clip(info.height, info.width)
        is_dark, has_structure = True, False
        for channel, threshold in zip(channels, thresholds, strict=True):
            try:
                pixels = slide.read(channel, around)
            except (InputError, OSError):
                is_dark = False
                continue
            means = pixels[block.slices_in(around)]
            means = means[np.isfinite(means)]
            if threshold is not None and means.size:
                is_dark &= float(means.mean(dtype=np.float64)) <= threshold
            has_structure |= looks_like_cells(pixels, max(1, round(block_px / _SQUARES_IN_BLOCK)))
        return GlassLook(is_dark, float(has_structure))

    places = zip(rows[chosen].tolist(), cols[chosen].tolist(), strict=True)
    threads = max(1, min(count_cores(), MAX_THREADS))
    found = [each for _, each in map_in_threads(look, places, threads)]
    share = sum(each.like_tissue for each in found) / len(found)
    return GlassLook(all(each.is_dark for each in found), share)


def looks_like_cells(pixels: NDArray[Any], side: int) -> bool:
    """Whether pixels have structures as large as cells.

    Parameters
    ----------
    pixels
        `(h, w)`, some 64 um wide.
    side
        Of the smallest squares that are averaged, some 2 um.
    """
    values = pixels.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, np.median(values[finite]) if finite.any() else 0.0)
    means = _average(values, side)
    height, width = (n // 4 * 4 for n in means.shape)
    if min(height, width) < _LEAST_SQUARES:
        return False
    means = means[:height, :width]
    y, x = (each.ravel() for each in np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    surface = np.stack([np.ones_like(x), y, x, y * y, x * x, x * y], axis=1)
    fitted = surface @ np.linalg.lstsq(surface, means.ravel(), rcond=None)[0]
    rest = means - fitted.reshape(means.shape)
    rest -= rest.mean(axis=0)
    rest -= rest.mean(axis=1, keepdims=True)
    variances = [float(_average(rest, n).var()) for n in (1, 2, 4)]
    if variances[0] <= (_LEAST_RELATIVE * float(np.abs(means).max())) ** 2:
        return False
    steps = zip(variances, variances[1:], _LEAST_KEPT, strict=False)
    return all(after >= least * before for before, after, least in steps)


def _average(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Means of squares, without what is left over at the end."""
    rows, cols = (n // side for n in values.shape)
    cut = values[: rows * side, : cols * side]
    means: NDArray[np.float64] = cut.reshape(rows, side, cols, side).mean((1, 3))
    return means
