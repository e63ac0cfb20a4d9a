"""Whether slides that share workers keep them busy: a cohort beside one slide after the other.

    python benchmarks/cohort.py --slides 8 --side 3072 --model dense-small

Simulated slides, each a little larger than the one before, are segmented by one command on two
workers, and again by a command for each. The wall time of a command, from its start to its end, is
told over the seconds that its tasks took, divided by the workers: 1 would be workers that are busy
all the time. Bytes of labels and tables must be equal. benchmarks/results/cohort.json has the
result; the exit code is 1 if anything differs, or the cohort takes more than 1.15.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.studies.benchmark_record import describe_machine, describe_versions

MOST = 1.15


def write_slides(folder: Path, n: int, side: int) -> list[Path]:
    """Slides that differ in their tissue and, by up to a fifth, in their height."""
    slides = []
    for k in range(n):
        height = side + side * k // (5 * n)
        path = folder / f"slide{k}.zarr"
        write_slide(Tissue(height, side, seed=k), path, threads=2)
        slides.append(path)
    return slides


def call(slides: list[Path], out: Path, options: list[str]) -> float:
    """Wall time of a command in seconds."""
    began = time.monotonic()
    command = [sys.executable, "-m", "densebatch", "segment", *map(str, slides), str(out), *options]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


def read_tasks(outs: list[Path]) -> float:
    """Seconds of all tasks."""
    reports = [json.loads((out / "run.json").read_bytes()) for out in outs]
    return float(sum(sum(report["task_seconds"].values()) for report in reports))


def digest(out: Path) -> str:
    """Of a result's labels and table."""
    found = hashlib.sha256()
    files = [p for p in (out / "segmentation.ome.zarr").rglob("*") if p.is_file()]
    for path in sorted([*files, out / "cells.parquet"]):
        found.update(str(path.relative_to(out)).encode() + path.read_bytes())
    return found.hexdigest()


def tell(wall_s: float, task_s: float, workers: int) -> dict[str, float]:
    return {
        "wall_s": round(wall_s, 1),
        "task_s": round(task_s, 1),
        "wall_over_tasks": round(wall_s / (task_s / workers), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=8)
    parser.add_argument("--side", type=int, default=3072)
    parser.add_argument("--model", default="dense-small")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/cohort.json")
    arguments = parser.parse_args()
    machine = describe_machine()
    options = ["--membrane", "0", "--model", arguments.model, "--workers", str(arguments.workers)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = write_slides(folder, arguments.slides, arguments.side)
        cohort_s = call(slides, folder / "cohort", options)
        together = [folder / "cohort" / slide.stem for slide in slides]
        singly = [folder / "single" / slide.stem for slide in slides]
        single_s = sum(
            call([slide], out, options) for slide, out in zip(slides, singly, strict=True)
        )
        is_equal = [digest(a) == digest(b) for a, b in zip(together, singly, strict=True)]
        result: dict[str, Any] = {
            "slides": arguments.slides,
            "side_px": arguments.side,
            "model": arguments.model,
            "workers": arguments.workers,
            "cohort": tell(cohort_s, read_tasks(together), arguments.workers),
            "one_after_the_other": tell(single_s, read_tasks(singly), arguments.workers),
            "same_bytes": all(is_equal),
            "machine": machine,
            "versions": describe_versions(),
        }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result["cohort"]) + "\n")
    sys.stdout.write(json.dumps(result["one_after_the_other"]) + "\n")
    return 0 if all(is_equal) and result["cohort"]["wall_over_tasks"] <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
