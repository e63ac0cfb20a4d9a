"""Stage 1 of the label road: a segmenter labels tiles, and it is counted what these share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xxhash
import zarr

from densebatch.base.errors import InputError
from densebatch.base.files import load_arrays
from densebatch.base.geometry import Region
from densebatch.base.process import Meter
from densebatch.cells.groups import renew_array
from densebatch.merging.facts import TileFacts, measure_band, measure_tile, number_locally
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from densebatch.stages.tile_labels import write_tables
from densebatch.stages.unread import read_pieces
from densebatch.stages.work import Task
from densebatch.stages.writing import write_patiently
from densebatch.survey.normalization import show_once

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.planning.plan import LabelPlan
    from densebatch.segmenters.segmenter import Segmenter
    from densebatch.stages.unread import Unread
    from densebatch.stages.work import Work
    from densebatch.survey.normalization import ChannelBounds

_CHUNK_PX = 256  # that a part of a tile's labels is read by


def require_segmenter(spec: str, identity: str) -> None:
    """Refuse a process in which a segmenter is not there, or is another; workers are asked so.

    Parameters
    ----------
    spec, identity
        Of the plan.

    Raises
    ------
    InputError
        In one sentence.
    """
    _load_segmenter(spec, identity)


@lru_cache(maxsize=1)
def _load_segmenter(spec: str, identity: str) -> Segmenter:
    """The segmenter, found once in a process; what it loads it keeps itself."""
    found = find_segmenter(spec)
    if found.identity != identity:
        raise InputError(
            f"segmenter {spec!r}: is another here than where the run was planned; accepted is the "
            "same code on every worker"
        )
    return found


def read_image(
    work: Work, plan: LabelPlan, region: Region
) -> tuple[NDArray[np.float32], list[Unread]]:
    """What the segmenter sees of a region, and what of it could not be read and is 0.

    Parameters
    ----------
    work, plan
        Of the run.
    region
        Pixels of the slide.

    Returns
    -------
    image : ndarray
        `(planes, h, w)` float32 from 0 to 1: the largest of the membrane channels, and the nuclear
        channel if there is one.
    unread : list
    """
    planes, unread = [], []
    for group in (plan.membrane, [plan.nuclei] if plan.nuclei is not None else []):
        shown = []
        for bounds in group:
            plane, holes = _read_channel(work, bounds, region)
            shown.append(plane)
            unread += holes
        if shown:
            planes.append(np.maximum.reduce(shown))
    return np.stack(planes), unread


def _read_channel(
    work: Work, bounds: ChannelBounds, region: Region
) -> tuple[NDArray[np.float32], list[Unread]]:
    around = region.expand(bounds.reach_px).clip(*work.plan.shape)
    pixels, holes = read_pieces(work, bounds.channel, around)
    shown = show_once(pixels, bounds)[region.shift(-around.y0, -around.x0).slices]
    for hole in holes:  # of floats, 0 need not be dark
        shown[hole.region.slices_in(region)] = 0
    return shown, holes


def list_doubtful(plan: LabelPlan, unread: Sequence[Mapping[str, Any]]) -> Iterator[Region]:
    """Areas whose labels depend on what could not be read: a cell's width around it.

    Parameters
    ----------
    plan
        Of the run.
    unread
        Pieces, as records have them.
    """
    for piece in unread:
        yield Region(*piece["region"]).expand(plan.overlap_px // 2).clip(*plan.shape)


@dataclass(frozen=True)
class LabelTile(Task):
    """Let the segmenter label one tile, and write its labels as 1..k.

    Attributes
    ----------
    tile : as `LabelPlan.layout` numbers them
    """

    tile: int
    stage: ClassVar[str] = "label"

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return name_tile(self.tile)

    @property
    def region(self) -> Region:
        """What the segmenter sees, in pixels of the slide."""
        return self.work.label_plan.layout.regions[self.tile]

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether all of the tile could be read; what could not is tried again."""
        return not facts.get("unread")

    def run(self) -> dict[str, Any]:
        """Facts: labels, a digest of their pixels, what could not be read, and costs."""
        earlier = self.work.journal.done(self.name)
        if earlier is not None and self.is_current(earlier):
            return earlier  # a worker that was lost as it had finished could not tell
        meter = Meter()
        plan, region = self.work.label_plan, self.region
        with meter.timed("read"):
            image, holes = read_image(self.work, plan, region)
        segmenter = _load_segmenter(plan.segmenter, plan.segmenter_identity)
        tile = Tile(image, _name_planes(plan), plan.um_per_px, plan.options)
        with meter.timed("segmenter"):
            labels = label_tile(segmenter, tile)
        unread = [piece.describe(plan.slide.channels) for piece in holes]
        if unread:
            labels = labels.copy()
            for area in list_doubtful(plan, unread):
                labels[area.slices_in(region)] = 0
        with meter.timed("facts"):
            local = number_locally(labels)
            found = measure_tile(local, region)
        with meter.timed("write"):
            tables = {"areas": found.areas, "boxes": found.boxes}
            files = [_write_labels(self.work, self.tile, local)]
            files.append(write_tables(_facts_path(self.work, self.tile), tables))
        facts = {
            "labels": int(found.areas.size),
            "content": xxhash.xxh3_128(local.data).hexdigest(),
            "unread": unread,
            **meter.read(),
        }
        return self.work.record(self.name, files, facts)


