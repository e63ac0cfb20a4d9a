"""Stage 1: evaluate the network on lattice patches and keep their trusted cores.

The only module that runs a network on a slide. A patch's bits must not depend on how the work is
divided, so batches have one fixed size, padded if need be (another size changes bits), and on a
CPU a patch is evaluated by one thread (oneDNN divides, and rounds, some convolutions according to
the number of threads). Cores are used by evaluating several patches at once.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr

from densebatch.capacity import Meter
from densebatch.errors import InputError
from densebatch.geometry import Region
from densebatch.journal import Journal
from densebatch.models import load_network
from densebatch.normalization import normalize
from densebatch.plan import Plan, load_plan
from densebatch.resampling import axis_weights, reflect, resample
from densebatch.slide import open_slide
from densebatch.work import predict_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from densebatch.models import ModelSpec

# On a CPU one patch fills the cores, and a batch of one is never padded.
_BATCH = {"cpu": 1, "cuda": 16}
model_loads = 0  # in this process; tests hold it to one


class Predictor:
    """A network on its device, ready for batches of one fixed size."""

    def __init__(self, model: ModelSpec, device: str, lanes: int = 1) -> None:
        global model_loads
        model_loads += 1
        self.device = torch.device(device)
        network = load_network(model)
        # torch declares no overload for modules that takes the memory format
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch = _BATCH[self.device.type]
        # A GPU takes one batch at a time; on a CPU each lane is one thread.
        self.lanes = lanes if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.lanes) if self.lanes > 1 else None

    def __call__(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Flows and logits of `(n, 2, h, w)` patches, `(n, 3, h, w)` float32; any n."""
        batches = [
            patches[start : start + self.batch] for start in range(0, len(patches), self.batch)
        ]
        with _one_thread() if self.device.type == "cpu" else nullcontext():
            if self._pool is None:
                return np.concatenate([self._evaluate(batch) for batch in batches])
            return np.concatenate(list(self._pool.map(self._evaluate, batches)))

    def _evaluate(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        n = len(batch)
        if n < self.batch:
            padding = np.zeros((self.batch - n, *batch.shape[1:]), np.float32)
            batch = np.concatenate([batch, padding])
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(batch))
            x = x.to(self.device, memory_format=torch.channels_last)
            output: NDArray[np.float32] = self.network(x)[:n].float().cpu().numpy()
        return output


_entered = 0
_threads_before = 1
_entering = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch at one thread while anybody is evaluating, then leave it as it was found."""
    global _entered, _threads_before
    with _entering:
        if _entered == 0:
            _threads_before = torch.get_num_threads()
        torch.set_num_threads(1)  # it holds for the calling thread too, so each entrant sets it
        _entered += 1
    try:
        yield
    finally:
        with _entering:
            _entered -= 1
            if _entered == 0:
                torch.set_num_threads(_threads_before)


def choose_device(requested: str) -> str:
    """`cuda` where there is one and nothing else was asked for; asking for an absent one fails."""
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this process sees none; accepted here are auto and cpu")
    return requested


_loaded: dict[tuple[str, str, int], Predictor] = {}
_loading = threading.Lock()  # a Dask worker may run several tasks at once


def get_predictor(model: ModelSpec, device: str, lanes: int) -> Predictor:
    """The predictor of this process, loaded once and keyed by the weights' content."""
    key = (model.sha256, device, lanes)
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = Predictor(model, device, lanes)
        return _loaded[key]


