"""Where flows are unknown: labels elsewhere are those of the whole field, or marked as missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densebatch.base.geometry import Grid, Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.diffusion import compute_flows
from densebatch.tracing.foreground import Unknown
from densebatch.tracing.tile import TraceSettings, halo_for_travel, trace_tile

SHAPE = (240, 260)
WHOLE = Region(0, 0, *SHAPE)
LIMITS = TraceSettings(min_size_px=15, travel_limit_px=60)


def make_field(seed, noise):
    """The flow field of simulated tissue, with noise: some cells are rejected."""
    truth = render(Tissue(*SHAPE, seed=seed, stained_fraction=0.8), WHOLE)[1]
    field = np.empty((3, *SHAPE), np.float32)
    field[:2] = 5 * compute_flows(truth)
    field[2] = np.where(truth > 0, 3, -3)
    rng = np.random.default_rng(seed)
    field += noise * ndimage.gaussian_filter(rng.normal(size=field.shape), (0, 2, 2))
    speed = np.abs(field[:2]).max(axis=0)
    return (field * np.minimum(1, 9 / np.maximum(speed, 1e-6))).astype(np.float16)


FIELDS = {(seed, noise): make_field(seed, noise) for seed in (0, 1) for noise in (0, 8, 25)}


def trace(field, window, core, hole, travel):
    damaged = field[:, *window.slices].copy()
    pixels = hole[window.slices]
    damaged[:, pixels] = 0
    unknown = Unknown(pixels, travel) if pixels.any() else None
    return trace_tile(damaged, window, core, SHAPE, LIMITS, unknown=unknown)


def trace_whole(field, hole, travel=60):
    """Keys, 0 for background, and what is missing."""
    traced = trace(field, WHOLE, WHOLE, hole, travel)
    missing = np.zeros(SHAPE, bool) if traced.missing is None else traced.missing
    return np.concatenate([[-1], traced.keys])[traced.labels], missing


def close(missing):
    """Pixels that a doubtful cell around them might fill; in a run, `stages.missing` adds them."""
    return ndimage.binary_fill_holes(missing)


@st.composite
def holes(draw):
    hole = np.zeros(SHAPE, bool)
    for _ in range(draw(st.integers(1, 3))):
        y, x = draw(st.integers(0, SHAPE[0] - 1)), draw(st.integers(0, SHAPE[1] - 1))
        hole[y : y + draw(st.integers(1, 90)), x : x + draw(st.integers(1, 90))] = True
    return hole


@given(st.sampled_from(sorted(FIELDS)), holes())
@settings(max_examples=60, deadline=None)
def test_what_is_not_missing_is_as_without_the_hole(which, hole):
    field = FIELDS[which]
    expected, _ = trace_whole(field, np.zeros(SHAPE, bool))
    found, missing = trace_whole(field, hole)
    assert missing[hole].all()
    assert (found[missing] == -1).all()
    rest = ~(missing | (close(missing) & (found == -1)))
    assert np.array_equal(found[rest], expected[rest])


@given(
    st.sampled_from(sorted(FIELDS)), holes(), st.integers(30, 140), st.sampled_from([16, 32, 48])
)
@settings(max_examples=40, deadline=None)
def test_what_is_missing_does_not_depend_on_tiles(which, hole, side, travel):
    """If no pixel travels further than the halo allows for, and no unknown one might."""
    field = FIELDS[which]
    whole = trace(field, WHOLE, WHOLE, hole, 60)
    travel = max(travel, int(np.ceil(whole.max_travel_px)))
    grid = Grid(*SHAPE, side, side)
    keys = np.full(SHAPE, -1, np.int64)
    missing = np.zeros(SHAPE, bool)
    for index in grid:
        core = grid[index]
        window = core.expand(halo_for_travel(travel)).clip(*SHAPE)
        traced = trace(field, window, core, hole, travel)
        assert traced.max_travel_px <= travel
        keys[core.slices] = np.concatenate([[-1], traced.keys])[traced.labels]
        if traced.missing is not None:
            missing[core.slices] = traced.missing
    expected = trace_whole(field, hole)
    np.testing.assert_array_equal(missing, expected[1])
    np.testing.assert_array_equal(keys, expected[0])


@pytest.mark.parametrize("noise", [0, 8])
def test_a_hole_costs_no_more_than_the_cells_that_it_cuts(noise):
    field = FIELDS[0, noise]
    hole = np.zeros(SHAPE, bool)
    hole[80:160, 90:170] = True
    expected, _ = trace_whole(field, np.zeros(SHAPE, bool))
    _, missing = trace_whole(field, hole)
    cut = np.isin(expected, np.unique(expected[ndimage.binary_dilation(hole, iterations=3)]))
    cut &= expected >= 0
    assert missing.sum() < 1.15 * (hole | cut).sum()


def test_a_hole_far_from_any_cell_costs_itself():
    field = np.zeros((3, *SHAPE), np.float16)
    field[2] = -3
    hole = np.zeros(SHAPE, bool)
    hole[30:50, 40:60] = True
    found, missing = trace_whole(field, hole)
    assert np.array_equal(missing, hole)
    assert (found == -1).all()


def test_far_known_flow_that_leads_on_is_reported():
    """A road away from the hole, longer than the halo allows for: its tile is traced again."""
    field = np.zeros((3, *SHAPE), np.float16)
    field[2] = -3
    field[1, 100:110, 60:130] = 5
    field[2, 100:110, 60:130] = 3
    hole = np.zeros(SHAPE, bool)
    hole[90:120, 40:60] = True
    assert trace(field, WHOLE, WHOLE, hole, 16).max_travel_px > 16
    assert trace(field, WHOLE, WHOLE, hole, 100).max_travel_px < 100
