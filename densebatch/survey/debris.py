"""Debris: specks, precipitate, hot columns and dead areas, which are no light of the tissue.

A speck of precipitate may be a hundred times as bright as the tissue around it. It must decide
neither what counts as tissue nor which value becomes 1, and the network must not see it: a network
of Cellpose's kind adds a mean over the whole patch to every pixel, so that one speck disturbs all
cells of its patch. Han et al. 2024 black debris out by hand. Here too, what is found is shown to
the network as 0; clipped to the upper bound it would still cost cells beside it
(benchmarks/debris.py, `shown`).

What is looked for is a gap in how bright the brightest pixel of each block is. Blocks of tissue,
however rare bright cells are in it, have theirs at all levels up to the highest. Debris leaves a
level such that nearly all blocks of tissue stay below a part of it (`_GAP`) and the others are
beyond it. Three things must hold besides, or what is bright are cells:

- the blocks beyond are few, and strewn unless most of what is bright in them has hard edges; tissue
  that is so much brighter fills its surroundings, and a lens leaves no edge hard;
- the blocks below look like tissue by themselves: grain as coarse as cells, bright on dark. Below
  rare bright cells on a dark ground lies nothing but noise;
- of what is bright, less than a third has the look of stained cells: about a cell's size, an edge
  as soft as a lens makes it, no plateau of one value, and no more than 30 times as bright as the
  tissue.

Cells so bright, if few and strewn, would do to the cells beside them what debris does, and a
blurred speck may look like one. So they are not lost, and do not decide the bounds: the network
sees the tissue without them, and once more what is bright (`normalization.ChannelBounds`).

This is a judgement. So it is told to the user, who can refuse it (`mask_debris`), and what comes
near it is told too.

The limits were chosen on the training fields of Han et al. 2024, on simulated tissue, dense and
sparse, with and without glass, and on these with debris or rare bright cells put in. Tissue without
debris has no gap of even 1.5, unless less than a twentieth of it is stained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from densebatch.survey.kernels import CLASSES_PER_OCTAVE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Tissue reaches 1/64 of the 99th percentile of contrast. A larger share would leave out the dark
# gaps of a field, which must count because networks are trained with the percentiles of whole
# fields: on the training field with the fewest cells 1/8 cost 0.016 AP, 1/64 nothing.
_TISSUE_CLASSES = 6 * CLASSES_PER_OCTAVE
_GAP, _HAZE_GAP = 2.5, 4.0
_STRAGGLERS = 0.02  # share of the tissue's blocks that may lie inside of the gap
_STEPS_PER_OCTAVE = 8  # of the levels that are tried
_MAX_SHARE = 0.3  # of the blocks with contrast
_MAX_HAZY_SHARE = 0.1
_MAX_RARE_SHARE = 0.2  # of the blocks with contrast, that rare bright cells lie in
_NEAR_BLOCKS = 7  # side of the neighbourhood in which blocks are dense or strewn
_MAX_DENSITY = 0.38
_MAX_PART = 0.2  # of a dense part, that may be beyond a higher gap
# Tissue is asked for its look where its contrast reaches 1/8 of the strongest.
_CORE_CLASSES = 3 * CLASSES_PER_OCTAVE
_LEAST_CORE = 6  # blocks of tissue without which nothing can be told
_LEAST_GRAIN = 0.38  # noise has 0.3, thin simulated membranes 0.47, real tissue 1 to 3
_LEAST_SKEW = 0.12  # noise has 0, thin simulated membranes 0.27, real tissue 1.6 and more
_CELL_AREAS = (1 / 6, 4)  # of an expected cell's area, of what may be one
_HARD = 0.65  # of the height of something bright, a step from pixel to pixel that no lens makes
_PLATEAU = 0.25  # share of its pixels that are as bright as its brightest
_BRIGHTEST_CELL = 30.0  # times the tissue
_LEAST_CELLS = 1 / 3  # of what is bright, above which it is cells
_HARDEST = 0.9  # of its height, a step that no sharpened picture of cells has either
_MOST_HARD = 2 / 3  # of what is bright and dense, from which it is debris
_DEAD_DEPTH = 0.01  # of the tissue's range, by which dead pixels lie below all others at least
_DARK_DEPTH = 1.0  # of its range, by which what lies below the tissue's ground counts as dark
_LEAST_DARK = 0.01  # of the blocks that count as tissue, from which dark ones move the lower bound


@dataclass(frozen=True)
class BlockLooks:
    """What a survey knows of each block, `(rows, cols)`.

    Attributes
    ----------
    classes : contrast class; 0 without contrast
    least, most : extremes of the finite pixels; infinite where there is none
    grain, skew : see `survey_kernels.describe_means`
    """

    classes: NDArray[np.uint8]
    least: NDArray[np.float32]
    most: NDArray[np.float32]
    grain: NDArray[np.float32]
    skew: NDArray[np.float32]

    def look_like_tissue(self, where: NDArray[np.bool_]) -> bool:
        """Whether most of some blocks have the grain and the skew of cells."""
        if where.sum() < _LEAST_CORE:
            return False
        grain, skew = np.median(self.grain[where]), np.median(self.skew[where])
        return bool(grain >= _LEAST_GRAIN and abs(skew) >= _LEAST_SKEW)

    def core(self, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of some blocks have about as much contrast as the strongest hundredth of them."""
        lowest = reference_class(self.classes[among]) - _CORE_CLASSES
        return among & (self.classes >= max(1, lowest))


