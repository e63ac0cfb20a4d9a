"""Peak memory of every process of a run, and time per Mpx, for slides of different sizes.

    python benchmarks/memory.py --sizes 4096 16384 --workers 2 --empty 0 0.5 --repeats 3

A worker's memory must depend on the tile, not on the slide, and time on the tissue. A run before
the measured ones compiles what is compiled once per installation. What follows `--` is given to
`densebatch segment`. Simulates each slide, segments it in a process of its own, and writes
benchmarks/results/memory.json: peaks of the main process and of the largest worker as the run
records them, and the largest sum over all processes, sampled from outside. Repeats take turns, so
that all slides see the machine as it is at different times; a row is the repeat of median total
time, and `totals` has those of all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.studies.benchmark_record import describe_machine
from densebatch.studies.watch import watch_command


def measure(
    size: int, workers: int, empty: float, options: list[str], folder: Path
) -> dict[str, Any]:
    slide = folder / f"slide-{size}-{empty}.ome.zarr"
    if not slide.exists():
        write_slide(Tissue(size, size, seed=1, empty_fraction=empty), slide, threads=2)
    out = folder / "out"
    command = [
        sys.executable, "-m", "densebatch", "segment", str(slide), str(out),
        "--membrane", "membrane", "--workers", str(workers), *options,
    ]  # fmt: skip
    watched = watch_command(command, check=True)
    report = json.loads((out / "run.json").read_text())
    shutil.rmtree(out)
    kept = ("cells", "slide_px", "network_px", "network_redundancy", "seconds", "mpx_per_second")
    kept += ("wall_over_network",)
    return {
        "size_px": size,
        "empty": empty,
        "workers": workers,
        "main_mb": report["peak_rss_mb"],
        "largest_worker_mb": report["worker_peak_rss_mb"],
        "all_mb": round(watched.peak_mb),
        **{k: report[k] for k in kept},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--empty", type=float, nargs="+", default=[0.0], help="shares of the slide")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("options", nargs="*", help="of `densebatch segment`, after --")
    parser.add_argument("--folder", type=Path, help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/memory.json")
    arguments = parser.parse_args()
    runs: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        measure(256, max(arguments.workers), 0.0, arguments.options, Path(scratch))
        for _ in range(arguments.repeats):
            runs.append([])
            for size, empty, workers in itertools.product(
                arguments.sizes, arguments.empty, arguments.workers
            ):
                runs[-1].append(measure(size, workers, empty, arguments.options, Path(scratch)))
                print(json.dumps(runs[-1][-1]), flush=True)
    rows = []
    for repeats in zip(*runs, strict=True):
        ranked = sorted(repeats, key=lambda row: row["seconds"]["total"])
        totals = [row["seconds"]["total"] for row in repeats]
        rows.append({**ranked[(len(ranked) - 1) // 2], "totals": totals})
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
