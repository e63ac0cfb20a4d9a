"""Neighbours and the nearest cell against all pairs of centroids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.measuring import neighbours
from densebatch.measuring.neighbours import count_neighbours, find_nearest

# Some coincide, some lie exactly at the radius.
centroids = st.integers(0, 40).flatmap(
    lambda n: hnp.arrays(np.float64, (n, 2), elements=st.integers(0, 30).map(float))
)


@given(centroids, st.sampled_from([0.5, 1.0, 5.0, 100.0]))
def test_all_pairs(places, radius):
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    counts = count_neighbours(places, radius)
    assert counts.dtype == np.int64
    assert counts.tolist() == (apart <= radius).sum(axis=1).tolist()
    nearest = apart.min(axis=1, initial=np.inf)
    nearest[np.isinf(nearest)] = np.nan
    np.testing.assert_allclose(find_nearest(places), nearest, rtol=1e-15)


def test_many_cells_are_asked_for_by_and_by(monkeypatch):
    places = np.random.default_rng(0).random((500, 2)) * 100
    expected = count_neighbours(places, 7.0)
    monkeypatch.setattr(neighbours, "_ROWS", 64)
    assert count_neighbours(places, 7.0).tolist() == expected.tolist()


@pytest.mark.parametrize("n", [0, 1])
def test_a_cell_alone_has_no_neighbour(n):
    places = np.zeros((n, 2))
    assert count_neighbours(places, 5.0).tolist() == [0] * n
    assert np.isnan(find_nearest(places)).all()
