"""Which backend a run uses, and why: asked for, or the fastest of those that pass the gate.

The choice is made once, when the run is planned, and its name is part of the run's fingerprint: a
resumed run uses the backend that it began with, or is refused. `auto` measures; its answer may
differ between two machines, and with it the last bits of the flows, which is why it is not the
default. It never takes int8, and on a CPU nothing that compiles for a minute first: TorchInductor
comes out between PyTorch and OpenVINO there.
"""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.findings import recall, remember
from densebatch.base.machine import count_cores
from densebatch.engines.backend import BACKENDS, REFERENCE, Engine, evaluate_patches, patch_shape
from densebatch.engines.make import (
    check_backend,
    choose_device,
    make_backend,
    name_device,
    tell_unusable,
)
from densebatch.engines.quantization import (
    QUANTISED_BY,
    digest_quantised,
    quantise_model,
)
from densebatch.models.model import load_network
from densebatch.planning.gate import Parity, compare, draw_sample, predict_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.engines.backend import Backend, PatchShape
    from densebatch.models.model import ModelSpec
    from densebatch.planning.gate import Sample
    from densebatch.planning.plan import Plan

# In order of exactness: of two that are equally fast the first is taken.
CANDIDATES = {
    "cpu": ("torch", "openvino", "openvino-bf16"),
    "cuda": ("torch", "torch-bf16", "compile-bf16"),
}
_WORTH = 0.95  # of the time of a more exact one; less is noise
_ROUNDS = 3
_GATE_LANES = 4  # patches at once: as much memory as a worker's few
_TRIAL_PATCHES = 2


@dataclass(frozen=True)
class EngineChoice:
    """What was chosen and what is known of it.

    Attributes
    ----------
    engine : for the plan
    reason : in words
    parity : beside the reference; None for the reference itself
    trial : s per Mpx of each candidate that took part, or why it did not
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
            "reason": self.reason,
            "parity": self.parity.to_dict() if self.parity is not None else None,
            "trial_s_per_mpx": self.trial,
        }


def choose_engine(
    plan: Plan, backend: str, device: str, began: Engine | None = None
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

    Raises
    ------
    InputError
        If a backend that was asked for cannot be used here or fails the gate.
    """
    device = choose_device(device)
    if backend != "auto":
        reason = "default" if backend == REFERENCE else "asked for"
        return _choose_named(plan, backend, device, reason)
    if began is not None and began.device == device and BACKENDS[began.backend].precision != "int8":
        return _choose_named(plan, began.backend, device, "as this run began")
    return _choose_fastest(plan, device)


def _choose_named(plan: Plan, name: str, device: str, reason: str) -> EngineChoice:
    check_backend(name, device)
    if (name, device) == (REFERENCE, "cpu"):
        return EngineChoice(Engine(name, device), reason)
    packed = _quantise(plan) if BACKENDS[name].precision == "int8" else None
    engine = Engine(name, device, digest_quantised(packed) if packed is not None else None)
    parity = judge(plan, engine, packed)
    if parity.refused is not None:
        raise InputError(
            f"backend {name} on {device}: does not do what {REFERENCE} does on the sample "
            f"({parity.refused}); choose {REFERENCE} or auto"
        )
    return EngineChoice(engine, reason, parity, packed=packed)


def identify_quantised(plan: Plan) -> dict[str, Any]:
    """What a quantised network depends on besides the machine and the versions of libraries."""
    return {"finding": "int8", "recipe": QUANTISED_BY, **_identify_sample(plan)}


def _identify_sample(plan: Plan) -> dict[str, Any]:
    """A model and the tissue it is shown; of equal weights two names may know another diameter."""
    model = plan.model
    return {
        "model": model.sha256, "shape": asdict(patch_shape(plan.lattice)),
        "diameter_px": model.diameter_px, "percentiles": model.percentiles,
        "nuclei": model.nuclei,
    }  # fmt: skip


def _quantise(plan: Plan) -> bytes:
    """The model's network in eight bits, made or recalled."""
    identity = identify_quantised(plan)
    known = recall(identity)
    if known is not None:
        try:
            packed = b64decode(known["packed"], validate=True)
            if sha256(packed).hexdigest() == known["sha256"]:
                return packed
        except (LookupError, TypeError, ValueError):  # made by hand
            pass
    packed = quantise(plan.model, patch_shape(plan.lattice))
    finding = {"packed": b64encode(packed).decode(), "sha256": sha256(packed).hexdigest()}
    remember(identity, finding)
    return packed


