"""A finished result as it is looked at: its labels and table, and what is measured of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError, describe_cause
from densebatch.base.files import load_array
from densebatch.cells.groups import open_array
from densebatch.cells.kept import owners_path, seeds_path
from densebatch.cells.labels import shard_grid
from densebatch.cells.pyramid import level_path, unit_files
from densebatch.cells.pyramid_spec import COMPARTMENT_LABELS, MISSING_NAME
from densebatch.cells.verify import Finding
from densebatch.compartments.growing import reach_of
from densebatch.compartments.masks import find_ring
from densebatch.measuring.kernels import N_SHAPES, X0, Y0, Y1
from densebatch.measuring.stored import list_cells, measure_unit
from densebatch.measuring.table import Nuclei
from densebatch.planning.measured import read_measures
from densebatch.planning.plan import JoinPlan
from densebatch.stages.join import find_grown
from densebatch.upkeep.pixels import PixelSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.cells.kept import Tree
    from densebatch.cells.pyramid_spec import PyramidSpec
    from densebatch.measuring.parts import CellSums, Parts
    from densebatch.measuring.schema import Measures
    from densebatch.planning.plan import Plan


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

    @property
    def within(self) -> dict[str, Content]:
        """What lies within the cells as if it were them, by compartment."""
        spec = replace(self.spec, image=False, channels=())
        return {
            name: replace(self, spec=replace(spec, label_name=COMPARTMENT_LABELS[name]))
            for name in read_measures(self.report).compartments
        }

    @property
    def marked(self) -> Content | None:
        """The label image `missing` as if it were the cells; None as `missing` is."""
        if self.missing is None:
            return None
        return replace(self, spec=replace(self.missing, image=False, channels=()))

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

    def open_pixels(self) -> PixelSource:
        """The pixels that were measured."""
        has_copy = self.spec.image and not any(
            self.is_damaged(0, region, channel)
            for region in self.units(0)
            for channel in self.channels
        )
        return PixelSource(self.plan, self.spec, self.report, has_copy=has_copy)

    def find(self, path: Path | str, what: str, place: Region | None = None) -> Finding:
        """Something that is wrong with a file or folder below the root."""
        return Finding(self.tree.shown(self.name(path)), what, place)


def sum_cells(content: Content, found: list[Finding] | None = None) -> NDArray[np.int64]:
    """Area, coordinate sums and box of each cell, as of `kernels.measure_shapes`.

    Parameters
    ----------
    content
        Of the result.
    found
        Is told of ids beyond N.

    Raises
    ------
    InputError
        If labels cannot be read.
    """
    shapes = np.zeros((content.n_cells, N_SHAPES), np.int64)
    shapes[:, [Y0, X0]] = np.iinfo(np.int64).max
    shown = "list cells"
    content.progress.stage(shown, len(shard_grid(content.spec, 0)), 0)

    def look(region: Region) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        return list_cells(content.spec, region)

    for region, (ids, part) in map_in_threads(look, content.units(0), content.threads):
        content.progress.advance(shown, region.area)
        known = ids <= content.n_cells
        rows = ids[known].astype(np.int64) - 1
        shapes[rows, :Y0] += part[known, :Y0]
        shapes[rows, Y0:Y1] = np.minimum(shapes[rows, Y0:Y1], part[known, Y0:Y1])
        shapes[rows, Y1:] = np.maximum(shapes[rows, Y1:], part[known, Y1:])
        if not known.all() and found is not None:
            name = unit_files(content.spec, 0, region)[0]
            strange = list_some(ids[~known])
            what = f"has the ids {strange}, and there are {content.n_cells} cells"
            found.append(content.find(name, what, region))
    return shapes


def measure_units(
    content: Content,
    split: NDArray[np.bool_],
    measures: Measures,
    source: PixelSource,
    compartment: str = "",
) -> Iterator[tuple[Region, CellSums]]:
    """Measure the cells of every unit, in raster order.

    Parameters
    ----------
    content
        Of the result.
    split
        Which cells lie in several units.
    measures
        What is measured.
    source
        Of the pixels.
    compartment
        Of the cells, that is measured; "" for all of a cell.

    Raises
    ------
    InputError
        If labels or pixels cannot be read.
    """
    channels = measures.channels
    image = content.within[compartment] if compartment else content
    what = compartment or "cells"
    shown = f"measure {what}" + (f", channels {channels[0]} to {channels[-1]}" if channels else "")
    content.progress.stage(shown, len(shard_grid(content.spec, 0)), 0)

    def measure(region: Region) -> CellSums:
        return measure_unit(
            image.spec, region, split, measures.fractions, channels, source.read, content.missing,
            measures.shares_of, content.plan.region, forms=not compartment,
        )  # fmt: skip

    for region, part in map_in_threads(measure, content.units(0), content.threads):
        content.progress.advance(shown, region.area)
        yield region, part


def read_ring(content: Content, region: Region) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Stored cells of a region, and which of their pixels are the ring inside their outlines."""
    assert isinstance(content.plan, JoinPlan)
    around = region.expand(reach_of(content.plan.ring_px)).clip(*content.plan.shape)
    cells = np.asarray(open_array(level_path(content.spec, 0))[around.slices])
    inside = region.slices_in(around)
    return cells[inside], find_ring(cells, content.plan.ring_px)[inside]


def list_some(ids: Any) -> str:  # noqa: ANN401
    """A few ids in words."""
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def read_nuclei(content: Content, parts: Mapping[str, Parts]) -> Nuclei:
    """What is known of the nuclei of a result.

    Parameters
    ----------
    content
        Of the result.
    parts
        Of its compartments.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    assert isinstance(content.plan, JoinPlan)
    out = content.tree.out
    try:
        owners, seeds = (load_array(path) for path in (owners_path(out), seeds_path(out)))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{owners_path(out)}: cannot be read ({describe_cause(error)})") from error
    return Nuclei(owners, find_grown(content.plan, seeds), parts)
