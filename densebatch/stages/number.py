"""Stage 3: cell keys to ids 1..N in raster order, written with the pyramid and the cell sums.

Keys are positions, so their sorted union numbers the cells in raster order of their seeds, and
every shard can be written on its own: it looks its tiles' keys up in the union.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import astuple
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.errors import InputError
from densebatch.base.files import digest_file, write_atomic
from densebatch.base.geometry import Grid
from densebatch.base.process import Meter
from densebatch.cells import labels
from densebatch.cells.measure import CellSums, add_intensities, measure_shapes
from densebatch.planning.plan import Plan, load_plan
from densebatch.planning.work import number_name, read_keys, tile_grid, trace_folder
from densebatch.slides.slide import open_slide
from densebatch.stages.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region


def output_spec(plan: Plan, root: str) -> labels.PyramidSpec:
    """Arrays and metadata of the output of a run.

    Parameters
    ----------
    plan
        The run.
    root
        The OME-Zarr image group that gets the labels.
    """
    if plan.in_place:
        return labels.in_place_spec(root)
    height, width = plan.shape
    layout = None
    if plan.slide.kind == "ome-zarr" and not plan.copy_image:
        layout = labels.slide_layout(plan.slide.path)
    return labels.PyramidSpec(
        root=root,
        ngff=plan.ngff,
        height=height,
        width=width,
        n_levels=labels.count_levels(height, width) if layout is None else len(layout.shapes),
        um_per_px=plan.um_per_px,
        image=plan.copy_image,
        channels=plan.slide.channels if plan.copy_image else (),
        image_dtype=plan.slide.dtype if plan.copy_image else None,
        windows=_display_windows(plan) if plan.copy_image else None,
        image_name=Path(plan.slide.path).name,
        slide=layout,
    )


def _display_windows(plan: Plan) -> tuple[tuple[float, float], ...] | None:
    """Display ranges of all channels, known when the network sees them all."""
    known = {b.channel: (b.low, b.high) for b in plan.membrane if b.high > b.low}
    if plan.nuclei is not None and plan.nuclei.high > plan.nuclei.low:
        known[plan.nuclei.channel] = (plan.nuclei.low, plan.nuclei.high)
    channels = range(len(plan.slide.channels))
    return tuple(known[c] for c in channels) if all(c in known for c in channels) else None


def _planes(spec: labels.PyramidSpec) -> list[int | None]:
    """What there is of a shard: its labels (None), and each channel of a copied image."""
    return [None, *(range(len(spec.channels)) if spec.image else ())]


def group_levels(spec: labels.PyramidSpec) -> list[range]:
    """Levels by the tasks that write them: the last ones, of a single shard each, go together.

    Their tasks could not run beside any other, and each would read back what the last has written.
    """
    top = spec.n_levels
    while top > 1 and len(labels.shard_grid(spec, top - 1)) == 1:
        top -= 1
    below = [range(level, level + 1) for level in range(top)]
    return [*below, range(top, spec.n_levels)] if top < spec.n_levels else below


def _levels_with(spec: labels.PyramidSpec, level: int) -> range:
    return next(levels for levels in group_levels(spec) if level in levels)


def keys_path(work: Path, tile: int) -> Path:
    """Where the sorted union of all keys is kept."""
    return trace_folder(work, tile) / "keys.npy"


def _lost_path(work: Path, tile: int) -> Path:
    return trace_folder(work, tile) / "lost.json"


def collect_keys(
    plan: Plan, work: Path, tile: int, lost: Collection[tuple[int, int]]
) -> tuple[int, str]:
    """Write what all shards are numbered by: the sorted union of keys, and the lost tiles.

    Parameters
    ----------
    plan
        The run.
    work
        Its work folder.
    tile
        Size of the tracing tiles.
    lost
        Tiles that have no result.

    Returns
    -------
    tuple
        Number of cells; and a digest of what was written, which changes with any cell's id.
    """
    grid = tile_grid(plan, tile)
    parts = [read_keys(work, tile, *index) for index in grid if index not in lost]
    keys = np.unique(np.concatenate([*parts, np.zeros(0, np.int64)]))
    buffer = io.BytesIO()
    np.save(buffer, keys)
    write_atomic(keys_path(work, tile), buffer.getvalue())
    write_atomic(_lost_path(work, tile), json.dumps(sorted(lost)).encode())
    files = (keys_path(work, tile), _lost_path(work, tile))
    return int(keys.size), digest_texts([digest_file(file) for file in files])


def digest_texts(texts: Iterable[str]) -> str:
    """One digest of several."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=2)
