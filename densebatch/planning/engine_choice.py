"""Which backend a run uses, and why: asked for, or the fastest of those that pass the gate.

The choice is made once, when the run is planned, and its name is part of the run's fingerprint: a
resumed run uses the backend that it began with, or is refused. `auto` measures; its answer may
differ between two machines, and with it the last bits of the flows, which is why it is not the
default. It never takes int8, and on a CPU nothing that compiles for a minute first: TorchInductor
comes out between PyTorch and OpenVINO there.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from densebatch.base.errors import InputError
from densebatch.base.log import log_event
from densebatch.engines.backend import BACKENDS, REFERENCE, Engine, patch_shape
from densebatch.engines.findings import recall, remember
from densebatch.engines.make import check_backend, check_kind, choose_device, name_device
from densebatch.engines.quantization import QUANTISED_BY, digest_quantised, quantise_model
from densebatch.models.model import load_network
from densebatch.planning.engine_trial import check_parity, identify_sample, run_trial
from densebatch.planning.gate import draw_sample

if TYPE_CHECKING:
    from densebatch.engines.backend import PatchShape
    from densebatch.models.model import Model
    from densebatch.planning.gate import Parity
    from densebatch.planning.plan import FlowPlan

log = logging.getLogger(__name__)

# In order of exactness, because of two that are equally fast the first is taken.
CANDIDATES = {
    "cpu": ("torch", "openvino", "openvino-bf16"),
    "cuda": ("torch", "torch-bf16", "compile-bf16"),
}
_WORTH = 0.95  # a less exact backend must take less than this share of the time, to exclude noise

_CALIBRATION_PATCHES = 24
_CALIBRATION_SEED = 77  # not the gate's, which must be other tissue than int8 was made with


@dataclass(frozen=True)
class EngineChoice:
    """What was chosen and what is known of it.

    Attributes
    ----------
    engine : for the plan
    reason : in words
    parity : how it compares with the reference; None for the reference itself
    trial : seconds per Mpx of each candidate that took part, or why it did not
    packed : the quantised network, for int8
    """

    engine: Engine
    reason: str
    parity: Parity | None = None
    trial: dict[str, float | str] | None = None
    packed: bytes | None = None

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return {
            **asdict(self.engine),
            "precision": BACKENDS[self.engine.backend].precision,
            "reason": self.reason,
            "parity": self.parity.to_dict() if self.parity is not None else None,
            "trial_s_per_mpx": self.trial,
        }


def choose_engine(
    plan: FlowPlan, backend: str, device: str, began: Engine | None = None
) -> EngineChoice:
    """Choose for the machine that this is called on.

    Parameters
    ----------
    plan
        Surveyed; its own engine plays no part.
    backend, device
        As in the settings.
    began
        Engine of an earlier session of the run.

    Returns
    -------
    EngineChoice

    Raises
    ------
    InputError
        If a backend that was asked for cannot be used here or fails the gate.
    """
    device = choose_device(device)
    if backend != "auto":
        reason = "default" if backend == REFERENCE else "asked for"
        choice = _take_named(plan, backend, device, reason)
    elif (
        began is not None and began.device == device and BACKENDS[began.backend].precision != "int8"
    ):
        choice = _take_named(plan, began.backend, device, "as this run began")
    else:
        choice = _take_fastest(plan, device)
    log_event(log, "engine chosen", **asdict(choice.engine), reason=choice.reason)
    return choice


def _take_named(plan: FlowPlan, name: str, device: str, reason: str) -> EngineChoice:
    check_kind(name, plan.model.kind)
    check_backend(name, device)
    if (name, device) == (REFERENCE, "cpu"):
        return EngineChoice(Engine(name, device), reason)
    packed = _recall_or_quantise(plan) if BACKENDS[name].precision == "int8" else None
    engine = Engine(name, device, digest_quantised(packed) if packed is not None else None)
    parity = check_parity(plan, engine, packed)
    if parity.refused is not None:
        raise InputError(
            f"backend {name} on {device}: does not do what {REFERENCE} does on the sample "
            f"({parity.refused}); choose {REFERENCE} or auto"
        )
    return EngineChoice(engine, reason, parity, packed=packed)


def identify_trial(plan: FlowPlan, device: str) -> dict[str, Any]:
    """What a trial's result depends on besides the machine and the versions of libraries."""
    return {
        "finding": "trial", "device": device, "candidates": CANDIDATES[device],
        **identify_sample(plan), "gpu": name_device(device), "batch": plan.network_batch,
    }  # fmt: skip


