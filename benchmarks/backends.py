"""Seconds per Mpx of the network alone, by backend and width, and what each optimisation gives.

    python benchmarks/backends.py
    python benchmarks/backends.py --widths half --backends torch openvino --patches 1 --rounds 1

On one core: one patch at a time, one thread, best of some rounds in which all take turns; CPU
seconds beside wall seconds, so that a busy machine can be told from a slow one. The bundled models
are used at their widths; where there is none of a width, the weights are random (which changes no
time) and there is no parity to state. The first rows are the steps to the `torch` backend: the
network as it is, in PyTorch's default memory layout; channels last; with norms folded. `torch` then
computes enlarged convolutions at the small scale (`densebatch.engines.folding`). Writes
benchmarks/results/backends.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.engines.backend import BACKENDS, PatchShape
from densebatch.engines.findings import identify_machine, list_versions
from densebatch.engines.folding import EnlargingConv, fold_network
from densebatch.engines.make import choose_device, make_backend
from densebatch.engines.openvino import convert_network, pack_model
from densebatch.engines.quantization import quantise_model
from densebatch.models.model import find_model, list_bundled, load_network
from densebatch.models.network import FULL_WIDTH, HALF_WIDTH, QUARTER_WIDTH, CPnet
from densebatch.planning.gate import compare_flows, draw_sample, predict_sample
from densebatch.planning.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WIDTHS = {"full": FULL_WIDTH, "half": HALF_WIDTH, "quarter": QUARTER_WIDTH}
_CALIBRATION = 24
_GPU_BATCH = 13  # of a group of 25 patches of 224 px


class EnlargedFirst(nn.Module):
    """What `EnlargingConv` replaces: enlarge, then convolve."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what `EnlargingConv` does, from other weights."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def norms_only(network: CPnet) -> nn.Module:
    """The folded network without the rewriting of enlarged convolutions."""
    folded = fold_network(network)
    for block in folded.up:
        if isinstance(block.conv_0, EnlargingConv):
            small = block.conv_0.conv
            # any weights take the same time
            conv = nn.Conv2d(small.in_channels, small.out_channels // 4, 3, padding=1)
            block.conv_0 = EnlargedFirst(conv)
    return folded.eval()


def find_network(width: str) -> tuple[CPnet, str | None]:
    """The bundled network of a width, or a random one, and the model's name if there is one."""
    for name in list_bundled():
        model = find_model(name)
        if model.widths == WIDTHS[width]:
            return load_network(model), name
    torch.manual_seed(0)
    return CPnet(WIDTHS[width]).eval(), None


def steps(network: CPnet) -> dict[str, Callable[[NDArray[np.float32]], Any]]:
    """PyTorch on the way to the `torch` backend."""

    def run(module: nn.Module, layout: torch.memory_format) -> Callable[[Any], Any]:
        module = module.to(memory_format=layout)

        def evaluate(patches: NDArray[np.float32]) -> Any:  # noqa: ANN401
            with torch.inference_mode():
                return module(torch.from_numpy(patches).to(memory_format=layout))

        return evaluate

    def fresh() -> CPnet:
        copy = CPnet(network.widths)
        copy.load_state_dict(network.state_dict())
        return copy.eval()

    return {
        "as it is, contiguous": run(fresh(), torch.contiguous_format),
        "as it is, channels last": run(fresh(), torch.channels_last),
        "norms folded, channels last": run(norms_only(network), torch.channels_last),
    }


def time_all(
    evaluators: dict[str, Callable[[Any], Any]],
    inputs: dict[str, list[NDArray[np.float32]]],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Best wall and CPU seconds per Mpx; the first round is for allocating."""
    best = {name: {"wall": float("inf"), "cpu": float("inf")} for name in evaluators}
    torch.set_num_threads(1)
    for turn in range(rounds + 1):
        for name, evaluate in evaluators.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for patches in inputs[name]:
                evaluate(patches)
            spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            mpx = sum(p.shape[0] * p.shape[2] * p.shape[3] for p in inputs[name]) / 1e6
            if turn:
                for clock, seconds in spent.items():
                    best[name][clock] = min(best[name][clock], round(seconds / mpx, 4))
    return best


def measure(width: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    network, model = find_network(width)
    found = find_model(model or DEFAULT_MODEL)
    side = arguments.patch
    shape = PatchShape(side, side, Region(8, 8, side - 8, side - 8))
    sample = draw_sample(found, shape, "bf16" if not arguments.quick else "f32")
    device = choose_device(arguments.device)
    made: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name in arguments.backends:
        start = time.perf_counter()
        try:
            quantised = None
            if BACKENDS[name].precision == "int8":
                # not the patches that parity is judged on
                other = np.random.default_rng(0).permutation(len(sample.patches))[:_CALIBRATION]
                shown = [np.ascontiguousarray(sample.patches[k][None, :, ::-1]) for k in other]
                model_int8 = quantise_model(convert_network(network, shape), shown)
                quantised = pack_model(model_int8)
            made[name] = make_backend(
                name, device, network, shape, batch=_GPU_BATCH, lanes=1, quantised=quantised
            )
            notes[name] = f"ready after {time.perf_counter() - start:.1f} s"
        except InputError as error:
            notes[name] = str(error)
    evaluators = {} if arguments.no_steps or device != "cpu" else steps(network)
    evaluators |= {name: backend.evaluate for name, backend in made.items()}
    inputs = {}
    for name in evaluators:
        n = made[name].batch if name in made else 1
        picked = np.arange(arguments.patches * n) % len(sample.patches)
        inputs[name] = [
            np.ascontiguousarray(sample.patches[picked[k * n : (k + 1) * n]])
            for k in range(arguments.patches)
        ]
    seconds = time_all(evaluators, inputs, arguments.rounds)
    reference = None
    if model is not None and not arguments.no_parity:
        reference = predict_sample(
            make_backend("torch", "cpu", network, shape, batch=1, lanes=1), sample
        )
    rows = []
    for name in [*evaluators, *(n for n in notes if n not in evaluators)]:
        row: dict[str, Any] = {"width": width, "model": model, "name": name, "device": device}
        if name in seconds:
            row |= {f"{clock}_s_per_mpx": value for clock, value in seconds[name].items()}
        if name in notes:
            row["note"] = notes[name]
        if name in made and reference is not None:
            parity = compare_flows(name, predict_sample(made[name], sample), reference, sample)
            row["parity"] = parity.to_dict()
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=list(BACKENDS))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--patch", type=int, default=224, help="side in px, a multiple of 16")
    parser.add_argument("--patches", type=int, default=4, help="batches a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small sample for parity")
    parser.add_argument("--no-parity", action="store_true")
    parser.add_argument("--no-steps", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/backends.json")
    arguments = parser.parse_args()
    rows = [row for width in arguments.widths for row in measure(width, arguments)]
    document = {
        "command": " ".join(sys.argv),
        "machine": {k: v for k, v in identify_machine().items() if k != "host"},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {**list_versions(), "densebatch": version("densebatch")},
        "patch_px": arguments.patch,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
