"""Tell a picture of transmitted light from one of fluorescence, by a few of its pixels.

Where there is nothing, transmitted light is bright in all colours and fluorescence is dark. What
tells them apart is therefore the darkest part of a picture: stained tissue and even its nuclei
leave much of the light of one colour through, while between and inside cells that fluoresce hardly
any colour is bright.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.slides.slide import Slide

_N_PLACES = 4  # along each axis
_PLACE_PX = 256
_STEP_PX = 4
_COLOURS = ({"red", "green", "blue"}, {"r", "g", "b"})
# Of the range of values. Of the brightest colour the 5th percentile, of the darkest colour the
# median, and between what is light and what is dark in it.
_LEAST_BRIGHTEST, _LEAST_DARKEST, _LEAST_CONTRAST = 0.4, 0.25, 0.08
# Cameras of 12 bits fill a sixteenth of 16.
_LEAST_PEAK = 1 / 16


def looks_brightfield(slide: Slide) -> bool:
    """Whether the first three channels are the colours of a light picture with dark content.

    Reads the chunks at sixteen places of the slide, which are all of a small one.

    Parameters
    ----------
    slide
        With whatever channels; False if they are not called red, green and blue.

    A place that cannot be read is left out.
    """
    info = slide.info
    if {name.casefold() for name in info.channels[:3]} not in _COLOURS:
        return False
    sampled = [_sample(slide, region) for region in _list_places(slide)]
    places = [place for place in sampled if place.any()]
    if not places:
        return False
    pixels = np.concatenate(places, axis=1)
    brightest, darkest = pixels.max(0), pixels.min(0)
    least, light = np.percentile(brightest, [5, 99.9])
    dark, middle, top = np.percentile(darkest, [1, 50, 99])
    peak = _find_peak(np.dtype(info.dtype), float(light))
    return bool(
        least >= _LEAST_BRIGHTEST * peak
        and middle >= _LEAST_DARKEST * peak
        and top - dark >= _LEAST_CONTRAST * peak
    )


def _list_places(slide: Slide) -> list[Region]:
    """Whole chunks, spread over the slide, each once."""
    info = slide.info
    sides = [chunk * max(1, round(_PLACE_PX / chunk)) for chunk in info.chunk_px]
    counts = [-(-n // side) for n, side in zip((info.height, info.width), sides, strict=True)]
    rows, cols = (
        sorted({(2 * k + 1) * count // (2 * _N_PLACES) for k in range(_N_PLACES)})
        for count in counts
    )
    return [
        Region(row * sides[0], col * sides[1], (row + 1) * sides[0], (col + 1) * sides[1]).clip(
            info.height, info.width
        )
        for row in rows
        for col in cols
    ]


def _sample(slide: Slide, region: Region) -> NDArray[Any]:
    """`(3, n)` float32; NaN and infinities are 0, and whole numbers below zero too.

    All 0 if the place cannot be read; whether that matters is for others to tell.
    """
    try:
        planes = slide.read_planes(0, 3, region)
    except (InputError, OSError):
        return np.zeros((3, 1), np.float32)
    pixels = planes[:, ::_STEP_PX, ::_STEP_PX].reshape(3, -1).astype(np.float32)
    return np.maximum(np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0), 0.0)


def _find_peak(dtype: np.dtype[Any], brightest: float) -> float:
    """What the brightest possible value is, as far as its type and the pixels tell."""
    if dtype.kind not in "ui":
        return brightest
    largest = float(np.iinfo(dtype).max)
    return largest if dtype.itemsize == 1 else max(brightest, largest * _LEAST_PEAK)
