"""OpenVINO on a CPU: about one and a half times as fast as PyTorch, with the same float32.

The folded network is converted in this process and compiled for one fixed shape. Each lane is one
stream of one thread. OpenVINO would choose bfloat16 by itself where the processor has it, so the
precision is stated. Threads are not pinned to cores: every worker process would pin its own to
the same ones.
"""

from __future__ import annotations

import queue
import sys
import tempfile
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from densebatch.engines.folding import fold_network

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.engines.backend import PatchShape, Precision
    from densebatch.models.network import CPnet

_TRACED_PX = 64
# The layers that int8 leaves in floating point are float32.
_HINTS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}


def import_openvino() -> Any:  # noqa: ANN401
    """The module `openvino`, kept from reporting to anybody that it was imported.

    When they are imported, OpenVINO and NNCF send usage statistics over the network, unless the
    user has once declined on this machine. The package that sends them is made to seem absent, and
    both do without.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def convert_network(network: CPnet, shape: PatchShape) -> Any:  # noqa: ANN401
    """The folded network as an `openvino.Model` for batches of one patch.

    Parameters
    ----------
    network
        In evaluation mode, float32; not changed.
    shape
        Of the patches.
    """
    openvino = import_openvino()
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer is deprecated, but OpenVINO reads nothing else.
        warnings.simplefilter("ignore")
        # A small example is as good as a patch, because no operation depends on the size.
        example = torch.zeros(1, 2, _TRACED_PX, _TRACED_PX)
        folded = fold_network(network)
        traced = torch.jit.trace(folded, example, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, input=[(1, 2, shape.height, shape.width)])


def pack_model(model: Any) -> bytes:  # noqa: ANN401
    """An `openvino.Model` as the bytes of one file; equal models give equal bytes."""
    packed = BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(packed, "w") as archive:
        openvino = import_openvino()
        openvino.save_model(model, Path(folder) / "network.xml", compress_to_fp16=False)
        for name in ("network.xml", "network.bin"):
            # This entry, unlike one made from a path, has no time of day.
            archive.writestr(zipfile.ZipInfo(name), (Path(folder) / name).read_bytes())
    return packed.getvalue()


def unpack_model(packed: bytes) -> Any:  # noqa: ANN401
    """Inverse of `pack_model`."""
    openvino = import_openvino()
    with zipfile.ZipFile(BytesIO(packed)) as archive:
        return openvino.Core().read_model(archive.read("network.xml"), archive.read("network.bin"))


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16; elsewhere OpenVINO does without."""
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


class OpenVinoBackend:
    """See `backend.Backend`.

    Parameters
    ----------
    network
        In evaluation mode, float32; not changed.
    shape
        Of the patches.
    precision
        Of the arithmetic; int8 needs `quantised`.
    lanes
        Patches evaluated at once, each in a stream of one thread.
    quantised
        `pack_model` of the quantised network, which is then used instead.
    """

    device = "cpu"
    batch = 1

    def __init__(
        self,
        network: CPnet,
        shape: PatchShape,
        precision: Precision,
        lanes: int,
        quantised: bytes | None = None,
    ) -> None:
        if (precision == "int8") != (quantised is not None):
            raise ValueError(f"precision {precision} and quantised weights do not fit together")
        openvino = import_openvino()
        self.lanes = lanes
        self._kept = shape.kept.slices
        model = unpack_model(quantised) if quantised else convert_network(network, shape)
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "NUM_STREAMS": lanes,
                "INFERENCE_NUM_THREADS": lanes,
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(lanes):
            self._requests.put(compiled.create_infer_request())

    def evaluate(self, patches: NDArray[np.float32]) -> NDArray[np.float16]:
        """See `backend.Backend`."""
        request = self._requests.get()
        try:
            output: NDArray[np.float32] = request.infer([patches], share_inputs=True)[0]
            # A copy, because the request's memory is the next caller's.
            return output[:, :, *self._kept].astype(np.float16)
        finally:
            self._requests.put(request)