def _mapped_keys(path: str, digest: str) -> NDArray[np.int64]:
    """The union, mapped rather than read; `digest` keys the cache."""
    del digest
    mapped: NDArray[np.int64] = np.load(path, mmap_mode="r")
    return mapped


def _read_shard_labels(
    work: Path, tile: int, grid: Grid, region: Region
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Shard-local labels 1..k of a region, and the global id of each.

    Area of lost tiles is left 0; the run's record names it.
    """
    keys = _mapped_keys(str(keys_path(work, tile)), digest_file(keys_path(work, tile)))
    lost = {tuple(index) for index in json.loads(_lost_path(work, tile).read_bytes())}
    array = zarr.open_array(str(trace_folder(work, tile) / "labels.zarr"), mode="r")
    tiles = [index for index in grid.overlapping(region) if index not in lost]
    ids_of = {
        index: (np.searchsorted(keys, read_keys(work, tile, *index)) + 1).astype(np.uint32)
        for index in tiles
    }
    ids = np.unique(np.concatenate([*ids_of.values(), np.zeros(0, np.uint32)]))
    local = np.zeros(region.shape, np.uint32)
    for index in tiles:
        part = grid[index].intersect(region)
        if part is None or not ids_of[index].size:
            continue
        table = np.zeros(ids_of[index].size + 1, np.uint32)
        table[1:] = np.searchsorted(ids, ids_of[index]) + 1
        local[part.shift(-region.y0, -region.x0).slices] = table[np.asarray(array[part.slices])]
    return local, ids


def _read_pixels(
    plan: Plan, channel: int, region: Region
) -> tuple[NDArray[np.generic], list[tuple[Region, str]]]:
    """Pixels of a channel, 0 where they cannot be read, and where that is and why.

    A damaged piece of some channel must cost no more than what it holds: the labels do not need
    it, and the network saw its own channels before.
    """
    slide = open_slide(plan.slide.path)
    try:
        return slide.read(channel, region), []
    except (InputError, OSError):
        pixels = np.zeros(region.shape, plan.slide.dtype)
        unread = []
    pieces = Grid(*plan.shape, *plan.slide.chunk_px)
    for index in pieces.overlapping(region):
        piece = pieces[index].intersect(region)
        if piece is None:
            continue
        try:
            pixels[piece.shift(-region.y0, -region.x0).slices] = slide.read(channel, piece)
        except (InputError, OSError) as error:
            unread.append((piece, " ".join(str(error).split())))
    return pixels, unread


def number_shard(
    plan_path: str, tile: int, root: str, row: int, col: int, inputs: str
) -> dict[str, Any]:
    """Write one shard of labels, its cell sums, and the slide's own pixels if they are copied.

    Parameters
    ----------
    plan_path
        The run's plan.
    tile
        Size of the tracing tiles.
    root
        OME-Zarr image group of the output.
    row, col
        Shard at level 0.
    inputs
        Digest of what the shard is made from, kept in its record.

    Returns
    -------
    dict
        Facts for the journal: cells that have a pixel in the shard, digests of what was written,
        pixels that could not be read, seconds and peak memory.
    """
    meter = Meter()
    plan = load_plan(plan_path)
    work = Path(plan_path).parent
    spec = output_spec(plan, root)
    region = labels.shard_grid(spec, 0)[row, col]
    with meter.timed("read"):
        local, ids = _read_shard_labels(work, tile, tile_grid(plan, tile), region)
    with meter.timed("table"):
        shapes = measure_shapes(local, ids.size, region.y0, region.x0)
    sums = np.zeros((ids.size, len(plan.slide.channels)), np.float64)
    missing = np.zeros(sums.shape, np.int64)
    unread = []
    digests = []
    # where there is neither a cell nor a copy, nobody asks for pixels
    wanted = plan.slide.channels if ids.size or spec.image else ()
    for channel, name in enumerate(wanted):
        with meter.timed("read"):
            pixels, holes = _read_pixels(plan, channel, region)
        column, left_out = np.zeros(ids.size, np.float64), np.zeros(ids.size, np.int64)
        with meter.timed("table"):
            # numba has no half precision
            exact = pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels
            add_intensities(local, exact, column, left_out)
        for hole, reason in holes:
            touched = np.unique(local[hole.shift(-region.y0, -region.x0).slices])
            column[touched[touched > 0] - 1] = np.nan
            unread.append({"channel": name, "region": list(astuple(hole)), "reason": reason})
        sums[:, channel], missing[:, channel] = column, left_out
        if spec.image:
            with meter.timed("write"):
                labels.write_image_shard(spec, channel, 0, region, pixels)
            digests.append(labels.digest_pixels(pixels))
    present = shapes[:, 0] > 0
    with meter.timed("write"):
        numbered = np.concatenate([np.zeros(1, np.uint32), ids])[local]
        labels.write_label_shard(spec, 0, region, numbered)
        digests.insert(0, labels.digest_pixels(numbered))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=ids[present],
        shapes=shapes[present],
        sums=sums[present],
        missing=missing[present],
    )
    part = _part_path(work, tile, row, col)
    write_atomic(part, buffer.getvalue())
    facts = {
        "inputs": inputs,
        "digests": digests,
        "cells": int(present.sum()),
        "unread": unread,
        **meter.read(),
    }
    return Journal(work / "journal").record(number_name(tile, 0, row, col), [part], facts)


def _part_path(work: Path, tile: int, row: int, col: int) -> Path:
    return trace_folder(work, tile) / f"cells-{row}-{col}.npz"


def read_parts(work: Path, tile: int, grid: Grid) -> Iterator[CellSums]:
    """Cell sums of every shard, in raster order of the shards."""
    for row, col in grid:
        with np.load(_part_path(work, tile, row, col)) as part:
            yield CellSums(**part)


def reduce_shard(
    plan_path: str, tile: int, root: str, level: int, row: int, col: int, inputs: str
) -> dict[str, Any]:
    """Build one shard of a pyramid level from the level below, and what `group_levels` adds.

    Parameters
    ----------
    plan_path, tile, root, inputs
        As for `number_shard`.
    level
        1 or more.
    row, col
        Shard at that level.
    """
    meter = Meter()
    plan = load_plan(plan_path)
    work = Path(plan_path).parent
    spec = output_spec(plan, root)
    digests = []
    with meter.timed("pyramid"):
        for channel in _planes(spec):
            pixels = None
            for each in _levels_with(spec, level):
                region = labels.shard_grid(spec, each)[row, col]
                if channel is None:
                    pixels = labels.downsample_labels(spec, each, region, pixels)
                else:
                    pixels = labels.downsample_image(spec, channel, each, region, pixels)
                digests.append(labels.digest_pixels(pixels))
    facts = {"inputs": inputs, "digests": digests, **meter.read()}
    return Journal(work / "journal").record(number_name(tile, level, row, col), [], facts)


def verify_shard(plan: Plan, root: str, level: int, row: int, col: int, digests: list[str]) -> bool:
    """Whether what the task of a shard wrote still holds what its record states."""
    spec = output_spec(plan, root)
    try:
        stored = [
            labels.digest_unit(spec, each, labels.shard_grid(spec, each)[row, col], channel)
            for channel in _planes(spec)
            for each in _levels_with(spec, level)
        ]
    except InputError:  # damaged or lost: written again
        return False
    return stored == digests


def label_attributes(plan: Plan, failed: list[dict[str, Any]]) -> dict[str, Any]:
    """What the label image says of its origin."""
    return {
        "model": plan.model.name,
        "model_sha256": plan.model.sha256,
        "fingerprint": plan.fingerprint,
        "normalization": [
            {"channel": b.name, "low": b.low, "high": b.high}
            for b in (*plan.membrane, *([plan.nuclei] if plan.nuclei else []))
        ],
        "failed_tiles": failed,
    }
