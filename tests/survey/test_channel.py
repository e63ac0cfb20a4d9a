"""A survey against its definition, computed slowly, and what it makes of odd slides."""

import math
from dataclasses import replace
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.io import imsave

from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from densebatch.survey import reader
from densebatch.survey.channel import BLOCK_PX, contrast_in, signal_side, survey_channel
from densebatch.survey.normalization import ChannelBounds, normalize
from tests.helpers.slide_files import write_zarr

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]
WIDE = ["uint32", "int32", "float16", "float32", "float64"]


class ArraySlide:
    """What a survey asks of a slide, over an array; counts the reads."""

    def __init__(self, pixels):
        self.pixels = pixels
        self.lock = Lock()
        self.info = SimpleNamespace(
            height=pixels.shape[0],
            width=pixels.shape[1],
            dtype=pixels.dtype.name,
            channels=("CD3",),
            chunk_px=(64, 64),
            chunk_planes=1,
        )
        self.read_px = 0

    def read(self, channel, region):
        assert channel == 0
        with self.lock:
            self.read_px += region.area
        return self.pixels[region.slices]


def survey_array(pixels, percentiles=(1.0, 99.0)):
    return survey_channel(ArraySlide(pixels), 0, percentiles, mask_debris=False)


def patchwork(dtype, shape=(150, 110), seed=0):
    """Blocks of very different contrast, some flat, over all of a type's range."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    blocks = [-(-n // BLOCK_PX) for n in shape]
    octaves = {"float16": 14, "uint8": 7, "int8": 6, "uint16": 15, "int16": 14}.get(dtype.name, 28)
    strength = 2.0 ** rng.integers(0, octaves, blocks) * (rng.random(blocks) > 0.2)
    strength = np.kron(strength, np.ones((BLOCK_PX, BLOCK_PX)))[: shape[0], : shape[1]]
    noise = rng.random(shape) if dtype.kind == "u" else rng.uniform(-1, 1, shape)
    return (noise * strength).astype(dtype)


def slow_survey(pixels, percentiles=(1.0, 99.0)):
    """What the module's docstring says, block by block and pixel by pixel."""
    with np.errstate(over="ignore"):
        values = pixels.astype(np.float32).astype(np.float64)
    height, width = values.shape
    blocks = [
        (y, x, values[y : y + 32, x : x + 32])
        for y in range(0, height, 32)
        for x in range(0, width, 32)
    ]
    classes = []
    for _, _, block in blocks:
        cells = [
            block[y : y + 4, x : x + 4]
            for y in range(0, block.shape[0], 4)
            for x in range(0, block.shape[1], 4)
        ]
        means = [float(c[np.isfinite(c)].mean()) for c in cells if np.isfinite(c).any()]
        contrast = max(means) - min(means) if means else 0.0
        half_octave = math.floor(2 * math.log2(contrast)) if contrast > 0 else None
        classes.append(0 if half_octave is None else min(max(half_octave + 64, 1), 127))
    ranked = sorted(c for c in classes if c)
    threshold = max(1, ranked[int(0.99 * (len(ranked) - 1))] - 12) if ranked else 0
    tissue = np.concatenate(
        [b.ravel() for (_, _, b), c in zip(blocks, classes, strict=True) if c >= threshold]
    )
    fraction = sum(c >= threshold for c in classes) / len(classes)
    return np.percentile(tissue[np.isfinite(tissue)], percentiles), fraction


