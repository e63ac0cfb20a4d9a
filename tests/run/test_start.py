"""The executor of a run starts beside the survey, or when it is needed."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.start import ExecutorStart
from densebatch.workers.executors import DaskExecutor, SerialExecutor
from densebatch.workers.schedule import Job
from tests.helpers.run_files import write_tiff


@pytest.fixture
def plan(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, 80, 90), np.uint16), ["CD3", "DAPI"])
    return draft_plan(slide, SegmentSettings(membrane=("CD3",)))


def test_no_workers_are_this_process(plan, tmp_path):
    with ExecutorStart(SegmentSettings(workers=0)) as start:
        start.begin(0, [plan])
        start.wait()
        assert isinstance(start.finish(0, [plan], tmp_path), SerialExecutor)
        assert start.waited_s >= 0


def test_a_worker_that_was_begun_is_the_one_that_finish_gives(plan, tmp_path):
    with ExecutorStart(SegmentSettings(workers=1)) as start:
        start.begin(1, [plan])
        start.wait()
        executor = start.finish(1, [plan], tmp_path)
        assert isinstance(executor, DaskExecutor)
        assert start.finish(1, [plan], tmp_path) is executor
        (outcome,) = executor.run([Job("pid", os.getpid, ())])
        assert outcome.error is None
        assert outcome.result != os.getpid()
        assert start.waited_s > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_error_in_starting_is_raised_where_it_is_waited_for(plan, tmp_path):
    with ExecutorStart(SegmentSettings(workers=2, device="cuda")) as start:
        start.begin(2, [plan])
        with pytest.raises(InputError):
            start.wait()
        with pytest.raises(InputError):
            start.finish(2, [plan], tmp_path)
