"""Nuclei and cells against plain loops, scikit-image, and windows of a larger image."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from skimage.segmentation import expand_labels

from densebatch.compartments.growing import grow_labels, reach_of
from densebatch.compartments.masks import find_ring, split_cells
from densebatch.compartments.matching import match_nuclei
from densebatch.scoring.contingency import Contingency

SIDES = npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)


def label_images(most=4):
    return SIDES.flatmap(
        lambda shape: npst.arrays(np.uint32, shape, elements=st.integers(0, most), fill=st.just(0))
    )


def match(nuclei, cells):
    table = Contingency.from_arrays(nuclei, cells)
    return match_nuclei(table.truth, table.pred, table.count, int(nuclei.max(initial=0)))


@given(st.data())
def test_a_nucleus_belongs_to_the_cell_that_holds_most_of_it(data):
    cells = data.draw(label_images())
    nuclei = data.draw(npst.arrays(np.uint32, cells.shape, elements=st.integers(0, 4)))
    found = match(nuclei, cells)
    for nucleus in range(1, int(nuclei.max(initial=0)) + 1):
        inside = cells[nuclei == nucleus]
        counts = np.bincount(inside, minlength=5)
        assert found.areas[nucleus - 1] == inside.size
        assert found.several[nucleus - 1] == (np.count_nonzero(counts[1:]) > 1)
        is_orphan = 2 * counts[0] > inside.size
        assert (nucleus in found.orphans) == (is_orphan and inside.size > 0)
        if inside.size == 0 or is_orphan:
            assert found.cells[nucleus - 1] == 0
            assert found.outside[nucleus - 1] == inside.size
        else:
            best = 1 + int(np.argmax(counts[1:]))  # the first of the largest
            assert found.cells[nucleus - 1] == best
            assert found.outside[nucleus - 1] == inside.size - counts[best]


@given(label_images(), st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.7]))
def test_labels_grow_as_scikit_image_has_it(labels, distance):
    grown = grow_labels(labels, labels == 0, distance)
    expected = expand_labels(labels, distance)
    assert np.array_equal(grown > 0, expected > 0)
    assert np.array_equal(grown[labels > 0], labels[labels > 0])
    y, x = np.indices(labels.shape)
    for at in np.argwhere(grown != labels):
        squared = (y - at[0]) ** 2 + (x - at[1]) ** 2
        nearest = squared[labels > 0].min()
        assert grown[*at] == labels[(labels > 0) & (squared == nearest)].min()


@settings(max_examples=50)
@given(st.data())
def test_a_window_grows_and_rings_as_the_whole_does(data):
    labels = data.draw(
        npst.arrays(np.uint32, (16, 16), elements=st.sampled_from([0, 0, 0, 1, 2, 3]))
    )
    taken = data.draw(npst.arrays(np.bool_, (16, 16)))
    distance = data.draw(st.sampled_from([1.0, 2.5, 3.0]))
    reach = reach_of(distance)
    y0, x0 = data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12)))
    window = np.s_[max(y0 - reach, 0) : y0 + 4 + reach, max(x0 - reach, 0) : x0 + 4 + reach]
    inner = np.s_[min(reach, y0) : min(reach, y0) + 4, min(reach, x0) : min(reach, x0) + 4]
    whole = grow_labels(labels, ~taken, distance)
    part = grow_labels(labels[window], ~taken[window], distance)
    assert np.array_equal(part[inner], whole[y0 : y0 + 4, x0 : x0 + 4])
    ring = find_ring(labels, distance)
    assert np.array_equal(
        find_ring(labels[window], distance)[inner], ring[y0 : y0 + 4, x0 : x0 + 4]
    )


@given(st.data())
def test_compartments_are_the_cell_and_nothing_twice(data):
    cells = data.draw(label_images())
    nuclei = data.draw(npst.arrays(np.uint32, cells.shape, elements=st.integers(0, 4)))
    width = data.draw(st.sampled_from([1.0, 1.5, 2.0]))
    ring = find_ring(cells, width)
    y, x = np.indices(cells.shape)
    for at in np.argwhere(cells > 0):
        near = (y - at[0]) ** 2 + (x - at[1]) ** 2 <= width**2
        assert ring[*at] == (cells[near] != cells[*at]).any()
    parts = split_cells(cells, nuclei, ring)
    assert sorted(parts) == ["cytoplasm", "membrane", "nucleus"]
    assert np.array_equal(sum(parts.values()), cells)
    assert np.array_equal(sum((part > 0).astype(int) for part in parts.values()), cells > 0)
    assert np.array_equal(parts["nucleus"] > 0, (nuclei == cells) & (cells > 0))
    assert not (parts["cytoplasm"] > 0)[ring].any()


def test_a_ring_is_as_wide_as_stated():
    cells = np.zeros((30, 30), np.uint32)
    cells[5:25, 5:25] = 7
    for width in (1, 2, 3):
        inner = cells[5 + width : 25 - width, 5 + width : 25 - width]
        assert np.count_nonzero(find_ring(cells, width)) == 400 - inner.size
