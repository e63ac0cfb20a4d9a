"""What run.json sums up from the records of tasks."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.base.geometry import Grid
from densebatch.planning.engine_choice import EngineChoice
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.report import describe_costs, describe_gaps, describe_lost, describe_run
from densebatch.stages.number import NumberShard, ReduceShard
from densebatch.stages.predict import PredictGroup
from densebatch.stages.trace import TraceTile
from densebatch.stages.work import Work
from tests.helpers.run_files import write_tiff

WORK = Work("/out/work/plan.json", 100)


def costs(seconds, process, peak_mb, **more):
    return {
        "seconds": seconds, "parts": {}, "peak_rss_mb": peak_mb, "process": process,
        "bytes_read": 10, "bytes_written": 1, **more,
    }  # fmt: skip


PIECE = {"channel": "CD3", "region": [0, 0, 64, 64], "reason": "damaged"}


@pytest.fixture
def facts():
    network = {"parts": {"network": 3.0, "read": 0.5}}
    return {
        PredictGroup(WORK, 0, 0, 1): costs(
            4.0, "a:1", 700, patches=9, bright_patches=2, device="cpu", **network
        ),
        PredictGroup(WORK, 0, 1, 1): costs(
            2.0, "a:2", 900, patches=0, bright_patches=0, device=None
        ),
        TraceTile(WORK, 0, 0, 32): costs(
            1.0, "a:1", 800, cells=5, rejected=2, max_travel_px=7.5, dropped_px=1
        ),
        TraceTile(WORK, 0, 1, 32): costs(
            0.5, "a:2", 800, cells=3, rejected=1, max_travel_px=9.0, dropped_px=0
        ),
        NumberShard(WORK, 0, 0, 0, "/out", "x"): costs(0.25, "main:1", 400, unread=[PIECE]),
        ReduceShard(WORK, 1, 0, 0, "/out", "y"): costs(0.125, "main:1", 400),
    }


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.ome.tif"
    write_tiff(path, np.zeros((2, 500, 400), np.uint16), ["CD3", "DAPI"])
    return draft_plan(path, SegmentSettings(membrane=("CD3",)))


def test_a_run_is_summed_up_by_stage(plan, facts):
    seconds = {"total": 2.0}
    settings = SegmentSettings(membrane=("CD3",))
    choice = EngineChoice(plan.engine, "default")
    report = describe_run(plan, settings, choice, facts, 8, seconds)
    assert report["cells"] == 8
    assert report["rejected_cells"] == 3
    assert report["dropped_px"] == 1
    assert report["max_travel_px"] == 9.0
    assert report["bright_patches"] == 2
    assert report["devices"] == ["cpu"]
    assert report["slide_px"] == 200_000
    assert report["mpx_per_second"] == 0.1
    assert report["cells_per_second"] == 4.0
    assert report["fingerprint"] == plan.fingerprint
    assert report["versions"]["zarr"]
    assert "active" not in report["plan"]


def test_costs_are_those_of_stages_and_of_this_session(plan, facts):
    main = costs(5.0, "main:1", 300)
    report = describe_costs(plan, facts, set(), 2, 6.0, main)
    assert report["task_seconds"] == {"predict": 6.0, "trace": 1.5, "number": 0.375}
    assert report["stages"]["predict"]["tasks"] == 2
    assert report["stages"]["predict"]["parts"] == {"network": 3.0, "read": 0.5}
    assert report["stages"]["trace"]["mpx_per_second"] == round(0.2 / 1.5, 4)
    assert report["network_seconds"] == 1.5  # on two workers
    assert report["wall_over_network"] == 4.0
    # the main process has counted its own tasks already
    assert report["bytes_read"] == 10 + 4 * 10
    assert report["worker_peak_rss_mb"] == 900
    assert report["all_peak_rss_mb"] == 300 + 800 + 900


def test_a_piece_that_several_tasks_cannot_read_is_told_once(plan, facts):
    facts[PredictGroup(WORK, 0, 0, 1)]["unread"] = [PIECE, {**PIECE, "region": [0, 64, 64, 128]}]
    lost = {PredictGroup(WORK, 0, 0, 1): "RuntimeError: no"}
    gaps = describe_gaps(plan, facts, lost, {})
    assert gaps["unread"] == [PIECE, {**PIECE, "region": [0, 64, 64, 128]}]
    (group,) = gaps["failed_groups"]
    assert group == {"group": [0, 0], "region": [0, 0, *plan.shape], "reason": "RuntimeError: no"}
    assert gaps["missing_px"] == 0


def test_what_an_earlier_session_did_costs_this_one_nothing(plan, facts):
    kept = {task for task in facts if isinstance(task, PredictGroup)}
    report = describe_costs(plan, facts, kept, 2, 6.0, costs(5.0, "main:1", 300))
    assert report["wall_over_network"] is None
    assert report["bytes_read"] == 10 + 2 * 10
    assert report["task_seconds"]["predict"] == 6.0


def test_bytes_that_nobody_counted_are_null(plan, facts):
    unknown = dict(facts)
    unknown[TraceTile(WORK, 0, 0, 32)] = {**facts[TraceTile(WORK, 0, 0, 32)], "bytes_read": None}
    report = describe_costs(plan, unknown, set(), 2, 6.0, costs(5.0, "main:1", 300))
    assert report["bytes_read"] is None
    assert report["stages"]["trace"]["bytes_read"] is None
    assert report["stages"]["predict"]["bytes_read"] == 20


def test_lost_tiles_are_listed_in_raster_order_with_their_pixels():
    grid = Grid(150, 250, 100, 100)
    assert describe_lost(grid, {(1, 2): "late", (0, 1): "early"}) == [
        {"tile": [0, 1], "region": [0, 100, 100, 200], "reason": "early"},
        {"tile": [1, 2], "region": [100, 200, 150, 250], "reason": "late"},
    ]
