"""Pictures of a score in the colours of Han et al. 2024, Fig. 4.

Truth is red, found predictions are yellow, spurious ones green.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from densebatch.scoring.boundary import find_outline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.scoring.results import CellMatches, FieldScore

Colour = tuple[int, int, int]
RED, YELLOW, GREEN, GREY = (230, 40, 40), (255, 225, 30), (40, 210, 70), (120, 120, 130)
_Pixel = TypeVar("_Pixel", bound=np.generic)
# A field with fewer cells says little, whatever its score.
FEW_CELLS = 5


def draw_overlay(
    truth: NDArray[np.uint32],
    pred: NDArray[np.uint32],
    cells: CellMatches,
    image: NDArray[Any] | None = None,
    *,
    scale: int = 1,
) -> NDArray[np.uint8]:
    """Draw outlines of truth and prediction on black or on an image.

    The truth's outlines lie below, so that a missed cell is red, and a found one shows red only
    where the two outlines differ. Predictions that are ignored are grey; cells that the size
    filter took away are not drawn.

    Parameters
    ----------
    truth, pred
        Labels of a rectangle.
    cells
        What became of them.
    image
        Intensities of the same rectangle.
    scale
        Whole factor by which pixels are enlarged.

    Returns
    -------
    ndarray of uint8, (rows, columns, 3)
    """
    picture = _draw_background(image, truth.shape, scale)
    for labels, ids, colour in (
        (truth, cells.truth_ids, RED),
        (pred, cells.pred_ids[~cells.pred_found & ~cells.pred_spurious], GREY),
        (pred, cells.pred_ids[cells.pred_spurious], GREEN),
        (pred, cells.pred_ids[cells.pred_found], YELLOW),
    ):
        kept = np.where(np.isin(labels, ids), labels, np.uint32(0))
        _paint_outlines(picture, kept, colour, scale)
    return picture


def draw_outlines(
    labels: NDArray[np.uint32],
    image: NDArray[Any],
    colour: Colour,
    *,
    scale: int = 1,
) -> NDArray[np.uint8]:
    """Draw the outlines of one label image on an image.

    Parameters
    ----------
    labels
        Of a rectangle.
    image
        Intensities of the same rectangle.
    colour
        Red, green and blue, 0 to 255.
    scale
        Whole factor by which pixels are enlarged.

    Returns
    -------
    ndarray of uint8, (rows, columns, 3)
    """
    picture = _draw_background(image, labels.shape, scale)
    _paint_outlines(picture, labels, colour, scale)
    return picture


def _draw_background(
    image: NDArray[Any] | None, shape: tuple[int, ...], scale: int
) -> NDArray[np.uint8]:
    """An enlarged image in grey, black where there is none; `(rows, columns, 3)`."""
    grey = np.zeros(shape, np.uint8) if image is None else stretch_contrast(image)
    return _enlarge(grey, scale)[..., None].repeat(3, axis=-1)


def _paint_outlines(
    picture: NDArray[np.uint8], labels: NDArray[np.uint32], colour: Colour, scale: int
) -> None:
    # Outlines of the enlarged labels are one pixel wide at any scale.
    picture[find_outline(_enlarge(labels, scale))] = colour


def _enlarge(pixels: NDArray[_Pixel], scale: int) -> NDArray[_Pixel]:
    return np.repeat(np.repeat(pixels, scale, 0), scale, 1)


def stretch_contrast(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Intensities from the 1st to the 99.8th percentile as 0 to 200: outlines stand out."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, (1, 99.8))
    scaled = (values - low) * np.float32(200 / max(high - low, 1e-9))
    grey: NDArray[np.uint8] = np.clip(scaled, 0, 200).astype(np.uint8)
    return grey


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """An RGB picture as PNG."""
    coded = io.BytesIO()
    Image.fromarray(picture).save(coded, "PNG", optimize=True)
    return coded.getvalue()


def find_strips(fields: Sequence[FieldScore]) -> set[Region]:
    """What an image's edge leaves of fields, if less than half: cut cells decide its score."""
    largest = max((f.region.area for f in fields), default=0)
    return {f.region for f in fields if 2 * f.region.area < largest}


def choose_fields(
    fields: Sequence[FieldScore], n_worst: int, n_sample: int = 0, seed: int = 0
) -> list[FieldScore]:
    """The fields of lowest AP, and a seeded sample of the others.

    Fields of few cells are taken only where there are no others, strips after all others.

    Parameters
    ----------
    fields
        Of one image.
    n_worst, n_sample
        How many to take, if there are as many.
    seed
        Of the sample.

    Returns
    -------
    list of FieldScore
        The worst first, then the sample in the order of AP.
    """
    full = [f for f in fields if f.score.tp + f.score.fp + f.score.fn >= FEW_CELLS]
    strips = find_strips(fields)
    ranked = sorted(
        full or fields,
        key=lambda f: (f.region in strips, f.score.ap, -f.score.fp - f.score.fn, f.region),
    )
    rest = ranked[n_worst:]
    chosen = np.random.default_rng(seed).permutation(len(rest))[:n_sample]
    return ranked[:n_worst] + [rest[k] for k in sorted(chosen.tolist())]
