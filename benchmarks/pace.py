"""How near `plan` comes to the time that a run then takes.

    python -m benchmarks.pace -o pace.json    # some minutes, on a machine with nothing else to do
    python -m benchmarks.pace --quick         # small, to see that it runs

Simulated slides of 2048², 4096² and 8192² px are planned and segmented, one after the other, with
two models, by the commands of a user. Nothing is known before the first, so its estimate is that of
`plan --measure`; each later one is told from the run before it.
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


def run(cache: Path, *arguments: object) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "densebatch", *map(str, arguments)]
    environment = {**os.environ, "DENSEBATCH_CACHE": str(cache)}
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout


def main() -> None:
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
                trial = ["--measure"] if side == sides[0] else []
                planned = json.loads(run(cache, "plan", path, out, *options, "--json", *trial))
                run(cache, "segment", path, out, *options)
                took = json.loads((out / "run.json").read_text())["seconds"]["total"]
                record["runs"].append({
                    "model": model, "side_px": side,
                    "expected_s": planned["expected_seconds"],
                    "expected_from": planned["expected_from"],
                    "took_s": took, "ratio": round(planned["expected_seconds"] / took, 3),
                })  # fmt: skip
                print(record["runs"][-1], file=sys.stderr)
    text = json.dumps(record, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
