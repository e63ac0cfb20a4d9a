"""The conformance checks: built-in segmenters pass, and each check fails for one that is broken."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from scipy import ndimage

from densebatch.base.errors import InputError
from densebatch.testing import CheckFailedError, check_segmenter
from densebatch.testing.memory import measure_call
from densebatch.testing.scene import draw_scene

CHECKS = (
    "runs", "shape", "dtype", "values", "cells", "determinism", "empty", "foreground", "border",
    "memory",
)  # fmt: skip
COUNT = itertools.count()


def label_bright(image, um_per_px, options):
    """A function as a user writes it; the broken ones below are this one and a fault."""
    return ndimage.label(ndimage.gaussian_filter(image[-1], 1) > options["levels"][-1])[0]


def use_large_ids(image, um_per_px, options):
    labels = label_bright(image, um_per_px, options).astype(np.int64)
    return labels * 10**15


def raise_error(image, um_per_px, options):
    raise KeyError("weights")


def swap_axes(image, um_per_px, options):
    return label_bright(image, um_per_px, options).T


def return_none(image, um_per_px, options):
    return None


def return_floats(image, um_per_px, options):
    return label_bright(image, um_per_px, options).astype(np.float32)


def return_mask(image, um_per_px, options):
    return label_bright(image, um_per_px, options) > 0


def return_negative(image, um_per_px, options):
    return label_bright(image, um_per_px, options) - 1


def find_nothing(image, um_per_px, options):
    return np.zeros(image.shape[1:], np.uint8)


def find_one(image, um_per_px, options):
    return (image[-1] > options["levels"][-1]).astype(np.uint8)


def count_on(image, um_per_px, options):
    labels = label_bright(image, um_per_px, options)
    return np.where(labels, labels + next(COUNT), 0)


def shrink_types(image, um_per_px, options):
    labels = label_bright(image, um_per_px, options)
    return labels.astype(("int32", "int64")[next(COUNT) % 2])


def label_background(image, um_per_px, options):
    return label_bright(image, um_per_px, options) + 1


def fail_on_full(image, um_per_px, options):
    if image.min() == 1:
        raise ValueError("no contrast")
    return label_bright(image, um_per_px, options)


def clear_border(image, um_per_px, options):
    labels = label_bright(image, um_per_px, options)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.where(np.isin(labels, edge), 0, labels)


def take_memory(image, um_per_px, options):
    assert np.ones((60, *image.shape[1:])).sum() > 0
    return label_bright(image, um_per_px, options)


def use_the_tiles_mean(image, um_per_px, options):
    own = 1.5 * image.mean()
    return label_bright(image, um_per_px, {"levels": [own]})


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("diameter", [9, 15, 40])
def test_watershed_passes(channels, diameter):
    options = {"diameter_px": diameter}
    report = check_segmenter("watershed", options, channels=channels, diameter_px=diameter)
    assert tuple(check.name for check in report.checks) == CHECKS
    assert report.failed == report.findings == ()
    assert 10 < report.bytes_per_px < 80


def test_ids_may_be_any():
    assert check_segmenter(use_large_ids).findings == ()


def test_a_function_passes_as_itself_and_by_name():
    for given in (label_bright, f"{__name__}:label_bright"):
        report = check_segmenter(given)
        assert str(report) == f"segmenter label_bright: 0 of {len(CHECKS)} checks fail"


@pytest.mark.slow
def test_a_program_passes(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, tifffile\nfrom scipy import ndimage\nimage = tifffile.imread(sys.argv[1])\n"
        "tifffile.imwrite(sys.argv[2], ndimage.label(image > 0.4)[0])\n"
    )
    check_segmenter(f"command:{sys.executable} {script} {{image}} {{labels}}")


@pytest.mark.parametrize(
    ("broken", "check", "why"),
    [
        (raise_error, "runs", "ends with KeyError: 'weights'"),
        (swap_axes, "shape", "accepted is that of the tile"),
        (return_none, "shape", "returned NoneType; accepted is a NumPy array of labels"),
        (return_floats, "dtype", "returned float32 numbers, though all are whole"),
        (return_mask, "dtype", "returned yes and no for each pixel"),
        (return_negative, "values", "returned -1; accepted are labels from 0"),
        (find_nothing, "cells", "88 cells of 15 px gives 0 labels"),
        (find_one, "cells", "88 cells of 15 px gives 1 labels"),
        (count_on, "determinism", "the same tile gives other labels in"),
        (shrink_types, "determinism", "the same tile gives int"),
        (label_background, "empty", "a tile of 0 everywhere has labels in"),
        (fail_on_full, "foreground", "segmenter fail_on_full: ValueError: no contrast"),
        (clear_border, "border", "0% of the cells that the border cuts are labelled"),
        (take_memory, "memory", "a tile of a megapixel takes"),
    ],
)
def test_what_is_broken_fails_its_check_and_no_other(broken, check, why):
    with pytest.raises(CheckFailedError) as caught:
        check_segmenter(broken)
    assert caught.value.report.failed == (check,)
    line = str(caught.value).splitlines()[1]
    assert line.startswith(f"{check}: ")
    assert why in line


def test_a_function_may_say_what_memory_it_takes():
    def honest(image, um_per_px, options):
        return take_memory(image, um_per_px, options)

    honest.bytes_per_px = 600
    assert check_segmenter(honest).bytes_per_px > 450


def test_what_depends_on_the_tile_is_told():
    report = check_segmenter(use_the_tiles_mean)
    (finding,) = report.findings
    assert finding.startswith("tile-dependent: of ")
    assert finding in str(report)


def test_bad_options_are_refused_as_for_a_user():
    with pytest.raises(InputError, match="options of the segmenter watershed: setting 'size'"):
        check_segmenter("watershed", {"size": 3})


def test_the_scene_has_cells_inside_and_on_every_border():
    scene = draw_scene(2, 12)
    assert scene.image.shape == (2, *scene.truth.shape)
    assert scene.image.dtype == np.float32
    assert 0 <= scene.image.min() < scene.image.max() <= 1
    for edge in (scene.truth[0], scene.truth[-1], scene.truth[:, 0], scene.truth[:, -1]):
        assert set(np.unique(edge)) - {0} <= scene.cut
        assert edge.any()
    inside = scene.image[1][scene.truth > 0]
    assert inside.mean() > 3 * scene.image[1][scene.truth == 0].mean()


def test_memory_is_that_of_the_peak():
    def call():
        assert np.ones(20 * 2**20, np.uint8).sum() > 0

    assert all(20 * 2**20 <= measure_call(call) < 40 * 2**20 for _ in range(3))
