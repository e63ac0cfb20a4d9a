"""Which tasks a run has: their names, what they need, and that they cover the slide."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.engines.backend import Engine
from densebatch.planning.engine_choice import EngineChoice
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.driver import Driver
from densebatch.run.flow_steps import list_predict_steps, list_trace_steps
from densebatch.run.folder import OutputFolder
from densebatch.run.report import Progress
from densebatch.run.session import Session
from densebatch.run.steps import list_number_steps, list_reduce_steps
from densebatch.stages.number import NumberShard
from densebatch.stages.output import output_spec
from densebatch.workers.executors import SerialExecutor
from tests.helpers.run_files import write_tiff

SHAPE = (560, 700)


@pytest.fixture
def run(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, *SHAPE), np.uint16), ["CD3", "DAPI"])
    settings = SegmentSettings(membrane=("CD3",), workers=0, tile=300)
    plan, folder = draft_plan(slide, settings), OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)
    choice = EngineChoice(Engine(), "default")
    progress = Progress()
    return Session(plan, settings, choice, folder, Driver(progress), SerialExecutor, 0, progress)


def test_groups_cover_the_slide_at_the_networks_scale(run):
    steps = list(list_predict_steps(run))
    assert [s.task.name for s in steps] == [f"predict-{r}-{c}" for r, c in run.plan.groups]
    assert sum(s.pixels for s in steps) == np.prod(run.plan.network_shape)
    assert all(s.on_device and s.needs == () for s in steps)


def test_tiles_cover_the_slide_and_wait_for_groups(run):
    steps = list(list_trace_steps(run))
    assert [s.task.name for s in steps] == [
        f"trace-300-{row}-{col}" for row in range(2) for col in range(3)
    ]
    assert sum(s.pixels for s in steps) == SHAPE[0] * SHAPE[1]
    groups = {s.task.name for s in list_predict_steps(run)}
    assert all(s.needs and set(s.needs) <= groups for s in steps)
    assert {need for s in steps for need in s.needs} == groups


def test_shards_cover_every_level(run):
    spec = output_spec(run.plan, run.root)
    steps = list(list_number_steps(run, spec, "edition"))
    assert [s.task.name for s in steps] == ["number-300-0-0-0"]
    assert sum(s.pixels for s in steps) == SHAPE[0] * SHAPE[1]
    run.facts[NumberShard(run.work, 0, 0, 0, run.root, "")] = {"files": {"a": "1"}}
    (first,) = list_reduce_steps(run, spec, 1)
    assert first.task.name == "number-300-1-0-0"
    assert first.pixels == 280 * 350
    run.facts[NumberShard(run.work, 0, 0, 0, run.root, "")] = {"files": {"a": "2"}}
    (second,) = list_reduce_steps(run, spec, 1)
    assert first.task.inputs != second.task.inputs  # other labels below: made again
