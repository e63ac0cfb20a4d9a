"""Rectangles of an open image, and what makes an array a label image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells.pixels import MAX_LABEL, Pixels, as_labels, guess_axes

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("pixels") / "a.npy"


@given(data=st.data())
def test_a_rectangle_is_that_part_of_every_plane(path, data):
    axes = "".join(data.draw(st.permutations(data.draw(st.sampled_from(["YX", "CYX", "CTYX"])))))
    sizes = {axis: data.draw(st.integers(1, 6)) for axis in axes}
    whole = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values()))
    np.save(path, whole)
    pixels = Pixels(path, np.load(path, mmap_mode="r"), axes)
    assert pixels.shape == (sizes["Y"], sizes["X"])
    assert pixels.n_planes == sizes.get("C", 1) * sizes.get("T", 1)
    y0, y1 = sorted(data.draw(st.tuples(*[st.integers(0, sizes["Y"])] * 2)))
    x0, x1 = sorted(data.draw(st.tuples(*[st.integers(0, sizes["X"])] * 2)))
    found = pixels.read(Region(y0, x0, y1, x1))
    others = [axis for axis in axes if axis not in "YX"]
    planes = np.einsum(f"{axes}->{''.join(others)}YX", whole).reshape(-1, *pixels.shape)
    np.testing.assert_array_equal(found, planes[:, y0:y1, x0:x1])


def test_a_failure_names_the_file_the_place_and_the_cause(path):
    class Broken:
        shape = (4, 6)

        def __getitem__(self, index):
            raise KeyError("chunk")

    message = r"a\.npy cannot be read at rows 1 to 3, columns 0 to 6: KeyError: 'chunk'$"
    with pytest.raises(InputError, match=message):
        Pixels(path, Broken(), "YX").read(Region(1, 0, 3, 6))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5, 7), "YX"),
        ((3, 5, 7), "AYX"),
        ((2, 3, 5, 7), "ABYX"),
        ((5, 7, 3), "YXS"),
        ((5, 7, 4), "YXS"),
        ((5, 7, 2), "AYX"),
        ((4, 7, 3), "AYX"),
        # Axes of length 1 are dropped, wherever they stand.
        ((1, 5, 7), "AYX"),
        ((5, 7, 1), "YXA"),
        ((1, 5, 7, 1), "AYXB"),
        ((1, 1, 5, 7), "ABYX"),
        ((5, 7, 1, 1), "YXAB"),
        ((1, 5, 1, 7), "AYBX"),
        ((5, 1, 7), "YAX"),
        ((2, 5, 7, 1), "AYXB"),
        ((1, 5, 7, 3), "AYXS"),
        ((1, 4, 7, 3), "ABYX"),
        # An image of one column or row keeps it, and so does a colour picture.
        ((5, 1), "YX"),
        ((1, 5), "YX"),
        ((1, 1), "YX"),
        ((5, 1, 1), "YXA"),
        ((1, 5, 1), "AYX"),
        ((1, 1, 5), "AYX"),
        ((1, 1, 1), "AYX"),
        ((5, 1, 3), "YXS"),
    ],
)
def test_axes_without_names(path, shape, axes):
    assert guess_axes(shape, path) == axes


@pytest.mark.parametrize("shape", [(), (5,)])
def test_less_than_two_axes(path, shape):
    with pytest.raises(InputError, match="an image has rows and columns"):
        guess_axes(shape, path)


@given(
    st.sampled_from(INTEGERS).flatmap(
        lambda dtype: hnp.arrays(
            dtype,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=5),
            elements=st.integers(0, min(np.iinfo(dtype).max, MAX_LABEL)),
        )
    )
)
def test_labels_keep_their_values(array):
    for form in (array, array.T, array.astype(array.dtype.newbyteorder(">")), array[::-1]):
        labels = as_labels(form)
        assert labels.dtype == np.uint32
        assert labels.flags.c_contiguous
        np.testing.assert_array_equal(labels.astype(object), form.astype(object))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_a_negative_label_is_refused_whatever_its_type(dtype):
    with pytest.raises(InputError, match="the label image holds the negative label -1; labels"):
        as_labels(np.array([[3, -1]], dtype))


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_a_label_beyond_32_bits_is_refused(dtype):
    assert as_labels(np.array([[MAX_LABEL]], dtype))[0, 0] == MAX_LABEL
    with pytest.raises(InputError, match="here holds the label 4294967296; labels are 0 to"):
        as_labels(np.array([[MAX_LABEL + 1]], dtype), "here")


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((2, 2), np.complex64), "values of type complex64"),
        (np.zeros((2, 2), bool), r"a yes/no mask \(bool\)"),
        (np.array([["a"]]), "values of type <U1"),
    ],
)
def test_what_is_no_whole_number_is_refused(array, found):
    with pytest.raises(InputError, match=f"holds {found}; a label image has one whole number"):
        as_labels(array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble"])
def test_whole_numbers_stored_as_floats_are_labels(dtype):
    highest = min(2 ** (np.finfo(dtype).nmant + 1) - 1, MAX_LABEL)
    labels = as_labels(np.array([[0, 1, 17], [-0.0, 100, highest]], dtype))
    assert labels.dtype == np.uint32
    assert labels.tolist() == [[0, 1, 17], [0, 100, highest]]


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.array([[0, 1.5, 0.25]]), r"the value 1\.5; a label image has one whole number"),
        (np.array([[2, np.nan]], np.float32), "the value nan; a label image has one whole"),
        (np.array([[np.inf, 1]], np.float16), "the value inf; a label image has one whole"),
        (np.array([[0, -np.inf]]), "the value -inf; a label image has one whole"),
        (np.array([[4, -3.0]]), f"the negative label -3; labels are 0 to {MAX_LABEL}"),
        (np.array([[4, -0.5]]), r"the value -0\.5; a label image has one whole"),
        (np.array([[4, 2.0**32]]), "the label 4294967296; labels are 0 to"),
        (np.array([[4, 1e9]], np.float32), "the label 1000000000 as float32, which from 16777216"),
        (np.array([[1, 2.0**24]], np.float32), "the label 16777216 as float32, which from 1677"),
        (np.array([[1, 2048]], np.float16), "the label 2048 as float16, which from 2048 on cannot"),
    ],
)
def test_floats_that_are_no_labels_are_refused_with_the_first(array, told):
    with pytest.raises(InputError, match=f"^here holds {told}"):
        as_labels(array, "here")


def test_booleans_are_read_where_masks_are_meant():
    mask = np.array([[False, True]])
    assert as_labels(mask, masks=True).tolist() == [[0, 1]]
    with pytest.raises(InputError, match=r"label its pieces first \(--label-components, or an"):
        as_labels(mask)