def name_tile(tile: int) -> str:
    """Name of the task that labels a tile."""
    return f"label-{tile}"


def _name_planes(plan: LabelPlan) -> tuple[str, ...]:
    """Names of what the segmenter sees, as the slide has them."""
    groups = [plan.membrane, *([(plan.nuclei,)] if plan.nuclei is not None else [])]
    return tuple("+".join(bounds.name for bounds in group) for group in groups)


def _labels_path(work: Work, tile: int) -> Path:
    return work.segmented / f"{tile}.zarr"


def _facts_path(work: Work, tile: int) -> Path:
    return work.segmented / f"{tile}.npz"


def _bands_path(work: Work, tile: int) -> Path:
    return work.segmented / f"{tile}-bands.npz"


def _write_labels(work: Work, tile: int, local: NDArray[np.uint32]) -> Path:
    """Write the labels of a tile: one file, of which parts can be read."""
    path = _labels_path(work, tile)
    settings = {
        "shape": local.shape,
        "chunks": (_CHUNK_PX, _CHUNK_PX),
        "shards": tuple(-(-n // _CHUNK_PX) * _CHUNK_PX for n in local.shape),
        "dtype": "uint32",
        "fill_value": 0,
        "serializer": zarr.codecs.BytesCodec(endian="little"),
        "compressors": [zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
    }

    def write() -> None:
        # What an earlier session left is not to be read, as writing a part of a shard would.
        shutil.rmtree(path / "c", ignore_errors=True)
        renew_array(path, settings)
        array = zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})
        array[:] = local

    write_patiently(path, write)
    return path / "c" / "0" / "0"


def view_tile(work: Work, tile: int, region: Region) -> NDArray[np.uint32]:
    """Labels 1..k of a tile in a region of the slide that lies inside it.

    Parameters
    ----------
    work
        Of the run.
    tile
        Which has been labelled.
    region
        Pixels of the slide.
    """
    own = work.label_plan.layout.regions[tile]
    array = zarr.open_array(_labels_path(work, tile), mode="r")
    return np.asarray(array[region.shift(-own.y0, -own.x0).slices], np.uint32)


def read_facts(work: Work, tile: int) -> TileFacts:
    """What is known of the labels of a tile that has been labelled."""
    tables = load_arrays(_facts_path(work, tile))
    return TileFacts(tables["areas"], tables["boxes"])


@dataclass(frozen=True)
class CompareTile(Task):
    """Count which labels a tile shares pixels with, in tiles that come after it.

    Attributes
    ----------
    tile : as `LabelPlan.layout` numbers them
    others : tiles to compare it with, ascending
    inputs : digest of the labels of all these
    """

    tile: int
    others: tuple[int, ...] = field(compare=False)
    inputs: str = field(compare=False)
    stage: ClassVar[str] = "compare"

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return f"compare-{self.tile}"

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether these tiles were compared, with the labels that they have now."""
        return bool(facts["inputs"] == self.inputs)

    def run(self) -> dict[str, Any]:
        """Facts: pairs of labels that share pixels, and costs."""
        meter = Meter()
        regions = self.work.label_plan.layout.regions
        tables: dict[str, NDArray[np.int64]] = {}
        for other in self.others:
            band = regions[self.tile].intersect(regions[other])
            assert band is not None
            with meter.timed("read"):
                views = [view_tile(self.work, each, band) for each in (self.tile, other)]
            with meter.timed("facts"):
                tables[str(other)] = measure_band(self.tile, other, *views).pairs
        with meter.timed("write"):
            file = write_tables(_bands_path(self.work, self.tile), tables)
        facts = {
            "inputs": self.inputs,
            "pairs": sum(len(pairs) for pairs in tables.values()),
            **meter.read(),
        }
        return self.work.record(self.name, [file], facts)


def read_bands(work: Work, tile: int) -> dict[int, NDArray[np.int64]]:
    """Pairs of labels that a tile shares with each that it was compared with (`BandFacts`)."""
    tables = load_arrays(_bands_path(work, tile))
    return {int(other): pairs for other, pairs in tables.items()}
