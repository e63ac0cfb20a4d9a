"""From slide pixels to network pixels: by a stated diameter, by pixel sizes, or the model's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.names import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from densebatch.models.model import Model
    from densebatch.planning.settings import SegmentSettings

_SAME = 0.01  # pixel sizes that differ by less are one size
_USUAL_UM = (0.01, 10.0)  # of pixels in which cells can be told apart
_USUAL_RESCALE = 4.0
_CONSEQUENCE = "cells are missed or merged"


@dataclass(frozen=True)
class DiameterEstimate:
    """The cells' diameter, and what it rests on.

    Attributes
    ----------
    diameter_px : slide pixels, three digits; None if too few cells are found at any scale
    cells : of which it is the median
    fields : in which they are
    """

    diameter_px: float | None
    cells: int
    fields: int


def settle_diameter(
    path: str,
    settings: SegmentSettings,
    um_per_px: float | None,
    estimate: DiameterEstimate | None,
) -> float | None:
    """Diameter of a slide's cells in its pixels, as far as it is stated or estimated.

    Parameters
    ----------
    path
        Of the slide, for messages.
    settings
        What the user stated.
    um_per_px
        Pixel size of the slide; None if unknown.
    estimate
        Of the diameter, where that is to be estimated; None before.

    Raises
    ------
    InputError
        For a diameter in um without a pixel size.
    """
    if settings.diameter_um is not None:
        if um_per_px is None:
            raise InputError(
                f"{path}: tells no pixel size, which a diameter of {settings.diameter_um:g} um "
                "needs; state it with --pixel-size, or the cells' diameter in px with --diameter"
            )
        return settings.diameter_um / um_per_px
    if settings.diameter == "auto":
        return estimate.diameter_px if estimate is not None else None
    return settings.diameter


def explain_estimate(estimate: DiameterEstimate | None) -> Iterator[str]:
    """Say what was estimated of the cells' diameter, a sentence; nothing without an estimate."""
    if estimate is None:
        return
    if estimate.diameter_px is None:
        yield (
            "diameter auto: too few cells are found to estimate theirs at any scale, so that the "
            "scale is as without; state it with --diameter"
        )
    else:
        yield (
            f"diameter auto: cells are taken to be {estimate.diameter_px:g} px across, estimated "
            f"from {count_of(estimate.cells, 'cell')} in {count_of(estimate.fields, 'field')}; if "
            "they are not, state theirs with --diameter"
        )


def choose_rescale(
    model: Model, um_per_px: float | None, diameter_px: float | None
) -> tuple[float, str]:
    """Factor from slide pixels to network pixels, and the reason for it in words.

    A stated diameter decides; else pixel sizes, if both are known; else the model's own default.
    A factor within 3 % of 1 is taken as 1: interpolation would cost more than it corrects.

    Parameters
    ----------
    model
        Whose scale is that of the network.
    um_per_px
        Pixel size of the slide; None if unknown.
    diameter_px
        Cell diameter in slide pixels that the user stated; None without.

    Returns
    -------
    factor
        Network pixels in a slide pixel.
    reason
        In words.

    Raises
    ------
    InputError
        If the factor is outside 1/16 to 8.
    """
    if diameter_px is not None:
        if not (math.isfinite(diameter_px) and diameter_px > 0):
            raise InputError(f"diameter {diameter_px} px: accepted are positive numbers")
        factor = model.diameter_px / diameter_px
        reason = f"cells of {diameter_px:g} px, network trained on {model.diameter_px:.3g} px"
    elif model.um_per_px is not None and um_per_px is not None:
        factor = um_per_px / model.um_per_px
        reason = f"slide {um_per_px:g} um/px, network {model.um_per_px:g} um/px"
    elif model.um_per_px is not None:
        factor = model.diameter_px / model.default_diameter_px
        taken = model.um_per_px * factor
        reason = f"pixel size unknown, taken as {taken:g} um/px, that of the model's images"
    else:
        factor = model.diameter_px / model.default_diameter_px
        reason = (
            f"model's default cell diameter {model.default_diameter_px:.3g} px, "
            f"network trained on {model.diameter_px:.3g} px"
        )
    if not 1 / 16 <= factor <= 8:
        raise InputError(
            f"the slide would be rescaled by {factor:.3g} ({reason}); accepted is 0.0625 to 8: "
            "check --pixel-size or --diameter"
        )
    return (1.0 if abs(factor - 1) < 0.03 else factor), reason


def explain_scale(
    model: Model, told_um: float | None, stated_um: float | None, diameter_px: float | None
) -> Iterator[str]:
    """Say what a user ought to know of the scale: what is assumed, and what looks wrong.

    Parameters
    ----------
    model
        Whose scale is that of the network.
    told_um
        um per pixel as the slide's metadata tell it; None if they do not.
    stated_um, diameter_px
        um per pixel, and cell diameter in slide pixels, that the user stated; None without.

    Yields
    ------
    str
        A sentence; none for a slide that tells a usual pixel size.
    """
    if stated_um is not None and told_um is not None:
        if abs(stated_um - told_um) > _SAME * told_um:
            yield (
                f"pixel size {stated_um:g} um/px, as stated, is used; the slide's metadata tell "
                f"{told_um:g} um/px"
            )
    elif told_um is not None and not _USUAL_UM[0] <= told_um <= _USUAL_UM[1]:
        yield (
            f"pixel size {told_um:g} um/px, from the slide's metadata, is unusual for cells: "
            "sizes in um are wrong if it is; state the right one with --pixel-size"
        )
    if diameter_px is not None:
        return
    um_per_px = stated_um or told_um
    factor, _ = choose_rescale(model, um_per_px, None)
    if model.um_per_px is None:
        yield (
            f"model {model.name} tells no pixel size: cells are taken to be "
            f"{model.default_diameter_px:.3g} px across, its default, whatever the slide's pixel "
            f"size; if they are not, {_CONSEQUENCE}: state theirs with --diameter, or auto to "
            "estimate it"
        )
    elif um_per_px is None:
        taken = model.um_per_px * model.diameter_px / model.default_diameter_px
        yield (
            f"pixel size unknown: taken as {taken:g} um/px, that of the model's images; if it is "
            f"another, {_CONSEQUENCE}: state it with --pixel-size, or the cells' with --diameter"
        )
    elif stated_um is None and not 1 / _USUAL_RESCALE <= factor <= _USUAL_RESCALE:
        change = f"enlarged {factor:.3g}" if factor > 1 else f"shrunk {1 / factor:.3g}"
        yield (
            f"pixel size {um_per_px:g} um/px, from the slide's metadata: the slide is {change} "
            f"times for the network; if it is another, {_CONSEQUENCE}: state it with --pixel-size"
        )
