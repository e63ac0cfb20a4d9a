"""What the network is shown of a slide: normalised, combined, rescaled, and nothing beyond it."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.base.geometry import Region
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.stages.network_input import read_network_input
from densebatch.stages.predict import is_finite
from densebatch.survey.normalization import normalize
from tests.helpers.run_files import simulate, write_tiff

SHAPE = (200, 170)


@pytest.fixture(scope="module")
def pixels():
    return simulate(*SHAPE, seed=4)


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    membranes = [pixels[0], pixels[0][::-1], pixels[1]]
    path = tmp_path_factory.mktemp("slide") / "s.ome.tif"
    return write_tiff(path, np.stack(membranes), ["CD3", "CD8", "DAPI"])


def test_membranes_are_combined_by_maximum(slide, pixels):
    plan = build_plan(slide, SegmentSettings(membrane=("CD3", "CD8")))
    seen = read_network_input(plan, Region(0, 0, *SHAPE))
    expected = np.maximum(
        normalize(pixels[0], plan.membrane[0]), normalize(pixels[0][::-1], plan.membrane[1])
    )
    assert np.array_equal(seen[0], expected)
    assert not seen[1].any()


@pytest.mark.parametrize("pixel_size", [0.5, 0.4, 0.7])
def test_beyond_the_slide_there_is_nothing(slide, pixel_size):
    """A window has the bits of the whole, and zeros where it leaves the slide."""
    plan = build_plan(slide, SegmentSettings(membrane=("CD3",), pixel_size=pixel_size))
    height, width = plan.network_shape
    assert ((height, width) == SHAPE) == (pixel_size == 0.5)
    whole = read_network_input(plan, Region(0, 0, height, width))
    around = np.zeros((2, height + 60, width + 60), np.float32)
    around[:, 30:-30, 30:-30] = whole
    for y0, x0 in ((-30, -30), (-8, 50), (height - 70, width - 70), (20, 30)):
        window = Region(y0, x0, y0 + 100, x0 + 100)
        seen = read_network_input(plan, window)
        assert np.array_equal(seen, around[:, *window.shift(30, 30).slices])


def test_finite_is_told_from_the_bits_of_every_half():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    told = [is_finite(halves[k : k + 1]) for k in range(halves.size)]
    assert told == np.isfinite(halves).tolist()
    assert not is_finite(halves)
    assert is_finite(halves[np.isfinite(halves)].reshape(2, -1))
