"""What a plan is drafted from: metadata alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densebatch.base.geometry import Lattice, Region, fit_axis
from densebatch.planning.normalization import ChannelBounds
from densebatch.planning.planner import draft_plan, find_active_cores, survey_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.planning.survey import ChannelSurvey
from densebatch.planning.survey_kernels import BLOCK_PX
from tests.helpers.slide_files import write_zarr


@pytest.mark.parametrize("shape", [(449, 449), (513, 963), (1040, 1392), (4096, 4096)])
def test_the_network_sees_at_most_a_fifth_more(tmp_path, shape):
    """Planned, not run: the count is the plan's (`tests/run/test_outputs.py` holds a run to it)."""
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((1, 8, 8), np.uint16))
    metadata = slide / "0" / "zarr.json"
    document = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**document, "shape": [1, *shape]}))
    plan = draft_plan(slide, SegmentSettings())
    assert plan.network_patches == len(plan.lattice.cores)
    assert plan.network_px <= 1.2 * shape[0] * shape[1]
    assert plan.covered_px == shape[0] * shape[1]


def test_a_draft_knows_neither_bounds_nor_glass(tmp_path):
    slide = write_zarr(tmp_path / "a.zarr", np.zeros((2, 300, 400), np.uint16), labels=["M", "N"])
    plan = draft_plan(slide, SegmentSettings(membrane=("M",)))
    assert [(b.name, b.low, b.high) for b in plan.membrane] == [("M", 0.0, 0.0)]
    assert plan.active_cores.all()
    assert plan.covered_px == np.prod(plan.network_shape)
    assert plan.notes == ()
    surveyed = survey_plan(plan)
    assert not surveyed.active_cores.any()  # nothing but one value
    assert surveyed.notes == ("channel M: has no contrast, so nothing is found in it",)


def test_cores_are_active_where_their_patch_has_contrast():
    """One bright block: the cores whose patches reach it, margin included, and no other."""
    lattice = Lattice(fit_axis(1500, 224, 32, 16), fit_axis(1500, 224, 32, 16))
    n = -(-1500 // BLOCK_PX)
    lowest, highest = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
    highest[20, 30] = 1.0
    survey = ChannelSurvey(ChannelBounds(0, "M", 0.0, 1.0, 1.0, 0), lowest, highest)
    active = find_active_cores(lattice, [survey], (1.0, 1.0), 0.5)
    bright = Region(20 * BLOCK_PX, 30 * BLOCK_PX, 21 * BLOCK_PX, 31 * BLOCK_PX)
    expected = {i for i in lattice.cores if lattice.patch(*i).intersect(bright) is not None}
    assert {tuple(map(int, i)) for i in np.argwhere(active)} == expected
    assert 0 < len(expected) < len(lattice.cores)
    assert not find_active_cores(lattice, [survey], (1.0, 1.0), np.inf).any()
    assert find_active_cores(lattice, [survey], (1.0, 1.0), -1.0).all()
