"""Stage 2 of the label road: labels of overlapping tiles become cells of the slide.

`decide_cells` reads the tables of all tiles, in the main process. Painting is independent again:
each tile of the output gets its pixels from the segmenter's tiles that reach into it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from densebatch.base.checksums import map_in_threads
from densebatch.base.files import digest_file, load_arrays
from densebatch.base.geometry import Region
from densebatch.base.machine import count_cores
from densebatch.base.process import Meter
from densebatch.merging.decision import decide
from densebatch.merging.facts import BandFacts
from densebatch.merging.layout import Layout
from densebatch.merging.painting import Part, paint_region
from densebatch.stages.label import read_bands, read_facts, view_tile
from densebatch.stages.tile_labels import write_tables, write_tile_labels, write_values
from densebatch.stages.work import TileTask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from densebatch.merging.decision import Decision
    from densebatch.stages.work import Work


def decide_cells(
    work: Work, labelled: Sequence[int], doubtful: Sequence[Region]
) -> tuple[Decision, str]:
    """Decide which labels of which tiles are one cell, and write it for those who paint.

    Parameters
    ----------
    work
        Of the run.
    labelled
        Tiles that have been labelled and compared, ascending.
    doubtful
        Areas whose labels nobody knows, although a tile reaches there.

    Returns
    -------
    decision
        Whose tiles are numbered by their place in `labelled`.
    digest : str
        Of what was written.
    """
    regions = work.label_plan.layout.regions
    layout = Layout(tuple(regions[tile] for tile in labelled))
    place = {tile: k for k, tile in enumerate(labelled)}
    threads = count_cores()
    facts = [found for _, found in map_in_threads(lambda t: read_facts(work, t), labelled, threads)]
    bands = [
        BandFacts(place[tile], place[other], pairs)
        for tile, found in map_in_threads(lambda t: read_bands(work, t), labelled, threads)
        for other, pairs in found.items()
    ]
    decision = decide(layout, facts, bands)
    starts = np.cumsum([0, *(ranks.size for ranks in decision.ranks)], dtype=np.int64)
    tables = {
        "tiles": np.array(labelled, np.int64),
        "starts": starts,
        "ranks": np.concatenate([*decision.ranks, np.zeros(0, np.uint32)]),
        "doubtful": np.array([astuple(area) for area in doubtful], np.int64).reshape(-1, 4),
    }
    return decision, digest_file(write_tables(work.decision, tables))


@lru_cache(maxsize=1)
def _load_decision(
    path: str, digest: str
) -> tuple[dict[int, NDArray[np.uint32]], tuple[Region, ...]]:
    """Ranks of the labels of each tile, and areas in doubt; both arguments key the cache."""
    if digest_file(Path(path)) != digest:
        raise ValueError(f"{path}: was changed by another process")
    tables = load_arrays(Path(path))
    tiles, starts, ranks = (tables[name] for name in ("tiles", "starts", "ranks"))
    doubtful = tuple(Region(*area) for area in tables["doubtful"].tolist())
    parts = np.split(ranks, starts[1:-1])
    return dict(zip(tiles.tolist(), parts, strict=True)), doubtful


@dataclass(frozen=True)
class PaintTile(TileTask):
    """Paint one tile of the output: write its labels and which cells they are.

    Attributes
    ----------
    row, col : as of `TileTask`
    decision : digest of what was decided
    inputs : digest of all that the tile is painted from
    """

    decision: str = field(compare=False)
    inputs: str = field(compare=False)
    stage: ClassVar[str] = "paint"

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether the tile was painted from what there is now."""
        return bool(facts["inputs"] == self.inputs)

    def run(self) -> dict[str, Any]:
        """Facts: cells, pixels that several claimed, missing pixels, and costs."""
        meter = Meter()
        work, plan, region = self.work, self.work.label_plan, self.region
        ranks, doubtful = _load_decision(str(work.decision), self.decision)
        reaching = [tile for tile in plan.layout.reaching(region) if tile in ranks]
        with meter.timed("paint"):
            parts = self._list_parts(reaching, ranks, doubtful)
            painted = paint_region(region, parts, plan.shape[1])
            missing = ~painted.is_seen
            for area in doubtful:
                missing[area.slices_in(region)] = True
            if plan.region is not None:
                missing &= plan.region.find_inside(region)
        with meter.timed("write"):
            files = write_tile_labels(work, self.row, self.col, painted.labels, missing)
            cells: dict[str, NDArray[Any]] = {
                "ranks": painted.ranks,
                "first_pixels": painted.first_pixels,
            }
            files.append(write_tables(work.painted_cells(self.row, self.col), cells))
        facts = {
            "inputs": self.inputs,
            "cells": int(painted.ranks.size),
            "resolved_px": painted.resolved_px,
            "missing_px": int(missing.sum()),
            **meter.read(),
        }
        return work.record(self.name, files, facts)

    def _list_parts(
        self,
        reaching: Sequence[int],
        ranks: Mapping[int, NDArray[np.uint32]],
        doubtful: Sequence[Region],
    ) -> Iterator[Part]:
        regions = self.work.label_plan.layout.regions
        areas = self.work.plan.region
        # Cut before they are painted, so that a cell's first pixel is one that it keeps.
        counted = None if areas is None else areas.find_inside(self.region)
        for tile in reaching:
            inside = regions[tile].intersect(self.region)
            assert inside is not None
            labels = view_tile(self.work, tile, inside)
            # A tile that does not reach to what could not be read has labels beside it.
            for area in doubtful:
                labels[area.slices_in(inside)] = 0
            if counted is not None:
                labels = np.where(counted[inside.slices_in(self.region)], labels, np.uint32(0))
            yield Part(inside, labels, ranks[tile])


def write_keys(work: Work, n_cells: int) -> None:
    """Write the keys of all tiles: the first pixel that a cell has on the slide.

    Parameters
    ----------
    work
        Of the run, all tiles of which are painted.
    n_cells
        Of the decision.
    """
    found = {}
    first = np.full(n_cells + 1, np.iinfo(np.int64).max, np.int64)
    for index in work.grid:
        tables = load_arrays(work.painted_cells(*index))
        found[index] = tables["ranks"]
        np.minimum.at(first, found[index], tables["first_pixels"])
    for index, ranks in found.items():
        write_values(work.tile_keys(*index), first[ranks])
