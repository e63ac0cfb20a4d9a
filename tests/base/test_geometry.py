from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from densebatch.base.geometry import Axis, Grid, Lattice, Region, fit_axis

PATCH, MARGIN, MULTIPLE = 224, 8, 16

sides = st.integers(1, 40)
offsets = st.integers(-20, 50)


@st.composite
def regions(draw):
    y, x = (sorted(draw(st.tuples(offsets, offsets))) for _ in range(2))
    return Region(y[0], x[0], y[1], x[1])


grids = st.builds(Grid, sides, sides, st.integers(1, 50), st.integers(1, 50))


def pixels(region):
    """Every pixel of a region, the slow way to say what a region is."""
    return {(y, x) for y in range(region.y0, region.y1) for x in range(region.x0, region.x1)}


def slide_pixels(height, width):
    return pixels(Region(0, 0, height, width))


# Region


@pytest.mark.parametrize("bounds", [(3, 0, 2, 5), (0, 5, 9, 4)])
def test_region_that_ends_before_it_begins_is_refused(bounds):
    with pytest.raises(ValueError, match="region ends before it begins"):
        Region(*bounds)


@given(regions())
def test_sizes_of_a_region(region):
    assert region.shape == (region.height, region.width)
    assert region.area == len(pixels(region))


@given(regions(), sides, sides)
def test_clip_keeps_what_is_inside(region, height, width):
    clipped = region.clip(height, width)
    assert pixels(clipped) == pixels(region) & slide_pixels(height, width)
    # even an empty result is a place in the slide
    assert 0 <= clipped.y0 <= clipped.y1 <= height
    assert 0 <= clipped.x0 <= clipped.x1 <= width


@given(regions(), regions())
def test_intersect_is_what_both_have(a, b):
    common = a.intersect(b)
    shared = pixels(a) & pixels(b)
    # never an empty region
    assert common is None if not shared else pixels(common) == shared
    assert common == b.intersect(a)


@given(regions(), st.integers(0, 5), st.integers(-9, 9), st.integers(-9, 9))
def test_expand_and_shift(region, margin, dy, dx):
    assert pixels(region.shift(dy, dx)) == {(y + dy, x + dx) for y, x in pixels(region)}
    grown = region.expand(margin)
    assert grown.shape == (region.height + 2 * margin, region.width + 2 * margin)
    assert (grown.y0 + margin, grown.x0 + margin) == (region.y0, region.x0)
    assert grown.expand(-margin) == region


@given(regions(), sides, sides)
def test_slices_cut_the_region_from_an_image(region, height, width):
    inside = region.clip(height, width)
    image = np.arange(height * width).reshape(height, width)
    expected = {int(image[y, x]) for y, x in pixels(inside)}
    assert set(image[inside.slices].ravel().tolist()) == expected


# Grid


@given(grids)
def test_grid_is_a_partition(grid):
    owner = np.zeros((grid.height, grid.width), int)
    for index in grid:
        region = grid[index]
        assert region.area > 0
        assert region.height <= grid.step_y
        assert region.width <= grid.step_x
        owner[region.slices] += 1
    assert (owner == 1).all()
    assert len(grid) == len(list(grid)) == grid.rows * grid.cols


@given(grids)
def test_grid_is_anchored_at_the_origin(grid):
    for row, col in grid:
        assert (grid[row, col].y0, grid[row, col].x0) == (row * grid.step_y, col * grid.step_x)
    assert list(grid) == sorted(grid)


@given(grids, regions())
def test_overlapping_finds_what_shares_a_pixel(grid, region):
    wanted = [index for index in grid if pixels(grid[index]) & pixels(region)]
    assert list(grid.overlapping(region)) == wanted


@given(grids, st.tuples(st.integers(-60, 60), st.integers(-60, 60)))
def test_index_outside_a_grid_is_refused(grid, index):
    assume(index not in set(grid))
    with pytest.raises(IndexError, match="is outside a grid of"):
        grid[index]


@pytest.mark.parametrize("sizes", [(0, 5, 1, 1), (5, 0, 1, 1), (5, 5, 0, 1), (5, 5, 1, -2)])
def test_grid_without_pixels_is_refused(sizes):
    with pytest.raises(ValueError, match="a grid has positive sizes"):
        Grid(*sizes)


# lattice


