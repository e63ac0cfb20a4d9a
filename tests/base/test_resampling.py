import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.base.resampling import AxisWeights, axis_weights, mean_of_four, resample


@st.composite
def axis_and_part(draw, max_length=60):
    """Lengths before and after, and a range of output indices."""
    n_in, n_out = (draw(st.integers(1, max_length)) for _ in range(2))
    first = draw(st.integers(0, n_out - 1))
    return n_in, n_out, first, draw(st.integers(first + 1, n_out))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(n_in, n_out):
    return axis_weights(np.arange(n_out), n_in, n_out)


def resize(pixels, height, width):
    rows, cols = whole(pixels.shape[-2], height), whole(pixels.shape[-1], width)
    return resample(pixels[..., rows.start : rows.stop, cols.start : cols.stop], rows, cols)


def dense(weights, n_in):
    """The matrix that the weights stand for."""
    matrix = np.zeros((len(weights.index), n_in))
    for out, (index, weight) in enumerate(zip(weights.index, weights.weight, strict=True)):
        np.add.at(matrix[out], index, weight.astype(float))
    return matrix


def covered_shares(n_in, n_out):
    """Share of each input pixel in each output pixel's area, in exact fractions."""
    ratio = Fraction(n_in, n_out)
    shares = np.zeros((n_out, n_in))
    for out in range(n_out):
        for i in range(n_in):
            overlap = min(i + 1, (out + 1) * ratio) - max(i, out * ratio)
            shares[out, i] = max(overlap, 0) / ratio
    return shares


def interpolation(n_in, n_out):
    """Linear between pixel centres, constant beyond the outermost, in exact fractions."""
    matrix = np.zeros((n_out, n_in))
    for out in range(n_out):
        at = (out + Fraction(1, 2)) * Fraction(n_in, n_out) - Fraction(1, 2)
        at = min(max(at, 0), n_in - 1)
        low = math.floor(at)
        matrix[out, low] += float(1 - (at - low))
        matrix[out, min(low + 1, n_in - 1)] += float(at - low)
    return matrix


@given(axis_and_part())
def test_weights_of_a_part_are_those_of_the_whole(case):
    n_in, n_out, first, stop = case
    part, all_ = axis_weights(np.arange(first, stop), n_in, n_out), whole(n_in, n_out)
    assert np.array_equal(part.index, all_.index[first:stop])
    assert part.weight.tobytes() == all_.weight[first:stop].tobytes()


@given(axis_and_part())
@example((2, 3, 0, 3))
@example((3, 2, 0, 2))
@example((7, 7, 2, 5))
def test_weights_are_shares_or_interpolation(case):
    n_in, n_out, _, _ = case
    weights = whole(n_in, n_out)
    expected = interpolation(n_in, n_out) if n_out >= n_in else covered_shares(n_in, n_out)
    assert np.allclose(dense(weights, n_in), expected, atol=2e-7, rtol=0)
    assert weights.weight.dtype == np.float32
    assert weights.index.min() >= 0
    assert weights.index.max() < n_in


@given(axis_and_part())
def test_start_and_stop_bound_what_is_read(case):
    n_in, n_out, first, stop = case
    weights = axis_weights(np.arange(first, stop), n_in, n_out)
    assert (weights.start, weights.stop) == (weights.index.min(), weights.index.max() + 1)
    # The ends decide, which is all that a stage asks for when it looks up what a tile needs.
    ends = axis_weights(np.array([first, stop - 1]), n_in, n_out)
    assert (ends.start, ends.stop) == (weights.start, weights.stop)


@settings(max_examples=150)
@given(axis_and_part(), axis_and_part(), st.sampled_from([(), (3,), (2, 2)]))
def test_region_of_resampled_is_resampled_region(y, x, leading):
    pixels = noise(*leading, y[0], x[0])
    rows = axis_weights(np.arange(*y[2:]), *y[:2])
    cols = axis_weights(np.arange(*x[2:]), *x[:2])
    part = resample(pixels[..., rows.start : rows.stop, cols.start : cols.stop], rows, cols)
    expected = resize(pixels, y[1], x[1])[..., slice(*y[2:]), slice(*x[2:])]
    assert part.dtype == np.float32
    assert part.shape == expected.shape
    assert part.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_region_of_a_large_axis_keeps_its_bits():
    """Far from the origin, where positions in float32 would have lost their fractions."""
    n_in, n_out, at = 1_000_003, 1_333_337, 1_200_000
    weights = axis_weights(np.arange(at, at + 50), n_in, n_out)
    source = [(Fraction(o) + Fraction(1, 2)) * Fraction(n_in, n_out) for o in range(at, at + 50)]
    expected = [float((s - Fraction(1, 2)) % 1) for s in source]
    assert weights.weight[:, 1] == pytest.approx(expected, abs=1e-6)
    window = axis_weights(np.arange(at + 20, at + 30), n_in, n_out)
    assert window.weight.tobytes() == weights.weight[20:30].tobytes()


