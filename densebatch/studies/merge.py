"""Label tiles of another tool to labels of the slide: `densebatch merge`.

The steps of `densebatch.merging`, with a tile for each thread in memory. Everything is written into
a folder beside the output that takes its name at the end, so that there is all of it or nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import zarr
from scipy.ndimage import binary_dilation

from densebatch.base.checksums import map_in_threads
from densebatch.base.errors import InputError
from densebatch.base.files import no_empty_folders, write_atomic
from densebatch.base.geometry import Region
from densebatch.base.machine import count_cores
from densebatch.cells import labels
from densebatch.cells.read import open_labels
from densebatch.measuring.parts import Parts
from densebatch.measuring.schema import Measures
from densebatch.measuring.shard import Shard
from densebatch.measuring.table import write_table
from densebatch.merging.decision import decide
from densebatch.merging.facts import measure_band, measure_tile, number_locally
from densebatch.merging.painting import Part, find_first_pixels, number_cells, paint_region
from densebatch.run.report import Progress
from densebatch.studies.label_tiles import find_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from densebatch.measuring.parts import CellSums
    from densebatch.merging.decision import Decision, Place
    from densebatch.merging.facts import BandFacts, TileFacts
    from densebatch.merging.painting import Painted
    from densebatch.studies.label_tiles import TileSet

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_SEGMENTATION, _TABLE, _REPORT = "segmentation.ome.zarr", "cells.parquet", "merge.json"
_CHUNK_PX = 512
_ENOUGH = 2  # diameters of the median cell that tiles should share


@dataclass(frozen=True)
class MergeResult:
    """What a merge produced.

    Attributes
    ----------
    out : output folder
    labels : path of the multiscale label image
    table : path of the cell table
    report : the content of `merge.json`
    """

    out: Path
    labels: Path
    table: Path
    report: dict[str, Any]


def merge_label_tiles(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    pixel_size: float | None = None,
    step: int | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge label tiles into labels of the slide, a table of cells and a report.

    Parameters
    ----------
    sources
        As for `find_tiles`.
    out
        Output folder: absent or empty.
    pixel_size
        um per px; by default that of the tiles' OME metadata, where they tell it.
    step
        As for `find_tiles`.
    progress
        Receives stages and tiles as they happen.

    Raises
    ------
    InputError
        For tiles that cannot be merged, or an output folder that cannot be used; nothing is left
        behind.
    """
    progress, folder = progress or Progress(), Path(out).absolute()
    _check_folder(folder)
    tiles = find_tiles([Path(source) for source in sources], step)
    um_per_px = tiles.um_per_px if pixel_size is None else pixel_size
    for note in tiles.notes:
        progress.note(note)
    with no_empty_folders([folder.parent]):
        partial = _make_partial(folder)
        try:
            report = _Merge(tiles, partial, um_per_px, progress).run()
            partial.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return MergeResult(folder, folder / _SEGMENTATION / "labels" / "cells", folder / _TABLE, report)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        if names:
            raise InputError(f"{folder}: holds {names[0]!r}; accepted is a new or empty folder")
    elif folder.exists():
        raise InputError(f"{folder}: is a file; accepted is a new or empty folder")


