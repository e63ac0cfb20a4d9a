"""The flow field before and after it is written."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.stages import predict
from densebatch.stages.predict import create_flows, get_backend, is_finite
from tests.helpers.run_files import write_tiff


def test_every_half_is_told_by_its_exponent():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [is_finite(half[None]) for half in halves[::7]] == np.isfinite(halves[::7]).tolist()
    assert is_finite(halves[np.isfinite(halves)])


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 2, 3), (2, 4, 6)])
def test_one_value_in_any_place_is_found(value, place):
    flows = np.full((3, 5, 7), 65504, np.float16)
    assert is_finite(flows)
    flows[place] = value
    assert not is_finite(flows)


def test_what_was_not_written_reads_as_nan(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, 80, 90), np.uint16), ["CD3", "DAPI"])
    plan = draft_plan(slide, SegmentSettings(membrane=("CD3",)))
    create_flows(plan, tmp_path / "flows.zarr")
    flows = zarr.open_array(tmp_path / "flows.zarr", mode="r+")
    assert flows.shape == (3, *plan.network_shape)
    assert flows.dtype == np.float16
    assert np.isnan(flows[:]).all()
    flows[:] = np.float16(1)
    create_flows(plan, tmp_path / "flows.zarr")  # what is there stays
    assert (zarr.open_array(tmp_path / "flows.zarr", mode="r")[:] == 1).all()


def test_networks_of_two_models_are_kept(tmp_path):
    """As slides of a cohort that share workers may have; a third takes the place of the older."""
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, 80, 90), np.uint16), ["CD3", "DAPI"])
    tiny, small, nuclei = (
        draft_plan(slide, SegmentSettings(membrane=("CD3",), model=f"dense-{name}"))
        for name in ("tiny", "small", "nuclei")
    )
    before = predict.model_loads
    for plan, loads in [(tiny, 1), (small, 2), (tiny, 2), (small, 2), (tiny, 2),
                        (nuclei, 3), (tiny, 3), (small, 4), (nuclei, 5)]:  # fmt: skip
        assert get_backend(plan, tmp_path, 1) is get_backend(plan, tmp_path, 1)
        assert predict.model_loads - before == loads