def test_indices_may_come_in_any_order():
    pixels = noise(30, 20)
    index = np.random.default_rng(2).permutation(41)
    rows, cols = axis_weights(index, 30, 41), whole(20, 20)
    found = resample(pixels[rows.start : rows.stop], rows, cols)
    assert np.array_equal(found, resize(pixels, 41, 20)[index])


@pytest.mark.parametrize(
    ("before", "after"), [((17, 23), (40, 31)), ((9, 12), (63, 60)), ((1, 5), (4, 7))]
)
def test_enlarging_equals_opencv(before, after):
    pixels = np.random.default_rng(1).random(before, np.float32)
    expected = cv2.resize(pixels, after[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize(pixels, *after) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("before", "after"), [((40, 31), (17, 23)), ((64, 60), (16, 20)), ((5, 6), (1, 1))]
)
def test_reducing_equals_opencv(before, after):
    pixels = np.random.default_rng(1).random(before, np.float32)
    expected = cv2.resize(pixels, after[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(resize(pixels, *after) - expected).max() < 1e-5


@given(axis_and_part(), axis_and_part())
def test_reducing_preserves_the_mean(y, x):
    pixels = noise(y[0], x[0])
    small = resize(pixels, min(y[:2]), min(x[:2]))
    assert small.mean(dtype=float) == pytest.approx(pixels.mean(dtype=float), abs=1e-5)


@given(axis_and_part(), axis_and_part(), st.floats(-1e3, 1e3, width=32))
def test_constant_stays_constant(y, x, value):
    pixels = np.full((y[0], x[0]), value, np.float32)
    # Weights, products and sums of both axes are rounded to float32, 6e-8 of the value each time.
    assert resize(pixels, y[1], x[1]) == pytest.approx(value, rel=4e-6, abs=1e-30)


def test_equal_lengths_copy():
    pixels = noise(2, 9, 11)
    pixels[0, 3, 3] = np.nan
    same = resize(pixels, 9, 11)
    assert same.tobytes() == pixels.tobytes()
    assert same.flags.c_contiguous
    same[:] = 0
    assert pixels.any()


def test_weights_of_five_pixels_to_two():
    """The middle one is shared by halves."""
    weights = whole(5, 2)
    assert isinstance(weights, AxisWeights)
    assert dense(weights, 5) == pytest.approx(
        np.array([[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])
    )


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.int32, np.uint64, np.int64]),
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
    )
)
def test_integer_means_are_exact(block):
    mean = mean_of_four(block)
    assert mean.dtype == block.dtype
    height, width = block.shape
    for (i, j), value in np.ndenumerate(mean):
        total = sum(
            int(block[min(2 * i + dy, height - 1), min(2 * j + dx, width - 1)])
            for dy in (0, 1)
            for dx in (0, 1)
        )
        assert int(value) == (total + 2) // 4


def test_real_means_do_not_overflow_and_keep_their_type():
    large = np.finfo(np.float32).max
    for dtype in (np.float16, np.float32, np.float64):
        assert mean_of_four(np.ones((3, 3), dtype)).dtype == dtype
    np.testing.assert_array_equal(
        mean_of_four(np.array([[large, large, np.inf, np.nan]] * 2, np.float32)),
        np.array([[large, np.nan]], np.float32),
    )


def test_means_of_planes_are_those_of_each_plane():
    planes = np.random.default_rng(0).integers(0, 2**16, (3, 5, 7), np.uint16)
    expected = np.stack([mean_of_four(plane) for plane in planes])
    np.testing.assert_array_equal(mean_of_four(planes), expected)
