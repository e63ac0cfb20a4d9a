"""Whether what the tasks of a run wrote fits together: levels, ids, table, pixels, metadata.

The second half of `upkeep.verify`. What is damaged is left out, for that has been told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError, describe_cause
from densebatch.base.geometry import Region
from densebatch.base.names import count_of
from densebatch.cells import verify as stored
from densebatch.cells.kept import seeds_path
from densebatch.cells.labels import shard_grid
from densebatch.cells.pyramid import read_unit, source_region, unit_files
from densebatch.cells.pyramid_spec import MISSING_NAME
from densebatch.cells.table import add_parts, mean_column, name_means, shape_columns
from densebatch.cells.verify import Finding
from densebatch.ngff.folders import DOCUMENTS
from densebatch.planning.plan import FlowPlan
from densebatch.slides.slide import reopen_slide
from densebatch.stages.number import find_changed_pixels
from densebatch.stages.unread import read_pixels

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator, Mapping, Sequence

    from densebatch.cells.kept import Tree
    from densebatch.cells.measure import CellSums
    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.planning.plan import Plan
    from densebatch.slides.slide import Slide

_SUMS_BYTES = 512 * 10**6  # of intensities that are summed in one pass over the labels
_SEED_REACH_PX = 6  # beyond a pixel's travel, see `tracing.tile`


class Watch(Protocol):
    """Is told what is looked at; `run.session.Progress` is one."""

    def stage(self, name: str, total: int, done: int) -> None:
        """Begin a stage of `total` units."""

    def advance(self, name: str, pixels: int) -> None:
        """One unit of so many pixels is done."""


@dataclass(frozen=True)
class Content:
    """A result and how it is looked at.

    Attributes
    ----------
    plan : of the run
    tree : the files that the labels are among
    table : the cell table
    spec : layout of its labels and image
    report : content of `run.json`
    damaged : names of files that do not fit their checksums, in the tree that has the labels
    threads : that work at once
    progress : receives stages and units
    """

    plan: Plan
    tree: Tree
    table: Path
    spec: PyramidSpec
    report: Mapping[str, Any]
    damaged: Collection[str]
    threads: int
    progress: Watch

    @property
    def n_cells(self) -> int:
        """Number of cells, as the run reported it."""
        return int(self.report["cells"])

    @property
    def missing(self) -> PyramidSpec | None:
        """The label image that marks where there is no result; None without, or if damaged."""
        folder = f"{self.name(f'labels/{MISSING_NAME}')}/"
        if not self.report["missing_px"] or any(n.startswith(folder) for n in self.damaged):
            return None
        return replace(self.spec, label_name=MISSING_NAME)

    def name(self, path: Path | str) -> str:
        """Name in the tree of a path relative to the root."""
        return (Path(self.spec.root) / path).relative_to(self.tree.base).as_posix()

    def is_damaged(self, level: int, region: Region, channel: int | None) -> bool:
        """Whether a file of a unit does not fit its checksum."""
        names = unit_files(self.spec, level, region, channel)
        return any(self.name(name) in self.damaged for name in names)

    def units(self, level: int) -> Iterator[Region]:
        """Units of a level."""
        grid = shard_grid(self.spec, level)
        return (grid[index] for index in grid)

    @property
    def channels(self) -> range:
        """Channels of the copied image; none if there is none."""
        return range(len(self.spec.channels) if self.spec.image else 0)

    def find(self, path: Path | str, what: str, place: Region | None = None) -> Finding:
        """Something that is wrong with a file or folder below the root."""
        return Finding(self.tree.shown(self.name(path)), what, place)


def check_content(content: Content) -> Iterator[Finding | str]:
    """Compare what the files of a result say, as far as they are undamaged.

    Parameters
    ----------
    content
        Of the result.

    Yields
    ------
    Finding or str
        What is wrong, or a note of what was left out.

    Raises
    ------
    InputError
        If metadata cannot be read.
    """
    failed, unread = content.report["failed_tiles"], content.report["unread"]
    if failed or unread or content.report["missing_px"]:
        yield (
            f"the run was partial: {count_of(len(failed), 'tile')} without labels, "
            f"{count_of(len(unread), 'piece')} of the slide that could not be read, "
            f"{content.report['missing_px']} px without a result"
        )
    yield from _check_metadata(content)
    yield from _check_levels(content)
    if any(content.is_damaged(0, region, None) for region in content.units(0)):
        yield "ids and table were not compared with the labels, because some of these are damaged"
        return
    sums = yield from _check_ids(content)
    if sums is None:
        return
    source = PixelSource(content)
    if not source.is_there:
        yield f"mean intensities were not compared: {source.reason}"
    elif content.spec.image and source.slide is None:
        yield f"the copied image was not compared with the slide: {source.reason}"
    if content.table.name not in content.damaged:
        yield from _check_table(content, sums, source)
    if content.spec.image and source.slide is not None:
        yield from _check_copy(content, source)


def _check_metadata(content: Content) -> Iterator[Finding | str]:
    for path, what in stored.find_metadata_faults(content.spec):
        if any(content.name(path / name) in content.damaged for name in DOCUMENTS):
            continue
        found = content.find(path, what)
        if what.startswith("is not valid") and content.plan.slide.kind == "ome-zarr":
            yield f"{found}; labels copy the metadata of the slide, faults included"
        else:
            yield found


def _check_levels(content: Content) -> Iterator[Finding]:
    """Every level against the one below."""

    def look(unit: tuple[int, Region, int | None]) -> str | None:
        level, region, channel = unit
        grid = shard_grid(content.spec, level - 1)
        below = grid.overlapping(source_region(content.spec, level, region))
        if content.is_damaged(level, region, channel) or any(
            content.is_damaged(level - 1, grid[index], channel) for index in below
        ):
            return None
        return stored.compare_reduction(content.spec, level, region, channel)

    planes = [None, *content.channels]
    for level in range(1, content.spec.n_levels):
        shown = f"compare level {level}"
        units = ((level, r, channel) for r in content.units(level) for channel in planes)
        n_units = len(shard_grid(content.spec, level)) * len(planes)
        content.progress.stage(shown, n_units, 0)
        for (_, region, channel), what in map_in_threads(look, units, content.threads):
            content.progress.advance(shown, region.area)
            if what is not None:
                name = unit_files(content.spec, level, region, channel)[0]
                yield content.find(name, what, region)


def _check_ids(content: Content) -> Generator[Finding, None, CellSums | None]:
    """Ids 1..N complete and in raster order; returns the sums over the shapes of the cells."""
    n_cells = content.n_cells
    labels = f"labels/{content.spec.label_name}/0"
    found: list[Finding] = []
    try:
        sums = add_parts(_measure_units(content, (), None, found), n_cells, 0)
    except InputError as error:
        yield content.find(labels, describe_cause(error))
        return None
    yield from found
    lost = np.flatnonzero(sums.shapes[:, 0] == 0) + 1
    if lost.size:
        yield content.find(labels, f"has no pixel of the ids {_list_some(lost)}")
    path = seeds_path(content.tree.out)
    try:
        seeds = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return sums  # which is told where files are compared
    reach = 0  # a segmenter's cells are keyed by their first pixels
    if isinstance(content.plan, FlowPlan):
        reach = math.ceil(float(content.report["max_travel_px"])) + _SEED_REACH_PX
    what = stored.compare_seeds(seeds, sums.shapes, content.plan.shape[1], reach)
    if what is not None:
        yield Finding(path.relative_to(content.tree.out).as_posix(), what)
    return sums


def _measure_units(
    content: Content,
    channels: Sequence[int],
    source: PixelSource | None,
    found: list[Finding] | None = None,
) -> Iterator[CellSums]:
    """Sums over the cells of every unit, in raster order; ids beyond N join `found`."""
    read = None if source is None else source.read
    missing = None if channels else content.missing
    shown = f"measure channels {channels[0]} to {channels[-1]}" if channels else "measure cells"
    content.progress.stage(shown, len(shard_grid(content.spec, 0)), 0)

    def measure(region: Region) -> CellSums:
        return stored.measure_unit(content.spec, region, channels, read, missing)

    for region, part in map_in_threads(measure, content.units(0), content.threads):
        content.progress.advance(shown, region.area)
        known, strange = stored.split_strangers(part, content.n_cells)
        if strange.size and found is not None:
            name = unit_files(content.spec, 0, region)[0]
            what = f"has the ids {_list_some(strange)}, and there are {content.n_cells} cells"
            found.append(content.find(name, what, region))
        yield known


def _list_some(ids: Any) -> str:  # noqa: ANN401
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def list_columns(
    content: Content, shapes: CellSums, source: PixelSource
) -> Iterator[tuple[str, Any]]:
    """Names and values of the columns of the table, from labels and pixels.

    Parameters
    ----------
    content
        Of the result.
    shapes
        Sums over the shapes of the cells.
    source
        Of the pixels; columns that need them are left out without. So is what a damaged label
        image `missing` decides.

    Raises
    ------
    InputError
        If labels or pixels cannot be read.
    """
    plan = content.plan
    columns = shape_columns(shapes, Region(0, 0, *plan.shape), plan.um_per_px)
    if content.report["missing_px"] and content.missing is None:
        del columns["touches_missing"]
    yield from columns.items()
    names = name_means(plan.slide.channels)
    step = max(1, _SUMS_BYTES // max(1, 16 * content.n_cells))
    for first in range(0, len(names) if source.is_there else 0, step):
        channels = range(first, min(first + step, len(names)))
        parts = _measure_units(content, channels, source)
        total = add_parts(parts, content.n_cells, len(channels))
        for place, channel in enumerate(channels):
            yield names[channel], mean_column(total, place)


def sum_shapes(content: Content) -> CellSums:
    """Sums over the shapes of the cells, for `list_columns`.

    Raises
    ------
    InputError
        If labels cannot be read.
    """
    return add_parts(_measure_units(content, (), None), content.n_cells, 0)


def _check_table(content: Content, sums: CellSums, source: PixelSource) -> Iterator[Finding]:
    """The table against labels and pixels."""
    table = content.table
    try:
        for name, column in list_columns(content, sums, source):
            what = stored.compare_column(table, name, column)
            if what is not None:
                yield Finding(table.name, what)
    except InputError as error:
        yield Finding(table.name, f"cannot be compared: {describe_cause(error)}")


def _check_copy(content: Content, source: PixelSource) -> Iterator[Finding]:
    """The copied image against the slide, where both can be read."""

    def look(unit: tuple[int, Region]) -> str | None:
        channel, region = unit
        if content.is_damaged(0, region, channel):
            return None
        pixels, holes = read_pixels(content.plan, channel, region)
        try:
            copied = read_unit(content.spec, 0, region, channel)
        except InputError as error:
            return describe_cause(error)
        known = source.find_holes(channel, region)
        differs = not holes and not known and pixels.tobytes() != copied.tobytes()
        return "is not the image of the slide" if differs else None

    shown = "compare image"
    units = ((channel, r) for r in content.units(0) for channel in content.channels)
    content.progress.stage(shown, len(shard_grid(content.spec, 0)) * len(content.channels), 0)
    for (channel, region), what in map_in_threads(look, units, content.threads):
        content.progress.advance(shown, region.area)
        if what is not None:
            yield content.find(unit_files(content.spec, 0, region, channel)[0], what, region)


class PixelSource:
    """Where the pixels are read that the run measured: the copied image, else the slide.

    Attributes
    ----------
    slide : the slide of the run, None if it is not there or another one
    reason : why
    """

    def __init__(self, content: Content) -> None:
        self._plan, self._spec = content.plan, content.spec
        self._unread = [
            (hole["channel"], Region(*hole["region"])) for hole in content.report.get("unread", ())
        ]
        self.slide, self.reason = find_slide(content.plan, content.spec.root, content.report)
        self._has_copy = content.spec.image and not any(
            content.is_damaged(0, region, channel)
            for region in content.units(0)
            for channel in content.channels
        )

    @property
    def is_there(self) -> bool:
        """Whether there are pixels."""
        return self._has_copy or self.slide is not None

    def find_holes(self, channel: int, region: Region) -> list[Region]:
        """Where the run could not read a channel."""
        name = self._plan.slide.channels[channel]
        return [
            part for each, hole in self._unread
            if each == name and (part := hole.intersect(region)) is not None
        ]  # fmt: skip

    def read(self, channel: int, region: Region) -> tuple[Any, Sequence[Region]]:
        """Pixels of a channel, and where the run could not read them; see `cells.verify`."""
        holes = self.find_holes(channel, region)
        if self._has_copy:
            return read_unit(self._spec, 0, region, channel), holes
        pixels, unread = read_pixels(self._plan, channel, region)
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
            if not same or find_changed_pixels(plan, str(root), report["slide_pixels"]):
                return None, f"{plan.slide.path}: has changed since the run"
    except (InputError, OSError) as error:
        return None, describe_cause(error)
    return slide, ""
