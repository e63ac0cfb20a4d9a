"""Crops for one training step: lossless and lossy augmentation, intensity jitter, targets.

Every random choice of a step comes from a generator seeded with (seed, step), so that a run that
resumes continues as if it had not stopped.

Turning by any angle and scaling read pixels bilinearly, but labels and flows at the nearest pixel:
interpolated flows would point nowhere at the border of two cells, where dense tissue needs them
most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from densebatch.tracing.foreground import FLOW_SCALE
from densebatch.training.annotated import MAX_SHIFT
from densebatch.training.pasting import Crop, paste_disc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.training.annotated import AnnotatedImage
    from densebatch.training.recipe import Recipe

_SHADING_PX = 64  # distance over which uneven gain changes
_SIZE_WEIGHTS = (0.5, 3.0)  # the least and most that a cell's pixels weigh


def sample_batch(
    images: Sequence[AnnotatedImage], recipe: Recipe, step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The crops of one step, drawn evenly over the area of all images, or as the recipe says.

    Parameters
    ----------
    images
        None smaller than a crop.
    recipe
        Patch, batch, augmentation and seed.
    step
        Number of the step.

    Returns
    -------
    inputs : `(batch, 2, patch, patch)` float32
        With `recipe.consistency` twice as many: first the crops, then all of them `draw_shift`
        further.
    targets : `(batch, 4, patch, patch)` float32
        5 dy, 5 dx, inside a cell (0 or 1), weight in the loss (0 where nothing is known).
    """
    rng = np.random.default_rng([recipe.seed, step])
    shares = np.array([image.labels.size for image in images], float) ** recipe.area_exponent
    shares /= shares.sum()
    cells = np.concatenate([image.areas[1:] for image in images])
    typical_px = float(cells[cells > 0].mean()) if cells.any() else 1.0
    side = recipe.patch_px
    starts = [(0, 0)] if not recipe.consistency else [(0, 0), draw_shift(recipe, step)]
    reach = side + max(max(start) for start in starts)
    inputs = np.empty((len(starts), recipe.batch, 2, side, side), np.float32)
    targets = np.empty((recipe.batch, 4, side, side), np.float32)
    for index in range(recipe.batch):
        image = images[rng.choice(len(images), p=shares)]
        crop = _crop(image, recipe, reach, rng, typical_px)
        if recipe.pasting and rng.random() < recipe.pasting:
            image = images[rng.choice(len(images), p=shares)]
            other = _crop(image, recipe, reach, rng, typical_px)
            crop = paste_disc(crop, other, rng)
        # Jitter leaves NaN beyond an image's edge, where networks are shown zeros.
        jittered = _jitter(crop.pixels, recipe, rng)
        jittered = np.where(np.isnan(jittered), 0.0, jittered)
        target = np.empty((4, reach, reach), np.float32)
        target[:2] = FLOW_SCALE * crop.flows
        target[2] = crop.labels > 0
        target[3] = crop.weight
        if recipe.border_weight:
            target[3] *= 1.0 + recipe.border_weight * find_borders(crop.labels)
        for k, (y, x) in enumerate(starts):
            inputs[k, index] = jittered[:, y : y + side, x : x + side]
        targets[index] = target[:, :side, :side]
    return inputs.reshape(-1, 2, side, side), targets


def draw_shift(recipe: Recipe, step: int) -> tuple[int, int]:
    """Rows and columns by which the moved crops of a step begin later, 0 to 7 px and never both 0.

    A shift that is a multiple of 8 px would leave the same pixels together in every pooling.
    """
    drawn = int(np.random.default_rng([recipe.seed, step, 1]).integers(1, (MAX_SHIFT + 1) ** 2))
    return divmod(drawn, MAX_SHIFT + 1)


def draw_orientation(recipe: Recipe, step: int, place: int = 0) -> int:
    """Orientation in which moved crops are shown, among those that the recipe allows.

    Parameters
    ----------
    recipe
        For the seed, flips and quarter turns.
    step
        Number of the step.
    place
        Of a teacher among several.

    Returns
    -------
    int
        See `orient`.
    """
    return _draw_turn(recipe, np.random.default_rng([recipe.seed, step, 3, place]))


