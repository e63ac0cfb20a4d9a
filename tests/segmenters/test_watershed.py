"""Watershed: what it finds, and that a tile does not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densebatch.base.errors import InputError
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from tests.helpers.slide_facts import tell

WATERSHED = find_segmenter("watershed")


def label(image, um_per_px=None, levels=(0.5, 0.5), **options):
    names = ("membrane", "nuclei")[-len(image) :]
    complete = WATERSHED.complete_options(
        options, tell(*levels[-len(image) :], um_per_px=um_per_px)
    )
    return label_tile(WATERSHED, Tile(image, names, um_per_px, complete))


def draw_discs(shape, centres, radius):
    y, x = np.indices(shape)
    image = np.zeros(shape, np.float32)
    for cy, cx in centres:
        image[np.hypot(y - cy, x - cx) <= radius] = 1
    return image


def draw_tissue(seed, side, diameter, levels):
    """Planes of smooth noise, in so many levels if not 0: confluent, with ties, without cells."""
    rng = np.random.default_rng(seed)
    planes = [ndimage.gaussian_filter(rng.random((side, side)), diameter / n) for n in (6, 4)]
    image = np.stack([(plane - plane.min()) / np.ptp(plane) for plane in planes])
    return (np.round(image * levels) / levels if levels else image).astype(np.float32)


def assert_same_objects(a, b):
    """The same pixels are an object, whatever its number."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    assert len(set(pairs[0])) == pairs.shape[1] == len(set(pairs[1]))


def test_discs_are_found_apart_touching_and_cut_by_the_border():
    centres = [(20, 20), (20, 34), (60, 20), (60, 0), (0, 60), (79, 79)]
    image = draw_discs((80, 80), centres, 7)
    labels = label(image[None], diameter_px=15)
    assert labels.max() == len(centres)
    assert len({labels[centre] for centre in centres}) == len(centres)
    assert ((labels > 0) == (image > 0)).mean() > 0.99


def test_a_small_piece_beside_a_large_one_is_an_object():
    image = draw_discs((60, 60), [(30, 24)], 12)
    image[28:33, 39:42] = 1
    labels = label(image[None], diameter_px=24, min_size=5)
    assert labels[30, 40] not in (0, labels[30, 24])


def test_cells_grow_to_the_membrane_and_to_the_limit():
    nuclei = draw_discs((60, 90), [(30, 20), (30, 50)], 7)
    membrane = np.zeros((60, 90), np.float32)
    membrane[:, 31] = 1  # nearer to the left nucleus than halfway
    labels = label(np.stack([membrane, nuclei]), diameter_px=15, grow_px=12)
    left, right = labels[30, 20], labels[30, 50]
    assert left != right
    assert labels[30, 29] == left
    assert labels[30, 33] == right  # halfway is column 35
    assert labels[30, 68] == right
    assert not labels[30, 71:].any()
    only_nuclei = label(np.stack([membrane, nuclei]), diameter_px=15, grow_px=0)
    np.testing.assert_array_equal(only_nuclei > 0, label(nuclei[None], diameter_px=15) > 0)


def test_lengths_in_um_are_those_in_pixels():
    image = draw_tissue(3, 120, 12, 0)
    in_px = label(image, diameter_px=12, grow_px=4)
    np.testing.assert_array_equal(in_px, label(image, 0.5, diameter_um=6, grow_um=2))
    np.testing.assert_array_equal(label(image, diameter_px=20), label(image))
    with pytest.raises(InputError) as caught:
        label(image, diameter_um=6)
    assert str(caught.value) == (
        "options of the segmenter watershed: diameter_um is 6 but the slide does not tell the size "
        "of its pixels; accepted are diameter_px, or the size by --pixel-size"
    )


def test_the_threshold_is_the_slides_unless_given():
    assert WATERSHED.complete_options({}, tell(0.2, 0.7))["threshold"] == 0.7
    assert WATERSHED.complete_options({"threshold": 0.1}, tell(0.2, 0.7))["threshold"] == 0.1
    image = np.full((1, 40, 40), 0.4, np.float32)
    assert label(image, diameter_px=9, threshold=0.3).any()
    assert not label(image, diameter_px=9).any()


def test_objects_below_the_least_size_are_dropped():
    image = draw_discs((40, 60), [(20, 15), (20, 45)], 3)
    image[20, 45:52] = 1
    sizes = np.bincount(label(image[None], diameter_px=7, min_size=0).ravel())[1:]
    assert len(sizes) == 2
    assert sizes[0] < sizes[1]
    labels = label(image[None], diameter_px=7, min_size=int(sizes[1]))
    assert not labels[20, 15]
    assert labels[20, 45]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 3}, "setting 'size' = 3: extra inputs are not permitted; accepted settings: "
         "diameter_px, diameter_um, threshold, min_size, grow_px, grow_um"),
        ({"diameter_px": 0}, "setting 'diameter_px' = 0: input should be greater than 0"),
        ({"diameter_px": 1e9}, "setting 'diameter_px' = 1000000000.0: input should be less than or "
         "equal to 1000"),
        ({"threshold": 5}, "setting 'threshold' = 5: input should be less than or equal to 1"),
        ({"threshold": float("nan")}, "setting 'threshold' = nan: input should be greater than or "
         "equal to 0"),
        ({"min_size": True}, "setting 'min_size' = True: a number is accepted, not a truth value"),
        ({"diameter_px": 3, "diameter_um": 3},
         "diameter_px and diameter_um are both given; accepted is one of them"),
    ],
)  # fmt: skip
def test_options_are_strict(options, message):
    with pytest.raises(InputError) as caught:
        WATERSHED.complete_options(options, tell(0.5))
    assert str(caught.value) == f"options of the segmenter watershed: {message}"


@given(seed=st.integers(0, 10**6), diameter=st.integers(5, 16), levels=st.sampled_from([0, 3, 8]),
       threshold=st.sampled_from([0.3, 0.5, 0.6]))  # fmt: skip
@settings(max_examples=25)
def test_a_tile_changes_nothing_two_diameters_from_its_border(seed, diameter, levels, threshold):
    side = 12 * diameter
    image = draw_tissue(seed, side, diameter, levels)
    rng = np.random.default_rng(seed)
    y0, x0 = rng.integers(0, 3 * diameter, 2)
    y1, x1 = side - rng.integers(0, 3 * diameter, 2)

    def compare(image, margin):
        options = {"diameter_px": diameter, "threshold": threshold}
        inner = slice(margin, -margin)
        tile = label(np.ascontiguousarray(image[:, y0:y1, x0:x1]), **options)[inner, inner]
        assert_same_objects(label(image, **options)[y0:y1, x0:x1][inner, inner], tile)

    # Where the foreground is one confluent piece, a flood reaches a diameter beyond a marker. Cells
    # have one and a half diameters of a nucleus. Filters end at whole pixels.
    compare(image[1:], round(2.5 * diameter) + 2)
    compare(image, 3 * diameter)


def test_a_tile_without_background_is_split_as_where_some_is_in_sight():
    image = draw_tissue(5, 160, 14, 0)[1:] * 0.4 + 0.5
    alone = label(image[:, 40:120, 40:120], diameter_px=14, threshold=0.4)
    image[0, 0] = 0
    with_some = label(image, diameter_px=14, threshold=0.4)[40:120, 40:120]
    inner = slice(28, -28)
    assert len(np.unique(alone[inner, inner])) > 2
    assert_same_objects(alone[inner, inner], with_some[inner, inner])
