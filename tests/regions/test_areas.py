"""Areas hold the pixels whose centres lie in outlines, whichever window of a slide is asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.regions import areas as packing
from densebatch.regions.areas import pack_areas
from densebatch.regions.runs import Outline, draw_outlines, find_runs, settle, stretch_mask


def pack(runs, shape, n=9):
    return pack_areas(runs, shape, ["a"] * n, {"roi": ("r.geojson", "")})


def whole(shape):
    return Region(0, 0, *shape)


@st.composite
def drawings(draw):
    """A slide, and outlines that cross themselves and others and leave the slide."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(int(n) for n in rng.integers(1, 60, 2))
    outlines = [
        Outline("", tuple(rng.uniform(-15, 70, (rng.integers(3, 8), 2))
                          for _ in range(rng.integers(1, 3))))
        for _ in range(rng.integers(1, 5))
    ]  # fmt: skip
    return shape, outlines, rng


@settings(max_examples=60, deadline=None)
@given(drawings())
def test_pixels_are_those_of_another_programs_polygons(drawing):
    shape, outlines, rng = drawing
    values = rng.permutation(len(outlines))  # 0 clears
    expected = np.zeros(shape, np.int64)
    y, x = np.mgrid[: shape[0], : shape[1]]
    centres = np.column_stack([x.ravel() + 0.5, y.ravel() + 0.5])
    for value, outline in sorted(zip(values.tolist(), outlines, strict=True), reverse=True,
                                 key=lambda pair: pair[0]):  # fmt: skip
        inside = np.logical_xor.reduce([points_in_poly(centres, ring) for ring in outline.rings])
        expected[inside.reshape(shape)] = value
    runs = settle(draw_outlines(outlines, values.tolist(), shape))
    if not runs.row.size:
        assert not expected.any()
        return
    found = pack(runs, shape)
    np.testing.assert_array_equal(found.show(whole(shape)), expected)
    assert found.area_px == np.count_nonzero(expected)
    y, x = np.nonzero(expected)
    assert found.box == Region(y.min(), x.min(), y.max() + 1, x.max() + 1)
    for _ in range(10):
        (y0, y1), (x0, x1) = (sorted(rng.integers(-5, n + 5, 2).tolist()) for n in shape)
        window = Region(y0, x0, y1, x1)
        inside = window.clip(*shape)
        part = expected[inside.slices]
        assert found.count(window) == np.count_nonzero(part)
        assert found.touches(window) == part.any()
        if inside.area:
            np.testing.assert_array_equal(found.show(inside), part)
    side = int(rng.integers(1, 20))
    padded = np.pad(expected > 0, [(0, -n % side) for n in shape])
    rows, cols = (n // side for n in padded.shape)
    blocks = padded.reshape(rows, side, cols, side).sum((1, 3))
    np.testing.assert_array_equal(found.count_blocks(side), blocks)
    chosen = found.choose_blocks(side)
    assert chosen.any()
    assert not (chosen & (blocks == 0)).any()
    assert chosen[blocks == side * side].all()
    points = rng.uniform(-0.5, np.array(shape) - 0.5, (50, 2))
    at = np.floor(points + 0.5).astype(int)
    np.testing.assert_array_equal(found.find_at(*points.T), expected[tuple(at.T)])


def test_areas_that_share_edges_share_no_pixel_and_leave_none():
    """Also where edges run through the centres of pixels."""
    corners = np.array([[0, 0], [8, 0], [8, 6], [0, 6]], float)
    middle = np.array([[3.5, 2.5]])
    triangles = [
        Outline("", (np.concatenate([corners[[k, (k + 1) % 4]], middle]),)) for k in range(4)
    ]
    runs = draw_outlines(triangles, [1, 2, 3, 4], (6, 8))
    assert (runs.x1 - runs.x0).sum() == 48
    assert pack(settle(runs), (6, 8)).area_px == 48


@pytest.mark.parametrize("of", [(1, 1), (3, 5), (20, 31), (40, 7), (100, 90)])
def test_a_mask_is_stretched_by_the_centres_of_pixels(of):
    shape, rng = (40, 31), np.random.default_rng(3)
    mask = rng.random(of) < 0.5
    mask[of[0] // 2, of[1] // 2] = True
    y, x = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(shape, of, strict=True))
    expected = mask[y[:, None], x]
    runs = stretch_mask(find_runs(mask, 0), of, shape)
    found = pack(settle(runs), shape)
    np.testing.assert_array_equal(found.find_inside(whole(shape)), expected)


def test_equal_rows_are_kept_once():
    """So that a mask is small however far it is stretched."""
    mask = find_runs(np.random.default_rng(0).random((8, 8)) < 0.5, 0)
    small, large = (
        len(pack(settle(stretch_mask(mask, (8, 8), (n, n))), (n, n)).runs) for n in (80, 8000)
    )
    assert large < 2 * small


def test_noise_is_no_region(monkeypatch):
    monkeypatch.setattr(packing, "MOST_RUNS", 3)
    runs = find_runs(np.eye(4, dtype=bool), 0)
    with pytest.raises(InputError, match=r"r\.geojson: 4 runs of pixels are too ragged"):
        pack(runs, (4, 4))
