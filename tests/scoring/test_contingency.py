from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.base.errors import InputError
from densebatch.cells.pixels import MAX_LABEL, as_labels
from densebatch.scoring.blocks import count_fields
from densebatch.scoring.contingency import Contingency

IDS = st.sampled_from([0, 0, 1, 2, 3, 7, 250, 70_000, MAX_LABEL])


@st.composite
def label_pairs(draw, side=10):
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    return tuple(
        draw(hnp.arrays(np.uint32, shape, elements=IDS, fill=st.nothing())) for _ in range(2)
    )


def rows(table):
    return list(zip(table.truth.tolist(), table.pred.tolist(), table.count.tolist(), strict=True))


def brute_force(truth, pred):
    counted = Counter(zip(truth.ravel().tolist(), pred.ravel().tolist(), strict=True))
    return [(t, p, n) for (t, p), n in sorted(counted.items())]


@settings(max_examples=150, deadline=None)
@given(label_pairs())
def test_table_is_the_count_of_pairs(pair):
    table = Contingency.from_arrays(*pair)
    assert rows(table) == brute_force(*pair)
    assert table.n_px == pair[0].size


@settings(max_examples=60, deadline=None)
@given(label_pairs(), st.integers(0, 10), st.integers(0, 10))
def test_tables_add_in_any_order(pair, cut, other_cut):
    truth, pred = pair
    first, last = sorted((cut, other_cut))
    parts = [
        Contingency.from_arrays(truth[part], pred[part])
        for part in (slice(0, first), slice(first, last), slice(last, None))
    ]
    whole = Contingency.from_arrays(truth, pred)
    a, b, c = parts
    assert (a + b) + c == whole
    assert c + (b + a) == whole
    assert Contingency.sum(reversed(parts)) == whole


def test_table_grows_beyond_its_first_slots():
    truth = np.arange(90_000, dtype=np.uint32).reshape(300, 300) * np.uint32(40_000)
    pred = truth[::-1].copy()
    table = Contingency.from_arrays(truth, pred)
    assert rows(table) == brute_force(truth, pred)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (7,), (2, 3, 4)])
def test_any_number_of_dimensions(shape):
    labels = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    assert rows(Contingency.from_arrays(labels, labels)) == brute_force(labels, labels)


def test_areas_leave_the_background_out():
    table = Contingency.from_arrays([[5, 5, 0, 9]], [[2, 0, 0, 2]])
    assert [a.tolist() for a in table.truth_areas] == [[5, 9], [2, 1]]
    assert [a.tolist() for a in table.pred_areas] == [[2], [2]]


@settings(max_examples=60, deadline=None)
@given(label_pairs(), st.integers(0, 6))
def test_small_cells_become_background_on_each_side_by_itself(pair, size):
    truth, pred = (image.copy() for image in pair)
    for image in (truth, pred):
        for label in np.unique(image):
            if (image == label).sum() < size:
                image[image == label] = 0
    assert Contingency.from_arrays(*pair).drop_small(size) == Contingency.from_arrays(truth, pred)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), np.complex64), "values of type complex64"),
        (np.zeros((2, 2), bool), r"a yes/no mask \(bool\)"),
        (np.array([[0, -3]]), "the negative label -3"),
        (np.array([[0, 2**32]]), "the label 4294967296"),
        (np.array([[0, 2**63]], np.uint64), "the label 9223372036854775808"),
    ],
)
def test_what_is_no_label_is_refused(array, message):
    with pytest.raises(InputError, match=f"^here holds {message}; "):
        as_labels(array, "here")


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<u4", ">u4", "i1", "i2", ">i4", "i8", "u8"])
def test_any_integer_type_is_accepted(dtype):
    image = np.array([[0, 1, 1], [100, 3, 3]], dtype)
    assert rows(Contingency.from_arrays(image, image)) == brute_force(image, image)


def test_a_pyramid_level_is_recognised():
    with pytest.raises(InputError, match=r"50x50 px but the truth is 100x100 px \(the smaller one"):
        count_fields(np.zeros((100, 100), int), np.zeros((50, 50), int))
    with pytest.raises(InputError, match=r"50x80 px but the truth is 100x100 px; both"):
        count_fields(np.zeros((100, 100), int), np.zeros((50, 80), int))
