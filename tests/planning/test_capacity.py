"""Memory of a worker: every patch in flight counts, and chunks as they are decoded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from densebatch.base.errors import InputError
from densebatch.planning import capacity
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings, load_settings
from densebatch.workers import local
from tests.helpers.run_files import simulate, write_tiff


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    slide = write_tiff(folder / "a.ome.tif", simulate(330, 300, seed=4), ["CD3", "DAPI"])
    return build_plan(slide, SegmentSettings(membrane=("CD3",)))


def test_memory_counts_every_patch_in_flight(plan, monkeypatch):
    wide = replace(plan, model=replace(plan.model, widths=(2, 512, 512, 512)))
    one, four = (capacity.estimate(wide, 2048, lanes).worker_mb for lanes in (1, 4))
    assert four > one
    settings = load_settings(None, workers=2)
    monkeypatch.setattr(capacity, "count_cores", lambda: 16)
    patch_mb = capacity.patch_bytes(wide) / 1e6
    for free_mb, lanes in ((10**6, 8), (2 * one, 1), (2 * (one + 3.5 * patch_mb) / 0.7, 4)):
        memory = SimpleNamespace(available=free_mb * 1e6)
        monkeypatch.setattr(capacity, "measure_memory", lambda memory=memory: memory)
        assert capacity.count_lanes(wide, settings, 2) == lanes
    remote = load_settings(None, scheduler_address="tcp://127.0.0.1:1")
    assert capacity.count_lanes(wide, remote, 0) == 1


def test_a_daemon_works_in_its_own_process_unless_it_is_asked_for_more(plan, monkeypatch):
    for module in (capacity, local):
        monkeypatch.setattr(module, "may_start_processes", lambda: False)
    assert capacity.choose_workers(load_settings(None), plan) == 0
    assert capacity.choose_workers(load_settings(None, workers=0), plan) == 0
    with pytest.raises(InputError, match=r"^2 workers: this process is a daemon"):
        capacity.choose_workers(load_settings(None, workers=2), plan)


def test_memory_counts_chunks_as_they_are_decoded(plan):
    """A small region of a slide in huge chunks costs whole ones, a PNG the whole image."""

    def worker_mb(kind, chunk_px, planes=1):
        slide = replace(
            plan.slide, kind=kind, height=20000, width=20000, chunk_px=chunk_px,
            chunk_planes=planes, dtype="uint16",
        )  # fmt: skip
        return capacity.estimate(replace(plan, slide=slide), 512).worker_mb

    small = worker_mb("ome-zarr", (512, 512))
    image_mb = 20000 * 20000 * 2 / 1e6
    assert worker_mb("ome-zarr", (10000, 10000)) >= small + image_mb / 4
    assert worker_mb("ome-zarr", (1024, 1024), 30) >= small + 30 * 4 * 1024**2 * 2 / 1e6
    assert worker_mb("png", (20000, 20000), 3) >= 3 * image_mb
