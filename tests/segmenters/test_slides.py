"""Segmenters on a slide, by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.run_files import call_main, read_result, write_tiff

PERL = Path(__file__).with_name("bright_pieces.pl")


def draw_slide(path):
    """Discs that do not touch, some of them on the borders of tiles; and their number."""
    y, x = np.indices((260, 330))
    rng = np.random.default_rng(4)
    image = np.full(y.shape, 100, np.uint16)
    for row, col in np.ndindex(10, 13):
        cy, cx = 13 + 26 * row + rng.integers(-5, 6), 13 + 25 * col + rng.integers(-5, 6)
        image[np.hypot(y - cy, x - cx) <= 6.5] = 2000
    return write_tiff(path, np.stack([image]), ["DAPI"]), 130, image == 2000


@pytest.mark.parametrize(
    "segmenter",
    [
        pytest.param(
            f"command:perl {PERL} {{image}} {{labels}} 0.5",
            marks=pytest.mark.skipif(shutil.which("perl") is None, reason="no perl"),
        ),
        "watershed",
    ],
)
def test_a_slide_in_tiles_has_the_cells_of_the_slide(tmp_path, capsys, segmenter):
    slide, n, bright = draw_slide(tmp_path / "slide.ome.tif")
    own = {"diameter_px": 13, "threshold": 0.5}  # two values have no threshold of Otsu's
    options = own if segmenter == "watershed" else {"timeout_s": 60}
    code, _, error = call_main(
        capsys, "segment", slide, tmp_path / "out", "--membrane", "DAPI", "--workers", "0",
        "--segmenter", segmenter, "--segmenter-options", json.dumps(options),
        "--tile", "128", "--overlap", "40",
    )  # fmt: skip
    assert code == 0, error
    labels, table = read_result(tmp_path / "out")
    assert len(table["area_px"]) == n
    assert len(np.unique(labels)) == n + 1
    assert ((labels > 0) == bright).mean() > 0.97
    report = json.loads((tmp_path / "out/run.json").read_text())
    assert report["merging"]["merged"] > 50


@pytest.mark.skipif(shutil.which("perl") is None, reason="no perl")
def test_a_program_that_always_fails_ends_the_run_in_its_words(tmp_path, capsys):
    slide, _, _ = draw_slide(tmp_path / "slide.ome.tif")
    code, _, error = call_main(
        capsys, "segment", slide, tmp_path / "out", "--membrane", "DAPI", "--workers", "0",
        "--segmenter", "command:perl -e 'die \"no licence\"' {image} {labels}",
    )  # fmt: skip
    assert code == 1
    assert "no tile could be segmented" in error
    assert "ended with exit code 255; the end of what it printed" in error
    assert "no licence at -e line 1." in error
