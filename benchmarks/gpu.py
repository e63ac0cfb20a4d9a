"""All that a GPU is asked, in one command that ends by itself within eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --side 1024 --out record.json    # the same steps, small

What is asked, in order of worth: does CUDA work with what is installed; has a tile the same labels,
to the bit, traced on the device and on a CPU; throughput of whole runs on a simulated slide, by
stage, with the share of time that the GPU is idle, for each model and backend; tracing alone on
both; what the gate costs; the tests that need a GPU; the same on a slide of four times the area.

Each step is a process of its own (`gpu_steps`), so that a hang or a crash costs one step. It begins
only if its estimate fits into the time that is left, and is ended when it takes far longer.
Estimates are taken from earlier steps as soon as these are done. The record is written whole after
every step, so a machine that goes away leaves what was measured until then.

Slides and caches are in `--work` and kept: a second call on a machine is faster.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_steps.runner import ROOT, Step, run_steps

from densebatch.base.files import CACHE_VARIABLE
from densebatch.base.machine import count_cores, name_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).absolute().parent
_CHUNK_PX = 512  # of the simulated slide
_MOST_WORKERS = 16  # that a run starts by itself
_WORKER_MB = 1000
_COMPILED = "compile"


def build_steps(options: argparse.Namespace) -> list[Step]:
    """All steps, the most valuable first. Estimates are of a machine with 16 cores and an H200."""
    on_gpu = options.device == "cuda"
    python = (sys.executable, "-m", "gpu_steps")
    common = ("--work", str(options.work), "--device", options.device)
    # seconds per Mpx of a whole run; a CPU's are of one core
    pace = 0.1 if on_gpu else 4.0 / count_cores()

    def make(name: str, estimate_s: float, *arguments: str, **how: Any) -> Step:  # noqa: ANN401
        command = (*python, name.split()[0], *common, *arguments)
        return Step(name, command, estimate_s, **{"needs": ("check",), **how})

    def slide(side: int) -> Step:
        return make(f"slide {side}", 10.0, "--side", str(side), disk_mb=70 + 5e-6 * side**2)

    def gate(model: str, backend: str) -> Step:
        at = ("--model", model, "--backend", backend, "--side", str(options.side))
        estimate_s = 70.0 if backend.startswith(_COMPILED) else 20.0 if on_gpu else 60.0
        needs = ("check", f"slide {options.side}")
        return make(f"gate {model} {backend}", estimate_s, *at, needs=needs, memory_mb=2000)

    def segment(model: str, backend: str, side: int, *more: str, **how: Any) -> Step:  # noqa: ANN401
        at = ("--model", model, "--backend", backend, "--side", str(side), *more)
        gated = () if is_reference(backend, options.device) else (f"gate {model} {backend}",)
        workers = max(1, min(count_cores(), _MOST_WORKERS, side**2 // 1024**2))
        return make(
            f"segment {model} {backend} {side}", 10.0 + pace * side**2 / 1e6, *at,
            needs=("check", f"slide {side}", *gated),
            memory_mb=_WORKER_MB * workers, disk_mb=8e-6 * side**2, **how,
        )  # fmt: skip

    small, fast = options.models[0], options.backends[0]
    first = f"segment {small} {fast} {options.side}"
    steps = [
        make("check", 20.0, needs=()),
        make("bits", 40.0, "--model", small, "--side", str(options.side), memory_mb=4000),
        slide(options.side),
    ]
    pairs = [(model, backend) for model in options.models for backend in options.backends]
    # to compile for a small network gains little, so it comes last
    late = [(m, b) for m, b in pairs if m == small and b.startswith(_COMPILED)]

    def both(model: str, backend: str) -> list[Step]:
        how: dict[str, Any] = {"like": (first, 1.6)}
        if (model, backend) == (small, fast):
            how = {}
        gated = [] if is_reference(backend, options.device) else [gate(model, backend)]
        keep = ("--keep",) if not how else ()
        return [*gated, segment(model, backend, options.side, *keep, **how)]

    for pair in pairs:
        if pair not in late:
            steps += both(*pair)
        if pair == (small, fast):
            at = ("--side", str(options.side))
            steps.append(make("trace", 25.0, *at, needs=("check", first), memory_mb=4000))
    steps.append(make("tests", 60.0, memory_mb=4000))
    large = 2 * options.side
    steps += [slide(large), segment(small, fast, large, like=(first, 4.0))]
    for pair in late:
        steps += both(*pair)
    steps += [segment(*pair, large, like=(first, 4.0)) for pair in pairs if pair != (small, fast)]
    return steps


def is_reference(backend: str, device: str) -> bool:
    """Whether it is what others are compared with, so that it passes no gate."""
    return (backend, device) == ("torch", "cpu")


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line, checked; exits with 2 and a sentence if they cannot work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--side", type=int, default=16384, help="of the simulated slide, px")
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything together")
    parser.add_argument("--models", nargs="+", default=["dense-small", "dense"])
    parser.add_argument("--backends", nargs="+", help="the first is the most valuable")
    parser.add_argument("--work", type=Path, help="scratch folder, kept, with slides and caches",
                        default=Path(tempfile.gettempdir()) / "densebatch-gpu")  # fmt: skip
    parser.add_argument("--out", type=Path, help="record  [benchmarks/results/gpu.json]")
    options = parser.parse_args(arguments)
    if options.side < _CHUNK_PX or options.side % _CHUNK_PX:
        parser.error(f"--side {options.side}: accepted are multiples of {_CHUNK_PX}")
    if options.device == "cpu" and options.out is None:
        parser.error("--device cpu: name a record with --out, the default one is a GPU's")
    if options.device == "cuda" and name_gpu() is None and not Path("/dev/nvidiactl").exists():
        parser.error("this machine has no NVIDIA GPU; --device cpu --side 1024 tries the steps")
    options.work = options.work.absolute()
    options.out = (options.out or HERE / "results/gpu.json").absolute()
    if options.backends is None:
        options.backends = ["torch", "torch-bf16"]
        options.backends += ["compile-bf16"] if options.device == "cuda" else []
    return options


def exit_on_sigterm() -> None:
    """Leave this process as an exception does, so that the step under way is ended too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def main() -> None:
    options = read_options()
    exit_on_sigterm()
    options.work.mkdir(parents=True, exist_ok=True)
    paths = (str(HERE), str(ROOT), os.environ.get("PYTHONPATH"))
    env = {
        **os.environ,
        CACHE_VARIABLE: str(options.work / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    about = {
        "kind": "gpu",
        "command": shlex.join(["python", *sys.argv]),
        "settings": {"device": options.device, "side_px": options.side,
                     "models": options.models, "backends": options.backends},
    }  # fmt: skip
    try:
        outcomes = run_steps(
            build_steps(options), options.out, about, options.seconds, options.work, env
        )
    finally:
        for name in ("out", "flows"):
            shutil.rmtree(options.work / name, ignore_errors=True)
    print(f"record  {options.out}")
    if any(outcome["state"] == "failed" for outcome in outcomes.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
