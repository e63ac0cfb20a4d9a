"""One pass over a slide's pixels: percentiles over tissue, and where there is nothing to find.

Normalisation is per slide and per channel, never per tile: `(x - low) / (high - low)` with the
percentiles of the pixels of tissue. Tissue is what has local contrast: the slide is cut into
blocks of 32 px anchored at its origin, a block's contrast is the range of its 4x4 means, and a
block belongs to tissue when its contrast reaches 1/64 of the 99th percentile of all blocks
that are not flat (a biopsy on a canvas of zeros may cover less than a hundredth of it). On a dense
field that is nearly everything; on a slide it leaves out the glass. Contrast is kept in classes of
half an octave from 2^-32 to 2^32 in the slide's units; what lies beyond is in the outermost class.
Blocks with debris or rare bright cells (`debris`) count neither for the threshold nor for the
percentiles; where there are any, the pixels are read once more without them.

Whether there is anything to find is told from means over more pixels, about half a cell wide
(`signal_side`): they halve the noise of glass and leave most of the contrast of tissue.

The percentiles are exact (those of `numpy.percentile` over the same pixels): integers of up to 16
bits from a histogram, everything else as float32 by radix selection in two passes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.survey.debris import Debris, find_debris, measure_density, tissue_class
from densebatch.survey.kernels import (
    BLOCK_PX,
    CELL_PX,
    is_narrow,
    value_of_key,
)
from densebatch.survey.normalization import ChannelBounds, normalize
from densebatch.survey.passes import (
    Counts,
    count_blocks,
    count_shapes_in_blocks,
    count_tissue_again,
    count_wanted,
)
from densebatch.survey.percentiles import find_bins, find_values, interpolate, list_ranks
from densebatch.survey.reader import Reader, blocks_of, open_reader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.slides.slide import Slide
    from densebatch.survey.debris import BlockLooks
    from densebatch.survey.reader import BandMap

log = logging.getLogger(__name__)

_SIGNAL_PX = 8  # at the network's scale: side of the means that are told from glass
_LEVELS = 256
_SATURATED = 0.99  # of the tissue's pixels, above which all must have one value
# Blocks of tissue that are fewer and more strewn than this are debris or rare cells, and it cannot
# be told which.
_STREWN_FRACTION, _STREWN_DENSITY = 0.15, 0.3


@dataclass(frozen=True)
class ChannelSurvey:
    """What a survey of one channel found.

    Attributes
    ----------
    bounds : of the normalisation
    lowest, highest : `(rows, cols)` of blocks, the extremes of each block's means
        (`signal_side`), normalised
    saturated_px : the value of the brightest hundredth of the tissue's pixels if all have one
    strewn : whether what counts as tissue are few blocks strewn over the slide
    usual_px : pixel value that 99 % of all pixels of the slide do not exceed
    uneven_times : how many times as bright as the rest of the slide, which looks like tissue by
        itself, a part is that is no debris; 0 without
    tissue : `(bins,)` int64, pixels of tissue by their keys as the first pass counts them; empty
        without any
    dtype : of the pixels
    unread : pieces that could not be read and count for nothing, with the reason; the extremes of
        their blocks are infinite, because there may be anything
    """

    bounds: ChannelBounds
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]
    saturated_px: float | None = None
    strewn: bool = False
    usual_px: float = 0.0
    uneven_times: float = 0.0
    tissue: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint16))
    unread: Mapping[Region, str] = field(default_factory=dict)

    def find_level(self) -> float:
        """Otsu's threshold of the tissue's pixels (1979, IEEE Trans Syst Man Cybern 9:62).

        Returns
        -------
        float
            Normalised, from 256 classes from 0 to 1; 1 for a channel without contrast.
        """
        keys = np.flatnonzero(self.tissue)
        shift = 0 if is_narrow(self.dtype) else 16
        values = np.array([value_of_key(int(key) << shift, self.dtype) for key in keys])
        shown = normalize(values, replace(self.bounds, above=None, dead=None, bright=None))
        classes = np.clip(shown * _LEVELS, 0, _LEVELS - 1).astype(np.int64)
        counts = np.bincount(classes, self.tissue[keys], _LEVELS)
        if np.count_nonzero(counts) < 2:
            return 1.0
        # Imported here because it takes long, and the flow road needs no level.
        from skimage.filters import threshold_otsu

        return float(threshold_otsu(hist=(counts, (np.arange(_LEVELS) + 0.5) / _LEVELS)))


def signal_side(rescale: float) -> int:
    """Side in slide pixels of the means that tell tissue from glass: 4, 8, 16 or 32.

    The power of two nearest to 8 px at the network's scale, half a cell's diameter. Means over a
    whole cell would hide it among others.

    Parameters
    ----------
    rescale
        Slide pixels to network pixels.
    """
    exponent = round(float(np.log2(_SIGNAL_PX / rescale)))
    return int(min(max(2**exponent, CELL_PX), BLOCK_PX))


def survey_channel(
    slide: Slide,
    channel: int,
    percentiles: tuple[float, float],
    side: int = _SIGNAL_PX,
    *,
    mask_debris: bool = True,
    left_out: Sequence[Region] = (),
    limits: tuple[float, float] | None = None,
    elsewhere: BandMap | None = None,
    counted: NDArray[np.bool_] | None = None,
    rest_is_glass: bool = False,
) -> ChannelSurvey:
    """Read one channel once and find its bounds.

    It is read a second time if it is wider than 16 bits or has debris, a third time if both; and
    what may be debris is looked at in between.

    Parameters
    ----------
    slide
        An open slide.
    channel
        Index of the channel.
    percentiles
        Lower and upper percentile, 0 to 100, over the finite pixels of tissue.
    side
        Of the means in pixels (`signal_side`).
    mask_debris
        Whether to look for debris and rare bright cells.
    left_out
        Pieces that count as if they could not be read.
    limits
        Pixel values that become 0 and 1 in place of the percentiles, as those of several slides
        together.
    elsewhere
        As of `reader.Reader`.
    counted
        `(rows, cols)` of the slide's blocks: those that count. What lies in no other is not read,
        and the extremes of the others are infinite, as of what cannot be read.
    rest_is_glass
        Whether blocks that do not count are known to hold nothing: no contrast then.

    Returns
    -------
    ChannelSurvey
        Bounds, and per block of `BLOCK_PX` the extremes of its means in normalised units.

    Raises
    ------
    InputError
        If no block of the slide can be read.
    """
    reader = open_reader(slide, channel, elsewhere, counted)
    reader.unread.update(dict.fromkeys(left_out, "could not be read when the run began"))
    n_unread = -1
    while len(reader.unread) > n_unread:
        # All passes must leave out the same pieces, so once more if one was found on the way.
        n_unread = len(reader.unread)
        found = _survey(reader, percentiles, side, mask_debris=mask_debris, limits=limits)
    bounds = found.bounds
    log_event(
        log, "channel surveyed", channel=bounds.name, low=bounds.low, high=bounds.high,
        tissue_fraction=bounds.tissue_fraction, nonfinite_px=bounds.nonfinite_px,
        debris_fraction=bounds.debris_fraction, bright_fraction=bounds.bright_fraction,
        unread=n_unread,
    )  # fmt: skip
    lost = reader.find_lost(Region(0, 0, slide.info.height, slide.info.width))
    if lost.all():
        raise InputError(next(iter(reader.unread.values())))
    found.lowest[lost], found.highest[lost] = -np.inf, np.inf
    if rest_is_glass and counted is not None:
        found.lowest[~counted], found.highest[~counted] = np.inf, -np.inf
    unread = dict(sorted(reader.unread.items()))
    return replace(found, bounds=replace(bounds, unread=tuple(unread)), unread=unread)


@dataclass(frozen=True)
class _Tissue:
    """Where tissue is, and its pixels.

    Attributes
    ----------
    counts : of the first pass
    looks : of blocks; those with debris have the class 0
    debris : what was found
    threshold : lowest contrast class of tissue
    histogram : `(bins,)` of its pixels
    """

    counts: Counts
    looks: BlockLooks
    debris: Debris
    threshold: int
    histogram: NDArray[np.int64]


def _find_tissue(reader: Reader, side: int, *, mask_debris: bool) -> _Tissue:
    """Take the first pass, and another one without debris if there is any."""
    counts = count_blocks(reader, side)
    looks, debris = counts.looks, Debris(None, None, np.zeros_like(counts.looks.classes, bool))
    if mask_debris:
        # The means are about half a cell wide.
        debris = find_debris(looks, partial(count_shapes_in_blocks, reader, 2 * side))
    left_out = debris.left_out
    if left_out.any():
        looks = replace(looks, classes=np.where(left_out, np.uint8(0), looks.classes))
    threshold = tissue_class(looks.classes)
    if not left_out.any():
        tissue = counts.histogram[threshold:].sum(axis=0)
    else:
        tissue = count_tissue_again(reader, looks.classes, threshold)
    return _Tissue(counts, looks, debris, threshold, tissue)


def count_low_bits_again(
    slide: Slide,
    channel: int,
    wanted: NDArray[np.uint32],
    side: int = _SIGNAL_PX,
    *,
    mask_debris: bool = True,
    left_out: Sequence[Region] = (),
    elsewhere: BandMap | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Count pixels of tissue, of wide values, by the lower bits of their keys.

    Parameters
    ----------
    slide, channel, side, mask_debris, left_out, elsewhere, counted
        As of `survey_channel`, which finds the same tissue.
    wanted
        `(n,)` upper bits of the keys that are counted.

    Returns
    -------
    ndarray
        `(n, 65536)`.
    """
    reader = open_reader(slide, channel, elsewhere, counted)
    reader.unread.update(dict.fromkeys(left_out, "could not be read when the run began"))
    n_unread = -1
    while len(reader.unread) > n_unread:
        n_unread = len(reader.unread)
        found = _find_tissue(reader, side, mask_debris=mask_debris)
        low_bits = count_wanted(reader, found.looks.classes, found.threshold, wanted)
    return low_bits


