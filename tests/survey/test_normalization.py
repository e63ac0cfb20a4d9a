"""Normalised pixels: the bounds become 0 and 1, whatever numbers there are."""

import numpy as np
import pytest

from densebatch.survey.normalization import ChannelBounds, normalize

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


def bounds_of(low, high, nonfinite_px=0):
    return ChannelBounds(0, "CD3", low, high, 1.0, nonfinite_px)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_becomes_0_and_high_becomes_1(dtype):
    pixels = np.array([[10, 60, 35, 110, 0]], dtype)
    found = normalize(pixels, bounds_of(10.0, 60.0))
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[0, 1, 0.5, 2, -0.2]]), abs=1e-6)
    assert pixels.tolist() == [[10, 60, 35, 110, 0]]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite_becomes_0_or_1(dtype):
    pixels = np.array([np.nan, np.inf, -np.inf, 10, 60, -np.nan], dtype)
    for nonfinite_px in (0, 4):
        found = normalize(pixels, bounds_of(10.0, 60.0, nonfinite_px))
        assert found.tolist() == [0, 1, 0, 0, 1, 0]


def test_numbers_beyond_float32_become_0_or_1():
    pixels = np.array([1e300, -1e300, 2.0, 3e38])
    assert normalize(pixels, bounds_of(1.0, 3.0)).tolist()[:3] == [1, 0, 0.5]
    # the difference, or the quotient, overflows
    huge = np.array([3e38, -3e38, 0.0], np.float32)
    assert np.isfinite(normalize(huge, bounds_of(-3e38, 3e38))).all()
    assert normalize(huge, bounds_of(0.0, 1e-3)).tolist() == [1, 0, 0]


def test_a_range_too_small_for_float32_is_constant():
    pixels = np.array([0, 1e-45, 1e-39], np.float32)
    assert not normalize(pixels, bounds_of(0.0, 1e-39)).any()


@pytest.mark.parametrize("dtype", ["uint16", "float64"])
def test_region_of_normalized_is_normalized_region(dtype):
    pixels = np.random.default_rng(3).gamma(2.0, 300.0, (61, 47)).astype(dtype)
    bounds = bounds_of(*np.percentile(pixels, (1, 99)).tolist())
    part = np.s_[13:58, 7:44]
    assert normalize(pixels, bounds)[part].tobytes() == normalize(pixels[part], bounds).tobytes()
