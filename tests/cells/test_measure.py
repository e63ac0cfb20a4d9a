"""Sums over the pixels of cells, against plain NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.cells.measure import add_intensities, measure_shapes

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


@given(label_images, st.data())
def test_sums_leave_out_what_is_not_finite_and_count_it(labels, data):
    values = st.sampled_from([np.nan, np.inf, -np.inf, -1.5, 0.0, 2.25, 1e6])
    pixels = data.draw(hnp.arrays(np.float32, labels.shape, elements=values))
    sums, missing = np.ones(N_CELLS), np.ones(N_CELLS, np.int64)
    add_intensities(labels, pixels, sums, missing)
    for label in range(1, N_CELLS + 1):
        inside = pixels[labels == label].astype(float)
        finite = inside[np.isfinite(inside)]
        assert sums[label - 1] == 1 + finite.sum()
        assert missing[label - 1] == 1 + inside.size - finite.size


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float64"])
def test_large_values_are_summed_exactly(dtype):
    pixels = np.full((64, 64), 2**31 - 1 if np.dtype(dtype).itemsize > 2 else 200, dtype)
    sums, missing = np.zeros(1), np.zeros(1, np.int64)
    add_intensities(np.ones(pixels.shape, np.uint32), pixels, sums, missing)
    assert int(sums[0]) == pixels.size * int(pixels[0, 0])