@dataclass(frozen=True)
class Gap:
    """A level that nearly all tissue stays far below.

    Attributes
    ----------
    ground, tissue : pixel value of dark tissue, and by how much nearly all of it is brighter
    above : a pixel value in the middle of the gap, as ratios go
    times : how many times as bright as the tissue the brightest is
    """

    ground: float
    tissue: float
    above: float
    times: float


@dataclass(frozen=True)
class Debris:
    """What of a channel is no light of the tissue, and what might be.

    Attributes
    ----------
    above : debris are pixels of more than this; None where none is too bright
    dead : dead or dark are pixels of this and less; None where none is
    blocks : `(rows, cols)` bool, the blocks that hold such pixels
    times : brightness of the brightest over that of the tissue; 0 where none is too bright
    uneven_times : the same of what is bright and is many cells, or dense; 0 without
    rare : what is bright and is few cells; None without
    """

    above: float | None
    dead: float | None
    blocks: NDArray[np.bool_]
    times: float = 0.0
    uneven_times: float = 0.0
    rare: RareCells | None = None

    @property
    def is_any(self) -> bool:
        """Whether there is debris, or a dead pixel."""
        return self.above is not None or self.dead is not None

    @property
    def left_out(self) -> NDArray[np.bool_]:
        """Blocks that do not show how bright the tissue is."""
        return self.blocks if self.rare is None else self.blocks | self.rare.blocks


@dataclass(frozen=True)
class RareCells:
    """Few cells far brighter than the tissue, or what looks like them.

    Attributes
    ----------
    above : pixels of more than this are of such cells
    peak : median over their blocks of the brightest pixel
    blocks : `(rows, cols)` bool, the blocks that hold them
    times : brightness of the brightest over that of the tissue
    """

    above: float
    peak: float
    blocks: NDArray[np.bool_]
    times: float


def reference_class(classes: NDArray[np.uint8]) -> int:
    """The 99th percentile of the contrast classes of blocks that have contrast; 0 without any."""
    counts = np.bincount(classes.ravel(), minlength=1)
    counts[0] = 0
    rank = int(0.99 * (counts.sum() - 1))
    return int(np.searchsorted(np.cumsum(counts), rank, side="right")) if counts.any() else 0


def tissue_class(classes: NDArray[np.uint8]) -> int:
    """Lowest contrast class that counts as tissue; 0, hence everything, if all blocks are flat."""
    reference = reference_class(classes)
    return max(1, reference - _TISSUE_CLASSES) if reference else 0


@dataclass(frozen=True)
class Shapes:
    """How many bright things there are, and of which looks.

    Attributes
    ----------
    things : that are no small specks
    cells : of these, those that look like stained cells
    hard : of these, those with an edge of one step
    """

    things: int = 0
    cells: int = 0
    hard: int = 0

    @property
    def are_cells(self) -> bool:
        """Whether so many look like stained cells that they are."""
        return self.cells > _LEAST_CELLS * self.things

    def __add__(self, other: Shapes) -> Shapes:
        return Shapes(self.things + other.things, self.cells + other.cells, self.hard + other.hard)


