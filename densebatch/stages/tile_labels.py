"""What either road leaves for numbering: labels 1..k of every tile, and the keys that name them.

Labels of all tiles are one array, a chunk of which is one tile and has one writer. A key is a
place on the slide, so that tiles agree on a cell without talking to each other.
"""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.files import write_atomic
from densebatch.cells.groups import renew_array
from densebatch.stages.writing import write_patiently

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.stages.work import Work


def create_tile_labels(work: Work) -> None:
    """Create the array of local labels, one chunk per tile."""
    height, width = work.plan.shape
    settings = {
        "shape": (height, width),
        "chunks": (min(work.tile_px, height), min(work.tile_px, width)),
        "dtype": "uint32",
        "fill_value": 0,
        "serializer": zarr.codecs.BytesCodec(endian="little"),
        "compressors": [zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
    }
    renew_array(work.tile_labels, settings)


def write_tile_labels(
    work: Work, row: int, col: int, labels: NDArray[np.uint32], missing: NDArray[np.bool_] | None
) -> list[Path]:
    """Write the labels of a tile, and which of its pixels have no result, if there are any.

    Parameters
    ----------
    work
        Of the run.
    row, col
        Tile.
    labels
        `(h, w)` uint32, 0 or 1..k.
    missing
        `(h, w)`; None if there are none.

    Returns
    -------
    list
        The files.

    Raises
    ------
    WriteError
        If one cannot be written.
    """
    array = zarr.open_array(work.tile_labels, mode="r+")
    chunk = work.tile_labels / "c" / str(row) / str(col)
    tile = work.grid[row, col]

    def write() -> None:
        array[tile.slices] = labels

    write_patiently(chunk, write)
    if missing is None or not missing.any():
        return [chunk]
    return [chunk, write_values(work.tile_missing(row, col), np.packbits(missing))]


def leave_inside(
    work: Work, region: Region, labels: NDArray[np.uint32], missing: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.bool_] | None]:
    """Cut labels 1..k, and what is missing, to what counts of the slide.

    Parameters
    ----------
    work
        Of the run.
    region
        Pixels of the slide.
    labels, missing
        As of `write_tile_labels`.

    Returns
    -------
    labels : ndarray
        1..n of the cells that have a pixel that counts.
    kept : ndarray
        `(n,)`: which of the k these are, from 0.
    missing : ndarray or None
    """
    inside = None if work.plan.region is None else work.plan.region.find_inside(region)
    k = int(labels.max(initial=0))
    if inside is None or inside.all():
        return labels, np.arange(k), missing
    labels = np.where(inside, labels, np.uint32(0))
    is_there = np.zeros(k + 1, np.bool_)
    is_there[labels.reshape(-1)] = True
    is_there[0] = False
    renamed = np.cumsum(is_there, dtype=np.uint32)
    renamed[~is_there] = 0
    return (
        renamed[labels],
        np.flatnonzero(is_there) - 1,
        None if missing is None else missing & inside,
    )


def write_values(path: Path, values: NDArray[Any]) -> Path:
    """Write an array to a file whole; returns the file.

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_patiently(path, partial(write_atomic, path, buffer.getvalue()))
    return path


def write_tables(path: Path, tables: Mapping[str, NDArray[Any]]) -> Path:
    """Write named arrays to a file whole; otherwise as `write_values`."""
    buffer = io.BytesIO()
    np.savez(buffer, **tables)
    write_patiently(path, partial(write_atomic, path, buffer.getvalue()))
    return path
