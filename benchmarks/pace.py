"""How near `plan` comes to the time that a run then takes.

    python -m benchmarks.pace -o pace.json    # some minutes, on a machine with nothing else to do
    python -m benchmarks.pace --quick         # small, to see that it runs

Simulated slides of 2048², 4096² and 8192² px are planned and segmented, one after the other, with
two models, by the commands of a user. `trial_s` is what `plan --measure` says before a run, which
times the network alone; `expected_s` what `plan` says from the run of the slide before it, of which
there is none before the first. The exit code is 1 if that is off by more than a quarter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue

MODELS = ("dense-tiny", "dense-small")
MOST = 0.25


def run(cache: Path, *arguments: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "densebatch", *map(str, arguments)]
    environment = {**os.environ, "DENSEBATCH_CACHE": str(cache)}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    sides = (1024, 1536) if given.quick else (2048, 4096, 8192)
    record: dict[str, Any] = {
        "quick": given.quick, "processors": os.cpu_count(), "machine": platform.machine(),
        "workers": given.workers, "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("densebatch", "torch")}, "runs": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        slides = {side: Path(scratch) / f"{side}.ome.zarr" for side in sides}
        for side, path in slides.items():
            write_slide(Tissue(side, side, seed=1), path, threads=os.cpu_count() or 1)
        cache = Path(scratch) / "cache"
        for model in MODELS:
            for side, path in slides.items():
                options = ["--membrane", "0", "--model", model, "--workers", given.workers]
                out = Path(scratch) / f"{model}-{side}"
                trial = json.loads(run(cache, "plan", path, out, *options, "--json", "--measure"))
                planned = json.loads(run(cache, "plan", path, out, *options, "--json"))
                run(cache, "segment", path, out, *options)
                took = json.loads((out / "run.json").read_text())["seconds"]["total"]
                tried, told = trial["expected_seconds"], planned["expected_seconds"]
                record["runs"].append({
                    "model": model, "side_px": side, "took_s": took,
                    "trial_s": tried, "trial_over_took": round(tried / took, 3),
                    "expected_s": told, "expected_from": planned["expected_from"],
                    "expected_over_took": told and round(told / took, 3),
                })  # fmt: skip
                print(record["runs"][-1], file=sys.stderr)
    text = json.dumps(record, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")
    ratios = [each["expected_over_took"] for each in record["runs"] if each["expected_from"]]
    is_near = bool(ratios) and all(abs(ratio - 1) <= MOST for ratio in ratios)
    return 0 if is_near or given.quick else 1  # small slides leave no pace


if __name__ == "__main__":
    sys.exit(main())
