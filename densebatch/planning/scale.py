"""From slide pixels to network pixels: by a stated diameter, by pixel sizes, or the model's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from densebatch.models.model import Model


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
