"""What a task is and what every task of a run is told: where to work, and on which tiles.

A task is small frozen data. It says which piece of a stage it is and how to do it, travels to a
worker, and leaves a record in the journal under its name.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from densebatch.base.errors import DensebatchError, SlideChangedError, WriteError
from densebatch.base.files import load_array, write_atomic
from densebatch.planning.plan import FlowPlan, JoinPlan, LabelPlan, load_plan
from densebatch.slides.watch import read_watched
from densebatch.stages.journal import Journal
from densebatch.stages.writing import write_patiently

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.base.geometry import Grid, Region
    from densebatch.planning.plan import Plan
    from densebatch.slides.watch import SlideState


@dataclass(frozen=True)
class Work:
    """The work folder of a run, where stages leave what later stages read.

    Attributes
    ----------
    plan_path : the file of the run's plan; everything else lies beside it
    tile_px : side of a tracing tile
    slide : how the slide was when the session began; tasks use the pixels of no other. None where
        nobody has looked
    """

    plan_path: str
    tile_px: int
    slide: SlideState | None = field(default=None, compare=False)

    @property
    def plan(self) -> Plan:
        """The run's plan, read once per process."""
        return load_plan(self.plan_path)

    @property
    def flow_plan(self) -> FlowPlan:
        """The plan of a run whose labels come from flows."""
        plan = self.plan
        assert isinstance(plan, FlowPlan)
        return plan

    @property
    def label_plan(self) -> LabelPlan:
        """The plan of a run whose labels come from a segmenter."""
        plan = self.plan
        assert isinstance(plan, LabelPlan)
        return plan

    @property
    def join_plan(self) -> JoinPlan:
        """The plan of a run that joins two others."""
        plan = self.plan
        assert isinstance(plan, JoinPlan)
        return plan

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
    def segmented(self) -> Path:
        """Folder of what a segmenter has made of its tiles, and of what these share."""
        return self.folder / "tiles"

    @property
    def decision(self) -> Path:
        """Which labels of a segmenter's tiles are one cell, as `stages.merge` has it."""
        return self.segmented / "decision.npz"

    @property
    def match(self) -> Path:
        """The key of the cell that each nucleus belongs to, -1 where it has none."""
        return self.folder / "match.npy"

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
    def key_tiles(self) -> Path:
        """Of each of these keys, how many tiles have pixels of it."""
        return self.traces / "key-tiles.npy"

    @property
    def gaps(self) -> Path:
        """The tiles that have no labels, or not everywhere, as they were when cells were numbered.

        `stages.missing` reads it.
        """
        return self.traces / "gaps.json"

    def tile_missing(self, row: int, col: int) -> Path:
        """File of the pixels of a tile whose labels depend on unknown flows, if there are any."""
        return self.traces / f"missing-{row}-{col}.npy"

    def failure(self, task: str) -> Path:
        """File of the last traceback of a task that failed."""
        return self.folder / "failures" / f"{task}.txt"

    def read_slide(self, channel: int, region: Region) -> NDArray[Any]:
        """Pixels of a channel, if the slide is still the one that the session began with.

        Raises
        ------
        SlideChangedError
            If it is not.
        InputError
            If its pixels cannot be read or decoded.
        """
        return read_watched(self.plan.slide, self.slide, channel, region)

    def record(self, task: str, files: list[Path], facts: dict[str, Any]) -> dict[str, Any]:
        """State that a task is done, as `Journal.record`.

        Raises
        ------
        WriteError
            If it cannot be stated.
        """
        journal = self.journal
        return write_patiently(journal.folder, lambda: journal.record(task, files, facts))

    def tile_keys(self, row: int, col: int) -> Path:
        """File of the keys of a tile's cells, in the order of its local labels."""
        return self.traces / f"keys-{row}-{col}.npy"

    def painted_cells(self, row: int, col: int) -> Path:
        """File of the cells that merging has painted in a tile, in the order of its labels."""
        return self.traces / f"painted-{row}-{col}.npz"

    def tile_match(self, row: int, col: int) -> Path:
        """File of how many pixels nuclei and cells share in a tile."""
        return self.traces / f"match-{row}-{col}.npz"

    def shard_cells(self, row: int, col: int, compartment: str = "cells") -> Path:
        """File of what was measured of the cells that have pixels in a shard of the output."""
        return self.traces / f"{compartment}-{row}-{col}.npz"

    def read_keys(self, row: int, col: int) -> NDArray[np.int64]:
        """Keys of a traced tile's cells, in the order of its local labels."""
        keys: NDArray[np.int64] = load_array(self.tile_keys(row, col))
        return keys


@dataclass(frozen=True)
class Task(ABC):
    """A piece of a stage. Equal tasks are the same piece, however it is to be done.

    Attributes
    ----------
    work : of the run
    stage : which records are summed up together: one of `Plan.stages`
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


@dataclass(frozen=True)
class TileTask(Task):
    """Leave something for a tile of the output.

    Attributes
    ----------
    row, col : tile, of `Work.grid`
    """

    row: int
    col: int

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return f"{self.stage}-{self.work.tile_px}-{self.row}-{self.col}"

    @property
    def region(self) -> Region:
        """Slide pixels of the tile."""
        return self.work.grid[self.row, self.col]


@dataclass(frozen=True)
class Halt:
    """Instead of a task's facts: no task should be begun any more, for each would fail so.

    Attributes
    ----------
    kind : name of the error
    reason : the sentence for the user
    """

    kind: str
    reason: str

    def to_error(self) -> DensebatchError:
        """The error that ends the session."""
        errors = {error.__name__: error for error in (SlideChangedError, WriteError)}
        return errors[self.kind](self.reason)


def run_task(task: Task) -> dict[str, Any] | Halt:
    """Do a task; what executors are given to call.

    Returns
    -------
    dict or Halt
        Facts of the task's record.

    Raises
    ------
    Exception
        What the task raised, whose traceback is kept (`Work.failure`).
    """
    try:
        return task.run()
    except (SlideChangedError, WriteError) as error:
        return Halt(type(error).__name__, str(error))
    except Exception:
        with suppress(OSError):
            write_atomic(task.work.failure(task.name), traceback.format_exc().encode())
        raise
