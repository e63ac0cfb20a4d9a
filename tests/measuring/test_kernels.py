"""Sums over the pixels of cells, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.measuring.kernels import find_runs, measure_shapes
from densebatch.measuring.values import measure_values

N_CELLS = 5
shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
label_images = shapes.flatmap(
    lambda shape: hnp.arrays(np.uint32, shape, elements=st.integers(0, 5))
)


@given(label_images, st.integers(0, 10**9), st.integers(0, 10**9))
def test_shapes_are_those_of_each_label(labels, y_start, x_start):
    found = measure_shapes(labels, N_CELLS, y_start, x_start)
    assert found.dtype == np.int64
    for label in range(1, N_CELLS + 1):
        y, x = (
            axis + start
            for axis, start in zip(np.nonzero(labels == label), (y_start, x_start), strict=True)
        )
        if not y.size:
            assert found[label - 1, 0] == 0
            continue
        box = [y.min(), x.min(), y.max() + 1, x.max() + 1]
        assert found[label - 1].tolist() == [y.size, y.sum(), x.sum(), *box]


def count_pixels(labels):
    return np.bincount(labels.ravel(), minlength=N_CELLS + 1)[1:]


def measure(labels, pixels, fractions=()):
    runs = find_runs(labels, count_pixels(labels))
    return measure_values(pixels.reshape(-1), runs, np.array(fractions, float))


@given(label_images)
def test_every_pixel_of_a_cell_is_in_its_runs(labels):
    runs = find_runs(labels, count_pixels(labels))
    assert runs.starts[-1] == runs.firsts.size == runs.lengths.size
    for label in range(1, N_CELLS + 1):
        places = runs.list_places(np.arange(1, N_CELLS + 1) == label)
        assert places.tolist() == np.flatnonzero(labels == label).tolist()
    several = runs.list_places(np.array([False, True, False, True, True]))
    expected = [np.flatnonzero(labels == label) for label in (2, 4, 5)]
    assert several.tolist() == np.concatenate(expected).tolist()


@given(label_images)
def test_a_run_is_as_long_as_it_can_be(labels):
    runs = find_runs(labels, count_pixels(labels))
    padded = np.pad(labels, ((0, 0), (1, 1)))
    begins = (padded[:, 1:-1] != padded[:, :-2]) & (labels > 0)
    assert sorted(runs.firsts.tolist()) == np.flatnonzero(begins).tolist()


@given(label_images, st.data())
def test_what_is_not_finite_is_left_out_and_counted(labels, data):
    values = st.sampled_from([np.nan, np.inf, -np.inf, -1.5, 0.0, 2.25, 1e6])
    pixels = data.draw(hnp.arrays(np.float32, labels.shape, elements=values))
    sums, missing, deviations, (medians,) = measure(labels, pixels, [0.5])
    for label in range(1, N_CELLS + 1):
        inside = pixels[labels == label].astype(float)
        finite = inside[np.isfinite(inside)]
        assert sums[label - 1] == finite.sum()
        assert missing[label - 1] == inside.size - finite.size
        if not finite.size:
            assert np.isnan(deviations[label - 1])
            assert np.isnan(medians[label - 1])
            continue
        np.testing.assert_allclose(deviations[label - 1], finite.std(), rtol=1e-12)
        np.testing.assert_allclose(medians[label - 1], np.median(finite), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float64"])
def test_large_values_are_summed_exactly(dtype):
    pixels = np.full((64, 64), 2**31 - 1 if np.dtype(dtype).itemsize > 2 else 200, dtype)
    sums, _, deviations, _ = measure(np.ones(pixels.shape, np.uint32), pixels)
    assert int(sums[0]) == pixels.size * int(pixels[0, 0])
    assert deviations[0] == 0


DRAWS = {
    "few": lambda rng, n: rng.integers(0, 3, n).astype(np.uint8),
    "counts": lambda rng, n: rng.poisson(300, n).astype(np.uint16),
    "heavy tail": lambda rng, n: (2.0 ** rng.integers(0, 60, n)).astype(np.uint64),
    "ascending": lambda rng, n: np.arange(n, dtype=np.int32),
    "one apart": lambda rng, n: np.where(np.arange(n) == n // 2, 1e30, rng.random(n)),
    "all of float64": lambda rng, n: rng.choice([-1.7e308, 1.7e308, 0, 5e-324], n),
    "smallest": lambda rng, n: rng.choice([0, 5e-324, 1e-323], n),
    "normal": lambda rng, n: rng.normal(size=n).astype(np.float32),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("n", [1, 2, 5, 127, 128, 1000, 4097])
def test_order_statistics_are_exact(draw, n):
    """At fractions that fall on a pixel; whatever the values, which are sought in buckets."""
    pixels = DRAWS[draw](np.random.default_rng(n), n)
    ranks = sorted({0, 1, n // 3, n // 2, n - 2, n - 1} & set(range(n)))
    fractions = [rank / max(1, n - 1) for rank in ranks]
    every = np.sort(pixels.astype(float))
    expected = [every[int(f * (n - 1))] for f in fractions]
    _, _, _, found = measure(np.ones((1, n), np.uint32), pixels, fractions)
    exact = [int(f * (n - 1)) == f * (n - 1) for f in fractions]
    assert found[:, 0][exact].tolist() == np.array(expected)[exact].tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@given(st.integers(1, 400), st.integers(0, 2**31), st.lists(st.floats(0, 1), max_size=4))
def test_quantiles_are_numpys(dtype, n, seed, fractions):
    pixels = np.random.default_rng(seed).gamma(1, 60, n).clip(0, 255).astype(dtype)
    _, _, _, found = measure(np.ones((1, n), np.uint32), pixels, sorted(fractions))
    expected = np.quantile(pixels.astype(float), sorted(fractions))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-14)
