"""Debris: specks, precipitate, hot columns and dead areas, which are no light of the tissue.

A speck of precipitate may be a hundred times as bright as the tissue around it. It must decide
neither what counts as tissue nor which value becomes 1, and the network must not see it: a network
of Cellpose's kind adds a mean over the whole patch to every pixel, so that one speck disturbs all
cells of its patch. Han et al. 2024 black debris out by hand. Here too, what is found is shown to
the network as 0; clipped to the upper bound, specks of 40 px would still cost 4 to 8 % of the cells
beside them, and at 0 they cost less than 1 %.

What is looked for is a gap in how bright the brightest pixel of each block is. Blocks of tissue,
however rare bright cells are in it, have theirs at all levels up to the highest. Debris leaves a
level such that nearly all blocks of tissue stay below a part of it (`_GAP`) and the others are
beyond it. Three things must hold besides, or what is bright are cells:

- the blocks beyond are few and strewn; tissue that is so much brighter fills its surroundings;
- the blocks below look like tissue by themselves: grain as coarse as cells, bright on dark. Below
  rare bright cells on a dark ground lies nothing but noise;
- what is bright is solid. A stained membrane encloses a darker inside.

This is a judgement, and a few bright cells on a ground with a structure of its own may still be
taken for debris. So it is told to the user, who can refuse it (`mask_debris`).

The limits were chosen on the training fields of Han et al. 2024, on simulated tissue, dense and
sparse, with and without glass, and on these with debris put in. Tissue without debris has no gap
of even 1.5, unless less than a twentieth of it is stained; and bright cells enclose 1 to 8 % of
their area, debris nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_GAP, _HAZE_GAP = 2.5, 4.0
_STRAGGLERS = 0.02  # share of the tissue's blocks that may lie inside of the gap
_STEPS_PER_OCTAVE = 8  # of the levels that are tried
_MAX_SHARE = 0.35  # of the blocks with contrast
_NEAR_BLOCKS = 7  # side of the neighbourhood in which blocks are dense or strewn
_MAX_DENSITY = 0.35
_CORE_CLASSES = 6  # tissue is asked for its look where its contrast reaches 1/8 of the strongest
_LEAST_CORE = 12  # blocks of tissue without which nothing can be told
_LEAST_GRAIN = 0.38  # noise has 0.3, thin simulated membranes 0.47, real tissue 1 to 3
_LEAST_SKEW = 0.12  # noise has 0, thin simulated membranes 0.27, real tissue 1.6 and more
_ENCLOSED_PX = (2, 400)  # of a hole in something bright; larger ones are no inside of a cell
_MAX_ENCLOSED = 0.008  # of the area of what is bright
_DEAD_DEPTH = 0.5  # dead pixels lie below the tissue's ground by more than this share of its range


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
class Debris:
    """What of a channel is no light of the tissue.

    Attributes
    ----------
    above : debris are pixels of more than this; None where none is too bright
    dead : dead are pixels of this and less; None where none is dead
    blocks : `(rows, cols)` bool, the blocks that hold such pixels
    times : brightness of the brightest over that of the tissue; 0 where none is too bright
    """

    above: float | None
    dead: float | None
    blocks: NDArray[np.bool_]
    times: float


def reference_class(classes: NDArray[np.uint8]) -> int:
    """The 99th percentile of the contrast classes of blocks that have contrast; 0 without any."""
    ranked = np.sort(classes[classes > 0])
    return int(ranked[int(0.99 * (ranked.size - 1))]) if ranked.size else 0


def measure_enclosed(pixels: NDArray[np.generic], above: float) -> tuple[int, int]:
    """How many pixels are brighter than a level, and how many lie in small holes inside of these.

    Parameters
    ----------
    pixels
        `(height, width)`.
    above
        The level.

    Returns
    -------
    enclosed, bright : int
        Pixels. What the image's edge cuts is no hole.
    """
    bright = np.greater(pixels, above)
    holes, n = ndimage.label(~bright)
    areas = np.bincount(holes.ravel(), minlength=n + 1)
    areas[0] = 0
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        areas[edge] = 0
    least, most = _ENCLOSED_PX
    inside = areas[(areas >= least) & (areas <= most)]
    return int(inside.sum()), int(bright.sum())


def find_debris(
    looks: BlockLooks, measure: Callable[[float, NDArray[np.bool_]], tuple[int, int]]
) -> Debris | None:
    """Find debris and dead areas in what a survey knows of each block.

    Parameters
    ----------
    looks
        Of all blocks of a channel.
    measure
        Sums `measure_enclosed` for a level over the pixels of some blocks.

    Returns
    -------
    Debris or None
        None if all is tissue or glass, or it cannot be told.
    """
    lit = looks.classes > 0
    if not lit.any():
        return None
    darkest = lit & (looks.least == looks.least[lit].min())
    if darkest.sum() > _MAX_SHARE * lit.sum():
        darkest = np.zeros_like(lit)
    found = _find_bright(looks, lit & ~darkest)
    if found is not None:
        enclosed, bright = measure(found[0], looks.most > found[0])
        if enclosed > _MAX_ENCLOSED * bright:
            found = None
    above, times = (None, 0.0) if found is None else found
    blocks = np.zeros_like(lit) if above is None else looks.most > above
    dead = _find_dead(looks, lit & ~blocks, darkest)
    if dead is not None:
        blocks = blocks | (looks.least <= dead)
    return Debris(above, dead, blocks, times) if blocks.any() else None


def _find_bright(looks: BlockLooks, lit: NDArray[np.bool_]) -> tuple[float, float] | None:
    """The value above which pixels are debris, and how many times the tissue's the brightest is."""
    if not lit.any():
        return None
    ground = float(np.median(looks.least[lit]))
    peaks = looks.most.astype(np.float64) - ground
    top = float(peaks[lit].max())
    ranked = np.sort(peaks[lit])
    lowest = float(ranked[int((1 - _MAX_SHARE) * (ranked.size - 1))])
    if not 0 < max(lowest, 0) < top:
        return None
    n_steps = int(_STEPS_PER_OCTAVE * np.log2(top / lowest))
    for step in range(n_steps, 0, -1):
        level = top * 2.0 ** (-step / _STEPS_PER_OCTAVE)
        beyond = lit & (peaks > level)
        # Blocks beside debris hold its haze, which is of any brightness; so they are left out where
        # the gap is the wider, which rare bright cells hardly ever leave.
        beside = ndimage.binary_dilation(beyond, np.ones((3, 3), bool))
        for gap, without in ((_GAP, beyond), (_HAZE_GAP, beside)):
            core = looks.core(lit & ~without)
            if not core.any():
                continue
            tissue = float(np.quantile(peaks[core], 1 - _STRAGGLERS))
            if (
                0 < gap * tissue <= level
                and measure_density(beyond) <= _MAX_DENSITY
                and looks.look_like_tissue(core)
            ):
                # In the middle of the gap, as ratios go.
                return ground + float(np.sqrt(tissue * level)), top / tissue
    return None


def _find_dead(
    looks: BlockLooks, lit: NDArray[np.bool_], darkest: NDArray[np.bool_]
) -> float | None:
    """The value of dead pixels: one and the same, and far below all others."""
    core = looks.core(lit & ~darkest)
    if not (darkest & lit).any() or not looks.look_like_tissue(core):
        return None
    value = float(looks.least[darkest].min())
    ground = float(np.quantile(looks.least[core], _STRAGGLERS))
    tissue = float(np.quantile(looks.most[core], 1 - _STRAGGLERS))
    return value if value < ground - _DEAD_DEPTH * (tissue - ground) else None


def measure_density(where: NDArray[np.bool_]) -> float:
    """Share of the blocks around a block that are of its kind too, 0 strewn to 1 dense."""
    n = _NEAR_BLOCKS**2
    near = n * ndimage.uniform_filter(where.astype(np.float64), _NEAR_BLOCKS, mode="nearest")
    return float(((near[where] - 1) / (n - 1)).mean())