def read_network_input(plan: Plan, region: Region) -> NDArray[np.float32]:
    """Normalised channels of a region at the network's scale, mirrored beyond the slide's edges.

    Parameters
    ----------
    plan
        The run.
    region
        Pixels at the network's scale; may reach outside the slide.

    Returns
    -------
    ndarray
        `(2, h, w)` float32: the maximum of the membrane channels, and the nuclear channel or
        zeros.
    """
    slide = open_slide(plan.slide.path)
    net_height, net_width = plan.network_shape
    rows = axis_weights(
        reflect(np.arange(region.y0, region.y1), net_height), plan.slide.height, net_height
    )
    cols = axis_weights(
        reflect(np.arange(region.x0, region.x1), net_width), plan.slide.width, net_width
    )
    source = Region(rows.start, cols.start, rows.stop, cols.stop)
    planes = np.zeros((2, *region.shape), np.float32)
    combined: NDArray[np.float32] | None = None
    for bounds in plan.membrane:
        plane = resample(normalize(slide.read(bounds.channel, source), bounds), rows, cols)
        combined = plane if combined is None else np.maximum(combined, plane)
    if combined is not None:
        planes[0] = combined
    if plan.nuclei is not None:
        plane = normalize(slide.read(plan.nuclei.channel, source), plan.nuclei)
        planes[1] = resample(plane, rows, cols)
    return planes


def create_flows(plan: Plan, path: Path) -> None:
    """Create the flow field: `(3, h, w)` float16 at the network's scale, one chunk per group.

    What is not written reads as NaN, so that a lost chunk cannot pass for background.
    """
    if (path / "zarr.json").exists():  # a folder without it is what a kill left
        return
    zarr.create_array(
        str(path),
        shape=(3, *plan.network_shape),
        chunks=(
            3,
            min(plan.groups.step_y, plan.network_shape[0]),
            min(plan.groups.step_x, plan.network_shape[1]),
        ),
        dtype="float16",
        fill_value=float("nan"),
        serializer=zarr.codecs.BytesCodec(endian="little"),
        compressors=[zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()],
    )


def predict_group(plan_path: str, row: int, col: int, device: str, lanes: int) -> dict[str, Any]:
    """Evaluate the active patches of one group and write its chunk of the flow field.

    Parameters
    ----------
    plan_path
        The run's plan; the flow field and the journal lie beside it.
    row, col
        Group.
    device
        `auto`, `cpu` or `cuda`.
    lanes
        Patches that a CPU evaluates at once.

    Returns
    -------
    dict
        Facts for the journal: patches evaluated and on what, seconds and peak memory.
    """
    meter = Meter()
    plan = load_plan(plan_path)
    work = Path(plan_path).parent
    group = plan.groups[row, col]
    cores = plan.lattice.cores
    active = plan.active_cores
    inside = list(cores.overlapping(group))
    wanted = [index for index in inside if active[index]]
    flows = np.zeros((3, *group.shape), np.float16)
    flows[2] = plan.background_logit
    kind = None
    if wanted:
        predictor = get_predictor(plan.model, choose_device(device), lanes)
        kind = predictor.device.type
        patches = [plan.lattice.patch(*index) for index in wanted]
        around = Region(
            min(p.y0 for p in patches),
            min(p.x0 for p in patches),
            max(p.y1 for p in patches),
            max(p.x1 for p in patches),
        )
        with meter.timed("read"):
            pixels = read_network_input(plan, around)
        margin_y, margin_x = plan.lattice.y.margin, plan.lattice.x.margin
        at_once = predictor.batch * predictor.lanes
        for start in range(0, len(wanted), at_once):
            some = slice(start, start + at_once)
            batch = np.stack(
                [pixels[:, *p.shift(-around.y0, -around.x0).slices] for p in patches[some]]
            )
            with meter.timed("network"):
                outputs = predictor(batch)
            for index, output in zip(wanted[some], outputs, strict=True):
                core = cores[index]
                kept = output[
                    :, margin_y : margin_y + core.height, margin_x : margin_x + core.width
                ]
                flows[:, *core.shift(-group.y0, -group.x0).slices] = kept
        if not np.isfinite(flows).all():
            raise ValueError(f"the network gave values that are not finite in {group}")
    array = zarr.open_array(str(work / "flows.zarr"), mode="r+")
    with meter.timed("write"):
        array[:, *group.slices] = flows
    chunk = work / "flows.zarr" / "c" / "0" / str(row) / str(col)
    facts = {"patches": len(wanted), "device": kind, **meter.read()}
    return Journal(work / "journal").record(predict_name(row, col), [chunk], facts)
