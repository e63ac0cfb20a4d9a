"""Every benchmark starts, so that a name that moved cannot break one unseen."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.py", "peers/*.py", "stitching/run.py")
    for path in (ROOT / "benchmarks").glob(pattern)
    if path.name != "stock.py"  # it takes a job as JSON from run.py, in stock's environment
)
PEERS = {"benchmarks/tracing.py": "cellpose"}
AS_MODULES = {  # they import from their neighbours
    "benchmarks/digests.py": "benchmarks.digests",
    "benchmarks/label_road.py": "benchmarks.label_road",
    "benchmarks/measuring.py": "benchmarks.measuring",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_tells_its_options(script):
    peer = PEERS.get(script)
    if peer is not None and importlib.util.find_spec(peer) is None:
        pytest.skip(f"{script} imports {peer}, which is not installed")
    how = ["-m", AS_MODULES[script]] if script in AS_MODULES else [script]
    done = subprocess.run(
        [sys.executable, *how, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_training_that_is_timed_saves_more_often():
    """What benchmarks/training.py starts changes the function that the command imports."""
    namespace = runpy.run_path(str(ROOT / "benchmarks" / "training.py"))
    program = namespace["_PROGRAM"].format(seconds=1.5)
    shown = program.replace("cli(sys.argv[1:])", "print(train.train.keywords)")
    assert shown != program
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "{'checkpoint_seconds': 1.5}\n"
