"""`densebatch benchmark backends`: the network alone, evaluated by each backend."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.engines.backend import BACKENDS, REFERENCE, PatchShape, evaluate_patches
from densebatch.engines.make import (
    check_backend,
    check_kind,
    choose_device,
    make_backend,
    tell_unusable,
)
from densebatch.models.flow_models import get_kind
from densebatch.models.model import find_model, load_network
from densebatch.planning.engine_choice import quantise
from densebatch.simulation.tissue import Tissue, render
from densebatch.studies.benchmark_record import Row, take_medians

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from densebatch.models.model import Model

    Evaluate = Callable[[NDArray[np.float32]], NDArray[np.float16]]

_SEED = 1
_GPU_BATCH = 16
TIMED = tuple(BACKENDS)


def open_backend(name: str, model: Model, device: str, lanes: int) -> Evaluate:
    """A backend as a function from `(n, 2, h, w)` patches to flows and logits of all their pixels.

    Parameters
    ----------
    name
        Of the backend.
    model
        The model.
    device
        `cpu` or `cuda`.
    lanes
        Patches that a CPU evaluates at once.

    Returns
    -------
    callable
        Its patches are float32, what it returns is float16 of shape `(n, 3, h, w)`.

    Raises
    ------
    InputError
        If this machine cannot use it.
    """
    side = model.patch_px
    shape = PatchShape(side, side, Region(0, 0, side, side))
    network = load_network(model)
    try:
        packed = quantise(model, shape) if BACKENDS[name].precision == "int8" else None
        backend = make_backend(
            name, device, network, shape, batch=_GPU_BATCH, lanes=lanes, quantised=packed
        )
        # The first patch is not timed, because backends compile with it.
        inputs = len(get_kind(model.kind).inputs)
        evaluate_patches(backend, [np.zeros((inputs, side, side), np.float32)])
    except InputError:
        raise
    except Exception as error:
        raise InputError(tell_unusable(name, device, error)) from error
    return lambda patches: evaluate_patches(backend, list(patches))


def choose_backends(names: Sequence[str], device: str, kind: str) -> tuple[str, ...]:
    """The named backends, or all that this machine can use for a kind of network.

    Raises
    ------
    InputError
        For a name that there is not, or that cannot be used.
    """
    for name in names:
        if name not in TIMED:
            raise InputError(f"backend {name!r}: accepted are {', '.join(TIMED)}")
        check_kind(name, kind)
        check_backend(name, device)
    return tuple(names) or tuple(name for name in TIMED if _is_usable(name, device, kind))


def _is_usable(name: str, device: str, kind: str) -> bool:
    try:
        check_kind(name, kind)
        check_backend(name, device)
    except InputError:
        return False
    return True


def measure_backends(
    names: Sequence[str],
    model: str,
    device: str,
    lanes: int,
    n_patches: int,
    repeats: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Time the network alone, with each backend, on the same patches of simulated tissue.

    Parameters
    ----------
    names
        Backends; none for all.
    model
        Bundled model or checkpoint file.
    device
        `auto`, `cpu` or `cuda`.
    lanes
        Patches that a CPU evaluates at once.
    n_patches
        Patches of the model's own size.
    repeats
        Passes over the patches; the row holds medians.
    note
        Is told what happens.

    Returns
    -------
    list of Row
        A row for each backend: `s_per_mpx` of evaluated pixels, `load_s` until its first output,
        and `max_difference` and `mean_difference` of its flows and logits from the reference's.

    Raises
    ------
    InputError
        For a backend, model or device that cannot be used.
    """
    found, where = find_model(model), choose_device(device)
    chosen = choose_backends(names, where, found.kind)
    patches = _simulate_patches(n_patches, found.patch_px, get_kind(found.kind).inputs)
    mpx = n_patches * found.patch_px**2 / 1e6
    reference = open_backend(REFERENCE, found, where, lanes)(patches)
    rows = []
    for name in chosen:
        start = time.perf_counter()
        try:
            evaluate = open_backend(name, found, where, lanes)
        except InputError as error:
            if names:
                raise
            note(f"{error}; left out")
            continue
        load_s = time.perf_counter() - start
        # The first pass is not timed, because buffers are allocated in it.
        output = evaluate(patches)
        difference = np.abs(output.astype(np.float32) - reference)
        runs: list[dict[str, float | None]] = []
        for repeat in range(repeats):
            start = time.perf_counter()
            evaluate(patches)
            seconds = time.perf_counter() - start
            runs.append(
                {
                    "network_mpx": mpx,
                    "s_per_mpx": seconds / mpx,
                    "mpx_per_s": mpx / seconds,
                    "load_s": load_s,
                    "max_difference": float(difference.max()),
                    "mean_difference": float(difference.mean()),
                }
            )
            note(f"{name}, pass {repeat + 1} of {repeats}: {seconds / mpx:.3f} s/Mpx")
        rows.append(take_medians(name, runs))
    return rows


def _simulate_patches(n: int, side: int, inputs: Sequence[str]) -> NDArray[np.float32]:
    """`(n, inputs, side, side)`: membrane from 0 to about 1, and no nuclei."""
    patches = np.zeros((n, len(inputs), side, side), np.float32)
    tissue = Tissue(side, n * side, seed=_SEED)
    for index in range(n):
        pixels: Any = render(tissue, Region(0, index * side, side, (index + 1) * side))[0][0]
        low, high = np.percentile(pixels, (1, 99))
        patches[index, inputs.index("membrane")] = (pixels - low) / max(1.0, high - low)
    return patches
