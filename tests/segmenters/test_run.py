"""Calling a segmenter: what is let through, and what becomes a sentence."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from densebatch.base.errors import SegmenterError
from densebatch.segmenters.function import wrap
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile

TILE = Tile(np.zeros((1, 2, 3), np.float32), ("nuclei",), 0.5, {"a": 1})


def run(function):
    return label_tile(wrap(function, "mine:cells", "cells", __name__), TILE)


def failure(result):
    def cells(image, um_per_px, options):
        return result

    with pytest.raises(SegmenterError) as caught:
        run(cells)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64", ">i4"])
def test_whole_numbers_pass_as_they_are(dtype):
    labels = np.array([[0, 5, 5], [120, 0, 3]], dtype)
    found = run(lambda image, um_per_px, options: labels)
    assert found is labels


def test_a_function_gets_pixels_size_and_options():
    def cells(image, *, um_per_px, options):
        assert image is TILE.image
        assert (um_per_px, options) == (0.5, {"a": 1})
        return np.ones((2, 3), int)

    assert run(cells).all()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned NoneType; accepted is a NumPy array of labels"),
        ([[0, 1, 2]] * 2, "returned list; accepted is a NumPy array of labels"),
        (np.zeros((3, 2), int), "returned an array of shape (3, 2); accepted is that of the tile, "
         "(2, 3)"),
        (np.zeros((1, 2, 3), int), "returned an array of shape (1, 2, 3); accepted is that of the "
         "tile, (2, 3)"),
        (np.ones((2, 3), bool), "returned yes and no for each pixel; accepted are numbers, one for "
         "each cell"),
        (np.full((2, 3), 0.5), "returned float64 numbers; accepted are integers, such as uint32"),
        (np.ones((2, 3)), "returned float64 numbers, though all are whole; accepted are integers, "
         "such as uint32"),
        (np.full((2, 3), None), "returned object numbers; accepted are integers, such as uint32"),
        (np.full((2, 3), -4), "returned -4; accepted are labels from 0, which is background"),
        (np.full((2, 3), 2**63, np.uint64), "returned 9223372036854775808; accepted are labels up "
         "to 9223372036854775807"),
    ],
)  # fmt: skip
def test_what_is_no_label_image_is_refused(result, message):
    assert failure(result) == f"segmenter cells: {message}"


def test_an_exception_becomes_a_sentence_and_stays_the_cause():
    def cells(image, um_per_px, options):
        raise ValueError("two\nlines")

    with pytest.raises(SegmenterError) as caught:
        run(cells)
    assert str(caught.value) == "segmenter cells: ValueError: two lines"
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_interrupt_is_no_failure_of_the_segmenter():
    def cells(image, um_per_px, options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cells)


def test_a_function_that_ends_its_process_fails_its_tile_only():
    def cells(image, um_per_px, options):
        sys.exit("no licence")

    with pytest.raises(SegmenterError) as caught:
        run(cells)
    assert str(caught.value) == "segmenter cells: SystemExit: no licence"


def test_what_a_function_writes_into_its_options_stays_there():
    tile = Tile(TILE.image, TILE.channels, None, {"levels": [0.5]})

    def cells(image, um_per_px, options):
        options["levels"][0] += 0.1
        options["more"] = 1
        return np.zeros((2, 3), int)

    label_tile(wrap(cells, "mine:cells", "cells", __name__), tile)
    assert tile.options == {"levels": [0.5]}
