"""Small slides to segment, and what a run left behind, for the tests of whole runs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import tifffile

from densebatch.base.geometry import Region
from densebatch.cells.labels import read_labels
from densebatch.cli.main import main
from densebatch.run.segment import Progress
from densebatch.simulation.tissue import Tissue, render


def simulate(height, width, seed=0, **tissue):
    """Membrane and nuclei of dense tissue, `(2, h, w)` uint16."""
    slide = Tissue(height, width, seed=seed, **tissue)
    return render(slide, Region(0, 0, height, width))[0]


def write_tiff(path, pixels, channels, um_per_px=0.5, **more):
    """A tiled OME-TIFF with channel names and, unless it is None, pixel size; `more` metadata."""
    size = {
        "PhysicalSizeX": um_per_px,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um_per_px,
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(
        path,
        pixels,
        photometric="minisblack",
        tile=(64, 64),
        compression="zlib",
        metadata={
            "axes": "CYX",
            "Channel": {"Name": list(channels)},
            **(size if um_per_px is not None else {}),
            **more,
        },
    )
    return path


def read_result(out, root=None):
    """Labels at full resolution, and the cell table as a dict of arrays."""
    labels = read_labels(root or out / "segmentation.ome.zarr")[:]
    table = pq.read_table(out / "cells.parquet")
    return labels, {name: table[name].to_numpy() for name in table.column_names}


def tasks_folder(out):
    """Where the tasks of the one run in an output folder work; it need not be there yet."""
    return next((p for p in (out / "work").glob("*") if p.is_dir()), out / "work" / "none")


def output_bytes(out):
    """Every file of a run's result, by its path."""
    files = [p for p in (out / "segmentation.ome.zarr").rglob("*") if p.is_file()]
    return {str(p.relative_to(out)): p.read_bytes() for p in [*files, out / "cells.parquet"]}


def assert_same_output(out, expected):
    """Compare with `output_bytes` of another run; names the first file that differs."""
    found = output_bytes(out)
    assert sorted(found) == sorted(expected)
    differing = [name for name in expected if found[name] != expected[name]]
    assert not differing


def read_report(out):
    return json.loads((out / "run.json").read_text())


def call_main(capsys, *arguments):
    """Exit code, standard output and standard error of the command line, in this process."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# What a shell starts in the background ignores Ctrl-C, the tests and so their commands too.
_HEEDED = "import signal as s; s.signal(s.SIGINT, s.default_int_handler)"


def slow_traces(seconds):
    """Code for `start_command` that makes each tile of a run in its own process take longer."""
    return (
        "import time, densebatch.stages.trace as t; u = t.TraceTile.run\n"
        f"def slow(task):\n    time.sleep({seconds})\n    return u(task)\n"
        "t.TraceTile.run = slow"
    )


def start_command(*arguments, group_px=None, before=None, **options):
    """The command line in a process group of its own.

    `group_px` makes predict tasks small; `before` is Python to run first.
    """
    start = ["-m", "densebatch"]
    if group_px is not None or before is not None:
        changed = "import densebatch.planning.flow_planner as p; p._GROUP_PX = " + str(
            group_px or 1024
        )
        lines = [_HEEDED, changed, before or "", "from densebatch.cli.main import main; main()"]
        start = ["-c", "\n".join(lines)]
    return subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=options.pop("cwd", Path(__file__).parents[2]),
        env={**os.environ, **options.pop("env", {})},
        **options,
    )


def list_workers(pid):
    """Worker processes of a running command, in the order of their start."""
    workers = []
    for process in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # what has just been killed has no command line
            if "spawn_main" in " ".join(process.cmdline()):
                workers.append(process)
    return sorted(workers, key=lambda process: process.create_time())


def run_command(*arguments, timeout=120, **options):
    """Exit code, standard output and standard error of the command line."""
    process = start_command(*arguments, **options)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


class Watcher(Progress):
    """Notes what it is told; calls `at[stage]` when a stage begins."""

    def __init__(self, **at):
        self.stages = {}
        self.tasks = {}
        self.notes = []
        self.at = at

    def stage(self, name, total, done):
        self.stages[name] = (total, done)
        self.at.get(name, lambda: None)()

    def advance(self, name, pixels):
        assert pixels > 0
        self.tasks[name] = self.tasks.get(name, 0) + 1

    def note(self, text):
        self.notes.append(text)


def cells_alike(a, b):
    """Whether two label images are equal but for the numbering of their cells."""
    ids = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(ids[0]) == len(np.unique(ids[0])) == len(np.unique(ids[1]))


def count_calls(monkeypatch, module, name):
    """Count the calls of a function from now on."""
    function, counter = getattr(module, name), Counter()

    def call(*args):
        counter[name] += 1
        return function(*args)

    monkeypatch.setattr(module, name, call)
    return counter