# percentiles


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_percentiles_are_numpys_over_tissue(dtype, seed):
    pixels = patchwork(dtype, seed=seed)
    percentiles = [(1.0, 99.0), (0.0, 100.0), (12.34, 56.789)][seed]
    (low, high), fraction = slow_survey(pixels, percentiles)
    bounds = survey_array(pixels, percentiles).bounds
    assert (bounds.low, bounds.high) == (low, high)
    assert bounds.tissue_fraction == pytest.approx(fraction)
    assert 0 < fraction < 1
    assert bounds.high > bounds.low
    assert (bounds.channel, bounds.name, bounds.nonfinite_px) == (0, "CD3", 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("seed", range(3))
def test_percentiles_leave_out_what_is_not_finite(dtype, seed):
    pixels = patchwork(dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for value in (np.nan, np.inf, -np.inf, -np.nan):
        pixels[rng.random(pixels.shape) < 0.1] = value
    pixels[:32, :32] = np.nan
    (low, high), _ = slow_survey(pixels)
    bounds = survey_array(pixels).bounds
    assert (bounds.low, bounds.high) == (low, high)
    assert bounds.nonfinite_px == np.count_nonzero(~np.isfinite(pixels))


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.integers(0, 2**32 - 1),
    st.integers(1, 70),
    st.integers(1, 70),
    st.tuples(st.floats(0, 49), st.floats(50, 100)),
)
def test_percentiles_of_any_small_slide(dtype, seed, height, width, percentiles):
    pixels = patchwork(dtype, (height, width), seed)
    (low, high), _ = slow_survey(pixels, percentiles)
    bounds = survey_array(pixels, percentiles).bounds
    assert (bounds.low, bounds.high) == (low, high)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.floats(width=32)
        | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38]),
        min_size=1,
        max_size=90,
    ),
    st.tuples(st.floats(0, 50), st.floats(50, 100)),
)
def test_percentiles_of_any_floats(values, percentiles):
    """Signs, subnormal numbers, the largest numbers, repeated values."""
    pixels = np.array(values, np.float32)[None, :]
    finite = pixels[np.isfinite(pixels)].astype(np.float64)
    bounds = survey_array(pixels, percentiles).bounds
    if finite.size == 0:
        assert (bounds.low, bounds.high) == (0, 0)
        return
    (low, high), _ = slow_survey(pixels, percentiles)
    assert (bounds.low, bounds.high) == (low, high)
    assert bounds.nonfinite_px == pixels.size - finite.size


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_slide_larger_than_a_read(dtype):
    pixels = patchwork(dtype, (2090, 50))
    (low, high), _ = slow_survey(pixels)
    slide = ArraySlide(pixels)
    bounds = survey_channel(slide, 0, (1.0, 99.0)).bounds
    assert (bounds.low, bounds.high) == (low, high)
    assert slide.read_px == pixels.size * (2 if dtype in WIDE else 1)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint32"])
def test_survey_does_not_depend_on_how_the_slide_is_read(dtype, monkeypatch):
    pixels = patchwork(dtype, (200, 130), seed=4)
    if dtype == "float32":
        pixels[::7, ::5] = np.nan
    expected = survey_array(pixels)
    for read_px in (32, 96, 160):
        monkeypatch.setattr(reader, "_READ_PX", read_px)
        found = survey_array(pixels)
        # The digest of the pixels is one over the regions that are read at once.
        assert replace(found.bounds, content=expected.bounds.content) == expected.bounds
        assert found.lowest.tobytes() == expected.lowest.tobytes()
        assert found.highest.tobytes() == expected.highest.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_survey_of_files(dtype, tmp_path):
    """The same pixels, from every format that holds them."""
    pixels = patchwork(dtype, (100, 70), seed=2)
    expected = survey_array(pixels)
    paths = [write_zarr(tmp_path / "a.zarr", pixels[None]), tmp_path / "a.tif"]
    tifffile.imwrite(paths[1], pixels, tile=(32, 32), photometric="minisblack")
    if dtype != "float32":
        paths.append(tmp_path / "a.png")
        imsave(paths[2], pixels, check_contrast=False)
    for path in paths:
        found = survey_channel(open_slide(path), 0, (1.0, 99.0))
        assert (found.bounds.low, found.bounds.high) == (expected.bounds.low, expected.bounds.high)
        assert np.array_equal(found.highest, expected.highest)


# tissue


