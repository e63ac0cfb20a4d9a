"""What a backend does on this machine: whether it passes the gate, and how fast it is.

Both are found out by evaluating simulated tissue (`planning.gate`). Verdicts are remembered for the
machine (`engines.findings`), because a sample takes seconds to simulate, evaluate and trace.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from densebatch.base.errors import InputError
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.engines.backend import BACKENDS, REFERENCE, Engine, evaluate_patches, patch_shape
from densebatch.engines.findings import recall, remember
from densebatch.engines.make import (
    check_backend,
    check_kind,
    make_backend,
    name_device,
    tell_unusable,
)
from densebatch.models.flow_models import get_kind
from densebatch.models.model import load_network
from densebatch.planning.capacity import count_lanes
from densebatch.planning.gate import Parity, compare_flows, draw_sample, predict_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend
    from densebatch.planning.gate import Sample
    from densebatch.planning.plan import FlowPlan
    from densebatch.planning.settings import SegmentSettings

log = logging.getLogger(__name__)

_ROUNDS = 3
_MAX_LANES = 4  # patches that the gate evaluates at once; each takes the memory of its feature maps
_TIMED_BATCHES = 2  # for each lane
_NETWORK_SPEED = 0.8  # of matrix products', that a transformer with softmax and norms reaches

_PARITY = TypeAdapter(Parity)


def make_plan_backend(
    plan: FlowPlan, engine: Engine, packed: bytes | None = None, lanes: int = 1
) -> Backend:
    """Make the plan's network ready on an engine, in this process.

    Parameters
    ----------
    plan
        Of a run; its own engine plays no part.
    engine
        To evaluate the network.
    packed
        The quantised network, for int8.
    lanes
        Patches that a CPU evaluates at once.

    Returns
    -------
    Backend

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


def identify_sample(plan: FlowPlan) -> dict[str, Any]:
    """What a plan's sample depends on, as part of a finding's identity.

    The diameter is in it beside the weights' digest, because two names of equal weights may state
    different diameters.
    """
    model = plan.model
    return {
        "model": model.sha256, "shape": asdict(patch_shape(plan.lattice)),
        "diameter_px": model.diameter_px, "percentiles": model.percentiles,
        "nuclei": model.nuclei,
    }  # fmt: skip


def identify_parity(plan: FlowPlan, engine: Engine) -> dict[str, Any]:
    """What a backend's parity depends on besides the machine and the versions of libraries."""
    return {
        "finding": "parity", "engine": asdict(engine), **identify_sample(plan),
        "gpu": name_device(engine.device), "batch": plan.network_batch,
    }  # fmt: skip


def check_parity(plan: FlowPlan, engine: Engine, packed: bytes | None = None) -> Parity:
    """Compare a backend with the reference, or recall how it compared on this machine.

    Parameters
    ----------
    plan
        For the model, the patches' shape and the batch.
    engine
        To be compared.
    packed
        The quantised network, for int8.

    Returns
    -------
    Parity
        With a reason in `refused` if the backend may not be used.

    Raises
    ------
    InputError
        If the backend cannot be used on this machine.
    """
    identity = identify_parity(plan, engine)
    known = _read_parity(recall(identity))
    parity = known if known is not None else _measure_parity(plan, engine, packed)
    if known is None:
        remember(identity, parity.to_dict())
    log_event(
        log, "gate passed" if parity.refused is None else "gate refused",
        backend=engine.backend, device=engine.device, recalled=known is not None,
        **parity.to_dict(),
    )  # fmt: skip
    return parity


def _read_parity(known: dict[str, Any] | None) -> Parity | None:
    """Take a finding for a parity, unless it was made by hand and is none."""
    try:
        return _PARITY.validate_python(known) if known is not None else None
    except ValidationError:
        return None


def _measure_parity(plan: FlowPlan, engine: Engine, packed: bytes | None) -> Parity:
    precision = BACKENDS[engine.backend].precision
    sample = draw_sample(plan.model, patch_shape(plan.lattice), precision)
    lanes = min(_MAX_LANES, count_cores())
    flows = predict_sample(make_plan_backend(plan, engine, packed, lanes), sample)
    reference = predict_sample(make_plan_backend(plan, Engine(), lanes=lanes), sample)
    return compare_flows(engine.backend, flows, reference, sample)


