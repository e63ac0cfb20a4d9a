"""How tissue was looked for on a slide, as plain data in a plan; `survey.tissue` looks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from densebatch.regions.areas import Areas


@dataclass(frozen=True)
class ChannelTissue:
    """How tissue was looked for in a channel.

    Attributes
    ----------
    name : of the channel
    separability : share of the variance that is between Otsu's classes, 0 to 1
    threshold : pixel value; of smoothed blocks, more is tissue
    lower : pixel value from which blocks beside these are tissue too
    counts : whether the classes differ clearly enough
    """

    name: str
    separability: float
    threshold: float
    lower: float
    counts: bool


@dataclass(frozen=True)
class TissueSearch:
    """What was looked at to find tissue, and whether any was told from glass.

    Attributes
    ----------
    level : of the pyramid, 0 for the highest resolution
    block_px, margin_px : side of a block and the margin, pixels of the slide
    channels : that were looked at
    share : of the slide, that is tissue with its margin; None if all of it counts
    reason : why all of it counts; None if it does not
    """

    level: int
    block_px: float
    margin_px: float
    channels: tuple[ChannelTissue, ...]
    share: float | None = None
    reason: str | None = None


class SlideTissue(NamedTuple):
    """The tissue of a slide.

    Attributes
    ----------
    search : how it was looked for
    region : the part of the slide that counts by it, and by files
    """

    search: TissueSearch
    region: Areas | None

    def explain(self) -> Iterator[str]:
        """Say so where tissue could not be told."""
        if self.search.reason is not None:
            whole = "slide" if self.region is None else "region"
            yield f"--tissue auto: {self.search.reason}: all of the {whole} counts"
