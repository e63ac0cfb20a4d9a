"""One image of a TIFF file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tifffile import PHOTOMETRIC

if TYPE_CHECKING:
    from tifffile import TiffPageSeries

    from densebatch.tiff.ome import OmeImage

# Series that tifffile makes of pages of one size; it takes smaller ones for levels, unasked.
UNNAMED_KINDS = ("generic", "uniform")


@dataclass(frozen=True, eq=False)
class TiffImage:
    """One image of a TIFF file.

    Attributes
    ----------
    series
        At its highest resolution; None if tifffile could make none of it.
    name
        As the file calls it, "" if it does not.
    beside
        What it is if it is no image of its own, such as "thumbnail"; "" if it is one.
    levels
        Rows and columns of its resolutions, the highest first; () if nobody looked.
    ome
        Its `Image` of OME-XML.
    """

    series: TiffPageSeries | None
    name: str = ""
    beside: str = ""
    levels: tuple[tuple[int, int], ...] = ()
    ome: OmeImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; (0, 0) if they are unknown."""
        series = self.series
        if series is None or not {"Y", "X"} <= set(series.axes):
            return 0, 0
        return tuple(int(series.shape[series.axes.index(axis)]) for axis in "YX")  # type: ignore[return-value]

    @property
    def area(self) -> int:
        """Pixels of a plane."""
        return math.prod(self.size)

    @property
    def is_colour(self) -> bool:
        """Whether it is a colour picture."""
        return self.series is not None and self.series.keyframe.photometric in (
            PHOTOMETRIC.RGB,
            PHOTOMETRIC.YCBCR,
        )

    @property
    def what(self) -> str:
        """What it is, for a list to choose from."""
        if self.series is None:
            return "whose metadata contradict the pages"
        height, width = self.size
        n = math.prod(self.series.shape) // max(1, self.area)
        what = "colours" if self.is_colour else "plane" if n == 1 else "planes"
        return f"{n} {what} of {height} x {width} px, {self.series.dtype}"
