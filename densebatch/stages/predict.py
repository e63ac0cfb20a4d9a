"""Stage 1: evaluate the network on lattice patches and keep their trusted cores.

The only module that runs a network on a slide. A patch's bits must not depend on how the work is
divided: `engines.backend` says how that is held.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zarr

from densebatch.base.geometry import Region
from densebatch.base.process import Meter
from densebatch.engines.backend import evaluate_patches, patch_shape
from densebatch.engines.make import choose_device, make_backend
from densebatch.engines.quantization import read_quantised
from densebatch.models.model import load_network
from densebatch.stages.network_input import read_network_input
from densebatch.stages.work import Task

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend, Engine, PatchShape
    from densebatch.planning.plan import Plan

model_loads = 0  # of this process; tests check that it stays at one

_loaded: dict[tuple[str, Engine, PatchShape, int, int], Backend] = {}
_loading = threading.Lock()  # a Dask worker may run several tasks at once


def get_backend(plan: Plan, work: Path, lanes: int) -> Backend:
    """The plan's network, ready in this process; loaded once, keyed by the weights' content."""
    global model_loads
    shape = patch_shape(plan.lattice)
    key = (plan.model.sha256, plan.engine, shape, plan.network_batch, lanes)
    with _loading:
        if key not in _loaded:
            choose_device(plan.engine.device)  # a worker may lack what the planner has
            _loaded.clear()
            model_loads += 1
            quantised = None
            if plan.engine.quantised is not None:
                quantised = read_quantised(work, plan.engine.quantised)
            _loaded[key] = make_backend(
                plan.engine.backend, plan.engine.device, load_network(plan.model), shape,
                batch=plan.network_batch, lanes=lanes, quantised=quantised,
            )  # fmt: skip
        return _loaded[key]


def create_flows(plan: Plan, path: Path) -> None:
    """Create the flow field: `(3, h, w)` float16 at the network's scale, one chunk per group.

    What is not written reads as NaN, so that a lost chunk cannot pass for background.
    """
    if (path / "zarr.json").exists():  # a killed run leaves a folder without it
        return
    zarr.create_array(
        path,
        shape=(3, *plan.network_shape),
        chunks=(
            3,
            min(plan.groups.step_y, plan.network_shape[0]),
            min(plan.groups.step_x, plan.network_shape[1]),
        ),
        dtype="float16",
        fill_value=float("nan"),
        serializer=zarr.codecs.BytesCodec(endian="little"),
        # The fastest level, because glass shrinks to nothing and tissue hardly at all at any level.
        compressors=[zarr.codecs.ZstdCodec(level=-1), zarr.codecs.Crc32cCodec()],
    )


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

    def run(self) -> dict[str, Any]:
        """Facts: patches evaluated and on what, seconds and peak memory."""
        meter = Meter()
        plan = self.work.plan
        group = plan.groups[self.row, self.col]
        flows, patches, device = self._evaluate(plan, group, meter)
        array = zarr.open_array(self.work.flows, mode="r+")
        # Looking for chunks that are all NaN would take three times as long as writing.
        array = array.with_config({"write_empty_chunks": True})
        with meter.timed("write"):
            array[:, *group.slices] = flows
        chunk = self.work.flows / "c" / "0" / str(self.row) / str(self.col)
        facts = {"patches": patches, "device": device, **meter.read()}
        return self.work.journal.record(self.name, [chunk], facts)

    def _evaluate(
        self, plan: Plan, group: Region, meter: Meter
    ) -> tuple[NDArray[np.float16], int, str | None]:
        """Flows of the group, how many patches were evaluated, and the device that did it."""
        cores = plan.lattice.cores
        active = plan.active_cores
        wanted = [index for index in cores.overlapping(group) if active[index]]
        flows = np.zeros((3, *group.shape), np.float16)
        flows[2] = plan.background_logit
        if not wanted:
            return flows, 0, None
        backend = get_backend(plan, self.work.folder, self.lanes)
        patches = [plan.lattice.patch(*index) for index in wanted]
        around = Region(
            min(p.y0 for p in patches),
            min(p.x0 for p in patches),
            max(p.y1 for p in patches),
            max(p.x1 for p in patches),
        )
        with meter.timed("read"):
            pixels = read_network_input(plan, around)
        seen = [pixels[:, *p.shift(-around.y0, -around.x0).slices] for p in patches]
        with meter.timed("network"):
            outputs = evaluate_patches(backend, seen)
        for index, output in zip(wanted, outputs, strict=True):
            core = cores[index]
            # The last cores may be cut short by the slide's edge.
            flows[:, *core.shift(-group.y0, -group.x0).slices] = output[
                :, : core.height, : core.width
            ]
        if not is_finite(flows):
            raise ValueError(f"the network gave values that are not finite in {group}")
        return flows, len(wanted), backend.device


def name_prediction(row: int, col: int) -> str:
    """Name of the task that predicts a group."""
    return f"predict-{row}-{col}"
