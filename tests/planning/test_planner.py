"""What a plan is drafted from: metadata alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
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
