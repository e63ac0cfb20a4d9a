"""PyTorch on a GPU: batches large enough to fill it, and no wait between them.

Everything between the upload of a batch and the download of its result happens on the device:
conversion, network, crop, cast to float16. On a GPU the network is a few dozen short kernels, and
starting them takes longer than running them, so they are recorded once as a CUDA graph and
replayed as one. Two lanes take turns: while one computes, the other's patches go up, and results
come down, on a stream of its own, through memory that the device can reach by itself (pinned).

Bits are those of one batch size (padded if need be) on one kind of GPU: cuDNN chooses algorithms
by rules, never by trying them out, from its deterministic ones, and float32 means float32 (not
TF32).

The same code runs on a CPU, without graphs, streams and pinning; the tests run it so. On an H200
`dense` evaluates 33 Mpx/s of slide in float32, 130 in bfloat16 and 280 compiled.
"""

from __future__ import annotations

import queue
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from densebatch.engines.pytorch import Trimmed, cast_network, count_inputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from densebatch.engines.backend import PatchShape, Precision

# What cuDNN's convolutions are fastest in: on an H200 `dense` takes, contiguous, 0.53 of the time
# that it takes channels last in float32, and 1.18 of it in bfloat16.
_FORMATS: dict[Precision, torch.memory_format] = {
    "f32": torch.contiguous_format,
    "bf16": torch.channels_last,
}
_WARM_UP = 3  # runs before a graph is recorded: libraries allocate and choose in the first ones


class _Slot:
    """A lane's own: memory for a batch on host and device, a stream, and two events.

    Parameters
    ----------
    device
        Of the memory that is not the host's.
    taken, given
        Shapes of a batch of patches and of its result.
    """

    def __init__(
        self, device: torch.device, taken: tuple[int, ...], given: tuple[int, ...]
    ) -> None:
        pinned = device.type == "cuda"
        self.host_in = torch.empty(taken, dtype=torch.float32, pin_memory=pinned)
        self.host_out = torch.empty(given, dtype=torch.float16, pin_memory=pinned)
        self.device_in = torch.empty(taken, dtype=torch.float32, device=device)
        self.device_out = torch.empty(given, dtype=torch.float16, device=device)
        self.stream = _new_stream(device)
        self.uploaded = _new_event(device)
        self.computed = _new_event(device)


class CudaBackend:
    """See `backend.Backend`.

    Parameters
    ----------
    network
        In evaluation mode, float32; not changed.
    shape
        Of the patches.
    precision
        `f32` or `bf16`.
    batch
        Patches of a call.
    compiled
        Let TorchInductor write the kernels.
    device
        `cuda`; `cpu` in tests.
    """

    lanes = 2

    def __init__(
        self,
        network: nn.Module,
        shape: PatchShape,
        precision: Precision,
        batch: int,
        *,
        compiled: bool = False,
        device: str = "cuda",
    ) -> None:
        self.device = device
        self.batch = batch
        where = torch.device(device)
        taken = (batch, count_inputs(network), shape.height, shape.width)
        given = (batch, 3, *shape.kept.shape)
        cast = cast_network(network, precision)
        self._run = Trimmed(cast, shape, precision, _FORMATS[precision]).eval().to(where)
        if compiled:
            # Graphs are recorded below, by `_record`; and nothing is tuned by trial, because the
            # clock would choose kernels, and with them bits.
            options = {"triton.cudagraphs": False} if device == "cuda" else {}
            self._run.compile(dynamic=False, fullgraph=True, options=options)
        self._turn = threading.Lock()
        self._compute = _new_stream(where)
        self._input = torch.zeros(taken, dtype=torch.float32, device=where)
        self._graph: Any = None
        self._output: torch.Tensor | None = None
        if device == "cuda":
            self._record()
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(self.lanes):
            self._slots.put(_Slot(where, taken, given))
        if device == "cuda":
            # Memory that was allocated on one stream is used on others from here on.
            torch.cuda.synchronize(where)

    def _record(self) -> None:
        """Record one evaluation of `_input` into `_output`."""
        with torch.inference_mode(), _fixed_algorithms(), warnings.catch_warnings():
            # When it compiles, TorchInductor advises to give up float32, which is not done.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
            self._compute.wait_stream(torch.cuda.current_stream(self._input.device))  # type: ignore[union-attr]
            with torch.cuda.stream(self._compute):
                for _ in range(_WARM_UP):
                    self._run(self._input)
            torch.cuda.synchronize(self._input.device)
            graph = torch.cuda.CUDAGraph()
            # Thread-local, because other threads of this process may go on allocating.
            with torch.cuda.graph(graph, stream=self._compute, capture_error_mode="thread_local"):
                self._output = self._run(self._input)
            self._graph = graph

    def evaluate(self, patches: NDArray[np.float32]) -> NDArray[np.float16]:
        """See `backend.Backend`."""
        slot = self._slots.get()
        try:
            with torch.inference_mode():
                slot.host_in.copy_(torch.from_numpy(patches))
                with _on(slot.stream):
                    slot.device_in.copy_(slot.host_in, non_blocking=True)
                    _mark(slot.uploaded, slot.stream)
                with self._turn, _on(self._compute):
                    _await(slot.uploaded, self._compute)
                    self._input.copy_(slot.device_in)
                    slot.device_out.copy_(self._evaluate())
                    _mark(slot.computed, self._compute)
                with _on(slot.stream):
                    _await(slot.computed, slot.stream)
                    slot.host_out.copy_(slot.device_out, non_blocking=True)
                if slot.stream is not None:
                    slot.stream.synchronize()
                # A copy, because the slot's memory is the next caller's.
                result: NDArray[np.float16] = slot.host_out.numpy().copy()
            return result
        finally:
            self._slots.put(slot)

    def _evaluate(self) -> torch.Tensor:
        if self._graph is None or self._output is None:
            result: torch.Tensor = self._run(self._input)
            return result
        self._graph.replay()
        return self._output


def _fixed_algorithms() -> AbstractContextManager[None]:
    """Choose cuDNN's algorithms by rule, deterministic and in full float32."""
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _new_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _new_event(device: torch.device) -> torch.cuda.Event | None:
    return torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _on(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    return torch.cuda.stream(stream) if stream is not None else nullcontext()


def _mark(event: torch.cuda.Event | None, stream: torch.cuda.Stream | None) -> None:
    if event is not None and stream is not None:
        event.record(stream)


def _await(event: torch.cuda.Event | None, stream: torch.cuda.Stream | None) -> None:
    if event is not None and stream is not None:
        stream.wait_event(event)
