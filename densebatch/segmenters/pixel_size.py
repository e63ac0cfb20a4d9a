"""Labelling a tile at a model's own pixel size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.resampling import axis_weights, resample

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import SlideFacts, Tile


def require_pixel_size(name: str, um_per_px: float | None, slide: SlideFacts) -> None:
    """Refuse an option that asks for pixels of a size, of a slide that does not tell its own.

    Parameters
    ----------
    name
        Of the segmenter.
    um_per_px
        The option; None if it was not given.
    slide
        What is known of it.

    Raises
    ------
    InputError
        One sentence.
    """
    if um_per_px is not None and slide.um_per_px is None:
        raise InputError(
            f"options of the segmenter {name}: um_per_px is {um_per_px:g} but the slide does not "
            "tell the size of its pixels; accepted is the size by --pixel-size, and without the "
            "option the model sees pixels as they are"
        )


def label_at(
    tile: Tile,
    um_per_px: float | None,
    label: Callable[[NDArray[np.float32]], NDArray[Any]],
) -> NDArray[Any]:
    """Labels of a tile from a function that wants pixels of another size.

    Parameters
    ----------
    tile
        The tile.
    um_per_px
        The size that the function wants; None if that of the slide will do.
    label
        Maps `(channels, h, w)` float32 to `(h, w)` labels.

    Returns
    -------
    ndarray
        `(y, x)` of the tile; each pixel has the label at its centre.

    """
    image = tile.image
    if um_per_px is None:
        return label(image)
    assert tile.um_per_px is not None  # or the options had been refused
    ratio = tile.um_per_px / um_per_px
    height, width = image.shape[1:]
    h, w = (max(round(length * ratio), 1) for length in (height, width))
    rows, cols = (
        axis_weights(np.arange(n_out), n_in, n_out) for n_in, n_out in ((height, h), (width, w))
    )
    labels = label(resample(image, rows, cols))
    at_y, at_x = (
        ((np.arange(n) + 0.5) * (m / n)).astype(np.int64)
        for n, m in zip((height, width), labels.shape, strict=True)
    )
    result: NDArray[Any] = labels[at_y[:, None], at_x]
    return result
