"""Holes, against SciPy, and flow errors, whatever the order of the cells."""

import numpy as np
import pytest
from scipy import ndimage

from densebatch.tracing.quality import fill_holes, keep_cells, measure_errors


def make_cells(seed, density):
    """Labels of pixels that lie together by chance, with holes in and around each other."""
    rng = np.random.default_rng(seed)
    areas = ndimage.zoom(rng.integers(1, 7, (6, 7)), 8, order=0)
    labels = np.where(rng.random(areas.shape) < density, areas, 0).astype(np.int32)
    cells = np.zeros((6, 5), np.int32)
    for index, box in enumerate(ndimage.find_objects(labels, max_label=6)):
        if box is not None:
            rows, cols = box
            area = np.count_nonzero(labels == index + 1)
            cells[index] = area, rows.start, cols.start, rows.stop, cols.stop
    verdicts = np.where(cells[:, 0] > 0, rng.choice([-1, 1, 1], 6), 0).astype(np.int8)
    return labels, cells, verdicts, rng.permutation(6)


@pytest.mark.parametrize("density", [0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_holes_are_those_that_scipy_finds(seed, density):
    labels, cells, verdicts, order = make_cells(seed, density)
    kept = keep_cells(labels, verdicts)
    expected = kept.copy()
    for index in order[verdicts[order] == 1]:
        whole = ndimage.binary_fill_holes(labels == index + 1)
        expected[whole & (expected == 0)] = index + 1
    fill_holes(labels, cells, verdicts, order, kept)
    np.testing.assert_array_equal(kept, expected)


def test_a_bay_is_no_hole():
    labels = np.zeros((7, 9), np.int32)
    labels[1:6, 1:4] = 1
    labels[1:6, 5:8] = 2
    labels[3, 2] = labels[3, 6] = 0  # a hole, and the end of a bay
    labels[3, 7] = 0
    cells = np.array([[14, 1, 1, 6, 4], [13, 1, 5, 6, 8]], np.int32)
    verdicts = np.ones(2, np.int8)
    kept = labels.copy()
    fill_holes(labels, cells, verdicts, np.arange(2), kept)
    assert kept[3, 2] == 1
    assert kept[3, 6] == kept[3, 7] == 0


def test_flow_errors_do_not_depend_on_the_order_of_cells():
    labels, cells, verdicts, order = make_cells(0, 0.9)
    flows = np.random.default_rng(1).normal(size=(*labels.shape, 2)).astype(np.float32)
    errors = measure_errors(labels, cells, verdicts, np.arange(6), flows)
    np.testing.assert_array_equal(errors, measure_errors(labels, cells, verdicts, order, flows))
    assert np.count_nonzero(errors) == np.count_nonzero(verdicts == 1) > 2
