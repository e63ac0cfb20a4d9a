"""Stage 3: cell keys to ids 1..N in raster order, written with the pyramid and the cell sums.

Keys are positions, so their sorted union numbers the cells in raster order of their seeds, and
every shard can be written on its own: it looks its tiles' keys up in the union.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import xxhash
import zarr

from densebatch.base.files import digest_file, write_atomic
from densebatch.base.process import Meter
from densebatch.cells import labels
from densebatch.compartments.growing import reach_of
from densebatch.compartments.masks import find_ring, split_cells
from densebatch.measuring.parts import StoredParts, pack_part
from densebatch.measuring.shard import Shard
from densebatch.measuring.stored import measure_channel
from densebatch.stages.missing import Gaps, find_touching, read_gaps, write_gaps
from densebatch.stages.output import (
    checksum_shard,
    label_specs,
    levels_with,
    list_planes,
    output_spec,
)
from densebatch.stages.unread import read_pieces, read_pixels
from densebatch.stages.work import Task
from densebatch.stages.writing import write_patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.base.geometry import Grid, Region
    from densebatch.measuring.schema import Measures
    from densebatch.planning.plan import Plan
    from densebatch.stages.join import CompartmentFinder
    from densebatch.stages.work import Work

_T = TypeVar("_T")


def collect_keys(work: Work, gaps: Gaps) -> tuple[int, str]:
    """Write what all shards are numbered by: the sorted union of keys, and what is missing.

    Parameters
    ----------
    work
        Of the run; tiles are traced.
    gaps
        Tiles that have no result, or not everywhere.

    Returns
    -------
    n_cells : int
    digest : str
        Of what was written; it changes with any cell's id and any missing pixel.
    """
    parts = [work.read_keys(*index) for index in work.grid if index not in gaps.lost]
    every = np.concatenate([*parts, np.zeros(0, np.int64)])
    keys, n_tiles = np.unique(every, return_counts=True)
    files = [work.all_keys, work.key_tiles]
    for path, array in zip(files, (keys, n_tiles.astype(np.uint16)), strict=True):
        buffer = io.BytesIO()
        np.save(buffer, array)
        write_atomic(path, buffer.getvalue())
    files += write_gaps(work, gaps)
    return int(keys.size), digest_texts([digest_file(file) for file in files])


def digest_texts(texts: Iterable[str]) -> str:
    """One digest of several."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Shard(Task):
    """A task that writes a shard of the output.

    Attributes
    ----------
    level, row, col : shard; of several levels that one task writes, the first
    root : OME-Zarr image group of the output
    inputs : digest of what the shard is made from, kept in its record
    """

    level: int
    row: int
    col: int
    root: str = field(compare=False)
    inputs: str = field(compare=False)
    stage: ClassVar[str] = "number"

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return name_shard(self.work.tile_px, self.level, self.row, self.col)

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether the shard holds what its record says and was made from what there is now.

        Other lost tiles mean other ids, and a shard that is written again changes those above it.
        """
        return (
            facts["inputs"] == self.inputs
            and not facts.get("unread")
            # Of a slide that was touched, only channels that the network sees are known to be
            # the same.
            and facts.get("slide", "") in ("", self.work.plan.slide.identity)
            and facts.get("files") == self.list_files()
        )

    def list_files(self) -> dict[str, str]:
        """Checksums of its files of the output as they are now, by name."""
        return checksum_shard(self.work.plan, self.root, self.level, self.row, self.col)

    def _write(self, write: Callable[[], _T]) -> _T:
        return write_patiently(Path(self.root), write)


def name_shard(tile_px: int, level: int, row: int, col: int) -> str:
    """Name of the task that writes a shard.

    Parameters
    ----------
    tile_px
        Side of a tracing tile: what numbering reads depends on it.
    level, row, col
        Shard; of several levels that one task writes, the first.
    """
    return f"number-{tile_px}-{level}-{row}-{col}"


@dataclass(frozen=True)
class NumberShard(_Shard):
    """Write one shard of labels, what is measured there, and the slide's pixels if they are copied.

    Attributes
    ----------
    measures : what is measured of the cells; None for nothing
    compartments : finds what lies within cells, if that is to be written as well
    """

    measures: Measures | None = field(default=None, compare=False)
    compartments: CompartmentFinder | None = field(default=None, compare=False)

    def run(self) -> dict[str, Any]:
        """Facts: cells with a pixel in the shard, checksums, what could not be read, costs.

        `slide` is the identity of the slide that was read, `pixels` the digest of all that was.
        """
        meter = Meter()
        work, plan = self.work, self.work.plan
        spec = output_spec(plan, self.root)
        region = labels.shard_grid(spec, 0)[self.row, self.col]
        with meter.timed("read"):
            gaps = read_gaps(work)
            local, ids, split = _read_shard_labels(work, gaps, region)
            numbered = _apply_ids(local, ids)
            within = self._find_compartments(gaps, region, numbered)
        measured = self.measures.channels if self.measures is not None and ids.size else ()
        with meter.timed("table"):
            fractions = self.measures.fractions if self.measures is not None else ()
            form = (ids, split, region, plan.shape[1], fractions)
            shards = {"cells": Shard(local, *form)}
            for name, mask in within.items():
                shards[name] = Shard(np.where(mask > 0, local, np.uint32(0)), *form, forms=False)
        unread = []
        # Pixels are read only where there is a cell to measure or a copy to write.
        wanted = range(len(plan.slide.channels)) if spec.image else measured
        seen = xxhash.xxh3_128()
        for channel in wanted:
            with meter.timed("read"):
                pixels, holes = read_pieces(work, channel, region)
            seen.update(np.ascontiguousarray(pixels).data)
            unread += [hole.describe(plan.slide.channels) for hole in holes]
            if self.measures is not None and channel in measured:
                share, lost = self.measures.shares_of.get(channel), [hole.region for hole in holes]
                with meter.timed("table"):
                    for shard in shards.values():
                        measure_channel(shard, pixels, lost, share, region)
            if spec.image:
                with meter.timed("write"):
                    self._write(partial(labels.write_image_shard, spec, channel, 0, region, pixels))
        with meter.timed("table"):
            touching = find_touching(work, gaps, region, local)
            found = {name: shard.finish(touching) for name, shard in shards.items()}
        with meter.timed("write"):
            images = [numbered, *within.values()]
            # A repair makes the cells alone.
            for each, pixels in zip(label_specs(plan, self.root), images, strict=False):
                self._write(partial(labels.write_label_shard, each, 0, region, pixels))
            files = self.list_files()
            parts = [work.shard_cells(self.row, self.col, name) for name in found]
            for part, sums in zip(parts, found.values(), strict=True):
                write_patiently(part, partial(write_atomic, part, pack_part(sums)))
        facts = {
            "inputs": self.inputs,
            "files": files,
            "cells": found["cells"].ids.size,
            "unread": unread,
            "slide": plan.slide.identity,
            "pixels": seen.hexdigest() if wanted else "",
            **meter.read(),
        }
        return work.record(self.name, parts, facts)

    def _find_compartments(
        self, gaps: Gaps, region: Region, numbered: NDArray[np.uint32]
    ) -> dict[str, NDArray[np.uint32]]:
        """Label images of what lies within the cells of a region, by name."""
        if self.compartments is None:
            return {}
        work = self.work
        around = region.expand(reach_of(work.join_plan.ring_px)).clip(*work.plan.shape)
        cells = numbered if around == region else number_region(work, gaps, around)
        ring = find_ring(cells, work.join_plan.ring_px)[region.slices_in(around)]
        nuclei = self.compartments.read_nuclei(region, _map_array(work.all_keys))
        return split_cells(numbered, nuclei, ring)


def list_channels_read(plan: Plan, measures: Measures) -> Sequence[int]:
    """The channels of a slide that numbering reads: those that are copied, or measured.

    Parameters
    ----------
    plan
        Of the run.
    measures
        What it measures.
    """
    return range(len(plan.slide.channels)) if plan.copy_image else measures.channels


def find_changed_pixels(plan: Plan, root: str, report: Mapping[str, Any]) -> Region | None:
    """Read a slide again where numbering read it, and compare.

    Parameters
    ----------
    plan
        Of the run.
    root
        The OME-Zarr image group that has the labels.
    report
        Content of `run.json`: `slide_channels` are those that were read; `slide_pixels` by shard,
        `row-col`, the digest of what was read, empty where nothing was.

    Returns
    -------
    Region or None
        The first shard whose pixels have changed; None if none has.
    """
    grid = labels.shard_grid(output_spec(plan, root), 0)
    for row, col in grid:
        known = report["slide_pixels"].get(f"{row}-{col}")
        if known == "":
            continue
        seen = xxhash.xxh3_128()
        for channel in report["slide_channels"]:
            pixels, _ = read_pixels(plan.slide, channel, grid[row, col])
            seen.update(np.ascontiguousarray(pixels).data)
        if seen.hexdigest() != known:
            return grid[row, col]
    return None


@dataclass(frozen=True)
class ReduceShard(_Shard):
    """Build one shard of a pyramid level from the level below, and what `group_levels` adds."""

    def run(self) -> dict[str, Any]:
        """Facts: checksums of what was written, seconds and peak memory."""
        meter, plan = Meter(), self.work.plan
        with meter.timed("pyramid"):
            planes = [(s, c) for s in label_specs(plan, self.root) for c in list_planes(s)]
            for spec, channel in planes:
                pixels = None
                for level in levels_with(spec, self.level):
                    region = labels.shard_grid(spec, level)[self.row, self.col]
                    if channel is None:
                        reduce = partial(labels.downsample_labels, spec, level, region, pixels)
                    else:
                        reduce = partial(
                            labels.downsample_image, spec, channel, level, region, pixels
                        )
                    pixels = self._write(reduce)
        with meter.timed("write"):
            files = self.list_files()
        facts = {"inputs": self.inputs, "files": files, **meter.read()}
        return self.work.record(self.name, [], facts)


@lru_cache(maxsize=4)
def _mapped(path: str, digest: str, inode: int) -> NDArray[Any]:
    """An array, mapped rather than read; all arguments key the cache.

    Digest and file both do, because a file that is damaged in place takes its map with it.
    """
    del digest, inode
    mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    return mapped


def _map_array(path: Path) -> NDArray[Any]:
    return _mapped(str(path), digest_file(path), path.stat().st_ino)


def _read_shard_labels(
    work: Work, gaps: Gaps, region: Region
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.bool_]]:
    """Shard-local labels 1..k of a region, the global id of each, and whether it is elsewhere too.

    The area of lost tiles is left 0; the label image `missing` marks it.
    """
    grid = work.grid
    keys = _map_array(work.all_keys)
    array = zarr.open_array(work.tile_labels, mode="r")
    tiles = [index for index in grid.overlapping(region) if index not in gaps.lost]
    ids_of = {
        index: (np.searchsorted(keys, work.read_keys(*index)) + 1).astype(np.uint32)
        for index in tiles
    }
    ids, n_tiles = np.unique(
        np.concatenate([*ids_of.values(), np.zeros(0, np.uint32)]), return_counts=True
    )
    local = np.zeros(region.shape, np.uint32)
    # A cell has pixels elsewhere if tiles elsewhere know it, or the outer part of a tile here has.
    split = n_tiles < _count_tiles(work, ids)
    for index in tiles:
        part = grid[index].intersect(region)
        if part is None or not ids_of[index].size:
            continue
        table = np.zeros(ids_of[index].size + 1, np.uint32)
        table[1:] = np.searchsorted(ids, ids_of[index]) + 1
        tile = grid[index]
        whole = np.asarray(array[tile.slices])  # it is one chunk
        inner = part.shift(-tile.y0, -tile.x0).slices
        local[part.shift(-region.y0, -region.x0).slices] = table[whole[inner]]
        if part != tile:
            whole[inner] = 0
            outer = np.unique(table[whole])
            split[outer[outer > 0] - 1] = True
    return local, ids, split


def _count_tiles(work: Work, ids: NDArray[np.uint32]) -> NDArray[np.integer[Any]]:
    """How many tiles have pixels of cells."""
    if not work.key_tiles.exists():  # where labels alone are made again
        return np.ones(ids.size, np.int64)
    counts: NDArray[np.integer[Any]] = _map_array(work.key_tiles)[ids.astype(np.int64) - 1]
    return counts


def _apply_ids(local: NDArray[np.uint32], ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    numbered: NDArray[np.uint32] = np.concatenate([np.zeros(1, np.uint32), ids])[local]
    return numbered


def number_region(work: Work, gaps: Gaps, region: Region) -> NDArray[np.uint32]:
    """Labels of a region by the ids of the run.

    Parameters
    ----------
    work
        Of the run, whose keys are collected.
    gaps
        That were known then.
    region
        Pixels of the slide.
    """
    local, ids, _ = _read_shard_labels(work, gaps, region)
    return _apply_ids(local, ids)


def read_parts(work: Work, grid: Grid, compartment: str = "cells") -> StoredParts:
    """What was measured in every shard of a grid, in raster order of the shards."""
    return StoredParts([work.shard_cells(*index, compartment) for index in grid])
