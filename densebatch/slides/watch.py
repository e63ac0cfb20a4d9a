"""Whether a slide is still the one that was planned for, asked before its pixels are used.

Looking at every chunk file of an OME-Zarr takes seconds, so it is done once, when a run is planned:
that is the slide's identity. The latest change that is seen then (`st_ctime`: of content, name or
attributes; nobody can set it back) is the mark for all tasks. A task looks only at the files that
it has read: what has changed since is not the slide of the plan, whatever its size and its
modification time say. That costs a call of the system per chunk file.

What cannot be told: a change within the clock tick of the mark; a change on a file system that
keeps no such time (sshfs gives the modification time instead), if size and modification time are
kept. A change of attributes alone (`chmod`) counts too; the same command then continues.

Of an address, each answer tells when its object had changed, so that no more is asked. The list of
a store is the identity, and tells chunks that never were from those that somebody has removed. A
web server lists nothing: docs/object-storage.md says what cannot be told there.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from densebatch.base.errors import InputError, SlideChangedError
from densebatch.slides.slide import reopen_slide

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.slides.info import SlideInfo
    from densebatch.slides.slide import Slide

_REMEDY = (
    "the result would be of two slides; bring back the slide as it was and the same command "
    "continues, or begin again with --restart"
)


class SlideState(NamedTuple):
    """A slide as a session of a run found it; small, because it travels with every task.

    Attributes
    ----------
    described : hex digest of what its documents say, or of sizes and times of its few files
    newest_ns : the latest change of any file of it
    listed : hex digest of all chunks that there are, where a store lists them
    """

    described: str
    newest_ns: int
    listed: str | None = None


def watch_slide(info: SlideInfo) -> SlideState:
    """Note how the slide is now, for the tasks to compare with.

    Parameters
    ----------
    info
        As it was planned for, in this process.

    Raises
    ------
    SlideChangedError
        If it is not that slide any more.
    InputError
        As `open_slide`.
    """
    slide = reopen_slide(info)
    slide.source.look_again()
    if slide.info.identity != info.identity:
        raise SlideChangedError(f"{info.path}: has changed since it was planned; {_REMEDY}")
    source = slide.source
    return SlideState(_digest(source.describe()), source.newest_ns(), source.listed)


def read_watched(
    info: SlideInfo, state: SlideState | None, channel: int, region: Region
) -> NDArray[Any]:
    """Read a region of one channel, as `Slide.read`, if the slide is the one of a state.

    Parameters
    ----------
    info
        Of the slide.
    state
        That `watch_slide` noted; None reads whatever is there.
    channel, region
        What to read.

    Raises
    ------
    SlideChangedError
        If it is another slide, or there is none any more.
    InputError
        If its pixels cannot be read or decoded.
    """
    if state is None:
        return reopen_slide(info).read(channel, region)
    try:
        slide = reopen_slide(info)
    except (InputError, OSError) as error:
        raise SlideChangedError(f"{info.path}: cannot be opened any more ({error})") from error
    _compare(slide, info, state)
    pixels = slide.read(channel, region)
    # Asked afterwards, because a file may be replaced while it is read.
    newer = slide.source.find_newer(channel, channel + 1, region, state.newest_ns, state.listed)
    if newer is not None:
        raise SlideChangedError(f"{info.path}: has changed under the run ({newer}); {_REMEDY}")
    return pixels


def _compare(slide: Slide, info: SlideInfo, state: SlideState) -> None:
    if _digest(slide.source.describe()) != state.described:
        raise SlideChangedError(f"{info.path}: has changed under the run; {_REMEDY}")


def _digest(content: list[object]) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
