"""Tasks: what makes two of them the same, what names them, and when a record still counts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.stages.number import NumberShard, ReduceShard
from densebatch.stages.predict import PredictGroup
from densebatch.stages.trace import TraceTile
from densebatch.stages.work import Task, Work, run_task
from tests.helpers.run_files import write_tiff

WORK = Work("/out/work/plan.json", 100)


@pytest.fixture
def work(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, 250, 330), np.uint16), ["CD3", "DAPI"])
    plan = draft_plan(slide, SegmentSettings(membrane=("CD3",)))
    path = tmp_path / "work" / f"plan-{plan.fingerprint}.json"
    path.parent.mkdir()
    path.write_text(plan.to_json())
    return Work(str(path), 100)


def test_the_plan_and_its_tiles_are_found_beside_each_other(work, tmp_path):
    assert work.folder == tmp_path / "work"
    assert work.plan.shape == (250, 330)
    assert (work.grid.rows, work.grid.cols) == (3, 4)
    assert work.journal.folder == tmp_path / "work" / "journal"
    assert work.traces.name == "trace-100"


@pytest.mark.parametrize(
    ("task", "same", "others"),
    [
        (
            PredictGroup(WORK, 1, 2, lanes=1),
            PredictGroup(WORK, 1, 2, lanes=4),
            [PredictGroup(WORK, 2, 1, lanes=1)],
        ),
        (
            TraceTile(WORK, 1, 2, travel_px=32),
            TraceTile(WORK, 1, 2, travel_px=64),
            [TraceTile(WORK, 1, 3, travel_px=32), TraceTile(Work(WORK.plan_path, 64), 1, 2, 32)],
        ),
        (
            NumberShard(WORK, 0, 1, 2, "/a", "x"),
            NumberShard(WORK, 0, 1, 2, "/b", "y"),
            [NumberShard(WORK, 0, 2, 2, "/a", "x"), ReduceShard(WORK, 0, 1, 2, "/a", "x")],
        ),
    ],
)
def test_tasks_are_the_same_if_they_are_the_same_piece(task, same, others):
    """However it is to be done: what a record says is found again by either."""
    assert task == same
    assert task.name == same.name
    assert {task: 1}[same] == 1
    assert all(task != other for other in others)
    assert pickle.loads(pickle.dumps(same)) == task


def test_names_say_stage_tile_and_place():
    assert PredictGroup(WORK, 1, 2, 1).name == "predict-1-2"
    assert TraceTile(WORK, 1, 2, 32).name == "trace-100-1-2"
    assert NumberShard(WORK, 0, 1, 2, "", "").name == "number-100-0-1-2"
    assert ReduceShard(WORK, 3, 1, 2, "", "").name == "number-100-3-1-2"


def test_a_tile_traced_with_less_halo_is_not_done():
    assert TraceTile(WORK, 0, 0, 32).is_current({"travel_px": 32})
    assert TraceTile(WORK, 0, 0, 32).is_current({"travel_px": 64})
    assert not TraceTile(WORK, 0, 0, 64).is_current({"travel_px": 32})


def test_a_shard_made_from_something_else_is_not_done():
    shard = NumberShard(WORK, 0, 0, 0, "/nowhere", "now")
    assert not shard.is_current({"inputs": "before", "digests": []})
    assert not shard.is_current({"inputs": "now", "digests": [], "unread": [{"channel": "CD3"}]})


def test_a_tile_needs_the_groups_under_its_window(work):
    """All groups that its core and halo reach into, and no other."""
    plan = work.plan
    needs = TraceTile(work, 0, 0, plan.travel_px).needs
    assert "predict-0-0" in needs
    assert set(needs) <= {f"predict-{row}-{col}" for row, col in plan.groups}
    assert set(TraceTile(work, 0, 0, 10_000).needs) == {f"predict-{r}-{c}" for r, c in plan.groups}


def test_executors_call_one_function_with_the_task():
    class Said(Task):
        name = "said"

        def run(self):
            return {"said": self.work.tile_px}

    assert run_task(Said(WORK)) == {"said": 100}
