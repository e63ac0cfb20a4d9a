"""Two finished runs of one slide, of cells and of nuclei, become one: match, then join.

Tasks of the first stage count which nuclei and cells share pixels, of all of which the main process
decides who belongs to whom (`decide_match`). The second stage leaves the labels of the output's
tiles for numbering, as tracing does: the cells, and cells grown from nuclei that have none. A cell
keeps the key of its run, its seed. One that was grown has its nucleus' seed, beyond the slide where
there are others, so that these come first and keep their ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import ndimage

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.files import digest_file, load_array, load_arrays
from densebatch.base.process import Meter
from densebatch.cells.kept import seeds_path
from densebatch.cells.labels import read_labels
from densebatch.cells.pyramid_spec import LABEL_NAME, MISSING_NAME
from densebatch.compartments.growing import grow_labels, reach_of
from densebatch.compartments.matching import match_nuclei
from densebatch.scoring.contingency import Contingency
from densebatch.stages.tile_labels import write_tables, write_tile_labels, write_values
from densebatch.stages.work import TileTask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.compartments.matching import Match
    from densebatch.planning.plan import JoinPlan
    from densebatch.stages.work import Work

CELLS, NUCLEI = "cells", "nuclei"


@dataclass(frozen=True)
class JoinedRun:
    """A finished run that is joined with another.

    Attributes
    ----------
    out : its output folder
    """

    out: str

    @property
    def labels(self) -> Path:
        """Folder of its label images."""
        return Path(self.out) / "segmentation.ome.zarr" / "labels"

    def read(self, region: Region) -> NDArray[np.uint32]:
        """Labels of a region.

        Raises
        ------
        InputError
            If they cannot be read.
        """
        return _read(self.labels / LABEL_NAME, region)

    def find_missing(self, region: Region) -> NDArray[np.bool_] | None:
        """Pixels of a region without a result; None if the run has none anywhere."""
        if not (self.labels / MISSING_NAME).is_dir():
            return None
        return _read(self.labels / MISSING_NAME, region) > 0

    @property
    def seeds(self) -> NDArray[np.int64]:
        """Position of each label's seed."""
        path = seeds_path(Path(self.out))
        return _load_seeds(str(path), digest_file(path))


@lru_cache(maxsize=4)
def _load_seeds(path: str, digest: str) -> NDArray[np.int64]:
    del digest  # it keys the cache
    seeds: NDArray[np.int64] = load_array(Path(path))
    return seeds


def _read(label: Path, region: Region) -> NDArray[np.uint32]:
    try:
        return np.asarray(read_labels(label)[region.slices])
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{label}: cannot be read ({describe_cause(error)})") from error


