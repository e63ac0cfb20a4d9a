"""One step of `gpu.py`, as a program that prints what it finds as JSON objects, one a line.

cd benchmarks; python -m gpu_steps bits --work SCRATCH --model dense-small --side 2048

`gpu.py` runs all of them, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from pathlib import Path

# Imported one by one: what a step does not need shall not break it.
STEPS = {
    "check": ("machine", "check"),
    "slide": ("slides", "draw_slide"),
    "bits": ("tracing", "check_bits"),
    "gate": ("gate", "measure_gate"),
    "segment": ("whole_run", "run_whole"),
    "trace": ("tracing", "measure_tracing"),
    "tests": ("machine", "run_tests"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--work", type=Path, required=True, help="scratch folder")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", default="dense-small")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--side", type=int, default=4096, help="of the slide, px")
    parser.add_argument("--keep", action="store_true", help="leave the flows for step trace")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.device == "cpu":
        # several threads for each small operation would wait for each other on a busy machine
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    module, function = STEPS[options.step]
    getattr(import_module(f"gpu_steps.{module}"), function)(options)


if __name__ == "__main__":
    main()