def texture(shape, seed=0):
    """Membranes: bright lines of a few pixels on a dark ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    lines = np.abs(np.sin(y / 5 + rng.normal())) ** 8 + np.abs(np.sin(x / 6 + rng.normal())) ** 8
    return 300 + 3000 * np.clip(lines, 0, 1) + rng.normal(0, 30, shape)


def test_half_glass_gets_the_bounds_of_its_tissue():
    rng = np.random.default_rng(0)
    tissue = texture((640, 320)).clip(0).astype(np.uint16)
    glass = rng.normal(100, 10, (640, 320)).clip(0).astype(np.uint16)
    alone = survey_array(tissue).bounds
    both = survey_array(np.hstack([glass, tissue])).bounds
    span = alone.high - alone.low
    assert abs(both.low - alone.low) < 0.01 * span
    assert abs(both.high - alone.high) < 0.01 * span
    assert both.tissue_fraction == pytest.approx(0.5, abs=0.01)
    assert alone.tissue_fraction == 1.0
    # what no tissue mask would give
    assert abs(np.percentile(np.hstack([glass, tissue]), 1) - alone.low) > 0.05 * span


def test_small_biopsy_on_a_canvas_of_zeros():
    """Less than a hundredth of the blocks: the slide is not taken for constant."""
    slide = np.zeros((960, 960), np.uint16)
    tissue = texture((64, 64)).astype(np.uint16)
    slide[320:384, 640:704] = tissue
    bounds = survey_array(slide).bounds
    assert (bounds.low, bounds.high) == tuple(np.percentile(tissue, (1, 99)))
    assert bounds.tissue_fraction == pytest.approx(4 / 900)


def test_tissue_reaches_a_64th_of_the_strongest_contrast():
    """Twelve classes of half an octave below the reference is in, thirteen is out."""
    slide = np.zeros((64, 32 * 20), np.float32)
    slide[0:4, ::32] = 64.0  # 4x4 means of a quarter: contrast 16
    slide[32:36, :320:32] = 1.0  # contrast 1/4
    slide[32:36, 320::32] = 0.99
    assert survey_array(slide).bounds.tissue_fraction == 30 / 40


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_percentiles_leave_out_blocks_just_below_tissue(dtype):
    """Whose values lie among those of tissue, so that one of them would shift the percentiles."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(20_000, 20_008, (64, 320))
    pixels[0:4, ::32] += 64 * 64  # a column of a 4x4 mean: contrast 1024
    pixels[32:] -= 3
    pixels[32:36, ::32] += 4 * 11  # contrast about 13, and 16 would be tissue
    pixels = pixels.astype(dtype)
    (low, high), fraction = slow_survey(pixels, (10.0, 40.0))
    bounds = survey_array(pixels, (10.0, 40.0)).bounds
    assert bounds.tissue_fraction == fraction == 0.5
    assert (bounds.low, bounds.high) == (low, high)
    assert (low, high) != tuple(np.percentile(pixels, (10.0, 40.0)))


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e6, 1e15])
def test_any_scale_of_float_has_a_result(scale):
    """Beyond the classes' range contrast saturates, as the oracle's does."""
    pixels = (patchwork("float32", seed=6) * np.float32(scale)).astype(np.float32)
    (low, high), fraction = slow_survey(pixels)
    bounds = survey_array(pixels).bounds
    assert (bounds.low, bounds.high, bounds.tissue_fraction) == (low, high, fraction)


# slides without contrast or without numbers


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_slide(dtype):
    pixels = np.full((70, 45), 7, dtype)
    found = survey_array(pixels)
    assert replace(found.bounds, content="") == ChannelBounds(0, "CD3", 7.0, 7.0, 1.0, 0)
    assert not normalize(pixels, found.bounds).any()
    assert contrast_in([found], Region(0, 0, 70, 45)) == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_slide_without_a_number(dtype, value):
    pixels = np.full((70, 45), value, dtype)
    found = survey_array(pixels)
    assert replace(found.bounds, content="") == ChannelBounds(0, "CD3", 0.0, 0.0, 0.0, 70 * 45)
    assert not normalize(pixels, found.bounds).any()
    assert contrast_in([found], Region(0, 0, 70, 45)) == 0


def test_constant_slide_with_a_hole():
    pixels = np.full((70, 45), 7, np.float32)
    pixels[:32, :32] = np.nan
    found = survey_array(pixels)
    assert (found.bounds.low, found.bounds.high) == (7, 7)
    assert found.bounds.nonfinite_px == 1024
    assert not normalize(pixels, found.bounds).any()
    assert contrast_in([found], Region(0, 0, 70, 45)) == 0


