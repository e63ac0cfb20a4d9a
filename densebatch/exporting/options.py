"""What a user chooses of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LabelType = Literal["uint32", "int32"]
DEFAULT_SIMPLIFY_PX = 0.5


@dataclass(frozen=True)
class Options:
    """How to write an export; each target heeds what is its.

    Attributes
    ----------
    suffix : how the export's name ends, in lower case: `.csv.gz` is compressed, `.csv` is not
    simplify_px : how far an outline may move when it is simplified; 0 keeps the edges of pixels
    label_dtype : of a label TIFF
    """

    suffix: str
    simplify_px: float = DEFAULT_SIMPLIFY_PX
    label_dtype: LabelType = "uint32"

    @property
    def is_compressed(self) -> bool:
        """Whether the name asks for gzip."""
        return self.suffix.endswith(".gz")
