"""Where the pixels are that a finished run measured, or another image that was measured since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.geometry import Region
from densebatch.cells.pyramid import read_unit
from densebatch.slides.slide import open_slide, reopen_slide
from densebatch.stages.number import find_changed_pixels
from densebatch.stages.unread import read_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.planning.plan import Plan
    from densebatch.slides.slide import Slide


class PixelSource:
    """Where the pixels are read that were measured: another image, the copied one, else the slide.

    Parameters
    ----------
    plan
        Of the run.
    spec
        Layout of its labels and image.
    report
        Content of `run.json`.
    has_copy
        Whether the image of the run was copied, and the copy is undamaged.

    Attributes
    ----------
    slide : the slide of the run, None if it is not there or another one
    channels : names of all channels of what was measured
    is_there : whether it can be read
    reason : why not; or why the slide of the run is not there
    """

    def __init__(
        self, plan: Plan, spec: PyramidSpec, report: Mapping[str, Any], *, has_copy: bool
    ) -> None:
        self._spec, self._info, self._has_copy = spec, plan.slide, has_copy
        self._unread = [
            (hole["channel"], Region(*hole["region"])) for hole in report.get("unread", ())
        ]
        self.slide, self.reason = find_slide(plan, spec.root, report)
        self.is_there = has_copy or self.slide is not None
        other = report["measured"]["from"]
        if other is not None:
            found, reason = find_other(other)
            self.is_there, self._has_copy = found is not None, False
            if found is None:
                self.reason = reason
            else:
                self._info = found.info
            self._unread = [(hole["channel"], Region(*hole["region"])) for hole in other["unread"]]
        self.channels: tuple[str, ...] = (
            plan.slide.channels if other is None else tuple(other["channels"])
        )

    def find_holes(self, channel: int, region: Region) -> list[Region]:
        """Where a channel could not be read when it was measured."""
        name = self.channels[channel]
        return [
            part for each, hole in self._unread
            if each == name and (part := hole.intersect(region)) is not None
        ]  # fmt: skip

    def read(self, channel: int, region: Region) -> tuple[Any, Sequence[Region]]:
        """Pixels of a channel, and where they could not be read when they were measured."""
        holes = self.find_holes(channel, region)
        if self._has_copy:
            return read_unit(self._spec, 0, region, channel), holes
        pixels, unread = read_pixels(self._info, channel, region)
        parts = (hole.region.intersect(region) for hole in unread)
        return pixels, [*holes, *(part for part in parts if part is not None)]


def find_slide(plan: Plan, root: Path | str, report: Mapping[str, Any]) -> tuple[Slide | None, str]:
    """The slide of a run if it is there and its pixels are what they were, else why it is not.

    Parameters
    ----------
    plan
        Of the run.
    root
        The OME-Zarr image group that has the labels.
    report
        Content of `run.json`.
    """
    try:
        slide = reopen_slide(plan.slide)
        if slide.info.identity != plan.slide.identity:  # it may have been touched, no more
            form = ("height", "width", "channels", "dtype")
            same = all(getattr(slide.info, n) == getattr(plan.slide, n) for n in form)
            if not same or find_changed_pixels(plan, str(root), report):
                return None, f"{plan.slide.path}: has changed since the run"
    except (InputError, OSError) as error:
        return None, describe_cause(error)
    return slide, ""


def find_other(told: Mapping[str, Any]) -> tuple[Slide | None, str]:
    """Another image that was measured if it is there and what it was, else why it is not.

    Parameters
    ----------
    told
        `from` of what `run.json` says was measured.
    """
    try:
        slide = open_slide(Path(told["path"]), told["scene"], told["axes"])
        if slide.info.identity != told["identity"]:
            return None, f"{told['path']}: has changed since it was measured"
    except (InputError, OSError) as error:
        return None, describe_cause(error)
    return slide, ""
