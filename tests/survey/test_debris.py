"""Debris moves neither bounds nor the cells beside it; tissue without debris is left alone."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densebatch.base.geometry import Region
from densebatch.cells.read import open_labels
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import segment
from densebatch.simulation.debris import (
    count_beside,
    count_found,
    lay,
    put_area,
    put_bright_cells,
    put_columns,
    put_discs,
    put_specks,
    put_strewn,
)
from densebatch.slides.slide import open_slide
from densebatch.stages import predict
from densebatch.stages.network_input import find_bright_cells, read_network_input
from densebatch.survey.channel import survey_channel
from densebatch.survey.normalization import (
    HALO_PX,
    ChannelBounds,
    find_bright,
    normalize,
    normalize_bright,
)
from tests.helpers.real_tissue import FIELDS, needs_data, read_field
from tests.helpers.run_files import simulate, write_tiff

SIDE = 512
SETTINGS = SegmentSettings(model="dense-tiny", pixel_size=0.5)


def write(folder, pixels, name="a"):
    return write_tiff(folder / f"{name}.ome.tif", pixels[None], ["CD3"])


def survey(folder, pixels, **options):
    return survey_channel(open_slide(write(folder, pixels)), 0, (1.0, 99.0), **options)


def run(folder, pixels, name, model="dense-tiny"):
    slide = write(folder, pixels, name)
    settings = SETTINGS.model_copy(update={"workers": 0, "image": "none", "model": model})
    result = segment(slide, folder / f"{name}-out", settings, restart=True)
    return result, open_labels(result.labels)[:, :]


@cache
def tissue(seed, offset=0):
    return simulate(SIDE, SIDE, seed)[0] // 8 + np.uint16(offset)


@cache
def clean_labels(folder, seed, offset):
    return run(folder, tissue(seed, offset), f"clean-{seed}-{offset}")[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("debris")


# A tenth of 256 blocks at most; of specks of up to 60 px, which reach into nine blocks, fewer.
few, many = st.integers(1, 4), st.integers(1, 25)
times = st.floats(5, 400)
KINDS = {
    "specks": (put_specks, st.tuples(times, st.integers(1, 8), many)),
    "large specks": (put_specks, st.tuples(times, st.integers(9, 60), few)),
    "discs": (put_discs, st.tuples(times, st.integers(2, 50), few)),
    # What looks like stained cells is shown apart, and not masked.
    "discs like cells": (
        put_discs,
        st.tuples(st.floats(5, 30), st.integers(8, 24), st.integers(1, 16)),
    ),
    "strewn": (put_strewn, st.tuples(times, st.integers(1, 40), st.integers(3, 12))),
    "columns": (put_columns, st.tuples(times, st.integers(1, 2), st.sampled_from([0, 1]))),
    "saturated area": (put_area, st.just((65535,))),
    "dead area": (put_area, st.just((0,))),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), seed=st.integers(0, 2), offset=st.sampled_from([0, 2000]))
@settings(max_examples=5, derandomize=True)
def test_cells_beside_debris_are_found(shared, kind, data, seed, offset):
    put, numbers = KINDS[kind]
    dirty, covered = put(
        tissue(seed, offset), *data.draw(numbers), seed=data.draw(st.integers(0, 99))
    )
    clean = clean_labels(shared, seed, offset)
    _, labels = run(shared, dirty, "dirty")
    beside, found = count_beside(clean, labels, covered, HALO_PX)
    assert beside > 100
    assert found >= 0.97 * beside


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("model", ["dense", "dense-small", "dense-tiny"])
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", ["specks", "large specks", "discs", "strewn", "columns"])
def test_cells_of_real_fields_beside_debris_are_found(tmp_path, model, name, kind):
    pixels = read_field(name)[0][:SIDE, :SIDE].astype(np.uint16) * 16 + 100
    put, numbers = {
        "specks": (put_specks, (100, 6, 15)),
        "large specks": (put_specks, (8, 50, 3)),
        "discs": (put_discs, (150, 20, 5)),
        "strewn": (put_strewn, (200, 30, 8)),
        "columns": (put_columns, (60, 3)),
    }[kind]
    dirty, covered = put(pixels, *numbers)
    clean, labels = (run(tmp_path, image, "a", model)[1] for image in (pixels, dirty))
    beside, found = count_beside(clean, labels, covered, HALO_PX)
    assert beside > 80
    assert found >= 0.97 * beside


@needs_data
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("kind", ["specks", "large specks", "strewn", "columns"])
def test_bounds_of_real_fields_stay_beside_debris(tmp_path, name, kind):
    pixels = read_field(name)[0].astype(np.uint16) * 16 + 100
    clean = survey(tmp_path, pixels).bounds
    put, numbers = {
        "specks": (put_specks, (100, 6, 30)),
        "large specks": (put_specks, (8, 50, 12)),
        "strewn": (put_strewn, (200, 30, 30)),
        "columns": (put_columns, (60, 3)),
    }[kind]
    dirty = survey(tmp_path, put(pixels, *numbers)[0]).bounds
    span = clean.high - clean.low
    assert (clean.above, clean.dead, clean.debris_fraction) == (None, None, 0)
    assert clean.high < dirty.above
    assert dirty.low == pytest.approx(clean.low, abs=0.02 * span)
    assert dirty.high == pytest.approx(clean.high, abs=0.1 * span)
    left_out = dirty.debris_fraction
    assert clean.tissue_fraction - left_out <= dirty.tissue_fraction <= clean.tissue_fraction


def check_clean(folder, pixels):
    """No debris is seen, and the survey is what it is without looking for any."""
    found, plain = survey(folder, pixels), survey(folder, pixels, mask_debris=False)
    assert found.bounds == plain.bounds
    assert found.bounds.reach_px == 0
    np.testing.assert_array_equal(found.highest, plain.highest)


@needs_data
@pytest.mark.parametrize("name", FIELDS)
def test_real_fields_have_no_debris(tmp_path, name):
    check_clean(tmp_path, read_field(name)[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("empty", [0, 0.5, 0.9])
@pytest.mark.parametrize("stained", [0.4, 0.1])
def test_simulated_tissue_has_no_debris(tmp_path, seed, empty, stained):
    check_clean(
        tmp_path,
        simulate(1024, 1024, seed, empty_fraction=empty, stained_fraction=stained)[0],
    )


@pytest.mark.parametrize("change", [
    {"brightness": 200.0}, {"cell_diameter_px": 30.0}, {"cell_diameter_px": 8.0},
    {"stained_fraction": 0.02}, {"stained_fraction": 0.05, "empty_fraction": 0.95},
])  # fmt: skip
def test_odd_tissue_has_no_debris(tmp_path, change):
    check_clean(tmp_path, simulate(1024, 1024, 3, **change)[0])


def put_cells(pixels, n, counts=6000, seed=0, **shape):
    return put_bright_cells(pixels, n, counts, seed=seed, **shape)[0]


@pytest.mark.parametrize("n", [1, 5, 30, 150])
@pytest.mark.parametrize("blur", [0, 0.7])
def test_rare_bright_cells_on_noise_are_cells(tmp_path, n, blur):
    noise = np.random.default_rng(n).normal(300, 20, (1024, 1024))
    check_clean(tmp_path, put_cells(ndimage.gaussian_filter(noise, blur), n))


SHAPES = {
    "rings": {},
    "dim inside": {"inside": 0.3},
    "solid": {"inside": 1.0},
    "small": {"radius": 4.0, "inside": 0.6},
    "large and solid": {"radius": 11.0, "inside": 1.0},
}


def check_rare_cells(folder, tissue, pixels):
    """They are no debris; and if they are taken for rare, the bounds are those of the tissue."""
    bounds = survey(folder, pixels).bounds
    assert (bounds.above, bounds.dead, bounds.debris_fraction) == (None, None, 0)
    if bounds.bright is None:
        check_clean(folder, pixels)
        return False
    clean = survey(folder, tissue).bounds
    assert (bounds.low, bounds.high) == pytest.approx((clean.low, clean.high), rel=0.1)
    assert clean.high < bounds.bright < bounds.bright_peak
    return True


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [4, 20, 60])
@pytest.mark.parametrize("counts", [700, 2500])
def test_rare_bright_cells_on_dim_tissue_are_cells(tmp_path, n, shape, counts):
    """Seven or twenty-five times as bright as tissue that looks like tissue by itself."""
    dim = simulate(640, 640, n)[0] // 40 + np.uint16(100)
    pixels = put_cells(dim, n, counts=counts, seed=n, **SHAPES[shape])
    assert check_rare_cells(tmp_path, dim, pixels) == (n < 60)


@needs_data
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FIELDS)
def test_rare_bright_cells_on_real_fields_are_cells(tmp_path, name, shape):
    pixels = read_field(name)[0].astype(np.uint16) + 100
    check_rare_cells(tmp_path, pixels, put_cells(pixels, 30, counts=4000, **SHAPES[shape]))


@pytest.mark.parametrize("shape", ["rings", "dim inside", "solid", "large and solid"])
@pytest.mark.parametrize("counts", [700, 2500])
def test_rare_bright_cells_are_found_with_the_tissue_beside_them(tmp_path, shape, counts):
    """Shown on one scale, the bright ones, or the tissue, or both are lost."""
    dim = simulate(SIDE, SIDE, 1)[0] // 40 + np.uint16(100)
    bright, truth = put_bright_cells(dim, 8, counts, seed=5, **SHAPES[shape])
    _, before = run(tmp_path, dim, "dim")
    _, after = run(tmp_path, bright, "bright")
    beside, found = count_beside(before, after, truth > 0, HALO_PX)
    assert found >= 0.97 * beside
    assert count_found(truth, after) == np.unique(truth[truth > 0]).size


def put_grains(pixels, rng):
    """Precipitate: grains of a pixel each, half of them bright."""
    covered = np.zeros(pixels.shape, bool)
    for _ in range(8):
        y, x = rng.integers(0, SIDE - 24, 2)
        covered[y : y + 24, x : x + 24] |= rng.random((24, 24)) < 0.5
    return lay(pixels, covered, 30000)


def put_rings(pixels, rng):
    """Specks far out of focus."""
    y, x = np.mgrid[:SIDE, :SIDE]
    light = np.zeros(pixels.shape)
    for _ in range(8):
        distance = np.hypot(y - rng.integers(0, SIDE), x - rng.integers(0, SIDE))
        light += np.exp(-(((distance - 9) / 2) ** 2))
    bright = np.minimum(pixels + 40000 * light, 65535).astype(np.uint16)
    return bright, light * 40000 > 30


def put_fibres(pixels, rng):
    """Long thin lines."""
    y, x = np.mgrid[:SIDE, :SIDE]
    covered = np.zeros(pixels.shape, bool)
    for _ in range(2):
        slope, at = rng.uniform(-1, 1), rng.integers(0, SIDE)
        covered |= np.abs(y - at - slope * (x - SIDE / 2)) < 1.2
    return lay(pixels, covered, 20000)


def put_crossing_lines(pixels, rng):
    """Hot rows with hot columns."""
    pixels, columns = put_columns(pixels, 60, 2, seed=int(rng.integers(99)))
    pixels, rows = put_columns(pixels, 60, 2, axis=0, seed=int(rng.integers(99)))
    return pixels, columns | rows


def put_two_kinds(pixels, rng):
    pixels, specks = put_specks(pixels, 30, 5, 10, seed=int(rng.integers(99)))
    pixels, area = put_area(pixels, 65535, seed=int(rng.integers(99)))
    return pixels, specks | area


def put_noisy_dead_area(pixels, rng):
    """Without light, but with the camera's noise, far below tissue on a pedestal."""
    pixels = pixels + np.uint16(3000)
    _, covered = put_area(pixels, 0, seed=int(rng.integers(99)))
    noise = rng.normal(100, 8, pixels.shape).astype(np.uint16)
    return np.where(covered, noise, pixels), covered


