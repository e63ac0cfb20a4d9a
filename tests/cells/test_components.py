"""Masks are told from label images by the pieces of their few labels."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.io import imread
from skimage.segmentation import find_boundaries

from densebatch.base.errors import CapacityError, InputError
from densebatch.cells import components
from densebatch.cells.components import (
    ENOUGH_PIECES,
    SLIP_PX,
    SLIP_RATIO,
    count_pieces,
    list_labels,
    refuse_mask,
    settle_masks,
)
from tests.helpers.real_tissue import DATA, needs_data

EIGHT = np.ones((3, 3))
IDS = [0, 7, 9, 2**32 - 1]


class Stored:
    """An array of chunks, of which every read is remembered."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.chunks, self.reads = array, array.shape, chunks, 0

    def __getitem__(self, index):
        self.reads += 1
        return self.array[index]


def lattice(rows=6, cols=7, pitch=16, size=11):
    """Square cells that do not touch, each with its own label."""
    labels = np.zeros((rows * pitch, cols * pitch), np.uint16)
    for k in range(rows * cols):
        y, x = pitch * (k // cols) + 2, pitch * (k % cols) + 2
        labels[y : y + size, x : x + size] = k + 1
    return labels


def find_pieces(image):
    """Areas of the pieces of each label, label by label."""
    found = {}
    for one in np.unique(image[image > 0]).tolist():
        pieces, _ = ndimage.label(image == one, EIGHT)
        found[one] = np.bincount(pieces.ravel())[1:]
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_are_counted_whatever_is_read_at_once(data):
    shape = data.draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    image = data.draw(hnp.arrays(np.uint32, shape, elements=st.sampled_from(IDS), fill=None))
    chunks = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    labels = list_labels(image, 255, "here")
    assert labels.tolist() == [one for one in IDS[1:] if (image == one).any()]
    pieces = find_pieces(image)
    expected = [
        int((areas >= min(SLIP_PX, -(-areas.max() // SLIP_RATIO))).sum())
        for areas in pieces.values()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_STRIP_PX", data.draw(st.integers(1, 150)))
        patch.setattr(components, "_BLOCK_PX", data.draw(st.integers(1, 150)))
        source = Stored(image, chunks)
        assert list_labels(source, 255, "here").tolist() == labels.tolist()
        found, whole = count_pieces(source, labels, "here")
    assert whole
    assert found.tolist() == expected


def test_pieces_that_meet_far_below_are_one(monkeypatch):
    """Prongs of a comb look like pieces until its last row, and a spiral turns back."""
    monkeypatch.setattr(components, "_STRIP_PX", 40)
    comb = np.zeros((41, 40), np.uint8)
    comb[:, ::2] = 5
    comb[-1] = 5
    assert count_pieces(comb, np.array([5], np.uint32), "here")[0].tolist() == [1]
    refuse_mask(comb, "here")
    comb[-1] = 0
    with pytest.raises(InputError, match="only label 5 lies in 20 separate pieces"):
        refuse_mask(comb, "here")


def test_counting_ends_when_there_are_enough(monkeypatch):
    monkeypatch.setattr(components, "_STRIP_PX", 2**12)
    one = (lattice(80, 40, 8, 5) > 0).astype(np.uint8)
    source = Stored(one, (16, 16))
    with pytest.raises(InputError, match=r"lies in at least 1\d\d\d separate pieces"):
        refuse_mask(source, "here", np.array([1], np.uint32))
    assert ENOUGH_PIECES + 1000 < 80 * 40
    assert source.reads < one.size / 16**2


CELLS = lattice()
NUCLEI = ndimage.binary_erosion(CELLS > 0, np.ones((5, 5)))
SMOOTH = np.round(ndimage.zoom((CELLS > 0) * 255.0, 2, order=1))
TWO = np.where(np.isin(CELLS, (1, 9)), 1, 0)
MASKS = {
    "0 and 1": ((CELLS > 0).astype(np.uint8), "its only label 1 lies in 42 separate pieces"),
    "0 and 255": ((CELLS > 0).astype(np.uint8) * 255, "only label 255 lies in 42 separate"),
    "0 and 65535": ((CELLS > 0) * 65535, "its only label 65535 lies in 42 separate"),
    "0.0 and 1.0": ((CELLS > 0).astype(np.float32), "its only label 1 lies in 42 separate"),
    "two cells": (TWO, "its only label 1 lies in 2 separate pieces"),
    "clump and cells": (np.where(np.indices(CELLS.shape)[0] < 60, 1, CELLS > 0), "lies in 1[5-9]"),
    "membrane and nucleus": (
        (CELLS > 0) + NUCLEI.astype(int),
        r"its 2 labels lie in 84 separate pieces \(label 1 in 42, 2 in 42\)",
    ),
    "connected outline": (
        np.where(NUCLEI, 2, 1),
        r"its 2 labels lie in 43 separate pieces \(label 1 in 1, 2 in 42\)",
    ),
    "0, 1 and 255": (np.where(CELLS % 3 == 0, CELLS > 0, 255), "its 2 labels lie in"),
    "types of cells": (CELLS % 7, "its 6 labels lie in 36 separate pieces; make a mask of"),
    "smoothed edges": (SMOOTH, r"its \d+ labels lie in \d+ separate pieces; make"),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_refused_with_what_to_do(name):
    image, told = MASKS[name]
    kind = "of classes" if "labels" in told else "yes/no mask"
    with pytest.raises(InputError, match=told) as caught:
        settle_masks(image, None, "here")
    message = str(caught.value)
    assert message.startswith("here looks like a ")
    assert kind in message
    assert message.endswith(
        "or say --no-label-components if each label is one cell, in however many pieces"
        if kind == "of classes"
        else "label the pieces first (--label-components, or another tool), or say "
        "--no-label-components if they are one cell, in however many pieces"
    )
    assert "\n" not in message
    assert settle_masks(image, False, "here") == (image, False)


GAP = np.where(np.indices((16, 16)).min(0) < 11, 7, 0)
NETS = {
    "inverted": ((CELLS == 0) * 255, 255, 42),
    "cells that touch": (np.pad(np.pad(np.tile(GAP, (2, 2)), 3, constant_values=7), 4), 7, 4),
    "membranes": (np.pad(CELLS[:43, :27] == 0, 2).astype(np.uint8), 1, 2),
}


@pytest.mark.parametrize("strip_px", [1, 200, 2**22])
@pytest.mark.parametrize("name", NETS)
def test_one_piece_around_holes_is_a_mask_that_cannot_be_labelled(monkeypatch, name, strip_px):
    monkeypatch.setattr(components, "_STRIP_PX", strip_px)
    image, label, holes = NETS[name]
    told = (
        f"^here looks like a yes/no mask that is inverted or whose cells all touch: its only label "
        f"{label} lies in one piece around {holes} holes; invert it, or label its cells with anoth"
    )
    for asked in (None, True):
        with pytest.raises(InputError, match=told):
            settle_masks(image, asked, "here")
    assert settle_masks(image, False, "here") == (image, False)


def cut(image, *labels):
    """Cut cells in two by two rows of background."""
    image = image.copy()
    for one in labels:
        rows = np.flatnonzero((image == one).any(1))
        image[rows[5] : rows[7]][image[rows[5] : rows[7]] == one] = 0
    return image


def shatter(image, one):
    """One cell in four pieces."""
    image = cut(image, one)
    cols = np.flatnonzero((image == one).any(0))
    image[:, cols[5] : cols[7]][image[:, cols[5] : cols[7]] == one] = 0
    return image


SPECKS = np.zeros((40, 40), np.uint8)
SPECKS[5:25, 5:25] = 4
RING = np.pad(np.ones((30, 30), np.uint8), 3)
RING[12:20, 12:20] = RING[5, 5] = RING[30, 30] = 0
SPECKS[30, 8:12] = SPECKS[35, 3] = SPECKS[2, 30:34] = 4
FEW = lattice(1, 3)
LABELS = {
    "nothing": np.zeros((9, 9), np.uint8),
    "one cell": np.pad(np.ones((9, 9), np.uint8), 4),
    "one cell everywhere": np.full((9, 9), 255, np.uint8),
    "one cell, and slips of the pen": SPECKS,
    "a ring with pinholes": RING,
    "one cell across the field": np.tri(40, 40, 8, dtype=np.uint8) - np.tri(40, 40, -8, np.uint8),
    "three cells, one cut in two": cut(FEW, 2),
    "three cells, two cut in two": cut(FEW, 1, 3),
    "three cells, one in four pieces": shatter(FEW, 2),
    "cells cut along a seam": cut(CELLS, *range(8, 15)),
    "cells that touch": np.kron(np.arange(1, 10).reshape(3, 3), np.ones((8, 8), int)),
    "more labels than a mask has": np.tile(np.arange(1, 300), (9, 1)).reshape(-1, 23),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_label_image_is_taken_as_it_is(name):
    image = LABELS[name]
    for asked in (None, False):
        assert settle_masks(image, asked, "here") == (image, False)


@needs_data
def test_real_label_images_are_none_and_their_masks_are():
    paths = [
        *(DATA / "train").glob("*_masks.png"),
        *(DATA / "test").glob("*_masks.png"),
        *(DATA / "predictions").rglob("*_masks.png"),
    ]
    assert len(paths) > 10
    for path in paths:
        labels = imread(path)
        refuse_mask(labels, path.name)
        classes = np.where(find_boundaries(labels, mode="inner"), 2, labels > 0)
        for mask in (labels > 0, (labels > 0) * 255, classes):
            with pytest.raises(InputError, match="looks like a"):
                refuse_mask(mask.astype(np.uint8), path.name)


@pytest.mark.parametrize("chunks", [None, (5, 7), (96, 112)])
@pytest.mark.parametrize("value", [True, 1, 255, 1.0])
def test_pieces_become_cells_numbered_over_the_whole_image(monkeypatch, tmp_path, chunks, value):
    monkeypatch.setattr(components, "_STRIP_PX", 500)
    mask = CELLS > 0
    mask[13:18, 5] = True  # two cells that touch are one
    mask[29, 13] = mask[30, 12] = True  # by a corner too
    image = (mask * np.asarray(value)).astype(np.asarray(value).dtype)
    source = image
    if chunks is not None:
        source = zarr.create_array(
            tmp_path / "m", shape=mask.shape, chunks=chunks, dtype=mask.dtype
        )
        source[...] = mask
    labels, labelled = settle_masks(source, True, "here")
    assert labelled
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(labels, ndimage.label(mask, EIGHT)[0])
    assert labels.max() == 41


@pytest.mark.parametrize("image", [np.zeros((6, 7), np.uint8), np.zeros((6, 7), bool)])
def test_a_blank_image_stays_blank(image):
    blank, labelled = settle_masks(image, True, "here")
    assert (blank.any(), labelled) == (False, False)


def test_only_masks_are_labelled():
    """Cells that touch keep their labels, and of classes nobody said which are cells."""
    for name in ("cells that touch", "three cells, one in four pieces", "cells cut along a seam"):
        assert settle_masks(LABELS[name], True, "here") == (LABELS[name], False)
    for name in ("membrane and nucleus", "0, 1 and 255", "smoothed edges"):
        with pytest.raises(InputError, match="here looks like a mask of classes"):
            settle_masks(MASKS[name][0], True, "here")


def test_a_mask_beyond_memory_is_refused(monkeypatch):
    class Memory:
        available = 9 * CELLS.size

    monkeypatch.setattr(components, "measure_memory", Memory)
    with pytest.raises(CapacityError, match=r"here is 96x112 px, whose pieces need 0\.0 GB to"):
        settle_masks(CELLS > 0, True, "here")
    assert settle_masks(CELLS, True, "here") == (CELLS, False)
