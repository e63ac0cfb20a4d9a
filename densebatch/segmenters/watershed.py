"""Nuclei by threshold, distance and watershed, and cells grown from them; without weights.

Every step is local: smoothing, distances that end at a radius, markers that are the highest pixel
of a window, floods that end a diameter from them. Nothing is found out about the tile, so that a
pixel's label depends on what lies within about two diameters. Ties go to the first pixel in raster
order, which is the same one wherever the tile begins; watershed by scikit-image settles them by the
order of markers, which come in raster order too.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from densebatch.base.errors import InputError
from densebatch.base.settings import Count, Number, Positive  # noqa: TC001
from densebatch.segmenters.growing import grow_cells
from densebatch.segmenters.segmenter import Options, Segmenter, read_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.segmenters.segmenter import SlideFacts, Tile

NAME = "watershed"
SUMMARY = "threshold, distance, watershed: nuclei, or cells grown from them; needs no weights"
_BYTES_PER_PX = 80
_LONGEST_PX = 1000  # beyond it, what lies around a pixel takes more memory than a tile


class WatershedOptions(Options):
    """Options of `watershed`; lengths in pixels or in um, as the slide tells pixel sizes.

    Attributes
    ----------
    diameter_px, diameter_um
        Of a nucleus; that of `--diameter`, else 10 um, if neither is given. It sets smoothing and
        how close two may be.
    threshold
        Of the nuclear plane, smoothed, 0 to 1; Otsu's over the tissue of the slide if not given.
    min_size
        Smaller objects are dropped, px; the square of a quarter of the diameter if not given.
    grow_px, grow_um
        How far cells reach beyond their nuclei; a quarter of the diameter if neither is given, 0
        for nuclei. Without a membrane plane there is no growth.
    """

    diameter_px: Annotated[Number, Field(gt=0, le=_LONGEST_PX)] | None = None
    diameter_um: Positive | None = None
    threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    min_size: Count | None = None
    grow_px: Annotated[Number, Field(ge=0, le=_LONGEST_PX)] | None = None
    grow_um: Annotated[Number, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Watershed(Segmenter):
    """See the module."""

    def complete_options(self, given: Mapping[str, Any], slide: SlideFacts) -> dict[str, Any]:
        """See `Segmenter`."""
        options = read_options(WatershedOptions, NAME, given).model_dump()
        if options["diameter_px"] is None and options["diameter_um"] is None:
            options["diameter_px"] = slide.diameter_px
        for length in ("diameter", "grow"):
            if None not in (options[f"{length}_px"], options[f"{length}_um"]):
                raise InputError(
                    f"options of the segmenter {NAME}: {length}_px and {length}_um are both "
                    "given; accepted is one of them"
                )
            if options[f"{length}_um"] is not None and slide.um_per_px is None:
                raise InputError(
                    f"options of the segmenter {NAME}: {length}_um is {options[f'{length}_um']:g} "
                    "but the slide does not tell the size of its pixels; accepted are "
                    f"{length}_px, or the size by --pixel-size"
                )
            if slide.um_per_px and (options[f"{length}_um"] or 0) > _LONGEST_PX * slide.um_per_px:
                raise InputError(
                    f"options of the segmenter {NAME}: {length}_um is {options[f'{length}_um']:g}, "
                    f"more than {_LONGEST_PX} px; accepted is up to that"
                )
        if options["threshold"] is None:
            options["threshold"] = slide.levels[-1]
        return options

    def label(self, tile: Tile) -> NDArray[np.int32]:
        """See `Segmenter`."""
        diameter = _find_length(tile, "diameter")
        assert diameter is not None
        grow = _find_length(tile, "grow")
        min_size = tile.options["min_size"]
        nuclei = label_nuclei(
            tile.image[-1],
            diameter_px=diameter,
            threshold=tile.options["threshold"],
            min_size=round((diameter / 4) ** 2) if min_size is None else min_size,
        )
        if len(tile.image) == 1:
            return nuclei
        grow = diameter / 4 if grow is None else grow
        return grow_cells(nuclei, tile.image[0], grow, smooth_px=diameter / 15)


def _find_length(tile: Tile, name: str) -> float | None:
    """A length in pixels of this tile; None if the user gave none."""
    px, um = tile.options[f"{name}_px"], tile.options[f"{name}_um"]
    if um is None:
        return None if px is None else float(px)
    assert tile.um_per_px is not None  # or the options had been refused
    return float(um / tile.um_per_px)


def label_nuclei(
    image: NDArray[np.float32], *, diameter_px: float, threshold: float, min_size: int
) -> NDArray[np.int32]:
    """Nuclei of a plane, numbered from 1.

    Parameters
    ----------
    image
        `(y, x)` float32, 0 to 1.
    diameter_px
        Of a nucleus.
    threshold
        Smoothed light above it is nucleus.
    min_size
        Smaller objects are dropped, px.
    """
    # SciPy and scikit-image take a second to import, which listing segmenters need not wait for.
    from scipy import ndimage
    from skimage.segmentation import watershed

    light = ndimage.gaussian_filter(image, diameter_px / 15)
    inside = light > threshold
    # Depth within the foreground tells touching nuclei apart, light those in confluent places. It
    # ends at a radius, because further away a tile would not know.
    depth = np.full(inside.shape, diameter_px / 2, np.float32)
    if not inside.all():  # without background SciPy's distances have no meaning
        np.minimum(depth, ndimage.distance_transform_edt(inside), out=depth, casting="same_kind")
    relief = 2 / diameter_px * ndimage.gaussian_filter(depth, diameter_px / 10)
    del depth
    relief += ndimage.gaussian_filter(light, diameter_px / 6)
    del light
    markers = _mark_peaks(relief, inside, radius=max(round(diameter_px / 4), 1))
    # No pixel of a nucleus is a diameter away from its marker: a flood would go on without an end
    # where the foreground does, and bring labels from places that a tile does not see.
    inside &= ndimage.distance_transform_edt(markers == 0) <= diameter_px
    labels = watershed(-relief, markers, mask=inside)
    return _drop_small(labels, min_size)


def _mark_peaks(
    relief: NDArray[np.float32], inside: NDArray[np.bool_], radius: int
) -> NDArray[np.int32]:
    """Numbers from 1 at pixels that none within a window around them is higher than."""
    from scipy import ndimage

    side = 2 * radius + 1
    tops = inside & (relief == ndimage.maximum_filter(relief, side))
    # All tops of a window are equally high; the first of them stays.
    places = np.where(tops, np.arange(tops.size, dtype=np.int64).reshape(tops.shape), tops.size)
    tops &= places == ndimage.minimum_filter(places, side)
    del places
    markers = np.zeros(relief.shape, np.int32)
    n = int(tops.sum())
    markers[tops] = np.arange(1, n + 1)
    # A piece of the foreground beside a higher one has no peak, and is an object as it is.
    pieces, _ = ndimage.label(inside)
    lone = inside & ~np.isin(pieces, pieces[tops])
    markers[lone] = pieces[lone] + n
    return markers


def _drop_small(labels: NDArray[np.int32], min_size: int) -> NDArray[np.int32]:
    sizes = np.bincount(labels.ravel())
    small = sizes < min_size
    small[0] = False
    labels[small[labels]] = 0
    return labels


def make() -> Watershed:
    """The segmenter."""
    packages = {name: version(name) for name in ("scikit-image", "scipy")}
    return Watershed(NAME, NAME, f"{NAME} 1", packages, _BYTES_PER_PX)