def brute_force_axis(length, patch, margin, multiple):
    """The shortest patch that wastes little, else the least waste, by counting patch by patch."""
    found = []
    for size in range(patch, 3 * patch + 1):
        if size % multiple or size <= 2 * margin:
            continue
        n = 0
        while n * (size - 2 * margin) < length:
            n += 1
        found.append((n * size, size, n))
    frugal = [row for row in found if Fraction(row[0], length) <= Fraction(1072, 1000)]
    return min(frugal, key=lambda row: row[1]) if frugal else min(found, default=None)


@settings(max_examples=300)
@given(
    st.integers(1, 3000),
    st.sampled_from([24, 64, 96, 100, 224, 256]),
    st.integers(0, 30),
    st.sampled_from([1, 8, 16]),
)
def test_fit_axis_takes_the_shortest_frugal_patch(length, patch, margin, multiple):
    best = brute_force_axis(length, patch, margin, multiple)
    if best is None:
        with pytest.raises(ValueError, match=f"no multiple of {multiple} px from"):
            fit_axis(length, patch, margin, multiple)
        return
    axis = fit_axis(length, patch, margin, multiple)
    assert (axis.n * axis.patch, axis.patch, axis.n) == best
    assert axis.patch >= patch
    assert (axis.length, axis.margin) == (length, margin)


def test_fit_axis_refuses_an_axis_without_pixels():
    with pytest.raises(ValueError, match="an axis has at least one pixel, not 0"):
        fit_axis(0, PATCH, MARGIN, MULTIPLE)


axes = st.builds(
    fit_axis,
    st.integers(1, 700),
    st.sampled_from([64, 96]),
    st.integers(0, 15),
    st.sampled_from([8, 16]),
)


@given(axes)
def test_axis_covers_its_length_and_no_patch_is_idle(axis):
    covered = [k * axis.step + i for k in range(axis.n) for i in range(axis.step)]
    assert covered == list(range(axis.n * axis.step))
    assert (axis.n - 1) * axis.step < axis.length <= axis.n * axis.step


@settings(max_examples=60)
@given(axes, axes)
def test_lattice_cores_partition_and_patches_hold_them_with_margins(y, x):
    lattice = Lattice(y, x)
    owner = np.zeros((y.length, x.length), int)
    for row, col in lattice.cores:
        core, patch = lattice.cores[row, col], lattice.patch(row, col)
        owner[core.slices] += 1
        assert patch.shape == (y.patch, x.patch)
        assert patch.area == lattice.patch_area
        assert (core.y0 - patch.y0, core.x0 - patch.x0) == (y.margin, x.margin)
        # the last core is cut at the slide's edge, the patch is not
        assert patch.y1 - core.y1 >= y.margin
        assert patch.x1 - core.x1 >= x.margin
    assert (owner == 1).all()
    assert (lattice.cores.rows, lattice.cores.cols) == (y.n, x.n)


def test_lattice_does_not_depend_on_the_other_axis():
    y = fit_axis(1040, PATCH, MARGIN, MULTIPLE)
    wide, narrow = (Lattice(y, Axis(n, 192, 8, -(-n // 176))) for n in (5000, 300))
    assert [wide.patch(r, 0) for r in range(y.n)] == [narrow.patch(r, 0) for r in range(y.n)]


def redundancy(side):
    axis = fit_axis(side, PATCH, MARGIN, MULTIPLE)
    return (axis.n * axis.patch / side) ** 2


def test_redundancy_of_square_slides():
    """Evaluated over covered pixels, for every side up to 20000 px."""
    ratios = {side: redundancy(side) for side in range(322, 20001)}
    assert max(ratios.values()) <= 1.2
    assert max(ratio for side, ratio in ratios.items() if side > 865) <= 1.15
    # a slide smaller than the model's own patch is one patch
    assert redundancy(100) == (PATCH / 100) ** 2


@pytest.mark.parametrize("shape", [(1040, 1392), (2080, 2784)])
def test_redundancy_of_the_fields(shape):
    """The slides that are compared with other tools."""
    y, x = (fit_axis(side, PATCH, MARGIN, MULTIPLE) for side in shape)
    evaluated = len(Lattice(y, x).cores) * Lattice(y, x).patch_area
    assert evaluated / (shape[0] * shape[1]) <= 1.13
