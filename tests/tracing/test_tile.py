"""What the parts of tracing do not promise alone: numbers, keys, counts and errors of a tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from densebatch.base.geometry import Grid, Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.diffusion import compute_flows
from densebatch.tracing.tile import TraceSettings, halo_for_travel, trace_tile

SLIDE = (1000, 2000)
ALL = TraceSettings(flow_threshold=0.0, min_size_px=0)


def make_field(labels):
    """The flow field that a network ought to give."""
    field = np.empty((3, *labels.shape), np.float32)
    field[:2] = 5 * compute_flows(labels)
    field[2] = np.where(labels > 0, 3, -3)
    return field


def draw_discs(shape, centres, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, np.int32)
    for label, (cy, cx) in enumerate(centres, 1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = label
    return labels


CENTRES = [(20, 20), (20, 60), (60, 30), (70, 70)]
DISCS = draw_discs((90, 90), CENTRES, 9)
WINDOW = Region(300, 1700, 390, 1790)


@pytest.fixture(scope="module")
def tissue():
    """Flows of a simulated slide with noise: some cells are rejected, some pixels stray."""
    truth = render(Tissue(240, 260, seed=1, stained_fraction=0.8), Region(0, 0, 240, 260))[1]
    field = make_field(truth)
    noise = np.random.default_rng(0).normal(size=field.shape)
    return field + 8 * ndimage.gaussian_filter(noise, (0, 2, 2)).astype(np.float32)


def test_a_disc_is_one_cell_whose_key_is_the_place_of_its_seed():
    traced = trace_tile(make_field(DISCS), WINDOW, WINDOW, SLIDE, TraceSettings())
    assert traced.labels.dtype == np.uint32
    assert np.array_equal(traced.labels, DISCS)
    y, x = np.divmod(traced.keys, SLIDE[1])
    assert np.abs(np.stack([y - 300, x - 1700], 1) - CENTRES).max() <= 1
    assert traced.n_rejected == traced.dropped_px == 0
    assert 7 < traced.max_travel_px < 11


def test_cells_are_numbered_from_one_in_the_order_of_their_keys():
    """Those with a pixel in the core, wherever their seed is."""
    core = Region(300, 1750, 365, 1790)  # cuts the second disc, has no seed of the fourth
    traced = trace_tile(make_field(DISCS), WINDOW, core, SLIDE, TraceSettings())
    whole = trace_tile(make_field(DISCS), WINDOW, WINDOW, SLIDE, TraceSettings())
    assert np.array_equal(traced.keys, whole.keys[[1, 3]])
    expected = np.array([0, 0, 1, 0, 2])[DISCS[:65, 50:]]
    assert np.array_equal(traced.labels, expected)


def test_a_tile_without_cells():
    traced = trace_tile(np.zeros((3, 90, 90), np.float16), WINDOW, WINDOW, SLIDE, TraceSettings())
    assert traced.labels.shape == (90, 90)
    assert not traced.labels.any()
    assert traced.keys.shape == (0,)
    assert (traced.labels.dtype, traced.keys.dtype) == (np.uint32, np.int64)
    assert (traced.max_travel_px, traced.dropped_px, traced.n_rejected) == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("low", "high", "areas"),
    [
        (0, 1000, [113, 113, 441]),
        (100, 450, [113, 113, 441]),
        (150, 1000, [441]),
        (0, 300, [113, 113]),
        (200, 300, []),
    ],
)
def test_sizes_decide_who_is_kept(low, high, areas):
    discs = draw_discs((90, 90), CENTRES[:2], 6) + 3 * draw_discs((90, 90), [(65, 65)], 12)
    limits = replace(ALL, min_size_px=low, max_size_px=high)
    traced = trace_tile(make_field(discs), WINDOW, WINDOW, SLIDE, limits)
    assert np.bincount(traced.labels.ravel())[1:].tolist() == areas
    assert traced.n_rejected == 3 - len(areas)


def test_a_cell_whose_flows_disagree_with_its_shape_is_rejected():
    field = make_field(DISCS)
    field[:2, DISCS == 2] *= 0.3  # towards the seed still, but not at unit length
    traced = trace_tile(field, WINDOW, WINDOW, SLIDE, TraceSettings())
    assert (traced.keys.size, traced.n_rejected) == (3, 1)
    assert not traced.labels[DISCS == 2].any()
    everyone = trace_tile(field, WINDOW, WINDOW, SLIDE, ALL)
    assert (everyone.keys.size, everyone.n_rejected) == (4, 0)


def test_a_hole_of_a_cell_is_filled():
    field = make_field(DISCS)
    field[2, 70, 76] = -3
    field[:2, 70, 77:80] = -3.5  # around the hole, where the flow would end
    traced = trace_tile(field, WINDOW, WINDOW, SLIDE, TraceSettings())
    assert np.array_equal(traced.labels, DISCS)


def test_counts_of_tiles_add_up_to_those_of_the_slide(tissue):
    """Each rejected cell and each dropped pixel is one core's, and the furthest travel is known."""
    shape = tissue.shape[1:]
    whole = Region(0, 0, *shape)
    limits = TraceSettings(min_size_px=40, travel_limit_px=9)
    expected = trace_tile(tissue, whole, whole, shape, limits)
    assert expected.n_rejected > 10
    assert expected.dropped_px > 10
    grid = Grid(*shape, 77, 90)
    traced = []
    for index in grid:
        window = grid[index].expand(halo_for_travel(10)).clip(*shape)
        part = tissue[:, *window.slices]
        traced.append(trace_tile(part, window, grid[index], shape, limits))
    assert sum(tile.n_rejected for tile in traced) == expected.n_rejected
    assert sum(tile.dropped_px for tile in traced) == expected.dropped_px
    assert max(tile.max_travel_px for tile in traced) == expected.max_travel_px


def test_halves_and_singles_give_the_same_cells(tissue):
    shape = tissue.shape[1:]
    whole = Region(0, 0, *shape)
    halves = tissue.astype(np.float16)
    expected = trace_tile(halves, whole, whole, shape, TraceSettings())
    found = trace_tile(halves.astype(np.float32), whole, whole, shape, TraceSettings())
    assert expected.keys.size > 20
    assert found.keys.tobytes() == expected.keys.tobytes()
    assert found.labels.tobytes() == expected.labels.tobytes()


def test_a_value_that_is_not_finite_is_refused_with_its_window():
    field = np.zeros((3, 90, 90), np.float16)
    field[1, 3, 4] = np.nan
    with pytest.raises(
        ValueError, match=r"not finite in Region\(y0=300, x0=1700, y1=390, x1=1790\)"
    ):
        trace_tile(field, WINDOW, WINDOW, SLIDE, TraceSettings())
