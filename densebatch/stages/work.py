"""What a task is and what every task of a run is told: where to work, and on which tiles.

A task is small frozen data. It says which piece of a stage it is and how to do it, travels to a
worker, and leaves a record in the journal under its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from densebatch.planning.plan import load_plan
from densebatch.stages.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from densebatch.base.geometry import Grid
    from densebatch.planning.plan import Plan


@dataclass(frozen=True)
class Work:
    """The work folder of a run, where stages leave what later stages read.

    Attributes
    ----------
    plan_path : the file of the run's plan; everything else lies beside it
    tile_px : side of a tracing tile
    """

    plan_path: str
    tile_px: int

    @property
    def plan(self) -> Plan:
        """The run's plan, read once per process."""
        return load_plan(self.plan_path)

    @property
    def folder(self) -> Path:
        """The work folder."""
        return Path(self.plan_path).parent

    @property
    def journal(self) -> Journal:
        """Records of finished tasks."""
        return Journal(self.folder / "journal")

    @property
    def grid(self) -> Grid:
        """Tracing tiles, in slide pixels."""
        return self.plan.tiles(self.tile_px)

    @property
    def flows(self) -> Path:
        """The flow field, a zarr array."""
        return self.folder / "flows.zarr"

    @property
    def traces(self) -> Path:
        """Folder of what tracing and numbering leave; each size of tiles has one of its own."""
        return self.folder / f"trace-{self.tile_px}"

    @property
    def tile_labels(self) -> Path:
        """Local labels 1..k of every tile, a zarr array with a chunk per tile."""
        return self.traces / "labels.zarr"

    @property
    def all_keys(self) -> Path:
        """The sorted union of the keys of all tiles, by which cells are numbered."""
        return self.traces / "keys.npy"

    @property
    def lost_tiles(self) -> Path:
        """The tiles that have no labels, as they were when cells were numbered."""
        return self.traces / "lost.json"

    def tile_keys(self, row: int, col: int) -> Path:
        """File of the keys of a tile's cells, in the order of its local labels."""
        return self.traces / f"keys-{row}-{col}.npy"

    def shard_cells(self, row: int, col: int) -> Path:
        """File of the sums over the cells that have pixels in a shard of the output."""
        return self.traces / f"cells-{row}-{col}.npz"

    def read_keys(self, row: int, col: int) -> NDArray[np.int64]:
        """Keys of a traced tile's cells, in the order of its local labels."""
        keys: NDArray[np.int64] = np.load(self.tile_keys(row, col))
        return keys


@dataclass(frozen=True)
class Task(ABC):
    """A piece of a stage. Equal tasks are the same piece, however it is to be done.

    Attributes
    ----------
    work : of the run
    stage : which records are summed up together: `predict`, `trace` or `number`
    """

    work: Work
    stage: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique in the run; names the task's record."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Do the task and record it; returns the facts of the record."""

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether a record of the task, whose files are as it states, still means that it is done.

        Parameters
        ----------
        facts
            Of the record.
        """
        del facts
        return True


def run_task(task: Task) -> dict[str, Any]:
    """Do a task; what executors are given to call."""
    return task.run()
