"""Pixels in blocks end where a plain loop over single pixels ends, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densebatch.tracing.follow import follow
from densebatch.tracing.follow_plain import DROPPED, Bounds, follow_plainly


def check(flows, foreground, bounds, iterations, limit):
    ends, travel = follow(flows, foreground, bounds, iterations, limit)
    expected, far = follow_plainly(flows, foreground, bounds, iterations, limit)
    assert ends.dtype == expected.dtype
    assert travel.dtype == far.dtype
    assert np.array_equal(ends, expected)
    # what is caught counts the far side of its square; what is lost is not caught
    most = np.where(expected != DROPPED, np.maximum(far, np.minimum(far + 1, limit)), far)
    assert ((far <= travel) & (travel <= most)).all()
    assert (travel[~foreground] == 0).all()
    return ends, travel


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    smooth=st.sampled_from([0.0, 2.0, 6.0]),
    strength=st.sampled_from([0.3, 1.0, 4.0]),
    iterations=st.sampled_from([0, 1, 7, 8, 9, 63, 64, 65, 72, 73, 200]),
    limit=st.sampled_from([3.0, 256.0]),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    cut=st.tuples(*[st.sampled_from([0, 5])] * 4),
)
def test_against_a_plain_loop(seed, shape, smooth, strength, iterations, limit, share, cut):
    """Rough fields cycle and settle, smooth ones travel; the window may be cut from a slide."""
    rng = np.random.default_rng(seed)
    flows = rng.normal(size=(*shape, 2))
    if smooth:
        flows = ndimage.gaussian_filter(flows, (smooth, smooth, 0))
    flows = (strength * flows / max(np.abs(flows).max(), 1e-9)).astype(np.float32)
    foreground = rng.random(shape) < share
    bounds = Bounds(-cut[0], -cut[1], shape[0] - 1 + cut[2], shape[1] - 1 + cut[3])
    check(flows, foreground, bounds, iterations, limit)


def test_more_pixels_than_a_block_holds_and_all_that_can_happen():
    """Pixels that arrive, cycle to the last step, leave the window and go beyond the limit."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:90, :90].astype(np.float32)
    centre = np.stack([np.round(y / 30) * 30 - y, np.round(x / 30) * 30 - x], -1)
    flows = centre / np.maximum(np.linalg.norm(centre, axis=-1, keepdims=True), 1e-3)
    flows[:30] = [0.0, 1.0]  # away, to the right
    flows[60:] += rng.normal(0, 0.5, (30, 90, 2))
    flows = flows.astype(np.float32)
    ends, travel = check(flows, np.ones((90, 90), bool), Bounds(-10, -10, 99, 99), 200, 60.0)
    assert (ends == DROPPED).sum() > 1000
    assert (travel > 60).sum() > 500
    assert len(np.unique(ends[30:60])) < 300
    moving = follow(flows, np.ones((90, 90), bool), Bounds(-10, -10, 99, 99), 199, 60.0)[0]
    assert (moving != ends).sum() > 20  # the noisy ones do not rest


@settings(max_examples=150, deadline=None)
@given(
    inflow=st.lists(st.floats(0.00390625, 0.99609375, width=32), min_size=8, max_size=8),
    changed=st.lists(
        st.tuples(
            st.integers(0, 7),
            st.sampled_from([-1.0, -0.5, -0.0005, 0.0, 0.0005, 0.001, 0.0011, 0.999, 0.9995, 1.0]),
        ),
        max_size=2,
    ),
    room=st.tuples(*[st.integers(0, 2)] * 4),
    beyond=st.tuples(*[st.integers(0, 1)] * 4),
    outside=st.sampled_from([-0.7, 0.0, 0.3, 1.0]),
    limit=st.sampled_from([0.5, 1.0, 1.5, 256.0]),
)
def test_squares_that_catch_or_just_do_not(inflow, changed, room, beyond, outside, limit):
    """Flows into a square, some of them turned or too small or large, at all kinds of edges."""
    into = np.array(inflow)
    for place, value in changed:
        into[place] = value
    # (corner row, corner column, axis): the signs that lead inwards
    signs = np.ones((2, 2, 2))
    signs[1, :, 0] = signs[:, 1, 1] = -1
    top, left, bottom, right = room
    flows = np.full((top + 2 + bottom, left + 2 + right, 2), outside, np.float32)
    flows[top : top + 2, left : left + 2] = into.reshape(2, 2, 2) * signs
    height, width = flows.shape[:2]
    bounds = Bounds(-beyond[0], -beyond[1], height - 1 + beyond[2], width - 1 + beyond[3])
    check(flows, np.ones((height, width), bool), bounds, 200, limit)


def test_a_window_knows_what_the_whole_knows():
    """Ends and travel, which decides what is traced again, wherever a window begins."""
    rng = np.random.default_rng(3)
    flows = ndimage.gaussian_filter(rng.normal(size=(90, 110, 2)), (4, 4, 0))
    flows = (0.8 * flows / np.abs(flows).max()).astype(np.float32)
    bounds = Bounds(0, 0, 89, 109)
    ends, travel = follow(flows, np.ones((90, 110), bool), bounds, 200, 256.0)
    compared = 0
    for y0, x0, y1, x1 in [(0, 0, 60, 70), (13, 7, 90, 101), (30, 41, 88, 110)]:
        part = np.ascontiguousarray(flows[y0:y1, x0:x1])
        shifted = Bounds(-y0, -x0, 89 - y0, 109 - x0)
        found, distance = follow(part, np.ones(part.shape[:2], bool), shifted, 200, 256.0)
        known = found != DROPPED
        rows, cols = np.divmod(found[known], x1 - x0)
        assert ((rows + y0) * 110 + cols + x0 == ends[y0:y1, x0:x1][known]).all()
        assert (distance[known] == travel[y0:y1, x0:x1][known]).all()
        compared += known.sum()
    assert compared > 6000


def test_most_pixels_are_caught_before_they_settle():
    """Towards the middle of a square; what is caught counts the far side of it."""
    y, x = np.mgrid[:21, :21].astype(np.float32)
    flows = np.stack([9.5 - y, 9.5 - x], -1)
    flows /= 2 * np.maximum(np.linalg.norm(flows, axis=-1, keepdims=True), 1.0)
    ends, travel = check(flows, np.ones((21, 21), bool), Bounds(0, 0, 20, 20), 200, 256.0)
    assert (ends == 9 * 21 + 9).all()
    # else it would be the distance of the middle, or what was overshot
    assert (travel == np.maximum(np.ceil(abs(y - 9.5)), np.ceil(abs(x - 9.5)))).mean() > 0.9


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1024])
def test_blocks_of_any_filling(n):
    foreground = np.zeros((40, 40), bool)
    foreground.flat[:n] = True
    flows = np.zeros((40, 40, 2), np.float32)
    ends, travel = follow(flows, foreground, Bounds(0, 0, 39, 39), 200, 256.0)
    assert np.array_equal(ends.flat[:n], np.arange(n))
    assert (ends.flat[n:] == DROPPED).all()
    assert not travel.any()