def prepare(plan: Plan, engine: Engine, packed: bytes | None = None, lanes: int = 1) -> Backend:
    """The plan's network on an engine, in this process.

    Raises
    ------
    InputError
        If the backend cannot be used here; whatever a library raises becomes that.
    """
    try:
        return make_backend(
            engine.backend, engine.device, load_network(plan.model), patch_shape(plan.lattice),
            batch=plan.network_batch, lanes=lanes, quantised=packed,
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:
        told = tell_unusable(engine.backend, engine.device, error)
        raise InputError(f"{told}; choose {REFERENCE} or auto") from error


def identify_parity(plan: Plan, engine: Engine) -> dict[str, Any]:
    """What a backend's parity depends on besides the machine and the versions of libraries."""
    return {
        "finding": "parity", "engine": asdict(engine), **_identify_sample(plan),
        "gpu": name_device(engine.device), "batch": plan.network_batch,
    }  # fmt: skip


def judge(plan: Plan, engine: Engine, packed: bytes | None = None) -> Parity:
    """Put a backend beside the reference, or recall how it was; see `parity`."""
    identity = identify_parity(plan, engine)
    known = recall(identity)
    if known is not None:
        try:
            return Parity(**known)
        except TypeError:  # of another version of this program, or made by hand
            pass
    precision = BACKENDS[engine.backend].precision
    sample = draw_sample(plan.model, patch_shape(plan.lattice), precision)
    lanes = min(_GATE_LANES, count_cores())
    flows = predict_sample(prepare(plan, engine, packed, lanes), sample)
    reference = predict_sample(prepare(plan, Engine(), lanes=lanes), sample)
    parity = compare(engine.backend, flows, reference, sample)
    remember(identity, parity.to_dict())
    return parity


def identify_trial(plan: Plan, device: str) -> dict[str, Any]:
    """What a trial's result depends on besides the machine and the versions of libraries."""
    return {
        "finding": "trial", "device": device, "candidates": CANDIDATES[device],
        **_identify_sample(plan), "gpu": name_device(device), "batch": plan.network_batch,
    }  # fmt: skip


def _choose_fastest(plan: Plan, device: str) -> EngineChoice:
    """Those that pass the gate are timed on a few patches; the answer is kept."""
    identity = identify_trial(plan, device)
    trial = _read_trial(recall(identity), device)
    if trial is None:
        trial = _run_trial(plan, device)
        remember(identity, {"s_per_mpx": trial})
    times = {name: value for name, value in trial.items() if not isinstance(value, str)}
    best = next(iter(times))
    for name in times:
        if times[name] < _WORTH * times[best]:
            best = name
    measured = ", ".join(f"{name} {value:.3g}" for name, value in times.items())
    return replace(
        _choose_named(plan, best, device, f"fastest in a trial, s/Mpx: {measured}"), trial=trial
    )


def _read_trial(known: dict[str, Any] | None, device: str) -> dict[str, float | str] | None:
    """A recalled trial, if it is one."""
    found = known.get("s_per_mpx") if known is not None else None
    if not isinstance(found, dict) or not set(found) <= set(CANDIDATES[device]):
        return None
    times = {name: found[name] for name in CANDIDATES[device] if name in found}
    whole = all(isinstance(v, str) or (isinstance(v, float) and v > 0) for v in times.values())
    return times if whole and isinstance(times.get(REFERENCE), float) else None


def _run_trial(plan: Plan, device: str) -> dict[str, float | str]:
    """Seconds per Mpx of the candidates, or why they do not take part."""
    ready: dict[str, Backend] = {}
    trial: dict[str, float | str] = {}
    for name in CANDIDATES[device]:
        try:
            engine = Engine(name, device)
            check_backend(name, device)
            if (name, device) != (REFERENCE, "cpu"):
                refused = judge(plan, engine).refused
                if refused is not None:
                    trial[name] = refused
                    continue
            ready[name] = prepare(plan, engine)
            trial[name] = 0.0
        except InputError as error:
            if name == REFERENCE:
                raise
            trial[name] = str(error)
    sample = draw_sample(plan.model, patch_shape(plan.lattice))
    return {**trial, **time_backends(ready, sample, _ROUNDS)}


def time_backends(backends: dict[str, Backend], sample: Sample, rounds: int) -> dict[str, float]:
    """Wall seconds per Mpx of network patches, best of some rounds.

    Backends take turns, so that a machine that is busy for a while is busy for all.
    """
    best = dict.fromkeys(backends, float("inf"))
    for turn in range(rounds + 1):
        for name, backend in backends.items():
            patches = _some(sample, backend)
            start = time.perf_counter()
            evaluate_patches(backend, patches)
            seconds = time.perf_counter() - start
            if turn > 0:  # the first is for allocating
                px = sum(patch[0].size for patch in patches)
                best[name] = min(best[name], 1e6 * seconds / px)
    return {name: float(f"{value:.4g}") for name, value in best.items()}


def _some(sample: Sample, backend: Backend) -> Sequence[Any]:
    """Whole batches, two for each lane; on a CPU that is what a core has to do."""
    n = _TRIAL_PATCHES * backend.batch * backend.lanes
    return [sample.patches[k % len(sample.patches)] for k in range(n)]


_PATCHES = 24
_SEED = 77  # of the tissue; not that of the gate


def quantise(spec: ModelSpec, shape: PatchShape) -> bytes:
    """A model's network in eight bits, for patches of one shape.

    Returns
    -------
    bytes
        As `backend_openvino.pack_model`; the same numbers for the same model, machine and versions.

    Raises
    ------
    InputError
        If a library is missing.
    """
    from densebatch.engines.make import check_backend
    from densebatch.engines.openvino import convert_network, pack_model
    from densebatch.models.model import load_network
    from densebatch.planning.gate import draw_sample

    check_backend("openvino-int8", "cpu")
    patches = draw_sample(spec, shape, "int8", seed=_SEED).patches
    chosen = np.linspace(0, len(patches) - 1, min(_PATCHES, len(patches))).round().astype(int)
    model = convert_network(load_network(spec), shape)
    return pack_model(quantise_model(model, [patches[place][None] for place in chosen]))
