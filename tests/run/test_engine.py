"""How many workers use a GPU."""

from __future__ import annotations

import pytest
import torch

from densebatch.planning import capacity
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings, load_settings
from densebatch.run import engine as run_engine
from tests.helpers.run_files import simulate, write_tiff


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    slide = write_tiff(folder / "a.ome.tif", simulate(330, 300, seed=4), ["CD3", "DAPI"])
    return build_plan(slide, SegmentSettings(membrane=("CD3",)))


def test_half_of_the_workers_use_a_gpu_or_as_many_as_it_holds(plan, monkeypatch):
    settings = load_settings(None, device="auto")
    count = run_engine.count_device_workers
    assert count([plan], load_settings(None, device="cpu"), 8) == 0
    monkeypatch.setattr(run_engine, "choose_device", lambda _: "cuda")
    window = capacity.trace_window_px(plan, settings.tile)
    each = 600e6 + 2 * plan.network_batch * capacity.patch_bytes(plan) + 400 * window
    for free, expected in ((10**9, 1), (int(3.9 * each / 0.8), 3), (10**12, 8)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10**12))
        assert count([plan], settings, 16) == expected
    assert [count([plan], settings, n) for n in (0, 1, 2, 3, 6)] == [0, 0, 1, 1, 3]
    assert count([plan], load_settings(None, scheduler_address="tcp://127.0.0.1:1"), 0) == 0
