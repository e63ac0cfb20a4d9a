"""Peak memory of every process of a run, and time per Mpx, for slides of different sizes.

    python benchmarks/memory.py --sizes 4096 16384 --workers 2 --empty 0 0.5

A worker's memory must depend on the tile, not on the slide, and time on the tissue. A run before
the measured ones compiles what is compiled once per installation. What follows `--` is given to
`densebatch segment`. Simulates each slide, segments it with
`densebatch segment` in a process of its own, samples the resident set of that process and its
children every 0.2 s, and writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from densebatch.benchmark import describe_machine
from densebatch.simulate import Tissue, write_slide


def watch(process: subprocess.Popen[bytes]) -> dict[str, float]:
    """Peak resident set in MB of the main process and of its largest child."""
    main = psutil.Process(process.pid)
    peaks = {"main_mb": 0.0, "largest_worker_mb": 0.0, "all_mb": 0.0}
    while process.poll() is None:
        try:
            own = main.memory_info().rss / 1e6
            children = []
            for child in main.children(recursive=True):
                try:
                    children.append(child.memory_info().rss / 1e6)
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            break
        peaks["main_mb"] = max(peaks["main_mb"], own)
        peaks["largest_worker_mb"] = max(peaks["largest_worker_mb"], *children, 0.0)
        peaks["all_mb"] = max(peaks["all_mb"], own + sum(children))
        time.sleep(0.2)
    return {name: round(value) for name, value in peaks.items()}


def measure(
    size: int, workers: int, empty: float, options: list[str], folder: Path
) -> dict[str, Any]:
    slide = folder / f"slide-{size}.ome.zarr"
    write_slide(Tissue(size, size, seed=1, empty_fraction=empty), slide, threads=2)
    out = folder / f"out-{size}"
    command = [
        sys.executable, "-m", "densebatch", "segment", str(slide), str(out),
        "--membrane", "membrane", "--workers", str(workers), *options,
    ]  # fmt: skip
    process = subprocess.Popen(command)
    peaks = watch(process)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    report = json.loads((out / "run.json").read_text())
    kept = ("cells", "slide_px", "network_px", "network_redundancy", "seconds", "mpx_per_second")
    return {
        "size_px": size,
        "empty": empty,
        "workers": workers,
        **peaks,
        **{k: report[k] for k in kept},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--empty", type=float, nargs="+", default=[0.0], help="shares of the slide")
    parser.add_argument("options", nargs="*", help="of `densebatch segment`, after --")
    parser.add_argument("--folder", type=Path, help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/memory.json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        measure(256, max(arguments.workers), 0.0, arguments.options, Path(scratch))
    for size, empty, workers in itertools.product(
        arguments.sizes, arguments.empty, arguments.workers
    ):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            rows.append(measure(size, workers, empty, arguments.options, Path(scratch)))
            print(json.dumps(rows[-1]), flush=True)
    document = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(),
        "versions": {name: version(name) for name in ("densebatch", "torch", "numpy", "zarr")},
        "runs": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
