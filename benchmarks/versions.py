"""Two versions of densebatch beside each other, in turns: what a change costs or gives in time.

    python benchmarks/versions.py BEFORE AFTER SLIDE --models dense-small,dense --repeats 5

BEFORE and AFTER are checkouts, and SLIDE is one that both read; without one, AFTER's simulator
draws it. Both run in this environment as `python -m densebatch segment`, each with compiled kernels
of its own, which a run that is not counted makes first. The record has the wall time of the whole
command, interpreter and imports included, and the run's own figures (`run.json`); its ratios are
medians of AFTER over BEFORE. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import CHANNELS, Tissue
from densebatch.studies.benchmark_record import describe_machine, describe_versions
from densebatch.studies.watch import watch_command

RESULT = Path(__file__).parent / "results/versions.json"


def describe_tree(tree: Path) -> str:
    """Commit of a checkout, and whether anything in it is not committed."""
    say = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(say, capture_output=True, text=True, check=True).stdout.strip()


def run_once(tree: Path, slide: Path, model: str, workers: int) -> dict[str, float]:
    """Seconds of one run, and what its labels are."""
    env = {**os.environ, "PYTHONPATH": str(tree)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            sys.executable, "-m", "densebatch", "segment", str(slide), str(out),
            "--membrane", CHANNELS[0], "--model", model, "--workers", str(workers),
        ]  # fmt: skip
        watched = watch_command(command, env=env, cwd=tree, check=True)
        report = json.loads((out / "run.json").read_text())
    return {
        "wall_s": round(watched.wall_s, 3),
        "run_s": report["seconds"]["total"],
        **{f"{name}_s": s for name, s in report["seconds"].items() if name != "total"},
        "network_s": report["network_seconds"],
        "largest_process_mb": watched.largest_mb,
        "cells": report["cells"],
    }


def compare(trees: dict[str, Path], slide: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs of each version by model, in turns, with medians and their ratios."""
    found = {}
    for model in options.models.split(","):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for turn in range(options.repeats + 1):
            for name, tree in trees.items():
                once = run_once(tree, slide, model, options.workers)
                print(f"{model} {name} {turn or 'not counted'}: {once['wall_s']} s", flush=True)
                if turn:
                    runs[name].append(once)
        medians = {
            name: {key: statistics.median(run[key] for run in some) for key in some[0]}
            for name, some in runs.items()
        }
        before, after = medians["before"], medians["after"]
        ratios = {key: round(after[key] / before[key], 4) for key in before if before[key]}
        found[model] = {
            "medians": medians,
            "after_over_before": ratios,
            "after_less_before_s": {
                key: round(after[key] - before[key], 3) for key in before if key.endswith("_s")
            },
            "runs": runs,
        }
        print(f"{model}: whole command {ratios['wall_s']}, run {ratios['run_s']}")
    return found


def main() -> None:
    """Run both versions and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("slide", type=Path, nargs="?", help="else a simulated one")
    parser.add_argument("--side", type=int, default=4096, help="of the simulated slide")
    parser.add_argument("--models", default="dense-small,dense")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    trees = {"before": options.before.resolve(), "after": options.after.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        slide = options.slide and options.slide.resolve()
        tissue = None
        if slide is None:
            slide = Path(folder) / "slide.ome.zarr"
            tissue = Tissue(options.side, options.side)
            write_slide(tissue, slide)
        record = {
            "machine": describe_machine(),
            "versions": describe_versions(),
            "trees": {name: describe_tree(tree) for name, tree in trees.items()},
            "slide": options.slide.name if tissue is None else asdict(tissue),
            "workers": options.workers,
            "models": compare(trees, slide, options),
        }
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