def test_block_without_a_number_has_no_contrast():
    pixels = texture((128, 128)).astype(np.float32)
    pixels[32:64, 64:96] = np.nan
    found = survey_array(pixels)
    assert np.isfinite(found.lowest).all()
    assert np.isfinite(found.highest).all()
    assert contrast_in([found], Region(32, 64, 64, 96)) == 0
    assert contrast_in([found], Region(32, 64, 64, 97)) > 0.5


def test_flat_blocks_of_two_values_are_a_slide_with_bounds():
    """No block has contrast, yet the slide is not constant."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:32] = 200
    found = survey_array(pixels)
    assert (found.bounds.low, found.bounds.high) == (0, 200)
    assert contrast_in([found], Region(0, 0, 64, 64)) == pytest.approx(1)


# contrast


@pytest.fixture(scope="module")
def two_channels():
    """Surveys, and the normalised 8x8 means by position, of two channels."""
    surveys, means = [], []
    for seed in range(2):
        pixels = patchwork("float32", (100, 77), seed)
        surveys.append(survey_array(pixels))
        scaled = normalize(pixels, surveys[-1].bounds).astype(float)
        places = [(y, x) for y in range(0, 100, 8) for x in range(0, 77, 8)]
        means.append({(y, x): scaled[y : y + 8, x : x + 8].mean() for y, x in places})
    return surveys, means


@settings(max_examples=100, deadline=None)
@given(*[st.tuples(st.integers(-70, 140), st.integers(-70, 140))] * 2)
def test_contrast_is_the_range_of_the_means(two_channels, rows, cols):
    """Over all blocks that the region touches; the region may leave the slide."""
    surveys, means = two_channels
    (y0, y1), (x0, x1) = sorted(rows), sorted(cols)
    touched = [
        (y, x)
        for y, x in means[0]
        if max(y0, 0) // 32 * 32 <= y < -(-y1 // 32) * 32
        and max(x0, 0) // 32 * 32 <= x < -(-x1 // 32) * 32
    ]
    ranges = [max(m[t] for t in touched) - min(m[t] for t in touched) for m in means if touched]
    found = contrast_in(surveys, Region(y0, x0, y1, x1))
    assert found == pytest.approx(max(ranges, default=0.0), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("side", [4, 16, 32])
def test_side_of_the_means(side):
    """Any side gives the extremes of means of that side, and the same bounds."""
    pixels = patchwork("float32", (100, 77))
    found = survey_channel(ArraySlide(pixels), 0, (1.0, 99.0), side)
    assert found.bounds == survey_array(pixels).bounds
    scaled = normalize(pixels, found.bounds).astype(float)
    for y0, x0 in np.ndindex(found.lowest.shape):
        block = scaled[32 * y0 : 32 * y0 + 32, 32 * x0 : 32 * x0 + 32]
        means = [
            block[y : y + side, x : x + side].mean()
            for y in range(0, block.shape[0], side)
            for x in range(0, block.shape[1], side)
        ]
        assert found.lowest[y0, x0] == pytest.approx(min(means), rel=1e-4, abs=1e-5)
        assert found.highest[y0, x0] == pytest.approx(max(means), rel=1e-4, abs=1e-5)


def test_means_are_half_a_cell_wide_at_every_scale():
    rescales = (0.1, 0.25, 0.3, 0.5, 1.0, 1.3, 1.5, 2.0, 4.0)
    assert [signal_side(r) for r in rescales] == [32, 32, 32, 16, 8, 8, 4, 4, 4]


def test_contrast_of_no_channels_is_none():
    assert contrast_in([], Region(0, 0, 64, 64)) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_digest_tells_any_pixel(dtype):
    pixels = patchwork(dtype, (100, 70), seed=2)
    content = survey_array(pixels).bounds.content
    assert survey_array(pixels.copy()).bounds.content == content
    changed = pixels.copy()
    changed[99, 69] = 1 if changed[99, 69] != 1 else 0
    assert survey_array(changed).bounds.content != content
