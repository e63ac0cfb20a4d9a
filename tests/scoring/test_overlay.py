import io

import numpy as np
from PIL import Image

from densebatch.base.geometry import Region
from densebatch.scoring.overlay import (
    GREEN,
    GREY,
    RED,
    YELLOW,
    choose_fields,
    draw_outlines,
    draw_overlay,
    encode_png,
    stretch_contrast,
)
from densebatch.scoring.results import CellMatches, FieldScore, ThresholdScore

BLACK = (0, 0, 0)


def colours(picture):
    return [[tuple(pixel) for pixel in row] for row in picture.tolist()]


def matches(truth, pred):
    """`truth`: found by id; `pred`: what became of it by id."""
    return CellMatches(
        np.array([*truth], np.uint32),
        np.array([*truth.values()], bool),
        np.array([*pred], np.uint32),
        np.array([what == "found" for what in pred.values()], bool),
        np.array([what == "spurious" for what in pred.values()], bool),
    )


def test_colours_tell_what_became_of_each_cell():
    truth = np.array([[1, 0, 2, 0, 0, 0, 0, 0]], np.uint32)
    pred = np.array([[0, 0, 5, 0, 6, 0, 7, 8]], np.uint32)
    cells = matches({1: False, 2: True}, {5: "found", 6: "spurious", 7: "ignored"})
    # cell 8 was below the least size, and is not among those that were scored
    assert colours(draw_overlay(truth, pred, cells)) == [
        [RED, BLACK, YELLOW, BLACK, GREEN, BLACK, GREY, BLACK]
    ]


def test_outlines_are_one_pixel_wide_at_any_scale():
    labels = np.zeros((3, 3), np.uint32)
    labels[1, 1] = 4
    for scale in (1, 2, 5):
        picture = draw_outlines(labels, np.zeros((3, 3)), YELLOW, scale=scale)
        assert picture.shape == (3 * scale, 3 * scale, 3)
        drawn = (picture == YELLOW).all(-1)
        cell = np.zeros((3 * scale, 3 * scale), bool)
        cell[scale : 2 * scale, scale : 2 * scale] = True
        inner = np.zeros_like(cell)
        inner[scale + 1 : 2 * scale - 1, scale + 1 : 2 * scale - 1] = True
        assert np.array_equal(drawn, cell & ~inner)
        assert not picture[~drawn].any()


def test_overlay_of_one_side_is_its_outlines():
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 5, (4, 5)), np.ones((3, 3))).astype(np.uint32)
    image = rng.integers(0, 1000, labels.shape)
    nothing = np.zeros_like(labels)
    missed = matches(dict.fromkeys(range(1, 5), False), {})
    found = matches({}, dict.fromkeys(range(1, 5), "found"))
    for overlay, colour in (
        (draw_overlay(labels, nothing, missed, image, scale=2), RED),
        (draw_overlay(nothing, labels, found, image, scale=2), YELLOW),
    ):
        assert np.array_equal(overlay, draw_outlines(labels, image, colour, scale=2))


def test_contrast_leaves_room_for_outlines():
    ramp = np.arange(1001, dtype=np.uint16).reshape(7, 143)
    grey = stretch_contrast(ramp)
    assert (grey.min(), grey.max()) == (0, 200)
    assert (grey[ramp <= 10] == 0).all()
    assert (grey[ramp > 998] == 200).all()
    assert grey[ramp == 505] == 200 * (505 - 10) // (998 - 10)
    assert not stretch_contrast(np.full((3, 3), 7)).any()
    assert not stretch_contrast(np.array([[np.nan, 0.0]])).any()


def test_a_picture_survives_png():
    picture = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), picture)


def field(k, tp, fp):
    return FieldScore(Region(k, 0, k + 1, 1), ThresholdScore(tp, fp, 0))


def test_worst_fields_come_first_and_the_sample_is_of_the_others():
    fields = [field(k, tp=k, fp=100 - k) for k in (7, 3, 90, 50, 11, 60, 20, 80)]
    worst = choose_fields(fields, 3)
    assert [f.score.tp for f in worst] == [3, 7, 11]
    sampled = choose_fields(fields, 3, 2, seed=1)
    assert sampled[:3] == worst
    assert len({*sampled}) == 5
    assert sampled == choose_fields(fields[::-1], 3, 2, seed=1)
    assert {f.score.tp for s in range(30) for f in choose_fields(fields, 3, 2, seed=s)[3:]} == {
        *(20, 50, 60, 80, 90)
    }
    assert len(choose_fields(fields, 6, 10)) == 8


def test_strips_at_the_edge_come_after_all_other_fields():
    whole = FieldScore(Region(0, 0, 256, 256), ThresholdScore(80, 20, 0))
    half = FieldScore(Region(0, 256, 256, 384), ThresholdScore(30, 20, 0))
    strip = FieldScore(Region(256, 0, 272, 256), ThresholdScore(5, 5, 0))
    assert choose_fields([whole, half, strip], 2) == [half, whole]
    assert choose_fields([whole, half, strip], 3) == [half, whole, strip]
    assert choose_fields([strip], 3) == [strip]


def test_fields_of_few_cells_are_taken_where_there_are_no_others():
    few, full = field(0, tp=0, fp=4), field(1, tp=4, fp=1)
    assert choose_fields([few, full], 2) == [full]
    assert choose_fields([few], 2) == [few]
    assert choose_fields([], 2) == []


def test_of_fields_with_equal_ap_the_one_with_more_errors_is_worse():
    small, large = field(0, tp=3, fp=3), field(1, tp=30, fp=30)
    assert choose_fields([small, large], 1) == [large]