def _take_fastest(plan: FlowPlan, device: str) -> EngineChoice:
    """Take the candidate that a trial found fastest, now or earlier on this machine."""
    identity = identify_trial(plan, device)
    trial = read_trial(recall(identity), device)
    if trial is None:
        trial = run_trial(plan, device, CANDIDATES[device])
        remember(identity, {"s_per_mpx": trial})
    times = {name: value for name, value in trial.items() if not isinstance(value, str)}
    best = next(iter(times))
    for name in times:
        if times[name] < _WORTH * times[best]:
            best = name
    measured = ", ".join(f"{name} {value:.3g}" for name, value in times.items())
    return replace(
        _take_named(plan, best, device, f"fastest in a trial, s/Mpx: {measured}"), trial=trial
    )


_TRIAL = TypeAdapter(
    dict[str, Annotated[float, Field(gt=0)] | str],
    config=ConfigDict(strict=True, allow_inf_nan=False),
)


def read_trial(known: dict[str, Any] | None, device: str) -> dict[str, float | str] | None:
    """Take a finding for a trial's result, unless it is none.

    Parameters
    ----------
    known
        What was recalled, if anything.
    device
        Its candidates are accepted, and the reference has to have a time.

    Returns
    -------
    dict or None
        As `run_trial` returns it.
    """
    try:
        found = _TRIAL.validate_python((known or {}).get("s_per_mpx"))
    except ValidationError:
        return None
    if not set(found) <= set(CANDIDATES[device]) or not isinstance(found.get(REFERENCE), float):
        return None
    return {name: found[name] for name in CANDIDATES[device] if name in found}


def identify_quantised(plan: FlowPlan) -> dict[str, Any]:
    """What a quantised network depends on besides the machine and the versions of libraries."""
    return {"finding": "int8", "recipe": QUANTISED_BY, **identify_sample(plan)}


def _recall_or_quantise(plan: FlowPlan) -> bytes:
    """Recall the model's network in eight bits, or make it."""
    identity = identify_quantised(plan)
    known = recall(identity)
    if known is not None:
        try:
            packed = b64decode(known["packed"], validate=True)
            if sha256(packed).hexdigest() == known["sha256"]:
                return packed
        except (LookupError, TypeError, ValueError):  # somebody has edited the file
            pass
    packed = quantise(plan.model, patch_shape(plan.lattice))
    finding = {"packed": b64encode(packed).decode(), "sha256": sha256(packed).hexdigest()}
    remember(identity, finding)
    return packed


def quantise(model: Model, shape: PatchShape) -> bytes:
    """Make a model's network in eight bits, calibrated on simulated tissue.

    Parameters
    ----------
    model
        Whose network it is.
    shape
        Of the patches that it will take.

    Returns
    -------
    bytes
        As `engines.openvino.pack_model`; the same numbers for the same model, machine and versions.

    Raises
    ------
    InputError
        If a library is missing.
    """
    # imported here because it loads torch, which planning does without
    from densebatch.engines.openvino import convert_network, pack_model

    check_backend("openvino-int8", "cpu")
    patches = draw_sample(model, shape, "int8", seed=_CALIBRATION_SEED).patches
    n = min(_CALIBRATION_PATCHES, len(patches))
    places = np.linspace(0, len(patches) - 1, n).round().astype(int)
    converted = convert_network(load_network(model), shape)
    return pack_model(quantise_model(converted, [patches[place][None] for place in places]))
