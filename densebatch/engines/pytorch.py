"""PyTorch on a CPU, eager or compiled: one patch a call, one thread a call.

A Cellpose network is folded first; any other is evaluated as its kind has built it.

oneDNN divides, and rounds, some 1x1 convolutions according to the number of threads, so a patch
is evaluated by one thread and cores are used by evaluating several patches at once. Channels last
is what its convolutions are fastest in.
"""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from densebatch.engines.folding import fold_network
from densebatch.models.network import CPnet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from densebatch.engines.backend import PatchShape, Precision

_DTYPES: dict[Precision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}


def cast_network(network: nn.Module, precision: Precision) -> nn.Module:
    """The network for evaluation, in the precision of its convolutions and linear layers.

    Norms keep float32 statistics: bfloat16's eight bits would move every pixel of a channel alike.
    """
    ready = fold_network(network) if isinstance(network, CPnet) else _share_weights(network)
    for module in ready.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(_DTYPES[precision])
    return ready


def _share_weights(network: nn.Module) -> nn.Module:
    """A network of the same weights, whose layers may be cast and moved without the other's.

    Weights are not copied: a transformer has more than a gigabyte of them.
    """
    shared: dict[int, torch.Tensor] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in network.parameters()
    }
    shared |= {id(buffer): buffer.detach() for buffer in network.buffers()}
    return copy.deepcopy(network, shared)


def count_inputs(network: nn.Module) -> int:
    """Input planes of a network; its `inputs`, as `models.flow_models` asks for."""
    return int(cast("Any", network).inputs)


class Trimmed(nn.Module):
    """A network between float32 patches and the float16 of their trusted part.

    Parameters
    ----------
    network
        As `cast_network` returns it; its weights change to the memory format.
    shape
        Of the patches.
    precision
        That the network was cast to.
    memory_format
        Of weights and activations.
    """

    def __init__(
        self,
        network: nn.Module,
        shape: PatchShape,
        precision: Precision,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        # Torch declares no overload for modules that takes the memory format.
        self.network = network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.memory_format = memory_format
        self.kept = shape.kept.slices
        self.dtype = _DTYPES[precision]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 3, kept_h, kept_w)` float16 of `(n, inputs, h, w)` float32."""
        rows, cols = self.kept
        x = x.to(self.dtype, memory_format=self.memory_format)
        result: torch.Tensor = self.network(x)[:, :, rows, cols]
        return result.to(torch.float16, memory_format=torch.contiguous_format)


class TorchBackend:
    """See `backend.Backend`.

    Parameters
    ----------
    network
        In evaluation mode, float32; not changed.
    shape
        Of the patches.
    precision
        `f32` or `bf16`.
    lanes
        Patches evaluated at once, each by one thread.
    compiled
        Let TorchInductor write the code: about a minute when it is first used on a machine.
    """

    device = "cpu"
    batch = 1

    def __init__(
        self,
        network: nn.Module,
        shape: PatchShape,
        precision: Precision,
        lanes: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.lanes = lanes
        self._run = Trimmed(cast_network(network, precision), shape, precision).eval()
        if compiled:
            # Without autotuning, because the clock would choose kernels, and with them bits.
            self._run.compile(dynamic=False, fullgraph=True, options={"cpp.threads": 1})
            with _one_thread(), torch.inference_mode():
                self._run(torch.zeros(1, count_inputs(network), shape.height, shape.width))

    def evaluate(self, patches: NDArray[np.float32]) -> NDArray[np.float16]:
        """See `backend.Backend`."""
        with _one_thread(), torch.inference_mode():
            result: NDArray[np.float16] = self._run(torch.from_numpy(patches)).numpy()
        return result


_entered = 0
_threads_before = 1
_entering = threading.Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch at one thread while any caller is evaluating, then restore what was set before."""
    global _entered, _threads_before
    with _entering:
        if _entered == 0:
            _threads_before = torch.get_num_threads()
        torch.set_num_threads(1)  # Each caller sets it, because it holds for the thread as well.
        _entered += 1
    try:
        yield
    finally:
        with _entering:
            _entered -= 1
            if _entered == 0:
                torch.set_num_threads(_threads_before)