def find_borders(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels with another label, or background beside a cell, among their eight neighbours."""
    result: NDArray[np.bool_] = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(
        labels, 3
    )
    return result


def orient(
    planes: NDArray[Any], flows: NDArray[np.float32], turn: int
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Bring planes and flows into one of the eight lossless orientations.

    Parameters
    ----------
    planes
        `(..., h, w)`.
    flows
        `(2, h, w)`; their components change signs and places with the axes.
    turn
        Bit 0 mirrors rows, bit 1 columns, bit 2 swaps the axes.

    Returns
    -------
    planes
        `(..., h, w)`, or `(..., w, h)` if the axes are swapped.
    flows
        `(2, h, w)`, or `(2, w, h)`.
    """
    dy, dx = flows
    if turn & 1:
        planes, dy, dx = planes[..., ::-1, :], -dy[::-1], dx[::-1]
    if turn & 2:
        planes, dy, dx = planes[..., ::-1], dy[:, ::-1], -dx[:, ::-1]
    if turn & 4:
        planes, dy, dx = planes.swapaxes(-1, -2), dx.T, dy.T
    return planes, np.stack([dy, dx])


def _draw_turn(recipe: Recipe, rng: np.random.Generator) -> int:
    """Mirrors and quarter turns as the recipe allows: 8, 4 or 1 orientations."""
    # A number is drawn always, so that what is drawn next does not depend on the recipe.
    drawn = int(rng.integers(8))
    if recipe.flips and recipe.quarter_turns:
        return drawn
    if recipe.flips:
        return drawn & 3
    if recipe.quarter_turns:
        # A quarter turn is a mirror and a swap, a half turn is both mirrors.
        return (0, 5, 3, 6)[drawn & 3]
    return 0


def _crop(
    image: AnnotatedImage, recipe: Recipe, side: int, rng: np.random.Generator, typical_px: float
) -> Crop:
    """Draw a crop of `side` px, in one of the orientations that the recipe allows.

    `typical_px` is the area of a cell that weighs as much as background.
    """
    if recipe.rotation or recipe.scaling:
        pixels, labels, flows = _warp(image, recipe, side, rng)
    else:
        height, width = image.labels.shape
        y = int(rng.integers(0, height - side + 1))
        x = int(rng.integers(0, width - side + 1))
        window = np.s_[..., y : y + side, x : x + side]
        pixels, labels, flows = image.image[window], image.labels[window], image.flows[window]
    turn = _draw_turn(recipe, rng)
    turned, turned_flows = orient(pixels, flows, turn)
    turned_labels = orient(labels, flows, turn)[0]
    weight = np.ones((side, side), np.float32)
    if recipe.size_weight:
        weights = (typical_px / np.maximum(image.areas, 1)) ** recipe.size_weight
        weights = np.clip(weights, *_SIZE_WEIGHTS).astype(np.float32)
        weights[0] = 1.0
        weight = weights[turned_labels]
    return Crop(turned, turned_labels, turned_flows, weight)


def _warp(
    image: AnnotatedImage, recipe: Recipe, side: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Draw a turned and scaled crop; where it reaches beyond the image, the image is mirrored."""
    angle = rng.uniform(0.0, 2.0 * np.pi) if recipe.rotation else 0.0
    scale = 2.0 ** rng.uniform(-recipe.scaling, recipe.scaling)
    cos, sin = np.cos(angle), np.sin(angle)
    half = side / 2.0
    at = np.arange(side) + 0.5 - half
    height, width = image.labels.shape
    reach = (abs(cos) + abs(sin)) * half / scale + 1.0
    centre_y, centre_x = (
        rng.uniform(reach, n - 1 - reach) if n > 2 * reach + 1 else (n - 1) / 2
        for n in (height, width)
    )
    y = centre_y + (cos * at[:, None] - sin * at[None, :]) / scale
    x = centre_x + (sin * at[:, None] + cos * at[None, :]) / scale
    y, x = _mirror(y, height), _mirror(x, width)
    y0 = np.minimum(y.astype(np.intp), height - 2)
    x0 = np.minimum(x.astype(np.intp), width - 2)
    fy, fx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
    planes = image.image
    upper = planes[:, y0, x0] * (1 - fx) + planes[:, y0, x0 + 1] * fx
    lower = planes[:, y0 + 1, x0] * (1 - fx) + planes[:, y0 + 1, x0 + 1] * fx
    pixels = upper * (1 - fy) + lower * fy
    nearest = np.rint(y).astype(np.intp), np.rint(x).astype(np.intp)
    dy, dx = image.flows[:, *nearest]
    flows = np.stack([cos * dy + sin * dx, cos * dx - sin * dy]).astype(np.float32)
    return pixels.astype(np.float32), image.labels[nearest], flows


def _mirror(position: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Bring positions into 0 to n - 1 by mirroring at the first and the last pixel."""
    period = 2.0 * (n - 1)
    folded = np.mod(position, period)
    result: NDArray[np.float64] = np.minimum(folded, period - folded)
    return result


def _jitter(
    pixels: NDArray[np.float32], recipe: Recipe, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change the membrane's gamma, gain, offset, evenness and noise, and the nuclei's gain."""
    membrane = pixels[0]
    gamma = 2.0 ** rng.uniform(-recipe.gamma, recipe.gamma)
    gain = 2.0 ** rng.uniform(-recipe.brightness, recipe.brightness)
    offset = rng.uniform(-recipe.offset, recipe.offset)
    membrane = np.sign(membrane) * np.abs(membrane) ** gamma * gain + offset
    if recipe.shading and rng.random() < 0.5:
        side = membrane.shape[0]
        knots = rng.normal(0.0, recipe.shading, (side // _SHADING_PX + 3,) * 2)
        field = ndimage.zoom(knots, _SHADING_PX, order=3)[:side, :side]
        membrane = membrane * 2.0**field
    if rng.random() < 0.5:
        membrane = membrane + rng.normal(0.0, recipe.noise * rng.random(), membrane.shape)
    nuclei = pixels[1] * 2.0 ** rng.uniform(-recipe.brightness, recipe.brightness)
    result: NDArray[np.float32] = np.stack([membrane, nuclei]).astype(np.float32)
    return result
