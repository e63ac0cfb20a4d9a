"""Stage 1: evaluate the network on lattice patches and keep their trusted cores.

A patch with rare bright cells is evaluated twice, without them and on their own scale
(`survey.normalization`), and each pixel is of the view that is meant for it.

The only module that runs a network on a slide. A patch's bits must not depend on how the work is
divided: `engines.backend` says how that is held.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr

from densebatch.base.errors import InputError, SlideChangedError, StoreError, UnreachableError
from densebatch.base.geometry import Region
from densebatch.base.process import Meter
from densebatch.cells.groups import renew_array
from densebatch.engines.backend import evaluate_patches, patch_shape
from densebatch.engines.make import choose_device, make_backend
from densebatch.engines.quantization import read_quantised
from densebatch.models.model import load_network
from densebatch.stages.network_input import (
    find_bright_cells,
    list_sources,
    read_network_input,
)
from densebatch.stages.unread import read_pieces
from densebatch.stages.work import Task
from densebatch.stages.writing import write_patiently

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend, Engine, PatchShape
    from densebatch.planning.plan import FlowPlan
    from densebatch.stages.unread import Unread
    from densebatch.stages.work import Work

UNKNOWN = np.float16(np.inf)
"""Stands in the flow field, in all three planes, where no patch could be evaluated.

