"""Where the pixels are that a finished run measured, or another image that was measured since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError, StoreError, describe_cause
from densebatch.base.geometry import Region
from densebatch.base.names import find_name, quote_names, split_names
from densebatch.cells.labels import slide_layout
from densebatch.cells.pyramid import read_unit
from densebatch.remote.address import is_address
from densebatch.slides.slide import open_slide, reopen_slide
from densebatch.stages.number import find_changed_pixels
from densebatch.stages.unread import read_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.planning.plan import Plan
    from densebatch.remote.tree import Place
    from densebatch.slides.info import SlideInfo
    from densebatch.slides.slide import Slide
    from densebatch.stages.unread import Unread


_SIZE_TOLERANCE = 0.01  # of pixel sizes that are one
_OFFSET_TOLERANCE_PX = 0.01


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
    found : pieces that could not be read by this object
    """

    def __init__(
        self, plan: Plan, spec: PyramidSpec, report: Mapping[str, Any], *, has_copy: bool
    ) -> None:
        self._spec, self._info, self._has_copy = spec, plan.slide, has_copy
        self._slide_channels = plan.slide.channels
        self._holes_of_slide = _list_holes(report)
        self._holes = _list_holes(report["measured"])
        self.found: list[Unread] = []
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
        else:
            self._holes += self._holes_of_slide
        self.channels: tuple[str, ...] = (
            plan.slide.channels if other is None else tuple(other["channels"])
        )

    def describe_unread(self) -> list[dict[str, Any]]:
        """The pieces that could not be read, each once, as a report has them."""
        pieces = {(hole.channel, hole.region): hole for hole in self.found}
        ordered = sorted(pieces, key=lambda key: (key[0], key[1].y0, key[1].x0))
        return [pieces[key].describe(self.channels) for key in ordered]

    def find_run_holes(self, channel: int, region: Region) -> list[Region]:
        """Where the run could not read a channel of its slide."""
        name = self._slide_channels[channel]
        return _find_inside(self._holes_of_slide, name, region)

    def read(self, channel: int, region: Region) -> tuple[Any, Sequence[Region]]:
        """Pixels of a channel, and where they could not be read, now or when they were measured."""
        holes = _find_inside(self._holes, self.channels[channel], region)
        if self._has_copy:
            return read_unit(self._spec, 0, region, channel), holes
        pixels, unread = read_pixels(self._info, channel, region)
        self.found += unread
        parts = (hole.region.intersect(region) for hole in unread)
        return pixels, [*holes, *(part for part in parts if part is not None)]


def _list_holes(told: Mapping[str, Any]) -> list[tuple[str, Region]]:
    return [(hole["channel"], Region(*hole["region"])) for hole in told.get("unread", ())]


def _find_inside(holes: Sequence[tuple[str, Region]], channel: str, region: Region) -> list[Region]:
    parts = (hole.intersect(region) for name, hole in holes if name == channel)
    return [part for part in parts if part is not None]


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
        slide.source.look_again()
        if slide.info.identity != plan.slide.identity:  # it may have been touched, no more
            form = ("height", "width", "channels", "dtype")
            same = all(getattr(slide.info, n) == getattr(plan.slide, n) for n in form)
            if not same or find_changed_pixels(plan, str(root), report):
                return None, f"{plan.slide.path}: has changed since the run"
    except (InputError, StoreError, OSError) as error:
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
        chosen = {name: told.get(name) for name in ("z", "t", "panel")}
        slide = open_slide(told["path"], told["scene"], told["axes"], **chosen)
        if slide.info.identity != told["identity"]:
            return None, f"{told['path']}: has changed since it was measured"
    except (InputError, StoreError, OSError) as error:
        return None, describe_cause(error)
    return slide, ""


def open_other(path: Place, chosen: Mapping[str, str | None], plan: Plan, out: Path) -> SlideInfo:
    """Open another image, which must lie on the grid of a run's labels.

    Parameters
    ----------
    path, chosen
        As of `open_slide`, which image is meant by name of the argument.
    plan
        Of the run.
    out
        Its output folder, for the error.

    Raises
    ------
    InputError
        If it cannot be used, or has another size, pixel size or offset.
    """
    info = open_slide(path, **chosen).info
    accepted = f"accepted is an image on the grid of the labels in {out}"
    if (info.height, info.width) != plan.shape:
        raise InputError(
            f"{path}: has {info.height} x {info.width} px; {accepted}, {plan.shape[0]} x "
            f"{plan.shape[1]} px"
        )
    theirs, ours = info.um_per_px, plan.um_per_px
    if theirs is not None and ours is not None and abs(theirs / ours - 1) > _SIZE_TOLERANCE:
        raise InputError(f"{path}: has pixels of {theirs:g} um; {accepted}, of {ours:g} um")
    origins = find_origin(plan.slide), find_origin(info)
    if None not in origins:
        apart = max(abs(a - b) for a, b in zip(*origins, strict=True))  # type: ignore[arg-type]
        if apart > _OFFSET_TOLERANCE_PX:
            raise InputError(
                f"{path}: begins {apart:g} px from where the run's slide does, by the metadata of "
                f"both; {accepted}"
            )
    return info


def find_origin(info: SlideInfo) -> tuple[float, float] | None:
    """Where the first pixel of an OME-Zarr image lies, in its pixels; None if nobody tells.

    Parameters
    ----------
    info
        Of the image, which need not be there any more.
    """
    layout = None
    if info.kind == "ome-zarr" and (is_address(info.path) or Path(info.path).is_dir()):
        layout = slide_layout(info.path, info.scene, info.axes)
    if layout is None:
        return None
    origin, size = [0.0, 0.0], [1.0, 1.0]
    for kind, *numbers in (*layout.transforms[0], *layout.outer):
        for axis, number in enumerate(numbers):
            if kind == "scale":
                origin[axis], size[axis] = origin[axis] * number, size[axis] * number
            else:
                origin[axis] += number
    return origin[0] / size[0], origin[1] / size[1]


def describe_other(info: SlideInfo) -> dict[str, Any]:
    """Another image that is measured, as `run.json` has it; see `find_other`."""
    return {
        "path": info.path,
        "scene": info.scene,
        "axes": info.axes,
        "z": info.z,
        "t": info.t,
        "panel": info.panel,
        "identity": info.identity,
        "channels": list(info.channels),
    }


def find_channels(path: str, names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """Find channels by name or index, also where the image is not there; all if none is named.

    Parameters
    ----------
    path
        Of the image, for the error.
    names
        Of its channels.
    wanted
        Each text one channel, or several with commas between them.

    Returns
    -------
    tuple of int
        Ascending.

    Raises
    ------
    InputError
        If there is no such channel, or several.
    """
    found: set[int] = set()
    for text in wanted:
        ways = split_names(names, text)
        if len(ways) > 1:
            raise InputError(
                f"{path}: {text!r} may be the channels {quote_names(ways[0])}, or "
                f"{quote_names(ways[1])}; name them one by one, by repeating the option"
            )
        for name in ways[0] if ways else text.split(","):
            indices = find_name(names, name)
            if len(indices) != 1:
                many = f"{len(indices)} channels" if indices else "no channel"
                raise InputError(
                    f"{path} has {many} {name.strip()!r}; accepted are {quote_names(names)}, or an "
                    f"index from 0 to {len(names) - 1}"
                )
            found.add(indices[0])
    return tuple(sorted(found)) if found else tuple(range(len(names)))
