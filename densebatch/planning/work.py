"""The work folder: where stages leave what later stages read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.geometry import Grid

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.planning.plan import Plan


def tile_grid(plan: Plan, tile: int) -> Grid:
    """Tracing tiles, in slide pixels."""
    return Grid(*plan.shape, tile, tile)


def trace_folder(work: Path, tile: int) -> Path:
    """Where the results of a tile size are kept."""
    return work / f"trace-{tile}"


def read_keys(work: Path, tile: int, row: int, col: int) -> NDArray[np.int64]:
    """Keys of a traced tile's cells, in the order of its local labels."""
    keys: NDArray[np.int64] = np.load(trace_folder(work, tile) / f"keys-{row}-{col}.npy")
    return keys


def predict_name(row: int, col: int) -> str:
    """Name of the task that predicts a group, and of its record."""
    return f"predict-{row}-{col}"


def trace_name(tile: int, row: int, col: int) -> str:
    """Name of the task that traces a tile, and of its record."""
    return f"trace-{tile}-{row}-{col}"


def number_name(tile: int, level: int, row: int, col: int) -> str:
    """Name of the task that writes a shard, and of its record."""
    return f"number-{tile}-{level}-{row}-{col}"
