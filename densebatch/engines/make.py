"""Making a backend: the only module that knows every kind, what each needs, and the devices.

Libraries are imported when they are needed: the main process of a run does without torch.
"""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from densebatch.base.errors import InputError
from densebatch.base.log import log_event
from densebatch.engines.backend import BACKENDS, REFERENCE, Backend, PatchShape
from densebatch.models.flow_models import get_kind

if TYPE_CHECKING:
    from torch import nn

    from densebatch.models.network import CPnet

log = logging.getLogger(__name__)


def check_backend(name: str, device: str) -> None:
    """Refuse a backend that this process cannot use.

    Parameters
    ----------
    name, device
        A key of `BACKENDS`, and `cpu` or `cuda`.

    Raises
    ------
    InputError
        If the device is not one of the backend's, or a package or an instruction is missing.
    """
    traits = BACKENDS[name]
    if device not in traits.devices:
        fitting = ", ".join(key for key, value in BACKENDS.items() if device in value.devices)
        raise InputError(f"backend {name}: does not run on {device}; accepted there are {fitting}")
    if traits.library == "openvino" and find_spec("openvino") is None:
        raise InputError(
            f"backend {name}: the package openvino is not installed; install densebatch[cpu], or "
            f"choose the backend {REFERENCE}"
        )
    if name == "openvino-bf16":
        from densebatch.engines.openvino import has_bf16

        if not has_bf16():
            raise InputError(
                f"backend {name}: this processor does not compute in bfloat16; choose the backend "
                "openvino"
            )
    if traits.precision == "int8" and find_spec("nncf") is None:
        raise InputError(
            f"backend {name}: the package nncf is not installed; install densebatch[int8], or "
            "choose the backend openvino"
        )


def check_kind(name: str, kind: str) -> None:
    """Refuse a backend that does not evaluate networks of a kind.

    Parameters
    ----------
    name
        A key of `BACKENDS`.
    kind
        See `models.flow_models`.

    Raises
    ------
    InputError
        If it does not, or the kind is not installed.
    """
    asked = get_kind(kind)
    if BACKENDS[name].library not in asked.libraries:
        fitting = [key for key, value in BACKENDS.items() if value.library in asked.libraries]
        raise InputError(
            f"backend {name}: does not evaluate {asked.title}; accepted for them are "
            f"{', '.join(fitting)}"
        )


def tell_unusable(name: str, device: str, error: Exception) -> str:
    """Say that a backend's library failed, for want of a compiler, an instruction or memory.

    Parameters
    ----------
    name, device
        Of the backend.
    error
        What the library raised.
    """
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"backend {name} on {device}: cannot be used here ({type(error).__name__}: {reason[:200]})"
    )


def choose_device(requested: str) -> str:
    """`cuda` or `cpu`, as asked for; of `auto`, `cuda` where there is a GPU.

    Raises
    ------
    InputError
        If `cuda` was asked for and this process sees no GPU.
    """
    if requested == "cpu" or (requested == "auto" and version("torch").endswith("+cpu")):
        return "cpu"  # Torch need not be imported for this, which takes a second.
    import torch

    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this process sees none; accepted here are auto and cpu")
    return requested


def wake_device() -> None:
    """Make this process's context on a GPU, which takes a second or more, before there is work."""
    import torch

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def measure_free_bytes() -> int:
    """Free memory of the GPU in bytes."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    return int(free)


def name_device(device: str) -> str | None:
    """Name of the GPU; None for the CPU."""
    if device != "cuda":
        return None
    import torch

    return str(torch.cuda.get_device_name())


def make_backend(
    name: str,
    device: str,
    network: nn.Module,
    shape: PatchShape,
    *,
    batch: int,
    lanes: int,
    quantised: bytes | None = None,
) -> Backend:
    """Make a network ready on a device.

    Parameters
    ----------
    name, device
        A key of `BACKENDS` and one of its devices.
    network
        In evaluation mode, float32; not changed.
    shape
        Of all patches that will be evaluated.
    batch
        Patches in a batch where a device is filled by many, such as a GPU. A CPU core is filled
        by one.
    lanes
        Patches that a CPU evaluates at once.
    quantised
        The network in eight bits, as `openvino.pack_model` returns it; for int8, else None.

    Returns
    -------
    Backend
        Ready to be evaluated.

    Raises
    ------
    InputError
        If the backend cannot be used here.
    """
    start = time.monotonic()
    # A quantised network is evaluated without nncf, which only made it.
    check_backend("openvino" if name == "openvino-int8" else name, device)
    traits = BACKENDS[name]
    compiled = traits.library == "compile"
    backend: Backend
    if traits.library == "openvino":
        from densebatch.engines.openvino import OpenVinoBackend

        cpnet = cast("CPnet", network)  # `check_kind` refuses it for others
        backend = OpenVinoBackend(cpnet, shape, traits.precision, lanes, quantised)
    elif device == "cuda":
        from densebatch.engines.cuda import CudaBackend

        backend = CudaBackend(network, shape, traits.precision, batch, compiled=compiled)
    else:
        from densebatch.engines.pytorch import TorchBackend

        backend = TorchBackend(network, shape, traits.precision, lanes, compiled=compiled)
    log_event(
        log, "backend made", backend=name, device=device, batch=backend.batch, lanes=backend.lanes,
        patch_px=[shape.height, shape.width], seconds=round(time.monotonic() - start, 3),
    )  # fmt: skip
    return backend
