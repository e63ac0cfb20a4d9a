"""Measure stored labels: which cells there are, and what a run's own tasks measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from densebatch.base.errors import InputError
from densebatch.cells.groups import open_array
from densebatch.cells.pyramid import label_path, level_path, read_unit
from densebatch.measuring.kernels import AREA, X0, X1, Y0, Y1, measure_shapes
from densebatch.measuring.shard import Shard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Grid, Region
    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.measuring.parts import CellSums
    from densebatch.measuring.schema import Share
    from densebatch.regions.areas import Areas

    # Pixels of a channel in a region, and the regions in it that could not be read by the run.
    PixelReader = Callable[[int, Region], tuple[NDArray[Any], Sequence[Region]]]

_MOST_IDS = 2**24  # that are looked up in a table


def _read_local(spec: PyramidSpec, region: Region) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Labels 1..k of a unit, and the id of each."""
    labels = read_unit(spec, 0, region)
    if labels.max() >= _MOST_IDS:  # of damaged labels, say
        ids = np.unique(labels)
        table = None
    else:
        is_there = np.zeros(int(labels.max()) + 1, np.bool_)
        is_there[labels.reshape(-1)] = True
        ids = np.flatnonzero(is_there)
        table = np.cumsum(is_there, dtype=np.uint32)
    has_background = int(ids[0] == 0)
    local: NDArray[np.uint32] = (
        (np.searchsorted(ids, labels) + 1).astype(np.uint32) if table is None else table[labels]
    )
    local -= np.uint32(has_background)
    return local, ids[has_background:].astype(np.uint32)


def list_cells(spec: PyramidSpec, region: Region) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The cells of a unit, and what `kernels.measure_shapes` says of them there.

    Parameters
    ----------
    spec, region
        Which unit, at full resolution.

    Returns
    -------
    ids : ndarray
        `(k,)` uint32, ascending.
    shapes : ndarray
        `(k, 7)` int64.

    Raises
    ------
    InputError
        If labels cannot be read.
    """
    local, ids = _read_local(spec, region)
    return ids, measure_shapes(local, ids.size, region.y0, region.x0)


def find_split(shapes: NDArray[np.int64], grid: Grid) -> NDArray[np.bool_]:
    """Which cells lie in several units.

    Parameters
    ----------
    shapes
        `(n, 7)` of the whole slide, as of `kernels.measure_shapes`.
    grid
        Of the units.
    """
    is_there = shapes[:, AREA] > 0
    across = (shapes[:, Y1] - 1) // grid.step_y > shapes[:, Y0] // grid.step_y
    across |= (shapes[:, X1] - 1) // grid.step_x > shapes[:, X0] // grid.step_x
    split: NDArray[np.bool_] = is_there & across
    return split


def measure_unit(
    spec: PyramidSpec,
    region: Region,
    split: NDArray[np.bool_],
    fractions: Sequence[float],
    channels: Sequence[int],
    read_pixels: PixelReader,
    gaps: PyramidSpec | None,
    shares: Mapping[int, Share],
    areas: Areas | None = None,
    *,
    forms: bool = True,
) -> CellSums:
    """Measure the cells of one unit, as numbering does.

    Parameters
    ----------
    spec, region
        Which unit, at full resolution.
    split
        `(n,)`: which of the cells 1..n lie in several units.
    fractions
        Of the quantiles, ascending.
    channels
        That are measured.
    read_pixels
        Reads them.
    gaps
        The label image that marks pixels without a result; None if there is none.
    shares
        Of pixels that are counted, by channel.
    areas
        Of the slide that count; None for all.
    forms
        As of `Shard`.

    Raises
    ------
    InputError
        If labels or pixels cannot be read.
    """
    local, ids = _read_local(spec, region)
    known = ids <= split.size
    is_split = np.zeros(ids.size, np.bool_)
    is_split[known] = split[ids[known].astype(np.int64) - 1]
    shard = Shard(local, ids, is_split, region, spec.width, fractions, forms=forms)
    for channel in channels if ids.size else ():
        measure_channel(shard, *read_pixels(channel, region), shares.get(channel), region)
    return shard.finish(_find_touching(spec, gaps, areas, region, local))


def measure_channel(
    shard: Shard,
    pixels: NDArray[Any],
    holes: Sequence[Region],
    share: Share | None,
    region: Region,
) -> None:
    """Measure a channel of a shard, and what share of pixels is asked for there.

    Parameters
    ----------
    shard
        Of `region`.
    pixels, holes
        As of `Shard.add_channel`.
    share
        Of this channel's pixels.
    region
        Pixels of the slide.

    Raises
    ------
    InputError
        If other labels cannot be read.
    """
    shard.add_channel(pixels, holes, None if share is None else share.over)
    if share is not None and share.under is not None:
        from densebatch.cells.read import open_labels  # and libraries for files that workers spare

        shard.add_cover(open_labels(Path(share.under))[region.slices])


def _find_touching(
    spec: PyramidSpec,
    gaps: PyramidSpec | None,
    areas: Areas | None,
    region: Region,
    local: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """Labels beside a pixel without a result or one that does not count, diagonally or not."""
    around = region.expand(1).clip(spec.height, spec.width)
    marked = np.zeros(around.shape, np.bool_) if areas is None else ~areas.find_inside(around)
    if gaps is not None:
        array = open_array(level_path(gaps, 0))
        try:
            marked |= np.asarray(array[around.slices]) != 0
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{label_path(gaps)} is damaged at {around}: {error}.") from error
    return find_beside(marked, around, region, local)


def find_beside(
    marked: NDArray[np.bool_], around: Region, region: Region, local: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """The labels of a region that lie beside a marked pixel, diagonally or not.

    Parameters
    ----------
    marked
        `(h, w)` of `around`.
    around
        The region and a pixel around it, inside the slide.
    region
        Pixels of the slide.
    local
        `(h, w)` of the region, 0 for background.
    """
    if not marked.any():
        return np.zeros(0, np.uint32)
    beside = ndimage.maximum_filter(marked, 3, mode="constant")
    found: NDArray[np.uint32] = np.unique(local[beside[region.slices_in(around)]])
    return found[found > 0]
