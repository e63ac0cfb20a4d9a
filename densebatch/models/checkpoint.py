"""Weights files as tensors, and what of them is refused.

Checkpoints are read as tensors only: no pickle is ever executed.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from densebatch.base.errors import InputError
from densebatch.models.flow_models import find_kind, get_kind
from densebatch.models.weights_file import CARD_KEY, DIAMETERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.models.flow_models import FlowModel


@lru_cache(maxsize=2)
def read_state(path: str, digest: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read and check a weights file.

    Parameters
    ----------
    path
        A `.safetensors` file, or a checkpoint as `torch.save` writes it.
    digest
        SHA-256 of the file. It is part of the cache's key, so a file that changed is read again.

    Returns
    -------
    state : dict
        Tensors by the names that their kind gives them, on the CPU. Not to be changed: the next
        caller gets the same ones.
    card : dict
        Of a safetensors file; empty if there is none.

    Raises
    ------
    InputError
        If the file is damaged, holds anything but dense finite tensors with names, or is of no
        kind that is installed.
    """
    del digest
    card: Any = {}
    try:
        if path.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {}).get(CARD_KEY, "{}"))
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A parser may raise nearly anything for a damaged file, of which nothing is used then.
        reason = " ".join((str(error) or type(error).__name__).splitlines()[:1])
        if "Weights only load failed" in reason:  # torch goes on to advise loading it unsafely
            reason = "no checkpoint of tensors"
        raise InputError(
            f"model {path}: cannot be read as weights ({reason[:120]}); "
            "accepted are .safetensors and Cellpose checkpoints (tensors only)"
        ) from error
    if not isinstance(card, dict):
        raise InputError(
            f"model {path}: its card is a {type(card).__name__}; accepted is a mapping"
        )
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()
    ):
        raise InputError(f"model {path}: holds no named tensors; accepted are Cellpose checkpoints")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    kind = tell_kind(path, state, card)
    for key, value in state.items():
        # Sparse, quantised and complex tensors are refused, and "meta" ones, which have no content.
        if value.layout != torch.strided or value.device.type != "cpu" or not _is_plain(value):
            raise InputError(
                f"model {path}: weights {key!r} are {value.dtype}, {value.layout}, on "
                f"{value.device.type}; accepted are dense float or integer tensors"
            )
    # A crafted file can declare more weights than it holds, and they would be allocated.
    n_weights = sum(value.numel() for value in state.values())
    if n_weights > kind.max_weights:
        raise InputError(
            f"model {path}: has {n_weights} weights; accepted are up to {kind.max_weights}"
        )
    # Float64 values beyond float32 count as infinite, because float32 is what is evaluated.
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.float().isfinite().all()]
    if bad:
        raise InputError(f"model {path}: weights {bad[0]!r} are not finite ({len(bad)} tensors)")
    if bad := [k for k, v in state.items() if k.endswith("running_var") and (v < 0).any()]:
        raise InputError(f"model {path}: variances {bad[0]!r} are negative ({len(bad)} tensors)")
    return state, card


def _is_plain(tensor: torch.Tensor) -> bool:
    return not (tensor.is_quantized or tensor.is_complex() or tensor.is_nested)


def tell_kind(path: str, state: Mapping[str, torch.Tensor], card: Mapping[str, Any]) -> FlowModel:
    """Kind of a file: what its card says, else by the names of its tensors.

    Raises
    ------
    InputError
        If it is of no kind that is installed.
    """
    stated, package = (card.get(key) for key in ("kind", "package"))
    package = package[:80] if isinstance(package, str) and package.isprintable() else None
    try:
        kind = get_kind(stated[:80], package) if isinstance(stated, str) else find_kind(state)
    except (InputError, ValueError) as error:
        raise InputError(f"model {path}: {error}") from error
    if not kind.recognises(state):
        raise InputError(f"model {path}: its card says {kind.name!r}, and its weights are no such")
    return kind


def _expect(
    path: str, state: Mapping[str, torch.Tensor], kind: FlowModel
) -> dict[str, torch.Tensor]:
    """Build the state, without content, of the network that the weights seem to belong to."""
    try:
        sizes = kind.infer_sizes({name: value.shape for name, value in state.items()})
    except ValueError as error:
        raise InputError(f"model {path}: {error}") from error
    with torch.device("meta"):
        return kind.build(sizes).state_dict()


def _is_optional(name: str) -> bool:
    """Whether old checkpoints lack it, or evaluation does not need it (batch-norm counters)."""
    return name in DIAMETERS or name.endswith("num_batches_tracked")


def check_state(path: str, state: Mapping[str, torch.Tensor], kind: FlowModel) -> None:
    """Refuse weights that are not all those of one network, by name and shape.

    Parameters
    ----------
    path
        For messages.
    state
        The weights.
    kind
        Of the network.

    Raises
    ------
    InputError
        If a weight is missing, left over or of another shape.
    """
    expected = _expect(path, state, kind)
    for name, tensor in expected.items():
        if name not in state:
            if _is_optional(name):
                continue
            raise InputError(f"model {path}: weights {name!r} are missing")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"model {path}: weights {name!r} are {tuple(state[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    surplus = sorted(set(state) - set(expected))
    if surplus:
        raise InputError(f"model {path}: unknown weights {surplus[0]!r} ({len(surplus)})")
