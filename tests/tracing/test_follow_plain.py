"""The plain loop, on fields whose ends are known without it."""

from __future__ import annotations

import numpy as np
import pytest

from densebatch.tracing.follow_plain import DROPPED, Bounds, follow_plainly


def follow_uniform(flow, shape, bounds, iterations=8, limit=256.0):
    flows = np.broadcast_to(np.float32(flow), (*shape, 2)).copy()
    return follow_plainly(flows, np.ones(shape, bool), Bounds(*bounds), iterations, limit)


def test_a_uniform_flow_moves_every_pixel_alike_up_to_the_slides_border():
    ends, travel = follow_uniform((0.0, 0.25), (3, 9), (0, 0, 2, 8))
    columns = np.minimum(np.arange(9) + 2, 8)
    assert np.array_equal(ends, np.arange(3)[:, None] * 9 + columns)
    assert np.array_equal(travel, np.broadcast_to(np.minimum(2, 8 - np.arange(9)), (3, 9)))


def test_who_needs_the_flow_of_a_pixel_outside_the_window_is_dropped():
    """The same window, but the slide goes on to the right of it and below."""
    ends, _ = follow_uniform((0.0, 0.25), (3, 9), (0, 0, 9, 20))
    assert np.array_equal(ends[:2, :7], np.arange(2)[:, None] * 9 + np.arange(2, 9))
    assert (ends[:2, 7:] == DROPPED).all()
    assert (ends[2] == DROPPED).all()  # a step interpolates towards the row below


def test_who_goes_beyond_the_limit_is_dropped_and_its_travel_told():
    ends, travel = follow_uniform((0.75, 0.0), (20, 2), (0, 0, 19, 1), limit=2.5)
    assert (ends[:17] == DROPPED).all()
    assert (travel[:17] == 3.0).all()
    assert (ends[17:] == 19 * 2 + np.arange(2)).all()


def test_a_position_between_pixels_takes_the_mean_of_four():
    rng = np.random.default_rng(0)
    flows = rng.uniform(-0.9, 0.9, (2, 2, 2)).astype(np.float32)
    flows[0, 0] = 0.25, 0.75
    bounds = Bounds(0, 0, 1, 1)
    foreground = np.array([[True, False], [False, False]])
    _, travel = follow_plainly(flows, foreground, bounds, 2, 256.0)
    weights = np.array([[0.75 * 0.25, 0.75 * 0.75], [0.25 * 0.25, 0.25 * 0.75]])
    step = (flows * weights[..., None]).sum((0, 1))
    second = np.clip(np.array([0.25, 0.75]) + step, 0, 1)
    assert travel[0, 0] == pytest.approx(max(0.75, *second), rel=1e-6)


def test_background_is_not_followed():
    foreground = np.zeros((4, 5), bool)
    ends, travel = follow_plainly(
        np.ones((4, 5, 2), np.float32), foreground, Bounds(0, 0, 3, 4), 9, 256.0
    )
    assert (ends == DROPPED).all()
    assert not travel.any()


def test_no_step_leaves_a_pixel_where_it_is():
    ends, travel = follow_uniform((0.9, -0.9), (4, 5), (0, 0, 3, 4), iterations=0)
    assert np.array_equal(ends, np.arange(20).reshape(4, 5))
    assert not travel.any()
