"""Whether a seeded training gives the same weights twice, and after `kill -9`.

    python benchmarks/training.py IMAGES --config configs/train/dense-tiny.yaml --steps 300

Runs `densebatch train` three times with the same recipe: twice undisturbed, and once killed at a
third and at two thirds of its steps and started again. Writes the sha256 of the three models and
their seconds to benchmarks/results/training.json and fails if they differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from densebatch.studies.benchmark_record import describe_machine, describe_versions

CHECKPOINT_S = 5.0
_PROGRAM = """
import functools, sys
from densebatch.cli.main import cli
from densebatch.training import train
train.train = functools.partial(train.train, checkpoint_seconds={seconds})
cli(sys.argv[1:])
"""


def run(arguments: list[str], stop_at: int | None = None) -> None:
    """One `densebatch train`, killed as soon as it tells of a step if that is wanted."""
    program = _PROGRAM.format(seconds=CHECKPOINT_S)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", program, "train", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        told = re.match(r"step (\d+)/", line)
        if told is not None and stop_at is not None and int(told[1]) >= stop_at:
            process.kill()
            process.wait()
            return
    if process.wait():
        raise SystemExit(f"densebatch train ended with {process.returncode}")
    if stop_at is not None:
        raise SystemExit("the training ended before it could be killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/training.json")
    options = parser.parse_args()
    recipe = yaml.safe_load(options.config.read_text())
    recipe["steps"] = options.steps
    if "simulated_steps" in recipe:
        recipe["simulated_steps"] = min(recipe["simulated_steps"], options.steps // 5)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "recipe.yaml"
        config.write_text(yaml.safe_dump(recipe))
        for name, stops in (
            ("undisturbed", ()),
            ("undisturbed again", ()),
            ("killed twice", (options.steps // 3, options.steps * 2 // 3)),
        ):
            # the same name for all: it is part of the card
            model = Path(scratch) / name / "model.safetensors"
            arguments = [str(options.images), "-o", str(model), "-c", str(config)]
            begun = time.monotonic()
            for stop in stops:
                run(arguments, stop)
            run(arguments)
            digest = hashlib.sha256(model.read_bytes()).hexdigest()
            rows.append({"run": name, "seconds": round(time.monotonic() - begun), "sha256": digest})
            print(json.dumps(rows[-1]), flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "recipe": recipe,
        "runs": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    if len({row["sha256"] for row in rows}) > 1:
        raise SystemExit("the models differ")


if __name__ == "__main__":
    main()
