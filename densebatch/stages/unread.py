"""Pieces of a slide that cannot be read: which ones, and the rest of a region without them.

A damaged piece must cost no more than what it holds, so a region that fails is read again piece by
piece. A piece that a store does not give, though it gives others, counts as one too in a run, whose
command asks again for all that could not be read. A store that gives nothing ends the session.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError, SlideChangedError, StoreError, UnreachableError
from densebatch.base.geometry import Grid, Region
from densebatch.slides.slide import reopen_slide

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from densebatch.slides.info import SlideInfo
    from densebatch.stages.work import Work


@dataclass(frozen=True)
class Unread:
    """A piece of a channel that cannot be read.

    Attributes
    ----------
    channel : index in the slide
    region : pixels of the piece, as far as they lie in the slide
    reason : one line
    """

    channel: int
    region: Region
    reason: str

    def describe(self, channels: tuple[str, ...]) -> dict[str, Any]:
        """As the report has it.

        Parameters
        ----------
        channels
            Names of the slide's channels.
        """
        return {
            "channel": channels[self.channel],
            "region": list(astuple(self.region)),
            "reason": self.reason,
        }


def read_pieces(
    work: Work, channel: int, region: Region
) -> tuple[NDArray[np.generic], list[Unread]]:
    """Pixels of a channel, 0 where they cannot be read, and where that is and why.

    Parameters
    ----------
    work
        Of the run.
    channel, region
        What to read.

    Raises
    ------
    SlideChangedError
        If the slide is not the one that the session began with.
    UnreachableError
        If a store gives nothing of it.
    """
    damage = (InputError, StoreError, OSError)
    return _read(work.plan.slide, work.read_slide, channel, region, damage)


def read_pixels(
    info: SlideInfo, channel: int, region: Region
) -> tuple[NDArray[np.generic], list[Unread]]:
    """As `read_pieces`, of the slide that is there now, and not to be asked again.

    Raises
    ------
    InputError
        If it cannot be opened.
    StoreError
        If a store does not give a piece, which nobody may take for damaged here.
    """
    return _read(info, reopen_slide(info).read, channel, region, (InputError, OSError))


def _read(
    info: SlideInfo,
    read: Callable[[int, Region], NDArray[Any]],
    channel: int,
    region: Region,
    damage: tuple[type[Exception], ...],
) -> tuple[NDArray[np.generic], list[Unread]]:
    try:
        return read(channel, region), []
    except (SlideChangedError, UnreachableError):
        raise
    except damage:
        pass
    pixels = np.zeros(region.shape, info.dtype)
    unread = []
    pieces = Grid(info.height, info.width, *info.chunk_px)
    for index in pieces.overlapping(region):
        part = pieces[index].intersect(region)
        if part is None:
            continue
        try:  # all of it, so that the reason is the same for every tile
            found = read(channel, pieces[index])
        except (SlideChangedError, UnreachableError):
            raise
        except damage as error:
            unread.append(Unread(channel, pieces[index], " ".join(str(error).split())))
        else:
            pixels[part.slices_in(region)] = found[part.slices_in(pieces[index])]
    return pixels, unread