@dataclass(frozen=True)
class MatchTile(TileTask):
    """Count what nuclei and cells share in a tile.

    Attributes
    ----------
    row, col : as of `TileTask`
    runs : that are joined, by what they segment
    inputs : digest of these runs' results
    """

    runs: Mapping[str, JoinedRun] = field(compare=False)
    inputs: str = field(compare=False)
    stage: ClassVar[str] = "match"

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether these results were counted."""
        return bool(facts["inputs"] == self.inputs)

    def run(self) -> dict[str, Any]:
        """Facts: pairs of labels that share pixels, and costs."""
        meter = Meter()
        with meter.timed("read"):
            nuclei, cells = (self.runs[role].read(self.region) for role in (NUCLEI, CELLS))
        with meter.timed("match"):
            table = Contingency.from_arrays(nuclei, cells)
        with meter.timed("write"):
            columns: dict[str, NDArray[Any]] = {
                "nuclei": table.truth,
                "cells": table.pred,
                "count": table.count,
            }
            file = write_tables(self.work.tile_match(self.row, self.col), columns)
        facts = {"inputs": self.inputs, "pairs": int(table.count.size), **meter.read()}
        return self.work.record(self.name, [file], facts)


def decide_match(
    work: Work, runs: Mapping[str, JoinedRun], n_nuclei: int
) -> tuple[Match | None, str]:
    """Decide which cell each nucleus belongs to, and write it for those who join.

    Parameters
    ----------
    work
        Of the run; all tiles are counted, if there is a run of cells.
    runs
        That are joined, by what they segment.
    n_nuclei
        Of the run of nuclei.

    Returns
    -------
    match : Match or None
        None where cells are grown from nuclei alone.
    digest : str
        Of what was written: the key of each nucleus' cell, -1 where it has none.
    """
    seeds = runs[NUCLEI].seeds
    match = None
    if CELLS not in runs:
        keys = seeds
    else:
        tables = [load_arrays(work.tile_match(*index)) for index in work.grid]
        # All at once, because adding one after the other would sort what is there for each tile.
        columns = (np.concatenate([t[n] for t in tables]) for n in ("nuclei", "cells", "count"))
        table = Contingency.from_rows(*columns)
        match = match_nuclei(table.truth, table.pred, table.count, n_nuclei)
        keys = np.full(n_nuclei, -1, np.int64)
        has_cell = match.cells > 0
        keys[has_cell] = runs[CELLS].seeds[match.cells[has_cell].astype(np.int64) - 1]
        if work.join_plan.grow_px:
            orphans = match.orphans - 1
            keys[orphans] = work.plan.shape[0] * work.plan.shape[1] + seeds[orphans]
    return match, digest_file(write_values(work.match, keys))


@lru_cache(maxsize=2)
def _load_match(path: str, digest: str) -> NDArray[np.int64]:
    """Key of the cell of each nucleus; both arguments key the cache."""
    if digest_file(Path(path)) != digest:
        raise ValueError(f"{path}: was changed by another process")
    keys: NDArray[np.int64] = load_array(Path(path))
    return keys


@dataclass(frozen=True)
class JoinTile(TileTask):
    """Leave the labels of a tile for numbering.

    Attributes
    ----------
    row, col : as of `TileTask`
    runs : that are joined, by what they segment
    match : digest of what was decided
    inputs : digest of the results of these runs
    """

    runs: Mapping[str, JoinedRun] = field(compare=False)
    match: str = field(compare=False)
    inputs: str = field(compare=False)
    stage: ClassVar[str] = "join"

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether the tile was joined from what there is now."""
        return bool(facts["inputs"] == self.inputs and facts["match"] == self.match)

    def run(self) -> dict[str, Any]:
        """Facts: cells, missing pixels, and costs."""
        meter = Meter()
        work, region = self.work, self.region
        keys_of_nuclei = _load_match(str(work.match), self.match)
        with meter.timed("join"):
            around = region.expand(reach_of(work.join_plan.grow_px)).clip(*work.plan.shape)
            nuclei = self.runs[NUCLEI].read(around)
            cells = np.zeros_like(nuclei)
            if CELLS in self.runs:
                cells = self.runs[CELLS].read(around)
            grown = self._grow(nuclei, cells, keys_of_nuclei)
            inside = region.slices_in(around)
            missing = self._find_missing(around, cells)
            if work.plan.region is not None:  # cells are cut, and grow no further
                grown[inside][~work.plan.region.find_inside(region)] = 0
            labels, keys = self._name(cells[inside], grown[inside], keys_of_nuclei)
            if missing is not None:
                missing = missing[inside]
                if work.plan.region is not None:
                    missing &= work.plan.region.find_inside(region)
                labels[missing] = 0
        with meter.timed("write"):
            files = write_tile_labels(work, self.row, self.col, labels, missing)
            files.append(write_values(work.tile_keys(self.row, self.col), keys))
        facts = {
            "inputs": self.inputs,
            "match": self.match,
            "cells": int(keys.size),
            "missing_px": 0 if missing is None else int(missing.sum()),
            **meter.read(),
        }
        return work.record(self.name, files, facts)

    def _grow(
        self, nuclei: NDArray[np.uint32], cells: NDArray[np.uint32], keys: NDArray[np.int64]
    ) -> NDArray[np.uint32]:
        """Nuclei that become cells, grown, outside of all cells; 0 elsewhere."""
        if not self.work.join_plan.grow_px:
            return np.zeros_like(nuclei)
        becomes_cell = np.zeros(keys.size + 1, np.bool_)
        becomes_cell[1:] = find_grown(self.work.join_plan, keys)
        sources = np.where(becomes_cell[nuclei] & (cells == 0), nuclei, np.uint32(0))
        return grow_labels(sources, cells == 0, self.work.join_plan.grow_px)

    def _find_missing(self, around: Region, cells: NDArray[np.uint32]) -> NDArray[np.bool_] | None:
        """Pixels that have no result, or might have another if all nuclei were known."""
        found = [run.find_missing(around) for run in self.runs.values()]
        marked = [each for each in found if each is not None]
        if not marked:
            return None
        missing: NDArray[np.bool_] = np.logical_or.reduce(marked)
        reach = reach_of(self.work.join_plan.grow_px)
        if reach:
            near = ndimage.maximum_filter(missing, 2 * reach + 1, mode="constant")
            missing |= near & (cells == 0)
        return missing

    def _name(
        self,
        cells: NDArray[np.uint32],
        grown: NDArray[np.uint32],
        keys_of_nuclei: NDArray[np.int64],
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Local labels 1..k of both, and the key of each."""
        ids, places = np.unique(cells, return_inverse=True)
        others, other_places = np.unique(grown, return_inverse=True)
        first, second = ids[ids > 0], others[others > 0]
        labels = places.reshape(cells.shape) + int(ids[0] > 0)
        more = other_places.reshape(cells.shape) + int(others[0] > 0)
        labels = np.where(more > 0, more + first.size, labels)
        seeds = self.runs[CELLS].seeds if CELLS in self.runs else np.zeros(0, np.int64)
        keys = [seeds[first.astype(np.int64) - 1], keys_of_nuclei[second.astype(np.int64) - 1]]
        return labels.astype(np.uint32), np.concatenate(keys)


@dataclass(frozen=True)
class CompartmentFinder:
    """Tells numbering which pixels are nuclei, and of which cells.

    Attributes
    ----------
    nuclei : the run of nuclei
    keys : file of the key of each nucleus' cell, as `decide_match` writes it
    match : its digest
    """

    nuclei: JoinedRun
    keys: str
    match: str

    def read_nuclei(self, region: Region, all_keys: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The cell of each pixel of a nucleus; 0 elsewhere, and where a nucleus has none.

        Parameters
        ----------
        region
            Pixels of the slide.
        all_keys
            The sorted keys by which cells are numbered.
        """
        keys = _load_match(self.keys, self.match)
        nuclei = self.nuclei.read(region)
        # Only nuclei of the region are looked up, because a slide has many more.
        is_here = np.zeros(keys.size + 1, np.bool_)
        is_here[nuclei] = True
        is_here[0] = False
        found = np.zeros(keys.size + 1, np.uint32)
        found[is_here] = number_nuclei(keys[is_here[1:]], all_keys)
        return found[nuclei]


def number_nuclei(keys: NDArray[np.int64], all_keys: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The cell of each nucleus by its id; 0 without, and where the cell has been lost to a gap.

    Parameters
    ----------
    keys
        `(n,)` of the nuclei's cells, -1 for none.
    all_keys
        `(N,)` ascending, of the cells 1..N.
    """
    places = np.searchsorted(all_keys, keys)
    known = np.zeros(keys.size, np.bool_)
    inside = places < all_keys.size
    known[inside] = all_keys[places[inside]] == keys[inside]
    return np.where(known, places + 1, 0).astype(np.uint32)


def find_grown(plan: JoinPlan, all_keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the cells 1..N were grown from their nuclei, by their keys."""
    if CELLS not in plan.runs:
        return np.ones(all_keys.size, np.bool_)
    return all_keys >= plan.shape[0] * plan.shape[1]
