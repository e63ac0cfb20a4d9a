"""Odd slides that have a result: constant, tiny, not finite, of every type of number."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.run.segment import segment
from densebatch.sources.source import DTYPES
from tests.helpers.run_files import read_report, read_result, simulate, write_tiff
from tests.helpers.slide_files import write_zarr


def check_odd(tmp_path, pixels, n_cells):
    if pixels.dtype == np.float16:  # which OME-TIFF does not have
        slide = write_zarr(tmp_path / "a.zarr", pixels[None], labels=["CD3"])
    else:
        slide = write_tiff(tmp_path / "a.ome.tif", pixels[None], ["CD3"])
    result = segment(slide, tmp_path / "out", workers=0)
    assert not result.is_partial
    labels, table = read_result(tmp_path / "out")
    assert labels.shape == pixels.shape
    assert table["id"].size == result.cells == labels.max()
    assert n_cells(result.cells)
    return result, labels


@pytest.mark.parametrize("value", [0, 7, 65535])
@pytest.mark.parametrize("shape", [(1, 1), (70, 300)])
def test_constant(tmp_path, shape, value):
    pixels = np.full(shape, value, np.uint16)
    result, _ = check_odd(tmp_path, pixels, lambda n: n == 0)
    assert result.report["network_patches"] == 0
    assert read_report(tmp_path / "out")["network_redundancy"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nothing_finite(tmp_path, value):
    check_odd(tmp_path, np.full((50, 60), value, np.float32), lambda n: n == 0)


def test_a_few_pixels_that_are_not_finite(tmp_path):
    pixels = simulate(200, 240, seed=1)[0].astype(np.float32)
    (tmp_path / "clean").mkdir()
    expected, _ = check_odd(tmp_path / "clean", pixels, lambda n: n > 20)
    pixels[100:103, 50:60] = np.nan
    pixels[20, 200] = np.inf
    pixels[21, 201] = -np.inf
    result, _ = check_odd(tmp_path, pixels, lambda n: n > 20)
    assert abs(result.cells - expected.cells) <= 8
    _, table = read_result(tmp_path / "out")
    # a cell's mean is over what is finite of it
    assert np.isfinite(table["mean_CD3"]).all()
    labels, _ = read_result(tmp_path / "out")
    odd = np.unique(labels[~np.isfinite(pixels)])
    for cell in odd[odd > 0]:
        inside = pixels[labels == cell]
        expected_mean = inside[np.isfinite(inside)].astype(np.float64).mean()
        assert table["mean_CD3"][cell - 1] == pytest.approx(expected_mean, rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 300), (300, 5), (1, 400), (2, 2), (64, 64)])
def test_less_than_a_patch(tmp_path, shape):
    pixels = simulate(300, 400, seed=1)[0][: shape[0], : shape[1]]
    check_odd(tmp_path, pixels, lambda n: n >= (3 if shape == (64, 64) else 0))


def test_one_bright_pixel(tmp_path):
    pixels = np.zeros((200, 200), np.uint8)
    pixels[70, 80] = 255
    check_odd(tmp_path, pixels, lambda n: n <= 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_number_types(tmp_path, dtype):
    pixels = simulate(130, 150, seed=1)[0]
    # 250 would wrap in int8, and what it wraps to is no tissue
    brightest = 125 if np.dtype(dtype) == np.int8 else 250
    scaled = (pixels / (pixels.max() / brightest)).astype(dtype)
    check_odd(tmp_path, scaled, lambda n: n > 10)