def _survey(
    reader: Reader,
    percentiles: tuple[float, float],
    side: int,
    *,
    mask_debris: bool,
    limits: tuple[float, float] | None,
) -> ChannelSurvey:
    """Take all passes over a channel; see `survey_channel`."""
    channel = reader.channel
    name = reader.slide.info.channels[channel]
    found_tissue = _find_tissue(reader, side, mask_debris=mask_debris)
    counts, looks, debris = found_tissue.counts, found_tissue.looks, found_tissue.debris
    threshold, tissue = found_tissue.threshold, found_tissue.histogram
    n_px = int(tissue.sum())
    if n_px == 0:
        bounds = ChannelBounds(
            channel, name, 0.0, 0.0, 0.0, counts.nonfinite_px, content=counts.content
        )
        flat = np.zeros_like(counts.lowest)
        found = ChannelSurvey(bounds, flat, flat.copy())
    else:
        near_top = int(_SATURATED * (n_px - 1))
        ranks = sorted({near_top, *list_ranks(percentiles, n_px)})
        values = _select_values(reader, looks.classes, threshold, tissue, ranks)
        low, high = interpolate(values, percentiles, n_px)
        if limits is not None and low < high:  # what is constant stays so
            low, high = limits
        where = looks.classes >= threshold
        bounds = ChannelBounds(
            channel, name, low, high, _share(reader, where), counts.nonfinite_px,
            content=counts.content,
        )  # fmt: skip
        bounds = replace(
            bounds,
            above=debris.above,
            dead=debris.dead,
            debris_fraction=_share(reader, debris.blocks),
            debris_times=debris.times,
        )
        if debris.rare is not None:
            bounds = replace(
                bounds,
                bright=debris.rare.above,
                bright_peak=debris.rare.peak,
                bright_fill_px=side,
                bright_fraction=_share(reader, debris.rare.blocks),
                bright_times=debris.rare.times,
            )
        found = ChannelSurvey(
            bounds,
            *_normalize_extremes(counts, bounds),
            saturated_px=_find_plateau(values[near_top], looks, where),
            strewn=not debris.left_out.any()
            and _share(reader, where) < _STREWN_FRACTION
            and measure_density(where) < _STREWN_DENSITY,
            usual_px=_find_usual(counts, reader.dtype),
            uneven_times=debris.uneven_times,
            tissue=tissue,
            dtype=reader.dtype,
        )
    return found


