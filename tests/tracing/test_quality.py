"""Holes, against SciPy; sizes and flow errors, whatever the order of the cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from densebatch.base.geometry import Region
from densebatch.tracing.candidates import Verdict
from densebatch.tracing.quality import (
    average_errors,
    check_errors,
    check_sizes,
    fill_holes,
    keep_cells,
    measure_errors,
)
from tests.helpers.candidate_cells import tabulate


def make_cells(seed, density):
    """Labels of pixels that lie together by chance, with holes in and around each other."""
    rng = np.random.default_rng(seed)
    areas = ndimage.zoom(rng.integers(1, 7, (6, 7)), 8, order=0)
    labels = np.where(rng.random(areas.shape) < density, areas, 0).astype(np.int32)
    return labels, tabulate(labels, rng.choice([-1, 1, 1], 6), 6)


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_holes_are_those_that_scipy_finds(seed, density):
    labels, cells = make_cells(seed, density)
    expected = keep_cells(labels, cells)
    for index in np.flatnonzero(cells.verdict == Verdict.KEPT):
        whole = ndimage.binary_fill_holes(labels == index + 1)
        expected[whole & (expected == 0)] = index + 1
    np.testing.assert_array_equal(fill_holes(labels, cells), expected)


def test_a_bay_is_no_hole():
    labels = np.zeros((7, 9), np.int32)
    labels[1:6, 1:4] = 1
    labels[1:6, 5:8] = 2
    labels[3, 2] = labels[3, 6] = 0  # a hole, and the end of a bay
    labels[3, 7] = 0
    filled = fill_holes(labels, tabulate(labels))
    assert filled[3, 2] == 1
    assert filled[3, 6] == filled[3, 7] == 0


def test_of_two_cells_around_a_hole_the_first_gets_it():
    labels = np.zeros((9, 9), np.int32)
    labels[1:8, 1:8] = 2
    labels[2:7, 2:7] = 1
    labels[3:6, 3:6] = 0
    expected = np.where(labels == 0, 0, labels)
    expected[3:6, 3:6] = 1
    np.testing.assert_array_equal(fill_holes(labels, tabulate(labels)), expected)
    turned = np.array([0, 2, 1], np.int32)[labels]
    expected = np.array([0, 2, 1])[labels]
    expected[3:6, 3:6] = 1
    np.testing.assert_array_equal(fill_holes(turned, tabulate(turned)), expected)


def test_cells_that_are_not_kept_are_no_obstacle():
    labels = np.zeros((9, 9), np.int32)
    labels[1:8, 1:8] = 1
    labels[3:6, 3:6] = 2
    cells = tabulate(labels, [Verdict.KEPT, Verdict.REJECTED])
    np.testing.assert_array_equal(keep_cells(labels, cells), np.where(labels == 1, 1, 0))
    np.testing.assert_array_equal(fill_holes(labels, cells), np.where(labels > 0, 1, 0))


def test_flow_errors_do_not_depend_on_the_order_of_cells():
    labels, cells = make_cells(0, 0.9)
    flows = np.random.default_rng(1).normal(size=(*labels.shape, 2)).astype(np.float32)
    errors = measure_errors(labels, cells, flows)
    order = np.random.default_rng(2).permutation(6)
    place = np.argsort(order)
    moved = np.concatenate([[0], place + 1]).astype(np.int32)[labels]
    shuffled = tabulate(moved, cells.verdict[order], 6)
    np.testing.assert_array_equal(measure_errors(moved, shuffled, flows), errors[order])
    assert np.count_nonzero(errors) == np.count_nonzero(cells.verdict == Verdict.KEPT) > 2


def test_means_of_errors_that_are_given_by_pixel():
    labels, cells = make_cells(3, 0.6)
    errors = np.random.default_rng(1).random(np.count_nonzero(labels), np.float32)
    image = np.zeros(labels.shape)
    image[labels > 0] = errors
    expected = ndimage.mean(image, labels, np.arange(1, 7))
    np.testing.assert_allclose(average_errors(labels, cells, errors), expected, rtol=1e-12)


def test_who_is_near_the_core_and_of_a_fitting_size():
    labels = np.zeros((20, 30), np.int32)
    labels[0:4, 0:5] = 1
    labels[4:8, 0:5] = 2
    labels[4:8, 20:25] = 3
    labels[10:20, 6:26] = 4
    labels[8, 10:13] = 5
    cells = tabulate(labels, n=6)  # the last has no pixel
    outside, rejected, kept = Verdict.OUTSIDE, Verdict.REJECTED, Verdict.KEPT

    def check(core, low, high):
        checked = check_sizes(cells, core, low, high)
        assert checked.verdict.dtype == np.int8
        assert checked._replace(verdict=cells.verdict) == cells
        return checked.verdict.tolist()

    everywhere = Region(0, 0, 20, 30)
    assert check(everywhere, 0, 1000) == [kept] * 5 + [outside]
    assert check(everywhere, 4, 199) == [kept, kept, kept, rejected, rejected, outside]
    assert check(everywhere, 20, 200) == [kept, kept, kept, kept, rejected, outside]
    # the bounding box decides, whose last row and column are its own
    assert check(Region(4, 5, 10, 20), 0, 1000) == [outside] * 4 + [kept, outside]
    assert check(Region(3, 4, 10, 20), 0, 100) == [kept, kept, outside, outside, kept, outside]
    assert check(Region(7, 4, 11, 21), 0, 100) == [outside, kept, kept, rejected, kept, outside]


def test_errors_above_the_threshold_reject_and_so_does_nan():
    labels = np.repeat(np.arange(6, dtype=np.int32)[None], 3, axis=0)
    cells = tabulate(labels, [1, 1, 1, -1, 0])
    checked = check_errors(cells, np.array([0.4, 0.41, np.nan, 0.0, 9.0]), 0.4)
    assert checked.verdict.tolist() == [1, -1, -1, -1, 0]
    assert checked.verdict.dtype == np.int8
    assert cells.verdict.tolist() == [1, 1, 1, -1, 0]