def put_two_dead_areas(pixels, rng):
    pixels, dead = put_area(pixels + np.uint16(3000), 0, seed=int(rng.integers(99)))
    pixels, dark = put_area(pixels, 100, seed=int(rng.integers(99)))
    return pixels, dead | dark


def put_aligned_area(pixels, rng):
    """Whole blocks, which have no contrast."""
    y, x = 32 * rng.integers(1, 10, 2)
    covered = np.zeros(pixels.shape, bool)
    covered[y : y + 128, x : x + 128] = True
    return lay(pixels, covered, 65535)


def put_edge_strip(pixels, rng):
    covered = np.zeros(pixels.shape, bool)
    covered[:, -int(rng.integers(10, 40)) :] = True
    return lay(pixels, covered, 65535)


def put_scale_bar(pixels, rng):
    """Burnt in, with its text."""
    covered = np.zeros(pixels.shape, bool)
    covered[480:486, 340:470] = True
    for x in range(370, 440, 12):
        covered[455:470, x : x + 3] = covered[455:458, x : x + 8] = True
        covered[462:464, x : x + 8] = bool(rng.integers(2))
    return lay(pixels, covered, 65535)


def put_crowd(pixels, rng):
    """Specks close together."""
    covered = np.zeros(pixels.shape, bool)
    covered[:130, :130] = ndimage.binary_dilation(rng.random((130, 130)) < 0.003, iterations=2)
    return lay(pixels, covered, 30000)