def _share(reader: Reader, blocks: NDArray[np.bool_]) -> float:
    """Share of some blocks in those that count."""
    n_counted = blocks.size if reader.counted is None else int(reader.counted.sum())
    return int(blocks.sum()) / n_counted


def _find_plateau(value: float, looks: BlockLooks, where: NDArray[np.bool_]) -> float | None:
    """A value near the top, if it is that of the brightest pixel of some blocks too."""
    return value if value >= looks.most[where].max() > looks.least[where].min() else None


def _find_usual(counts: Counts, dtype: np.dtype[Any]) -> float:
    """The 99th percentile of all pixels, as exactly as the first pass tells it."""
    cumulative = np.cumsum(counts.histogram.sum(axis=0))
    key = int(np.searchsorted(cumulative, 0.99 * cumulative[-1]))
    return value_of_key(key if is_narrow(dtype) else (key << 16) | 0xFFFF, dtype)


def _select_values(
    reader: Reader,
    classes: NDArray[np.uint8],
    threshold: int,
    tissue: NDArray[np.int64],
    ranks: Sequence[int],
) -> dict[int, float]:
    """Find the values of some ranks among the pixels of tissue.

    Parameters
    ----------
    reader
        For the second pass, which wide values need.
    classes
        Contrast class of each block; 0 for those with debris.
    threshold
        Lowest contrast class of tissue.
    tissue
        `(bins,)` histogram of the tissue.
    ranks
        From 0, the smallest pixel's, ascending.

    Returns
    -------
    dict
        Value by rank.
    """
    low_bits = None
    if not is_narrow(reader.dtype):
        low_bits = count_wanted(reader, classes, threshold, find_bins(tissue, ranks))
    return find_values(tissue, low_bits, ranks, reader.dtype)


def _normalize_extremes(
    counts: Counts, bounds: ChannelBounds
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normalise the extremes of the means; a block without finite pixels has no contrast."""
    bounds = replace(
        bounds, above=None, dead=None, bright=None
    )  # of single pixels, and these are means
    empty = ~np.isfinite(counts.lowest)
    low, high = (
        np.where(empty, np.float32(bounds.low), e) for e in (counts.lowest, counts.highest)
    )
    return normalize(low, bounds), normalize(high, bounds)


def contrast_in(surveys: Sequence[ChannelSurvey], region: Region) -> float:
    """Largest normalised contrast of any channel in a region (grown to whole blocks).

    It is the range of the means; a patch below `planning.flow_planner.SKIP_CONTRAST` is not
    evaluated.
    """
    at = blocks_of(region)
    contrasts = [
        float(survey.highest[at].max() - survey.lowest[at].min())
        for survey in surveys
        if survey.lowest[at].size
    ]
    return max(contrasts, default=0.0)
