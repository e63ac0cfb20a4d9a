"""Whether what the tasks of a run wrote fits together: levels, ids, table, pixels, metadata.

The second half of `verify`. What is damaged is left out, for that has been told.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError, describe_cause
from densebatch.base.files import load_array
from densebatch.base.geometry import Region
from densebatch.base.names import count_of
from densebatch.cells import verify as stored
from densebatch.cells.kept import REPORT, seeds_path
from densebatch.cells.labels import shard_grid
from densebatch.cells.pyramid import read_unit, source_region, unit_files
from densebatch.cells.verify import Finding
from densebatch.compartments.growing import reach_of
from densebatch.compartments.masks import split_cells
from densebatch.compartments.names import NUCLEUS
from densebatch.measuring.kernels import AREA, Y0
from densebatch.measuring.parts import Parts
from densebatch.measuring.positivity import decide
from densebatch.measuring.stored import find_split
from densebatch.measuring.table import (
    make_schema,
    nucleus_columns,
    read_numbers,
    region_columns,
    shape_columns,
    value_columns,
)
from densebatch.measuring.totals import add_shapes, add_values
from densebatch.ngff.folders import DOCUMENTS
from densebatch.planning.measured import find_changed_covers, read_measures
from densebatch.planning.plan import JoinPlan
from densebatch.regions.read import describe_areas
from densebatch.stages.unread import read_pixels
from densebatch.upkeep.content import list_some, measure_units, read_nuclei, read_ring, sum_cells

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from numpy.typing import NDArray

    from densebatch.upkeep.content import Content
    from densebatch.upkeep.pixels import PixelSource

_SUMS_BYTES = 512 * 10**6  # of intensities that are summed in one pass over the labels
_SEED_REACH_PX = 6  # beyond a pixel's travel, see `tracing.tile`


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
    marked = content.marked
    images = [content, *content.within.values(), *([] if marked is None else [marked])]
    for image in images:
        yield from _check_metadata(image)
        yield from _check_levels(image)
    yield from _check_areas(content)
    if marked is not None:
        yield from _check_missing(marked)
    if content.within:
        yield from _check_within(content)
    if any(content.is_damaged(0, region, None) for region in content.units(0)):
        yield "ids and table were not compared with the labels, because some of these are damaged"
        return
    split = yield from _check_ids(content)
    if split is None:
        return
    source = content.open_pixels()
    if not source.is_there:
        yield f"intensities were not compared: {source.reason}"
    elif content.spec.image and source.slide is None:
        yield f"the copied image was not compared with the slide: {source.reason}"
    if content.table.name not in content.damaged:
        yield from _check_table(content, split, source)
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


def _check_within(content: Content) -> Iterator[Finding]:
    """Nucleus, cytoplasm and membrane against the cells."""
    assert isinstance(content.plan, JoinPlan)
    reach = reach_of(content.plan.ring_px)
    units, nuclei = shard_grid(content.spec, 0), content.within[NUCLEUS]

    def look(region: Region) -> list[str]:
        near = units.overlapping(region.expand(reach))
        if nuclei.is_damaged(0, region, None) or any(
            content.is_damaged(0, units[index], None) for index in near
        ):
            return []
        cells, ring = read_ring(content, region)
        expected = split_cells(cells, read_unit(nuclei.spec, 0, region), ring)
        return [
            name
            for name, image in content.within.items()
            if not image.is_damaged(0, region, None)
            and not np.array_equal(read_unit(image.spec, 0, region), expected[name])
        ]

    shown = "compare compartments"
    content.progress.stage(shown, len(shard_grid(content.spec, 0)), 0)
    for region, wrong in map_in_threads(look, content.units(0), content.threads):
        content.progress.advance(shown, region.area)
        for name in wrong:
            image = content.within[name]
            what = "is not what cells and nuclei make of it"
            yield image.find(unit_files(image.spec, 0, region)[0], what, region)


def _check_areas(content: Content) -> Iterator[Finding]:
    """Labels, and what is missing, are 0 outside of what counts, of which `run.json` tells."""
    areas = content.plan.region
    told = content.report.get("region")
    if areas is None:
        if told is not None:
            yield Finding(REPORT, "tells of a region, and the run was of the whole slide")
        return
    ours = describe_areas(areas)
    # A file that says the same may have had another name when the run went on.
    if told is None or any(told.get(key) != ours[key] for key in ours.keys() - {"files"}):
        yield Finding(REPORT, "tells of another region than the run had")
    marked = content.marked
    images = [content, *([] if marked is None else [marked])]

    def look(region: Region) -> list[tuple[Content, int]]:
        if areas.count(region) == region.area:
            return []
        outside = ~areas.find_inside(region)
        return [
            (image, int(np.count_nonzero(read_unit(image.spec, 0, region)[outside])))
            for image in images
            if not image.is_damaged(0, region, None)
        ]

    shown = "compare region"
    content.progress.stage(shown, len(shard_grid(content.spec, 0)), 0)
    for region, found in map_in_threads(look, content.units(0), content.threads):
        content.progress.advance(shown, region.area)
        for image, px in found:
            if px:
                what = f"{px} px outside of the region are not 0"
                yield image.find(unit_files(image.spec, 0, region)[0], what, region)


def _check_missing(marked: Content) -> Iterator[Finding]:
    """As many pixels are missing as `run.json` says."""

    def look(region: Region) -> tuple[int, int]:
        pixels = read_unit(marked.spec, 0, region)
        return int(np.count_nonzero(pixels)), int(np.count_nonzero(pixels == 1))

    found = [px for _, px in map_in_threads(look, marked.units(0), marked.threads)]
    px, ones = (sum(each) for each in zip(*found, strict=True))
    name = f"labels/{marked.spec.label_name}/0"
    if px != ones:
        yield marked.find(name, f"{px - ones} px are neither 0 nor 1")
    if px != marked.report["missing_px"]:
        yield marked.find(
            name, f"marks {px} px, and the run reported {marked.report['missing_px']}"
        )


def _check_ids(content: Content) -> Generator[Finding, None, NDArray[np.bool_] | None]:
    """Ids 1..N complete and in raster order; returns which cells lie in several units."""
    labels = f"labels/{content.spec.label_name}/0"
    found: list[Finding] = []
    try:
        shapes = sum_cells(content, found)
    except InputError as error:
        yield content.find(labels, describe_cause(error))
        return None
    yield from found
    lost = np.flatnonzero(shapes[:, AREA] == 0) + 1
    if lost.size:
        yield content.find(labels, f"has no pixel of the ids {list_some(lost)}")
    split = find_split(shapes, shard_grid(content.spec, 0))
    path = seeds_path(content.tree.out)
    try:
        seeds = load_array(path)
    except (OSError, ValueError, EOFError):
        return split  # which is told where files are compared
    reach = 0  # a segmenter's cells are keyed by their first pixels
    if "max_travel_px" in content.report:
        reach = math.ceil(float(content.report["max_travel_px"])) + _SEED_REACH_PX
    boxes = shapes[:, Y0:]
    what = stored.compare_seeds(seeds, boxes, content.plan.shape, reach)
    if what is not None:
        yield Finding(path.relative_to(content.tree.out).as_posix(), what)
    return split


def list_columns(
    content: Content, split: NDArray[np.bool_], source: PixelSource
) -> Iterator[tuple[str, Any]]:
    """Names and values of the columns of the table, from labels and pixels.

    Parameters
    ----------
    content
        Of the result.
    split
        Which cells lie in several units.
    source
        Of the pixels; columns that need them are left out without. So is what a damaged label
        image `missing` decides, and shares under labels that have changed.

    Raises
    ------
    InputError
        If labels or pixels cannot be read.
    """
    plan, measures = content.plan, read_measures(content.report)
    lost = find_changed_covers(content.report)
    kept = tuple(share for share in measures.shares if share.under not in lost)
    measures = replace(measures, shares=kept)
    parts = (
        part for _, part in measure_units(content, split, replace(measures, channels=()), source)
    )
    shapes = add_shapes(parts, content.n_cells, content.spec.width)
    columns = shape_columns(shapes, Region(0, 0, *plan.shape), plan.um_per_px, measures.radius_um)
    if content.report["missing_px"] and content.missing is None:
        del columns["touches_missing"]
    yield from columns.items()
    if measures.has_regions:
        assert plan.region is not None
        yield from region_columns(plan.region, columns).items()
    within = list(content.within)
    if within:
        parts = (p for _, p in measure_units(
            content, split, replace(measures, channels=()), source, NUCLEUS
        ))  # fmt: skip
        nuclei = read_nuclei(content, {NUCLEUS: Parts(parts)})
        yield from nucleus_columns(nuclei, content.n_cells).items()
    n_columns = 4 + len(measures.fractions)
    step = max(1, _SUMS_BYTES // max(1, 8 * n_columns * content.n_cells))
    for first in range(0, len(measures.channels) if source.is_there else 0, step):
        some = replace(measures, channels=measures.channels[first : first + step])
        for compartment in ("", *within):
            parts = (part for _, part in measure_units(content, split, some, source, compartment))
            values = add_values(
                parts, range(content.n_cells), len(some.channels), some.fractions,
                len(some.shares_of),
            )  # fmt: skip
            yield from value_columns(values, source.channels, some, compartment)


def _check_table(
    content: Content, split: NDArray[np.bool_], source: PixelSource
) -> Iterator[Finding | str]:
    """The table against labels and pixels, and what makes cells positive against the table."""
    table, measures = content.table, read_measures(content.report)
    what = stored.compare_schema(table, make_schema(measures, source.channels))
    if what is not None:
        yield Finding(table.name, what)
        return
    for path in find_changed_covers(content.report):
        yield (
            f"what lies under the labels of {path} was not compared: they have changed, or are gone"
        )
    try:
        for name, column in list_columns(content, split, source):
            what = stored.compare_column(table, name, column)
            if what is not None:
                yield Finding(table.name, what)
        told = content.report["positivity"]
        found, columns = decide(partial(read_numbers, table), source.channels, measures, told)
        for name, column in columns.items():
            what = stored.compare_column(table, name, column)
            if what is not None:
                yield Finding(table.name, what)
        if found != told:
            yield Finding(REPORT, "tells of other numbers of positive cells than the table has")
        again, _ = decide(partial(read_numbers, table), source.channels, measures)
        for marker, other in zip(told["markers"], again["markers"], strict=True):
            if not _is_near(marker["cut"], other["cut"]):
                yield Finding(
                    REPORT,
                    f"tells of the cut {marker['cut']} for {marker['marker']}, and the table of "
                    f"{other['cut']}",
                )
    except InputError as error:
        yield Finding(table.name, f"cannot be compared: {describe_cause(error)}")


def _is_near(a: float | None, b: float | None) -> bool:
    """Whether two cuts are one; another processor's logarithms may differ in their last bits."""
    return a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6))


def _check_copy(content: Content, source: PixelSource) -> Iterator[Finding]:
    """The copied image against the slide, where both can be read."""

    def look(unit: tuple[int, Region]) -> str | None:
        channel, region = unit
        if content.is_damaged(0, region, channel):
            return None
        pixels, holes = read_pixels(content.plan.slide, channel, region)
        try:
            copied = read_unit(content.spec, 0, region, channel)
        except InputError as error:
            return describe_cause(error)
        known = source.find_run_holes(channel, region)
        differs = not holes and not known and pixels.tobytes() != copied.tobytes()
        return "is not the image of the slide" if differs else None

    shown = "compare image"
    units = ((channel, r) for r in content.units(0) for channel in content.channels)
    content.progress.stage(shown, len(shard_grid(content.spec, 0)) * len(content.channels), 0)
    for (channel, region), what in map_in_threads(look, units, content.threads):
        content.progress.advance(shown, region.area)
        if what is not None:
            yield content.find(unit_files(content.spec, 0, region, channel)[0], what, region)
