"""Verdicts on a backend: made once for a machine and a sample, and remembered."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest

from densebatch.engines.backend import Engine
from densebatch.engines.findings import recall, remember
from densebatch.planning import engine_trial
from densebatch.planning.engine_choice import identify_trial
from densebatch.planning.engine_trial import check_parity, identify_parity
from densebatch.planning.gate import Parity
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from tests.helpers.run_files import simulate, write_tiff


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    slide = write_tiff(folder / "a.ome.tif", simulate(330, 300, seed=4), ["CD3", "DAPI"])
    return build_plan(slide, SegmentSettings(membrane=("CD3",), model="dense-tiny"))


@pytest.mark.parametrize("refused", [None, "flows are not finite"])
def test_a_verdict_is_remembered_and_told(plan, monkeypatch, caplog, refused):
    measured = Parity(math.inf if refused else 0.5, 1.0, 0.5, 0.5, 0.9, 900, refused)
    calls = []
    monkeypatch.setattr(engine_trial, "_measure_parity", lambda *_: calls.append(None) or measured)
    engine = Engine("openvino", "cpu")
    with caplog.at_level(logging.INFO, engine_trial.log.name):
        assert [check_parity(plan, engine) for _ in range(2)] == [measured, measured]
    assert len(calls) == 1
    assert {record.event for record in caplog.records} == {
        "gate passed" if refused is None else "gate refused"
    }
    assert [record.fields["recalled"] for record in caplog.records] == [False, True]
    for rubbish in ({"flow_rms": 0.1}, {**measured.to_dict(), "alike": "much"}):
        remember(identify_parity(plan, engine), rubbish)
        assert check_parity(plan, engine) == measured
    assert len(calls) == 3
    assert recall(identify_parity(plan, engine)) == measured.to_dict()


def test_a_verdict_is_of_the_tissue_it_was_made_on(plan):
    """Two names of equal weights may know another diameter, and are shown another sample."""
    engine = Engine("openvino", "cpu")
    other = replace(plan, model=replace(plan.model, diameter_px=2 * plan.model.diameter_px))
    assert identify_parity(plan, engine) == identify_parity(replace(plan), engine)
    assert identify_parity(plan, engine) != identify_parity(other, engine)
    assert identify_trial(plan, "cpu") != identify_trial(other, "cpu")