def count_shapes(pixels: NDArray[np.generic], gap: Gap, cell_px: float) -> Shapes:
    """Count bright things by their looks.

    Parameters
    ----------
    pixels
        `(height, width)`.
    gap
        What is bright.
    cell_px
        Diameter of a cell.
    """
    values = np.nan_to_num(pixels.astype(np.float32), nan=gap.ground, posinf=gap.ground)
    area_px = np.pi / 4 * cell_px**2
    bright = values > gap.above
    holes, _ = ndimage.label(~bright)
    is_inside = np.bincount(holes.ravel()) <= area_px
    is_inside[0] = False
    things, n = ndimage.label(bright | is_inside[holes], np.ones((3, 3), int))
    areas = np.bincount(things.ravel(), minlength=n + 1)[1:]
    least, most = (share * area_px for share in _CELL_AREAS)
    index = 1 + np.flatnonzero(areas >= least)
    if index.size == 0:
        return Shapes()
    steps = np.zeros_like(values)
    for axis in (0, 1):
        step = np.abs(np.diff(values, axis=axis))
        for side in (slice(None, -1), slice(1, None)):
            at = (side, slice(None)) if axis == 0 else (slice(None), side)
            steps[at] = np.maximum(steps[at], step)
    top = np.concatenate([[np.inf], np.asarray(ndimage.maximum(values, things, range(1, n + 1)))])
    peaks = top[index]
    hardest = np.asarray(ndimage.maximum(steps, things, index))
    at_top = np.asarray(ndimage.sum(values >= top[things], things, index))
    areas = areas[index - 1]
    height = peaks - gap.ground
    is_flat = at_top >= np.maximum(_PLATEAU * areas, 2)
    is_cell = (hardest <= _HARD * height) & ~is_flat & (areas <= most)
    is_cell &= height <= _BRIGHTEST_CELL * gap.tissue
    is_hard = hardest > _HARDEST * height
    return Shapes(index.size, int(is_cell.sum()), int(is_hard.sum()))


def find_debris(looks: BlockLooks, count: Callable[[Gap, NDArray[np.bool_]], Shapes]) -> Debris:
    """Find debris and dead areas in what a survey knows of each block.

    Parameters
    ----------
    looks
        Of all blocks of a channel.
    count
        Sums `count_shapes` of what is above a gap over the pixels of some blocks.
    """
    lit = looks.classes > 0
    nothing = Debris(None, None, np.zeros_like(lit))
    if not lit.any():
        return nothing
    darkest = lit & (looks.least == looks.least[lit].min())
    if darkest.sum() > _MAX_SHARE * lit.sum():
        darkest = np.zeros_like(lit)
    gap, rare_gap, uneven_times = _find_gap(looks, lit & ~darkest, count)
    blocks = np.zeros_like(lit) if gap is None else looks.most > gap.above
    bright = blocks if rare_gap is None else looks.most > rare_gap.above
    dead = _find_dead(looks, lit & ~bright, darkest)
    if dead is not None:
        blocks = blocks | (looks.least <= dead)
    rare = None
    if rare_gap is not None:
        # Debris is brighter still, and tells nothing of these.
        where = bright & ~blocks
        peak = float(np.median(looks.most[where]))
        rare = RareCells(rare_gap.above, peak, where, rare_gap.times)
    return Debris(
        above=None if gap is None else gap.above,
        dead=dead,
        blocks=blocks,
        times=0.0 if gap is None else gap.times,
        uneven_times=uneven_times,
        rare=rare,
    )