ODD = [
    *(put_grains, put_rings, put_fibres, put_crossing_lines, put_two_kinds, put_noisy_dead_area),
    *(put_two_dead_areas, put_aligned_area, put_edge_strip, put_scale_bar, put_crowd),
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("put", ODD)
def test_cells_beside_odd_debris_are_found(shared, put, seed):
    dirty, covered = put(tissue(seed), np.random.default_rng(seed))
    clean = clean_labels(shared, seed, 0)
    _, labels = run(shared, dirty, "odd")
    beside, found = count_beside(clean, labels, covered, HALO_PX)
    assert beside > 100
    assert found >= 0.97 * beside


@needs_data
@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("put", [put_aligned_area, put_edge_strip, put_scale_bar, put_area])
def test_bounds_of_real_fields_stay_beside_odd_debris(tmp_path, name, put):
    pixels = read_field(name)[0][:SIDE, :SIDE].astype(np.uint16) * 4 + 100
    clean = survey(tmp_path, pixels).bounds
    other = 0 if put is put_area else np.random.default_rng(3)
    dirty = survey(tmp_path, put(pixels, other)[0]).bounds
    span = clean.high - clean.low
    assert dirty.reach_px
    assert dirty.low == pytest.approx(clean.low, abs=0.005 * span)
    assert dirty.high == pytest.approx(clean.high, abs=0.1 * span)


def test_a_speck_on_a_small_image(tmp_path):
    pixels = tissue(0)[:110, :110].copy()
    clean = survey(tmp_path, pixels).bounds
    pixels[40:45, 50:55] = 40000
    dirty = survey(tmp_path, pixels).bounds
    assert dirty.high == pytest.approx(clean.high, rel=0.2)


@pytest.mark.parametrize("times", [30, 100])
def test_a_bright_dense_part_is_told(tmp_path, times):
    """A fold, say: no debris by its looks, and it decides the bounds."""
    pixels = simulate(1024, 1024, 1)[0].astype(np.float64) / 40
    y, x = np.mgrid[:1024, :1024]
    inside = ndimage.gaussian_filter((np.hypot(y - 500, x - 400) < 150).astype(float), 3)
    pixels *= 1 + (times - 1) * inside
    slide = write(tmp_path, np.minimum(pixels, 65535).astype(np.uint16))
    notes = build_plan(slide, SETTINGS).notes
    assert "times as bright as the rest, which looks like tissue by itself" in notes[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_canvas_of_zeros_is_not_dead(tmp_path, seed):
    """A stitched slide: nothing at its edge, and a camera's offset everywhere else."""
    pixels = simulate(640, 640, seed)[0] // 8 + np.uint16(900)
    pixels[:, 500 + 13 * seed :] = 0
    pixels[:70] = 0
    check_clean(tmp_path, pixels)


def test_infinite_pixels_are_no_debris():
    pixels = np.full((20, 20), 10, np.float32)
    pixels[5, 5], pixels[15, 15], pixels[5, 15] = np.inf, -np.inf, 900
    seen = normalize(pixels, ChannelBounds(0, "M", 0.0, 20.0, 1.0, 0, above=100.0, dead=-5.0))
    assert (seen[5, 5], seen[15, 15], seen[5, 15], seen[5, 13], seen[5, 6]) == (1, 0, 0, 0, 0.5)


@pytest.mark.parametrize("percentiles", [(1.0, 99.0), (0.0, 100.0)])
def test_saturation_is_of_a_hundredth_of_the_tissue(tmp_path, percentiles):
    pixels = simulate(SIDE, SIDE, 1)[0]
    slide = open_slide(write(tmp_path, pixels))
    assert survey_channel(slide, 0, percentiles).saturated_px is None
    limit = int(np.percentile(pixels, 96))
    slide = open_slide(write(tmp_path, np.minimum(pixels, limit).astype(np.uint16), "b"))
    assert survey_channel(slide, 0, percentiles).saturated_px == limit


@pytest.mark.parametrize("seed", range(6))
def test_a_small_field_of_few_cells_has_no_debris(tmp_path, seed):
    check_clean(tmp_path, simulate(256, 256, seed, stained_fraction=0.05)[0])


def test_a_bright_region_is_tissue(tmp_path):
    """A follicle thirty times as bright as the tissue around it, a tenth of the field."""
    pixels = simulate(1024, 1024, 5)[0].astype(np.float64)
    dim, bright = pixels / 30, pixels
    y, x = np.mgrid[:1024, :1024]
    check_clean(tmp_path, np.where(np.hypot(y - 500, x - 400) < 180, bright, dim).astype(np.uint16))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_debris_in_every_type_of_number(tmp_path, dtype):
    """The same pixels give the same bounds, whether counted by value or in two passes."""
    pixels = (simulate(SIDE, SIDE, 1)[0] // 256).astype(np.uint8)
    dirty = put_specks(pixels, 12, 8, 20)[0]
    expected = survey(tmp_path, dirty.astype(np.uint16)).bounds
    assert expected.above is not None
    found = survey(tmp_path, dirty.astype(dtype)).bounds
    assert replace(found, content="") == replace(expected, content="")


def test_debris_on_mostly_empty_glass(tmp_path):
    tissue = simulate(1024, 1024, 1, empty_fraction=0.7)[0] // 16
    clean = survey(tmp_path, tissue).bounds
    dirty = survey(tmp_path, put_specks(tissue, 100, 6, 50)[0]).bounds
    assert dirty.above is not None
    assert dirty.high == pytest.approx(clean.high, rel=0.1)


def test_debris_can_be_kept(tmp_path):
    dirty, _ = put_specks(tissue(0), 160, 6, 20)
    kept = survey(tmp_path, dirty, mask_debris=False).bounds
    masked = survey(tmp_path, dirty).bounds
    assert kept.reach_px == 0
    assert kept.high > 10 * masked.high
    slide = write(tmp_path, dirty)
    noted = [
        build_plan(slide, SETTINGS.model_copy(update={"mask_debris": mask})).notes
        for mask in (True, False)
    ]
    assert "taken for debris" in noted[0][0]
    assert f"in {masked.debris_fraction:.2%} of the blocks" in noted[0][0]
    assert not any("debris" in note for note in noted[1])


def test_what_is_masked_is_0_with_what_is_beside_it():
    pixels = np.full((40, 50), 10, np.uint16)
    pixels[20, 30], pixels[5, 5] = 1000, 0
    seen = normalize(pixels, ChannelBounds(0, "M", 5.0, 15.0, 1.0, 0, above=100.0, dead=1.0))
    expected = np.full(pixels.shape, 0.5, np.float32)
    expected[18:23, 28:33] = 0
    expected[3:8, 3:8] = 0
    np.testing.assert_array_equal(seen, expected)


VIEWS = {
    "tissue": read_network_input,
    "bright": partial(read_network_input, bright=True),
    "where": find_bright_cells,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("pixel_size", [0.5, 0.33, 0.9])
def test_the_network_sees_the_same_whatever_region_is_read(tmp_path, pixel_size, view):
    dirty = put_specks(tissue(1), 400, 6, 4)[0]
    dirty = put_cells(dirty, 8, counts=6000, seed=5)[100:400, 100:440]
    plan = build_plan(
        write(tmp_path, dirty), SETTINGS.model_copy(update={"pixel_size": pixel_size})
    )
    bounds = plan.membrane[0]
    assert bounds.bright is not None
    see = VIEWS[view]
    height, width = plan.network_shape
    whole = see(plan, Region(0, 0, height, width))
    rng = np.random.default_rng(0)
    for _ in range(40):
        y, x = sorted(rng.integers(0, height + 1, 2)), sorted(rng.integers(0, width + 1, 2))
        part = Region(y[0], x[0], y[1], x[1])
        np.testing.assert_array_equal(see(plan, part), whole[..., *part.slices])


def test_the_inside_of_a_bright_cell_is_shown_with_its_rim():
    pixels = np.full((60, 60), 10, np.uint16)
    y, x = np.mgrid[:60, :60]
    distance = np.hypot(y - 30, x - 30)
    pixels[(distance > 6) & (distance < 9)] = 1000
    bounds = ChannelBounds(
        0, "M", 5.0, 15.0, 1.0, 0, bright=100.0, bright_peak=1000.0, bright_fill_px=8
    )
    where = find_bright(pixels, bounds)
    assert where[distance < 11].all()
    assert not where[distance > 14].any()
    tissue, bright = normalize(pixels, bounds), normalize_bright(pixels, bounds)
    assert (tissue[30, 37], tissue[30, 30], tissue[0, 0]) == (0, 0.5, 0.5)
    assert bright[30, 37] == pytest.approx(1)
    assert 0 < bright[30, 30] < 0.1
    # A channel without such cells has one view.
    plain = replace(bounds, bright=None)
    np.testing.assert_array_equal(normalize_bright(pixels, plain), normalize(pixels, plain))
    assert not find_bright(pixels, plain).any()


def test_only_patches_with_rare_bright_cells_are_evaluated_twice(tmp_path, monkeypatch):
    counts = []
    evaluate = predict.evaluate_patches
    monkeypatch.setattr(
        predict,
        "evaluate_patches",
        lambda b, some: (counts.append(len(some)), evaluate(b, some))[1],
    )
    pixels = simulate(SIDE, SIDE, 1)[0] // 40 + np.uint16(100)
    pixels[100:140, 300:340] = put_cells(pixels[100:140, 300:340], 1, counts=2500)
    result, _ = run(tmp_path, pixels, "a")
    assert result.report["plan"]["membrane"][0]["bright"] is not None
    plan = build_plan(write(tmp_path, pixels), SETTINGS)
    cores = [plan.lattice.cores[index] for index in plan.lattice.cores]
    twice = sum(bool(find_bright_cells(plan, core).any()) for core in cores)
    assert 1 <= twice <= 4
    assert result.report["bright_patches"] == twice
    assert sum(counts) == plan.network_patches + twice


@pytest.mark.parametrize("times", [20, 80])
def test_labels_of_a_slide_with_debris_do_not_depend_on_tiles(tmp_path, times):
    dirty = put_discs(tissue(2), times, 12, 10)[0]
    bounds = survey(tmp_path, dirty).bounds
    assert (bounds.bright is None, bounds.above is None) == (times == 80, times == 20)
    slide = write(tmp_path, dirty)
    labels = []
    for tile, workers in ((64, 0), (300, 0), (2048, 2)):
        out = tmp_path / f"{tile}"
        options = {"tile": tile, "workers": workers, "image": "none"}
        result = segment(slide, out, SETTINGS.model_copy(update=options))
        labels.append(open_labels(result.labels)[:, :])
        assert result.cells > 100
    assert all(np.array_equal(labels[0], other) for other in labels[1:])


@pytest.mark.parametrize("value", [0, 65535])
def test_glass_with_an_odd_area_is_left_as_it_was(tmp_path, value):
    """Without tissue there is nothing that debris could be told from."""
    noise = np.random.default_rng(0).normal(300, 20, (SIDE, SIDE)).astype(np.uint16)
    check_clean(tmp_path, put_area(noise, value)[0])


def test_dead_pixels_are_of_one_value_far_below(tmp_path):
    pixels = tissue(0, 3000)
    assert survey(tmp_path, put_area(pixels, 0)[0]).bounds.dead == 0
    # Glass beside bright tissue is dark too, and its pixels differ.
    glass = np.random.default_rng(0).normal(300, 10, pixels.shape).astype(np.uint16)
    pixels = np.where(np.arange(SIDE) < 100, glass, pixels).astype(np.uint16)
    assert survey(tmp_path, pixels).bounds.dead is None
    assert survey(tmp_path, tissue(0)).bounds.dead is None