def _make_partial(folder: Path) -> Path:
    """A folder beside the output, of this process alone."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used as output folder ({error.strerror}); accepted is a folder "
            "that can be created or written"
        ) from error
    return Path(made)


class _Merge:
    """A merge under way.

    Parameters
    ----------
    tiles
        What is merged.
    folder
        Where to write.
    um_per_px
        Pixel size, None if unknown.
    progress
        Receives stages and tiles.
    """

    def __init__(
        self, tiles: TileSet, folder: Path, um_per_px: float | None, progress: Progress
    ) -> None:
        self._tiles, self._folder, self._um_per_px = tiles, folder, um_per_px
        self._progress = progress
        self._regions = tiles.layout.regions
        height, width = tiles.shape
        self._spec = labels.PyramidSpec(
            root=str(folder / _SEGMENTATION),
            ngff="0.5",
            height=height,
            width=width,
            n_levels=labels.count_levels(height, width),
            um_per_px=um_per_px,
        )
        self._grid = labels.shard_grid(self._spec, 0)

    def run(self) -> dict[str, Any]:
        """Do everything; returns the report."""
        facts = self._each("read tiles", range(len(self._regions)), self._read_tile, self._area)
        bands = self._each("compare tiles", self._tiles.layout.bands, self._compare, lambda _: 0)
        decision = decide(self._tiles.layout, facts, bands)
        shards = sorted(
            {index for region in self._regions for index in self._grid.overlapping(region)}
        )

        def claim(index: tuple[int, int]) -> tuple[Painted, int]:
            painted = self._paint(self._grid[index], decision)
            return painted.strip(), int(np.count_nonzero(~painted.is_seen))

        found = self._each("settle pixels", shards, claim, self._shard_area)
        first = find_first_pixels((painted for painted, _ in found), decision.n_cells)
        ids, n_cells = number_cells(first)
        n_shards = np.zeros(ids.size, np.int64)  # that a cell has pixels in, by rank
        for painted, _ in found:
            n_shards[painted.ranks] += 1
        labels.create(self._spec, label_attrs={"content": "merged tiles"})
        parts = self._each(
            "write labels", shards, lambda index: self._write(index, decision, ids, n_shards > 1),
            self._shard_area,
        )  # fmt: skip
        shutil.rmtree(self._folder / "work")
        self._write_pyramid(shards)
        slide = Region(0, 0, *self._tiles.shape)
        write_table(
            self._folder / _TABLE, Parts(parts), n_cells, slide, self._um_per_px, (), Measures(())
        )
        told = self._describe(decision, facts, n_cells, sum(p.resolved_px for p, _ in found))
        seen = sum(self._grid[index].area for index in shards) - sum(n for _, n in found)
        unseen = slide.area - seen
        if unseen:
            note = (
                f"{unseen} pixels ({unseen / slide.area:.2%} of the slide) are in no tile and have "
                "no labels"
            )
            told["notes"].append(note)
            self._progress.note(note)
        told["unseen_px"] = unseen
        counts = {
            name: len(value) if isinstance(value, list) else value
            for name, value in told["merging"].items()
        }
        labels.finalize(
            self._spec, n_cells=n_cells, provenance={"merging": counts}, table=self._folder / _TABLE
        )
        write_atomic(self._folder / _REPORT, json.dumps(told, indent=1).encode())
        return told

    def _each(
        self,
        stage: str,
        items: Iterable[_Item],
        function: Callable[[_Item], _Result],
        area: Callable[[_Item], int],
    ) -> list[_Result]:
        """Results of a function for each item, in their order, computed in threads."""
        every = list(items)
        self._progress.stage(stage, len(every), 0)
        results = []
        for item, result in map_in_threads(function, every, count_cores()):
            results.append(result)
            self._progress.advance(stage, area(item))
        return results

    def _area(self, tile: int) -> int:
        return self._regions[tile].area

    def _shard_area(self, index: tuple[int, int]) -> int:
        return self._grid[index].area

    def _copy(self, tile: int) -> Path:
        return self._folder / "work" / f"{tile}.zarr"

    def _read_tile(self, tile: int) -> TileFacts:
        """Step 1 of a tile, of which a copy is kept whose parts can be read."""
        path, region = self._tiles.files[tile], self._regions[tile]
        whole = (slice(0, region.height), slice(0, region.width))
        local = number_locally(open_labels(path)[whole])
        copy = zarr.create_array(
            self._copy(tile),
            shape=local.shape,
            chunks=tuple(min(_CHUNK_PX, n) for n in local.shape),
            dtype=local.dtype,
            compressors=[zarr.codecs.ZstdCodec(level=1)],
        )
        copy[:] = local
        return measure_tile(local, region)

    def _view(self, tile: int, region: Region) -> NDArray[np.uint32]:
        """A part of the copy of a tile."""
        own = self._regions[tile]
        array = zarr.open_array(self._copy(tile), mode="r")
        return np.asarray(array[region.shift(-own.y0, -own.x0).slices])

    def _compare(self, pair: tuple[int, int]) -> BandFacts:
        """Step 1 of two tiles."""
        first, second = pair
        band = self._regions[first].intersect(self._regions[second])
        assert band is not None
        return measure_band(first, second, self._view(first, band), self._view(second, band))

    def _parts(self, region: Region, decision: Decision) -> Iterator[Part]:
        for tile in self._tiles.layout.reaching(region):
            inside = self._regions[tile].intersect(region)
            assert inside is not None
            yield Part(inside, self._view(tile, inside), decision.ranks[tile])

    def _paint(self, region: Region, decision: Decision) -> Painted:
        """Step 3 of a region."""
        return paint_region(region, self._parts(region, decision), self._tiles.shape[1])

    def _write(
        self,
        index: tuple[int, int],
        decision: Decision,
        ids: NDArray[np.uint32],
        split: NDArray[np.bool_],
    ) -> CellSums:
        """Write a shard; returns what is measured of its cells. `ids` and `split` are by rank."""
        region = self._grid[index]
        around = region.expand(1).clip(*self._tiles.shape)  # what is in no tile may lie beside
        painted = self._paint(around, decision)
        inner = region.shift(-around.y0, -around.x0).slices
        numbers = ids[painted.ranks]
        order = np.argsort(numbers)
        table = np.zeros(numbers.size + 1, np.uint32)
        table[order + 1] = np.arange(1, numbers.size + 1)
        local = table[painted.labels[inner]]
        numbers = numbers[order]
        named = np.concatenate([np.zeros(1, np.uint32), numbers])
        labels.write_label_shard(self._spec, 0, region, named[local])
        touching = np.zeros(0, np.uint32)
        if not painted.is_seen.all():
            touching = np.unique(local[binary_dilation(~painted.is_seen, np.ones((3, 3)))[inner]])
        is_split = split[painted.ranks][order]
        shard = Shard(local, numbers, is_split, region, self._tiles.shape[1])
        return shard.finish(touching[touching > 0])

    def _write_pyramid(self, shards: Iterable[tuple[int, int]]) -> None:
        """Write the levels above the first, where there are tiles."""
        filled = set(shards)
        for level in range(1, self._spec.n_levels):
            below, grid = (labels.shard_grid(self._spec, k) for k in (level - 1, level))
            todo = [
                grid[index]
                for index in grid
                if not filled.isdisjoint(
                    below.overlapping(labels.source_region(self._spec, level, grid[index]))
                )
            ]

            def reduce(region: Region, level: int = level) -> None:
                labels.downsample_labels(self._spec, level, region)

            self._each(f"pyramid level {level}", todo, reduce, lambda region: region.area)
            filled = {(r.y0 // grid.step_y, r.x0 // grid.step_x) for r in todo}

    def _describe(
        self, decision: Decision, facts: Sequence[TileFacts], n_cells: int, resolved_px: int
    ) -> dict[str, Any]:
        """The report."""
        overlap = self._tiles.layout.narrowest_px
        boxes = np.concatenate([*(each.boxes for each in facts), np.zeros((0, 4), np.int64)])
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        diameter = float(np.median(sides)) if sides.size else None
        notes = list(self._tiles.notes)
        if overlap is not None and diameter is not None and overlap < _ENOUGH * diameter:
            notes.append(
                f"tiles share {overlap} px where they share least, less than two diameters of the "
                f"median cell ({diameter:g} px)"
            )
            self._progress.note(notes[-1])
        return {
            "cells": n_cells,
            "notes": notes,
            "slide_px": self._tiles.shape[0] * self._tiles.shape[1],
            "shape": list(self._tiles.shape),
            "um_per_px": self._um_per_px,
            "overlap_px": overlap,
            "median_extent_px": diameter,
            "merging": {
                "tiles": len(self._regions),
                "labels": sum(each.areas.size for each in facts),
                "candidate_pairs": decision.candidate_pairs,
                "merged": decision.merged,
                "resolved_px": resolved_px,
                "larger_than_overlap": [self._tell(place) for place in decision.larger],
                "dropped_pieces": [self._tell(place) for place in decision.dropped],
            },
            "tiles": [
                {"file": str(path), "region": [r.y0, r.x0, r.y1, r.x1]}
                for path, r in zip(self._tiles.files, self._regions, strict=True)
            ],
            "versions": {name: version(name) for name in ("densebatch", "numpy", "scipy", "zarr")},
        }

    def _tell(self, place: Place) -> dict[str, Any]:
        box = place.region
        return {
            "region": [box.y0, box.x0, box.y1, box.x1],
            "tiles": [self._tiles.files[tile].name for tile in place.tiles],
        }