def _find_gap(
    looks: BlockLooks,
    lit: NDArray[np.bool_],
    count: Callable[[Gap, NDArray[np.bool_]], Shapes],
) -> tuple[Gap | None, Gap | None, float]:
    """Lowest gaps beyond which there is debris, and rare cells; and how bright the rest is."""
    if not lit.any():
        return None, None, 0.0
    ground = float(np.median(looks.least[lit]))
    peaks = np.where(np.isfinite(looks.most), looks.most - np.float32(ground), np.float32(-1))
    top = float(peaks.max())
    lowest = float(np.quantile(peaks[lit], 1 - _MAX_SHARE))
    rare, uneven_times, kept = None, 0.0, np.zeros_like(lit)
    if not 0 < lowest < top:
        return None, None, 0.0
    n_lit = int(lit.sum())
    for step in range(int(_STEPS_PER_OCTAVE * np.log2(top / lowest)), 0, -1):
        level = top * 2.0 ** (-step / _STEPS_PER_OCTAVE)
        beyond = peaks > level
        lit_beyond = beyond & lit
        core = _find_tissue_below(looks, peaks, lit & ~beyond, level / _GAP)
        if core is None and lit_beyond.sum() <= _MAX_HAZY_SHARE * n_lit:
            # Blocks beside debris hold its haze, which is of any brightness; so they are left out
            # where the gap is the wider, which rare bright cells hardly ever leave.
            beside = ndimage.binary_dilation(beyond, np.ones((3, 3), bool))
            core = _find_tissue_below(looks, peaks, lit & ~beside, level / _HAZE_GAP)
        if core is None or np.count_nonzero(beyond & kept) > _MAX_PART * np.count_nonzero(kept):
            continue
        tissue = float(np.quantile(peaks[core], 1 - _STRAGGLERS))
        gap = Gap(ground, tissue, ground + float(np.sqrt(tissue * level)), top / tissue)
        shapes = count(gap, beyond)
        # Blocks without any contrast, wholly saturated ones say, are no tissue.
        is_strewn = not lit_beyond.any() or measure_density(lit_beyond) <= _MAX_DENSITY
        if shapes.are_cells:
            is_rare = is_strewn and lit_beyond.sum() <= _MAX_RARE_SHARE * n_lit
            rare = rare or (gap if is_rare else None)
        elif is_strewn or shapes.hard >= _MOST_HARD * max(1, shapes.things):
            return gap, rare, uneven_times
        kept |= beyond
        uneven_times = max(uneven_times, 0.0 if rare else gap.times)
    return None, rare, uneven_times


def _find_tissue_below(
    looks: BlockLooks, peaks: NDArray[np.float32], among: NDArray[np.bool_], level: float
) -> NDArray[np.bool_] | None:
    """The tissue of some blocks, if nearly all stays below a level and it looks like tissue."""
    core = looks.core(among)
    n_over = np.count_nonzero(core & (peaks > level))
    if n_over > _STRAGGLERS * np.count_nonzero(core) or not looks.look_like_tissue(core):
        return None
    return core


def _find_dead(
    looks: BlockLooks, lit: NDArray[np.bool_], darkest: NDArray[np.bool_]
) -> float | None:
    """The value of dead pixels and of what is as dark.

    Dead pixels are of one value, in several blocks, and below those of all other blocks by more
    than these differ. A canvas around the slide, of blocks without contrast that reach its edge, is
    none. What is dark are blocks, glass perhaps, whose pixels lie below the tissue by more than its
    range, and which are so many that they would move the lower bound there.
    """
    core = looks.core(lit & ~darkest)
    if not looks.look_like_tissue(core):
        return None
    ground = float(np.median(looks.least[core]))
    tissue = float(np.quantile(looks.most[core], 1 - _STRAGGLERS)) - ground
    dark_below = ground - _DARK_DEPTH * tissue
    rest = lit & ~darkest
    counted = rest & (looks.classes >= tissue_class(looks.classes[rest]))
    n_dark = np.count_nonzero(counted & (looks.least < dark_below))
    if n_dark > _LEAST_DARK * np.count_nonzero(counted):
        return dark_below
    value = float(looks.least[lit].min())
    empty = (looks.classes == 0) & (looks.most <= value)
    if np.count_nonzero(darkest & lit) < 2 or any(
        edge.any() for edge in (empty[0], empty[-1], empty[:, 0], empty[:, -1])
    ):
        return None
    least = float(looks.least[rest].min())
    depth = max(ground - least, _DEAD_DEPTH * tissue)
    return value if value < least - depth else None


def measure_density(where: NDArray[np.bool_]) -> float:
    """Share of the blocks around a block that are of its kind too, 0 strewn to 1 dense."""
    n = _NEAR_BLOCKS**2
    near = n * ndimage.uniform_filter(where.astype(np.float64), _NEAR_BLOCKS, mode="nearest")
    return float(((near[where] - 1) / (n - 1)).mean())
