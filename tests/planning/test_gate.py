"""The gate: what differs too much from the reference is refused, and only that."""

from __future__ import annotations

import re

import numpy as np
import pytest

from densebatch.engines.backend import Engine, patch_shape
from densebatch.planning.engine_trial import make_plan_backend
from densebatch.planning.gate import compare_flows, draw_sample, predict_sample
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from tests.helpers.run_files import simulate, write_tiff


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    slide = write_tiff(folder / "a.ome.tif", simulate(330, 300, seed=4), ["CD3", "DAPI"])
    return build_plan(slide, SegmentSettings(membrane=("CD3",), model="dense-tiny"))


@pytest.fixture(scope="module")
def sampled(plan):
    sample = draw_sample(plan.model, patch_shape(plan.lattice))
    return sample, predict_sample(make_plan_backend(plan, Engine()), sample)


def test_the_reference_is_like_itself(sampled):
    sample, reference = sampled
    same = compare_flows("openvino", reference, reference, sample)
    assert (same.flow_rms, same.flow_max, same.alike, same.refused) == (0, 0, 1, None)
    assert same.ap == same.ap_reference > 0.6


@pytest.mark.parametrize(
    ("name", "noise", "reason"),
    [
        ("openvino", 0.01, "flows differ by .* of their RMS, accepted is 0.0001"),
        ("torch-bf16", 3.0, "of the cells are alike, accepted is 0.97"),
        ("openvino-int8", 6.0, "AP is .* and not .*, accepted is 0.01 less"),
        ("openvino", np.nan, "flows are not finite"),
    ],
)
def test_what_is_too_far_off_is_refused(sampled, name, noise, reason):
    sample, reference = sampled
    other = reference + noise * np.random.default_rng(0).normal(size=reference.shape)
    assert re.search(
        reason, compare_flows(name, other.astype(np.float32), reference, sample).refused
    )


def test_lost_precision_is_not_judged_by_a_few_cells(sampled):
    sample, reference = sampled
    nothing = reference.copy()
    nothing[2, 50:] = -9
    assert compare_flows("openvino", nothing, nothing, sample).refused is None
    assert "too few" in compare_flows("openvino-int8", nothing, nothing, sample).refused
