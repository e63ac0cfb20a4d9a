"""Sizes of pixels and places of images in micrometres, from what metadata say."""

from __future__ import annotations

import math

_UM_PER_UNIT = {
    **dict.fromkeys(("pm", "picometer"), 1e-6),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("nm", "nanometer"), 1e-3),
    **dict.fromkeys(("um", "micron", "micrometer"), 1.0),
    **dict.fromkeys(("mm", "millimeter"), 1e3),
    **dict.fromkeys(("cm", "centimeter"), 1e4),
    **dict.fromkeys(("m", "meter"), 1e6),
    **dict.fromkeys(("in", "inch"), 25400.0),
}


def to_um(value: object, unit: object) -> float | None:
    """Convert a length to micrometres, None if it is no positive length in a known unit.

    Examples
    --------
    >>> to_um("325", "nm"), to_um(0.5, "µm"), to_um(1, "pixel")
    (0.325, 0.5, None)
    """
    length = place_um(value, unit)
    return length if length is not None and length > 0 else None


def place_um(value: object, unit: object) -> float | None:
    """Convert a coordinate to micrometres, None if it is no number in a known unit."""
    # The micro sign and the Greek letter look the same, and ImageJ writes neither.
    name = str(unit).strip().lower()
    for micro in ("µ", "μ", "\\u00b5"):
        name = name.replace(micro, "u")
    name = name.replace("metre", "meter")
    factor = _UM_PER_UNIT.get(name, _UM_PER_UNIT.get(name.removesuffix("s")))
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number * factor if factor is not None and math.isfinite(number * factor) else None


def place_origin(um_y: float | None, um_x: float | None) -> tuple[float, float] | None:
    """Where an image lies; None if that is not known, or nowhere but at the origin."""
    known = um_y is not None and um_x is not None and (um_y, um_x) != (0, 0)
    return (um_y, um_x) if known else None  # type: ignore[return-value]


def tell_oblong(um_y: float | None, um_x: float | None) -> tuple[str, ...]:
    """A note where both lengths of a pixel are known and `square_pixel` makes nothing of them."""
    if um_y is None or um_x is None or square_pixel(um_y, um_x) is not None:
        return ()
    return (
        f"the metadata give pixels of {um_y:g} x {um_x:g} um, which are not square: the pixel size "
        "counts as unknown, unless --pixel-size gives it",
    )


def square_pixel(um_y: float | None, um_x: float | None) -> float | None:
    """One pixel size for both directions, None if it is unknown or they differ by over 1 %."""
    if um_x is None or um_y is None:
        return None
    return um_x if abs(um_y - um_x) <= 0.01 * um_x else None