What was never written is NaN: a chunk that got lost must not pass for one that could not be made.
"""

model_loads = 0  # of this process; tests check that it stays at one

# Of a cohort's slides those that share workers may have two models; one alone is used on a GPU,
# whose memory is shared out so.
_N_LOADED = 2
_loaded: dict[tuple[str, Engine, PatchShape, int, int], Backend] = {}
_loading = threading.Lock()  # a Dask worker may run several tasks at once


def get_backend(plan: FlowPlan, work: Path, lanes: int) -> Backend:
    """The plan's network, ready in this process; kept for later tasks by the weights' content."""
    global model_loads
    shape = patch_shape(plan.lattice)
    key = (plan.model.sha256, plan.engine, shape, plan.network_batch, lanes)
    with _loading:
        if key not in _loaded:
            choose_device(plan.engine.device)  # a worker may lack what the planner has
            while len(_loaded) >= (1 if plan.engine.device == "cuda" else _N_LOADED):
                del _loaded[next(iter(_loaded))]
            model_loads += 1
            quantised = None
            if plan.engine.quantised is not None:
                quantised = read_quantised(work, plan.engine.quantised)
            _loaded[key] = make_backend(
                plan.engine.backend, plan.engine.device, load_network(plan.model), shape,
                batch=plan.network_batch, lanes=lanes, quantised=quantised,
            )  # fmt: skip
        _loaded[key] = _loaded.pop(key)  # the one that was used last goes last
        return _loaded[key]


def create_flows(plan: FlowPlan, path: Path) -> None:
    """Create the flow field: `(3, h, w)` float16 at the network's scale, one chunk per group.

    What is not written reads as NaN, so that a lost chunk cannot pass for background.
    """
    settings = {
        "shape": (3, *plan.network_shape),
        "chunks": (
            3,
            min(plan.groups.step_y, plan.network_shape[0]),
            min(plan.groups.step_x, plan.network_shape[1]),
        ),
        "dtype": "float16",
        "fill_value": float("nan"),
        "serializer": zarr.codecs.BytesCodec(endian="little"),
        # The fastest level, because glass shrinks to nothing and tissue hardly at all at any level.
        "compressors": [zarr.codecs.ZstdCodec(level=-1), zarr.codecs.Crc32cCodec()],
    }
    renew_array(path, settings)


def is_finite(values: NDArray[np.float16]) -> bool:
    """Whether no value is NaN or infinite: by its exponent, which costs a sixth of `isfinite`."""
    exponents = values.view(np.uint16) & np.uint16(0x7C00)
    return bool(exponents.max() < 0x7C00)


@dataclass(frozen=True)
class PredictGroup(Task):
    """Evaluate the active patches of one group and write its chunk of the flow field.

    Attributes
    ----------
    row, col : group
    lanes : patches that a CPU evaluates at once
    """

    row: int
    col: int
    lanes: int = field(compare=False)
    stage: ClassVar[str] = "predict"

    @property
    def name(self) -> str:
        """Name of the task and of its record."""
        return name_prediction(self.row, self.col)

    def is_current(self, facts: Mapping[str, Any]) -> bool:
        """Whether all patches could be evaluated; what could not be read is tried again."""
        return not facts.get("unread")

    def run(self) -> dict[str, Any]:
        """Facts: patches evaluated, how many twice, on what, what could not be read, and costs."""
        earlier = self.work.journal.done(self.name)
        if earlier is not None and self.is_current(earlier):
            return earlier  # a worker that was lost as it had finished could not tell
        meter = Meter()
        plan = self.work.flow_plan
        group = plan.groups[self.row, self.col]
        flows, wanted = self._begin(plan, group, earlier)
        seen, unread = self._read_patches(plan, wanted, meter)
        device, n_bright = None, 0
        if seen:
            backend = get_backend(plan, self.work.folder, self.lanes)
            device = backend.device
            with meter.timed("read"):
                bright = self._read_bright_cells(plan, list(seen))
            shown = [*seen.values(), *(planes for _, planes, _ in bright)]
            n_bright = len(bright)
            with meter.timed("network"):
                outputs = evaluate_patches(backend, shown)
            parts: list[tuple[tuple[int, int], NDArray[np.bool_] | bool]]
            parts = [*((index, True) for index in seen), *((i, near) for i, _, near in bright)]
            for (index, where), output in zip(parts, outputs, strict=True):
                core = plan.lattice.cores[index]
                # The last cores may be cut short by the slide's edge.
                kept = output[:, : core.height, : core.width]
                if not is_finite(kept):
                    raise ValueError(f"the network gave values that are not finite in {core}")
                np.copyto(flows[:, *core.shift(-group.y0, -group.x0).slices], kept, where=where)
        with meter.timed("write"):
            write_group(self.work, self.row, self.col, flows)
        facts = {
            "patches": len(seen),
            "bright_patches": n_bright,
            "device": device,
            "unread": [piece.describe(plan.slide.channels) for piece in unread],
            "unknown": len(wanted) - len(seen),
            **meter.read(),
        }
        return self.work.record(self.name, [self._chunk], facts)

    @property
    def _chunk(self) -> Path:
        return self.work.flows / "c" / "0" / str(self.row) / str(self.col)

    def _begin(
        self, plan: FlowPlan, group: Region, earlier: Mapping[str, Any] | None
    ) -> tuple[NDArray[np.float16], list[tuple[int, int]]]:
        """Flows of the group as far as they are known beforehand, and the cores to evaluate."""
        cores, active = plan.lattice.cores, plan.active_cores
        wanted = [index for index in cores.overlapping(group) if active[index]]
        if earlier is not None:  # some of them could not be read
            flows = np.asarray(zarr.open_array(self.work.flows, mode="r")[:, *group.slices])
            missing = flows[2] == UNKNOWN
            corners = {i: cores[i].shift(-group.y0, -group.x0) for i in wanted}
            return flows, [i for i in wanted if missing[corners[i].y0, corners[i].x0]]
        flows = np.zeros((3, *group.shape), np.float16)
        flows[2] = plan.background_logit
        for index in wanted:
            flows[:, *cores[index].shift(-group.y0, -group.x0).slices] = UNKNOWN
        return flows, wanted

    def _read_patches(
        self, plan: FlowPlan, wanted: Sequence[tuple[int, int]], meter: Meter
    ) -> tuple[dict[tuple[int, int], NDArray[np.float32]], list[Unread]]:
        """What the network sees of some cores, without those that cannot be read, and why."""
        if not wanted:
            return {}, []
        patches = {index: plan.lattice.patch(*index) for index in wanted}
        around = Region(
            min(p.y0 for p in patches.values()),
            min(p.x0 for p in patches.values()),
            max(p.y1 for p in patches.values()),
            max(p.x1 for p in patches.values()),
        )
        with meter.timed("read"):
            try:
                pixels = read_network_input(plan, around, self.work.read_slide)
            except (SlideChangedError, UnreachableError):
                raise
            except (InputError, StoreError, OSError):
                return self._read_singly(plan, patches, around)
        return {
            index: pixels[:, *p.shift(-around.y0, -around.x0).slices]
            for index, p in patches.items()
        }, []

    def _read_bright_cells(
        self, plan: FlowPlan, indices: Sequence[tuple[int, int]]
    ) -> list[tuple[tuple[int, int], NDArray[np.float32], NDArray[np.bool_]]]:
        """Of the cores that hold rare bright cells: what the network sees of these, and where."""
        if all(bounds.bright is None for bounds in plan.seen_channels):
            return []
        found = []
        for index in indices:
            near = find_bright_cells(plan, plan.lattice.cores[index], self.work.read_slide)
            if near.any():
                patch = plan.lattice.patch(*index)
                shown = read_network_input(plan, patch, self.work.read_slide, bright=True)
                found.append((index, shown, near))
        return found

    def _read_singly(
        self, plan: FlowPlan, patches: Mapping[tuple[int, int], Region], around: Region
    ) -> tuple[dict[tuple[int, int], NDArray[np.float32]], list[Unread]]:
        """As `_read_patches`, patch by patch, where the whole region cannot be read."""
        unread = [
            piece
            for channel, source in list_sources(plan, around)
            for piece in read_pieces(self.work, channel, source)[1]
        ]
        seen, in_the_way = {}, set()
        for index, patch in patches.items():
            sources = list_sources(plan, patch)
            found = {
                piece
                for piece in unread
                for channel, source in sources
                if piece.channel == channel and piece.region.intersect(source)
            }
            if not found:
                seen[index] = read_network_input(plan, patch, self.work.read_slide)
            in_the_way |= found
        return seen, [piece for piece in unread if piece in in_the_way]


def write_group(work: Work, row: int, col: int, flows: NDArray[np.float16]) -> None:
    """Write the chunk of a group.

    Parameters
    ----------
    work
        Of the run.
    row, col
        Group.
    flows
        `(3, h, w)` float16.

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    array = zarr.open_array(work.flows, mode="r+")
    # Looking for chunks that are all NaN would take three times as long as writing.
    array = array.with_config({"write_empty_chunks": True})
    group = work.flow_plan.groups[row, col].slices

    def write() -> None:
        array[:, *group] = flows

    write_patiently(work.flows, write)


def give_up_group(work: Work, row: int, col: int) -> None:
    """Mark the flows of a group, whose task has failed, as unknown; errors as `write_group`.

    There is no record of it, so that the task is tried again by the next session.
    """
    shape = work.flow_plan.groups[row, col].shape
    write_group(work, row, col, np.full((3, *shape), UNKNOWN, np.float16))


def name_prediction(row: int, col: int) -> str:
    """Name of the task that predicts a group."""
    return f"predict-{row}-{col}"
