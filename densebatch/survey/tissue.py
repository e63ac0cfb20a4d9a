"""Where the tissue of a slide is, by how bright its blocks are: `--tissue auto`.

Blocks of about 16 um are averaged on a low level of the pyramid (without one, of all pixels), and
smoothed. Their brightness is taken in octaves above the darkest, in units of 1/64 of what is
bright, so that dim tissue is told from glass though other tissue is far brighter. Otsu's threshold
(1979, IEEE Trans Syst Man Cybern 9:62) cuts them in two classes for each channel.

Otsu cuts tissue without glass too, into its bright and dark parts. So a channel counts only where
the classes differ clearly, by Otsu's own measure of that, the share of the variance that is between
them: 0.85, where classes of an even spread have 0.75. Of real fields that are all tissue none has
more than 0.80 (`tests/survey/test_tissue.py`).

Whatever is clearly brighter than glass and hangs together with what is above the threshold is
tissue, in any of the channels. Beside pieces that are far brighter, debris or a follicle, other
tissue falls among the glass, so what lies beyond the margin of that is cut again, for as long as
there are two classes. Small pieces are removed, holes filled, and a margin of several cells is
added, so that none at the edge is lost. What is then left for glass must not look like tissue in
full resolution (`survey.glass`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.base.names import quote_names
from densebatch.regions.read import NothingLeftError, read_areas
from densebatch.regions.tissue import ChannelTissue, SlideTissue, TissueSearch
from densebatch.survey.brightfield import looks_brightfield
from densebatch.survey.glass import look_at_glass
from densebatch.survey.reader import MAX_THREADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.regions.areas import Areas
    from densebatch.regions.read import RegionFiles
    from densebatch.slides.slide import Slide

log = logging.getLogger(__name__)

_BLOCK_UM, _BLOCK_PX = 16.0, 32.0  # side of a block; in px where the pixel size is unknown
_MARGIN_UM, _MARGIN_PX = 50.0, 100.0  # five cells of 10 um
_LEAST_BLOCK_PX, _MOST_BLOCK_PX = 8.0, 256.0
_LEAST_PIECE = 6  # blocks above the threshold
_READ_PX, _MOST_TIMES = 2048, 4  # side of what is read at once, and how much more it may be
_STEPS = 64  # of brightness, in what is bright
_BRIGHT = 99.0  # percentile
_SEPARABILITY = 0.85
# Of the median of the blocks below the threshold, in deviations; and at least, in octaves.
_DEVIATIONS, _LEAST_RISE = 6.0, 0.25
_MAD = 1.4826  # of a normal distribution: standard deviations in the median of deviations
# Share of the places taken for glass that may look like tissue: dust, and cells that came off.
_MOST_LIKE_TISSUE = 0.25


@dataclass(frozen=True)
class _Blocks:
    """Blocks of a channel, `(rows, cols)`.

    Attributes
    ----------
    means : of their finite pixels; NaN without one
    unread : whether any of a block could not be read
    """

    means: NDArray[np.float64]
    unread: NDArray[np.bool_]


def find_tissue(
    slide: Slide,
    channels: Sequence[int],
    um_per_px: float | None,
    files: RegionFiles,
    region: Areas | None,
) -> SlideTissue:
    """Find the part of a slide that is tissue, of what files tell to count.

    Parameters
    ----------
    slide, channels, um_per_px
        As of `find_blocks`.
    files
        That tell a region.
    region
        Which they tell; None for all of the slide.
    """
    search, tissue = find_blocks(slide, channels, um_per_px, region)
    log_event(
        log, "tissue looked for", slide=slide.info.path, pyramid_level=search.level,
        share=search.share, reason=search.reason,
    )  # fmt: skip
    if tissue is None:
        return SlideTissue(search, region)
    shape = (slide.info.height, slide.info.width)
    try:
        return SlideTissue(search, read_areas(files, shape, tissue)[0])
    except NothingLeftError as error:
        return SlideTissue(replace(search, share=None, reason=str(error)), region)


def find_blocks(
    slide: Slide, channels: Sequence[int], um_per_px: float | None, areas: Areas | None
) -> tuple[TissueSearch, NDArray[np.bool_] | None]:
    """Find the blocks of a slide that are tissue.

    Parameters
    ----------
    slide
        That is open.
    channels
        Indices of those in which tissue is bright.
    um_per_px
        None if it is unknown.
    areas
        The part of the slide that is looked at; None for all.

    Returns
    -------
    TissueSearch
    ndarray or None
        `(rows, cols)` of blocks that divide the slide evenly: tissue; None if all of it counts.
    """
    info = slide.info
    side = _BLOCK_PX if um_per_px is None else _BLOCK_UM / um_per_px
    side = min(max(side, _LEAST_BLOCK_PX), _MOST_BLOCK_PX)
    margin = _MARGIN_PX if um_per_px is None else _MARGIN_UM / um_per_px
    grid = (max(1, int(info.height / side)), max(1, int(info.width / side)))
    search = TissueSearch(0, round(side, 3), round(margin, 3), ())
    if looks_brightfield(slide):
        return replace(search, reason="the slide looks like a brightfield picture"), None
    looked = _find_looked_at(areas, grid, (info.height, info.width))
    for level in (_choose_level(slide, side), 0):
        search = replace(search, level=level)
        search, tissue, glass, blank = _find_on_level(slide, channels, search, grid, looked)
        if tissue is None:
            break
        limits = [about.threshold if about.counts else None for about in search.channels]
        seen = look_at_glass(slide, channels, limits, glass & looked, side)
        # What was never written reads as 0, be it a single chunk of a low level.
        blank &= looked
        if level > 0 and not (
            seen.is_dark and look_at_glass(slide, channels, limits, blank, side).is_dark
        ):
            continue
        if seen.like_tissue > _MOST_LIKE_TISSUE:
            reason = (
                f"{seen.like_tissue:.0%} of the places that are dark enough for glass have "
                "structures as large as cells"
            )
            return replace(search, share=None, reason=reason), None
        break
    return search, tissue


def _find_looked_at(
    areas: Areas | None, grid: tuple[int, int], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """The blocks whose centres count, all if there is none."""
    if areas is None:
        return np.ones(grid, np.bool_)
    y, x = ((np.arange(n) + 0.5) * size / n - 0.5 for n, size in zip(grid, shape, strict=True))
    yy, xx = np.meshgrid(y, x, indexing="ij")
    found: NDArray[np.bool_] = areas.find_at(yy.ravel(), xx.ravel()).reshape(grid) > 0
    return found if found.any() else np.ones(grid, np.bool_)


def _choose_level(slide: Slide, side: float) -> int:
    """The coarsest level that can be read and whose pixels are no larger than a block."""
    info = slide.info
    for level in range(len(info.levels) - 1, 0, -1):
        height, width = info.levels[level]
        # As products, because damaged metadata may tell of a level without a pixel.
        is_fine = info.height <= side * height and info.width <= side * width
        if is_fine and slide.can_read(level):
            return level
    return 0


def _find_on_level(
    slide: Slide,
    channels: Sequence[int],
    search: TissueSearch,
    grid: tuple[int, int],
    looked: NDArray[np.bool_],
) -> tuple[TissueSearch, NDArray[np.bool_] | None, NDArray[np.bool_], NDArray[np.bool_]]:
    """As `find_blocks`, on a level.

    Then the blocks that are glass, without pieces of tissue, and those of them that are 0.
    """
    from scipy import ndimage

    found, bright, unread, blank = (np.zeros(grid, np.bool_) for _ in range(4))
    reach = search.margin_px / search.block_px
    told = []
    for channel in channels:
        blocks = _average(slide, search.level, channel, grid)
        unread |= blocks.unread
        about, tissue = _divide(slide.info.channels[channel], blocks, looked, reach)
        told.append(about)
        if about.counts:
            found |= tissue
            # Smoothing makes a speck as wide as a piece of tissue.
            bright |= blocks.means > about.threshold
            blank |= blocks.means == 0
    search = replace(search, channels=tuple(told))
    if not any(about.counts for about in told):
        best = max(about.separability for about in told)
        reason = (
            f"the brightness of {quote_names([about.name for about in told])} does not fall into "
            "two classes as different as tissue and glass (Otsu's separability is "
            f"{best:.3f}, and counts from {_SEPARABILITY})"
        )
        return replace(search, reason=reason), None, ~found, blank
    pieces, _ = ndimage.label(found, np.ones((3, 3)))
    sizes = np.bincount(pieces[bright], minlength=int(pieces.max()) + 1)
    large = sizes >= _LEAST_PIECE
    large[0] = False
    tissue = large[pieces]
    if not tissue.any():
        reason = f"no piece of it is larger than {math.sqrt(_LEAST_PIECE) * search.block_px:.0f} px"
        return replace(search, reason=reason), None, ~found, blank
    # Where pixels cannot be read there may be anything.
    tissue = ndimage.binary_fill_holes(tissue | unread)
    grown: NDArray[np.bool_] = ndimage.distance_transform_edt(~tissue) <= reach
    if grown.all():
        reason = "tissue with its margin is all of it"
        return replace(search, reason=reason), None, ~found, blank
    share = round(float(grown.mean()), 6)
    glass = ~(grown | found)
    return replace(search, share=share), grown, glass, glass & blank


def _average(slide: Slide, level: int, channel: int, grid: tuple[int, int]) -> _Blocks:
    """Average blocks of a level, window by window; sums of whole numbers are exact."""
    height, width = slide.info.levels[level] if level else (slide.info.height, slide.info.width)
    edges = [
        np.round(np.arange(n + 1) * (size / n)).astype(np.int64)
        for n, size in zip(grid, (height, width), strict=True)
    ]
    sums, counts = np.zeros(grid), np.zeros(grid, np.int64)
    unread = np.zeros(grid, np.bool_)
    windows = Grid(height, width, *_choose_window(slide.info.chunk_px))

    def look(window: Region) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
        try:
            pixels = slide.read_level(level, channel, window)
        except (InputError, OSError):
            return None
        rows, cols = (
            np.concatenate([[0], each[(each > begin) & (each < end)] - begin])
            for each, begin, end in (
                (edges[0], window.y0, window.y1),
                (edges[1], window.x0, window.x1),
            )
        )
        is_real = pixels.dtype.kind == "f"
        known = np.isfinite(pixels) if is_real else np.ones((1, 1), np.bool_)
        if is_real:
            pixels = np.where(known, pixels, 0)

        def add(values: NDArray[Any], dtype: type) -> NDArray[Any]:
            of_rows = np.add.reduceat(values, rows, axis=0, dtype=dtype)
            summed: NDArray[Any] = np.add.reduceat(of_rows, cols, axis=1)
            return summed

        n_known = add(np.broadcast_to(known, pixels.shape), np.int64)
        return add(pixels, np.float64 if is_real else np.int64), n_known

    threads = max(1, min(count_cores(), MAX_THREADS))
    for window, part in map_in_threads(look, (windows[i] for i in windows), threads):
        rows, cols = (
            slice(
                int(np.searchsorted(each, begin, side="right")) - 1,
                int(np.searchsorted(each[:-1], end - 1, side="right")),
            )
            for each, begin, end in (
                (edges[0], window.y0, window.y1), (edges[1], window.x0, window.x1)
            )
        )  # fmt: skip
        if part is None:
            unread[rows, cols] = True
        else:
            sums[rows, cols] += part[0]
            counts[rows, cols] += part[1]
    means = np.full(grid, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return _Blocks(means, unread)


def _choose_window(chunk_px: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that are read at once: whole chunks, so that none is decoded twice.

    Of very large ones parts, for what is made of a window takes memory too.

    Examples
    --------
    >>> _choose_window((512, 512)), _choose_window((1000, 1000)), _choose_window((8, 60000))
    ((2048, 2048), (2000, 2000), (64, 60000))
    >>> _choose_window((16384, 16384))
    (2048, 2048)
    """
    if chunk_px[0] * chunk_px[1] > _MOST_TIMES * _READ_PX**2:
        return _READ_PX, _READ_PX
    cols = max(1, _READ_PX // chunk_px[1]) * chunk_px[1]
    rows = max(1, _READ_PX**2 // cols // chunk_px[0]) * chunk_px[0]
    return rows, cols


def _divide(
    name: str, blocks: _Blocks, looked: NDArray[np.bool_], reach: float
) -> tuple[ChannelTissue, NDArray[np.bool_]]:
    """Divide the blocks of a channel into tissue and glass; `reach` is the margin, in blocks."""
    from scipy import ndimage

    known = np.isfinite(blocks.means) & ~blocks.unread
    within, tissue = known & looked, np.zeros(known.shape, np.bool_)
    about = ChannelTissue(name, 0.0, 0.0, 0.0, counts=False)
    if not within.any():
        return about, tissue
    # What is unknown is as dark as the darkest, and weighs nothing beside what is known.
    filled = np.where(known, blocks.means, float(blocks.means[within].min()))
    smooth = ndimage.gaussian_filter(filled, 1.0, mode="nearest")
    while within.any():
        cut, above = _cut(name, smooth, within)
        if about.counts and not cut.counts:
            break
        about = cut
        if not cut.counts:
            break
        tissue |= above
        within &= ndimage.distance_transform_edt(~tissue) > reach
    return about, tissue


def _cut(
    name: str, smooth: NDArray[np.float64], within: NDArray[np.bool_]
) -> tuple[ChannelTissue, NDArray[np.bool_]]:
    """Cut blocks in two classes by their brightness; all of them by how bright some are."""
    from skimage.filters import apply_hysteresis_threshold, threshold_otsu

    some = smooth[within]
    low = float(some.min())
    unit = (float(np.percentile(some, _BRIGHT)) - low) / _STEPS
    if not unit > 0:
        return ChannelTissue(name, 0.0, low, low, counts=False), np.zeros(within.shape, np.bool_)
    octaves = np.log2(1 + np.maximum(smooth - low, 0) / unit)
    values = octaves[within]
    threshold = float(threshold_otsu(values))
    above = values > threshold
    share = float(above.mean())
    separability = 0.0
    if 0 < share < 1:
        between = share * (1 - share) * (values[above].mean() - values[~above].mean()) ** 2
        separability = float(between / values.var())
    middle = float(np.median(values[~above]))
    spread = _MAD * float(np.median(np.abs(values[~above] - middle)))
    lower = min(threshold, middle + max(_DEVIATIONS * spread, _LEAST_RISE))
    pixel = [float(f"{low + unit * (2**each - 1):.6g}") for each in (threshold, lower)]
    counts = separability >= _SEPARABILITY
    about = ChannelTissue(name, round(separability, 4), pixel[0], pixel[1], counts)
    return about, apply_hysteresis_threshold(octaves, lower, threshold)