def run_trial(plan: FlowPlan, device: str, candidates: Sequence[str]) -> dict[str, float | str]:
    """Time those of some backends that can be used and pass the gate.

    Parameters
    ----------
    plan
        For the model, the patches' shape and the batch.
    device
        Of all candidates.
    candidates
        Names of backends, `REFERENCE` among them.

    Returns
    -------
    dict
        By name, in the given order: seconds per Mpx, or in words why a backend took no part.

    Raises
    ------
    InputError
        If not even the reference can be used.
    """
    ready: dict[str, Backend] = {}
    trial: dict[str, float | str] = {}
    for name in candidates:
        try:
            engine = Engine(name, device)
            check_kind(name, plan.model.kind)
            check_backend(name, device)
            if (name, device) != (REFERENCE, "cpu"):
                refused = check_parity(plan, engine).refused
                if refused is not None:
                    trial[name] = refused
                    continue
            ready[name] = make_plan_backend(plan, engine)
            trial[name] = 0.0
        except InputError as error:
            if name == REFERENCE:
                raise
            trial[name] = str(error)
    sample = draw_sample(plan.model, patch_shape(plan.lattice))
    trial |= time_backends(ready, sample, _ROUNDS)
    log_event(log, "backends timed", device=device, s_per_mpx=trial)
    return trial


def time_backends(backends: dict[str, Backend], sample: Sample, rounds: int) -> dict[str, float]:
    """Wall seconds per Mpx of network patches, best of some rounds.

    Backends take turns, so that a machine that is busy for a while is busy for all.
    """
    best = dict.fromkeys(backends, float("inf"))
    for turn in range(rounds + 1):
        for name, backend in backends.items():
            patches = _take_patches(sample, backend)
            start = time.perf_counter()
            evaluate_patches(backend, patches)
            seconds = time.perf_counter() - start
            if turn > 0:  # the first round does not count, because it allocates memory
                px = sum(patch[0].size for patch in patches)
                best[name] = min(best[name], 1e6 * seconds / px)
    return {name: float(f"{value:.4g}") for name, value in best.items()}


def _take_patches(sample: Sample, backend: Backend) -> list[NDArray[Any]]:
    """Take patches for whole batches, two for each lane; the sample's are repeated if need be."""
    n = _TIMED_BATCHES * backend.batch * backend.lanes
    return [sample.patches[k % len(sample.patches)] for k in range(n)]


def count_flop(plan: FlowPlan) -> int | None:
    """Floating-point operations of all patches, if nearly all are matrix products; else None."""
    y, x = plan.lattice.y.patch, plan.lattice.x.patch
    patch = get_kind(plan.model.kind).patch_flop(plan.model.widths, y, x)
    return None if patch is None else patch * plan.network_patches


def estimate_seconds(plan: FlowPlan, settings: SegmentSettings, workers: int) -> float | None:
    """Seconds that evaluating the network takes here, from the time of a matrix product.

    Parameters
    ----------
    plan
        Complete, with its engine.
    settings
        Of the run.
    workers
        Processes of this machine that do it; 0 for this one.

    Returns
    -------
    float or None
        None if the work is done elsewhere, or is not mostly matrix products.
    """
    flop, precision = count_flop(plan), BACKENDS[plan.engine.backend].precision
    if flop is None or settings.is_remote or precision == "int8":
        return None
    # imported here because it loads torch, which planning does without
    from densebatch.engines.speed import measure_flop_per_s

    cores = count_cores()
    speed = _NETWORK_SPEED * measure_flop_per_s(plan.engine.device, precision, cores)
    if plan.engine.device == "cpu":
        at_once = max(1, workers) * count_lanes(plan, settings, workers)
        speed *= min(at_once, plan.network_patches, cores) / cores
    return flop / speed if flop else 0.0
