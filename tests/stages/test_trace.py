"""Which process traces a tile on the device, and that nobody sees it in the labels."""

from __future__ import annotations

import json

import numpy as np
import torch
import zarr

from densebatch.run.segment import segment
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.stages import trace
from densebatch.tracing.device import DeviceDynamics


def test_a_run_whose_tiles_are_traced_on_a_device(tmp_path, monkeypatch):
    """Some of them: which process traces a tile does not show in the labels."""
    write_slide(Tissue(600, 500, seed=3), tmp_path / "slide.ome.zarr")
    how = {"membrane": ("membrane",), "workers": 0, "tile": 256, "model": "dense-tiny"}
    expected = segment(tmp_path / "slide.ome.zarr", tmp_path / "a", **how)
    used = []

    def choose(plan):
        used.append("cpu:0" if len(used) % 2 else "cpu")
        return used[-1]

    monkeypatch.setattr(trace, "_choose_device", choose)
    result = segment(tmp_path / "slide.ome.zarr", tmp_path / "b", **how)
    assert used.count("cpu:0") > 1
    ours, theirs = (zarr.open_array(f"{r.labels}/0", mode="r")[:] for r in (result, expected))
    assert theirs.max() > 100
    assert np.array_equal(ours, theirs)
    parts = json.loads((tmp_path / "b/run.json").read_text())["stages"]["trace"]["parts"]
    assert {"trace", "trace_on_device"} <= set(parts)


def test_a_device_without_memory_leaves_a_tile_to_the_cpu(tmp_path, monkeypatch):
    write_slide(Tissue(300, 300, seed=3), tmp_path / "slide.ome.zarr")
    how = {"membrane": ("membrane",), "workers": 0, "model": "dense-tiny"}
    expected = segment(tmp_path / "slide.ome.zarr", tmp_path / "a", **how)
    tried = []

    def allocate(*_):
        tried.append(1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trace, "_choose_device", lambda _: "cpu:0")
    monkeypatch.setattr(DeviceDynamics, "_gather", allocate)
    result = segment(tmp_path / "slide.ome.zarr", tmp_path / "b", **how)
    assert tried
    assert not result.failed_tiles
    ours, theirs = (zarr.open_array(f"{r.labels}/0", mode="r")[:] for r in (result, expected))
    assert theirs.max() > 20
    assert np.array_equal(ours, theirs)


def test_a_process_without_a_context_traces_by_itself(monkeypatch):
    """It would take seconds and memory of the GPU to get one."""

    class Plan:
        class engine:
            device = "cuda"

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert trace._choose_device(Plan) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert trace._choose_device(Plan) == "cuda"
    Plan.engine.device = "cpu"  # as a caller of ours may have one for something else
    assert trace._choose_device(Plan) == "cpu"
