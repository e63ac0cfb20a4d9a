"""The area without a result: where it is, and the label image `missing` that marks it.

Tiles that failed are missing as a whole; of others the pixels whose cells depend on flows that are
unknown (`tracing.unknown`). A cell in doubt might also have filled a hole of its own with pixels of
background, so background that such pixels enclose is missing too; that is told here, where it does
not matter which tile it lies in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr
from scipy import ndimage

from densebatch.base.files import write_atomic
from densebatch.base.process import Meter
from densebatch.cells import labels
from densebatch.cells.pyramid_spec import MISSING_NAME
from densebatch.measuring.stored import find_beside
from densebatch.stages.output import levels_with, output_spec
from densebatch.stages.work import Task
from densebatch.stages.writing import write_patiently

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.planning.plan import Plan
    from densebatch.stages.work import Work


@dataclass(frozen=True)
class Gaps:
    """Tiles that have no labels, or not everywhere.

    Attributes
    ----------
    lost : tiles without a result
    partial : tiles some of whose pixels are missing
    """

    lost: frozenset[tuple[int, int]] = frozenset()
    partial: frozenset[tuple[int, int]] = frozenset()

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(self.lost or self.partial)


def write_gaps(work: Work, gaps: Gaps) -> list[Path]:
    """Write which tiles have gaps, for all tasks that number cells; the files that tell it.

    Parameters
    ----------
    work
        Of the run; tiles are traced.
    gaps
        As the driver knows them.
    """
    document = {"lost": sorted(gaps.lost), "partial": sorted(gaps.partial)}
    write_atomic(work.gaps, json.dumps(document).encode())
    return [work.gaps, *(work.tile_missing(*index) for index in sorted(gaps.partial))]


def read_gaps(work: Work) -> Gaps:
    """The gaps that were written."""
    document = json.loads(work.gaps.read_bytes())
    return Gaps(*(frozenset(map(tuple, document[name])) for name in ("lost", "partial")))


def find_missing(work: Work, gaps: Gaps, region: Region) -> NDArray[np.bool_] | None:
    """Find the pixels of a region that have no result.

    Parameters
    ----------
    work
        Of the run; tiles are traced.
    gaps
        Of the tiles.
    region
        Pixels of the slide.

    Returns
    -------
    ndarray or None
        `(h, w)` bool, False for what does not count; None if no pixel is missing there or near.
    """
    if not gaps.any:
        return None
    grid, hole_px = work.grid, work.plan.hole_px
    around = region.expand(hole_px + 1).clip(*work.plan.shape)
    near = [i for i in grid.overlapping(around) if i in gaps.lost or i in gaps.partial]
    if not near:
        return None
    missing = np.zeros(around.shape, np.bool_)
    for index in near:
        tile = grid[index]
        part = tile.intersect(around)
        if part is None:
            continue
        whole = _read_tile(work, index, tile.shape) if index in gaps.partial else None
        inside = part.shift(-around.y0, -around.x0).slices
        missing[inside] = True if whole is None else whole[part.shift(-tile.y0, -tile.x0).slices]
    at = region.shift(-around.y0, -around.x0).slices
    enclosed = _find_enclosed(missing, hole_px)[at]
    if enclosed.any():
        found = np.asarray(zarr.open_array(work.tile_labels, mode="r")[region.slices])
        enclosed &= found == 0
    result: NDArray[np.bool_] = missing[at] | enclosed
    if work.plan.region is not None:
        result &= work.plan.region.find_inside(region)
    return result


def mark_missing(work: Work, gaps: Gaps, region: Region) -> NDArray[np.uint32]:
    """Pixels of the label image `missing`: 1 where there is no result; as `find_missing`."""
    found = find_missing(work, gaps, region)
    return np.zeros(region.shape, np.uint32) if found is None else found.astype(np.uint32)


def _read_tile(work: Work, index: tuple[int, int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    bits = np.unpackbits(np.load(work.tile_missing(*index)), count=shape[0] * shape[1])
    return bits.astype(np.bool_).reshape(shape)


def _find_enclosed(missing: NDArray[np.bool_], hole_px: int) -> NDArray[np.bool_]:
    """Pixels that 4-connected steps cannot lead out of a hole of up to `hole_px` along each axis.

    A cell is smaller than two diameters, and so are its holes; a larger hole is a gap's, in which
    whole cells lie. What touches an edge is open.
    """
    height, width = missing.shape
    pieces, _ = ndimage.label(~missing)
    enclosed = np.zeros_like(missing)
    for number, (rows, cols) in enumerate(ndimage.find_objects(pieces), 1):
        is_small = max(rows.stop - rows.start, cols.stop - cols.start) <= hole_px
        is_open = min(rows.start, cols.start) == 0 or rows.stop == height or cols.stop == width
        if is_small and not is_open:
            enclosed[rows, cols] |= pieces[rows, cols] == number
    return enclosed


def find_touching(
    work: Work, gaps: Gaps, region: Region, cells: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """The labels of a region that lie beside a pixel without a result, diagonally or not.

    That is one that is missing, or one that does not count.

    Parameters
    ----------
    work, gaps, region
        As of `find_missing`.
    cells
        `(h, w)` labels of the region, 0 for background.
    """
    around = region.expand(1).clip(*work.plan.shape)
    missing = find_missing(work, gaps, around)
    areas = work.plan.region
    if missing is None and areas is None:
        return np.zeros(0, np.uint32)
    marked = np.zeros(around.shape, np.bool_) if missing is None else missing
    if areas is not None:
        marked |= ~areas.find_inside(around)
    return find_beside(marked, around, region, cells)


def missing_spec(plan: Plan, root: str) -> labels.PyramidSpec:
    """Arrays and metadata of the label image `missing`: as those of the cells beside it.

    Parameters
    ----------
    plan
        The run.
    root
        The OME-Zarr image group that gets the labels.
    """
    return replace(output_spec(plan, root), label_name=MISSING_NAME)


@dataclass(frozen=True)
class MarkShard(Task):
    """Write one shard of the label image `missing`: 1 where there is no result, else 0.

    Attributes
    ----------
    level, row, col : shard; of several levels that one task writes, the first
    root : OME-Zarr image group of the output
    """

    level: int
    row: int
    col: int
    root: str = field(compare=False)
    stage: ClassVar[str] = "number"

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return f"missing-{self.work.tile_px}-{self.level}-{self.row}-{self.col}"

    def is_current(self, facts: Any) -> bool:  # noqa: ANN401
        """Never: the image is made anew by every session that misses something."""
        del facts
        return False

    def run(self) -> dict[str, Any]:
        """Facts: missing pixels of the slide, checksums, seconds and peak memory."""
        meter = Meter()
        spec = missing_spec(self.work.plan, self.root)
        missing_px = 0
        pixels = None
        for level in levels_with(spec, self.level):
            region = labels.shard_grid(spec, level)[self.row, self.col]
            with meter.timed("write"):
                if level == 0:
                    pixels = mark_missing(self.work, read_gaps(self.work), region)
                    missing_px = int(pixels.sum())
                    self._write(spec, region, pixels)
                else:
                    pixels = self._reduce(spec, level, region, pixels)
        with meter.timed("write"):
            files = self.list_files()
        facts = {"missing_px": missing_px, "files": files, **meter.read()}
        return self.work.record(self.name, [], facts)

    def list_files(self) -> dict[str, str]:
        """Checksums of its files of the output as they are now, by name."""
        spec = missing_spec(self.work.plan, self.root)
        return {
            name: checksum
            for level in levels_with(spec, self.level)
            for name, checksum in labels.checksum_unit(
                spec, level, labels.shard_grid(spec, level)[self.row, self.col], None
            ).items()
        }

    def _write(self, spec: labels.PyramidSpec, region: Region, pixels: NDArray[np.uint32]) -> None:
        where = labels.label_path(spec)
        write_patiently(where, lambda: labels.write_label_shard(spec, 0, region, pixels))

    def _reduce(
        self,
        spec: labels.PyramidSpec,
        level: int,
        region: Region,
        below: NDArray[np.uint32] | None,
    ) -> NDArray[np.uint32]:
        where = labels.label_path(spec)
        return write_patiently(where, lambda: labels.downsample_labels(spec, level, region, below))


def collect_gaps(lost: Collection[tuple[int, int]], missing_px: dict[tuple[int, int], int]) -> Gaps:
    """What is missing of which tiles.

    Parameters
    ----------
    lost
        Tiles without a result.
    missing_px
        Missing pixels of the others.
    """
    return Gaps(frozenset(lost), frozenset(index for index, px in missing_px.items() if px))
