"""Tracing on a device gives the bits of tracing on a CPU; here PyTorch's CPU is the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.device import DeviceDynamics
from densebatch.tracing.diffusion import compute_flows
from densebatch.tracing.dynamics import CpuDynamics
from densebatch.tracing.follow import follow
from densebatch.tracing.follow_plain import DROPPED, Bounds
from densebatch.tracing.tile import TraceSettings, trace_tile
from tests.helpers.candidate_cells import tabulate

# the code of a device, on a CPU; and on a GPU where there is one
DEVICES = [
    "cpu:0",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    ),
]


def make_flows(seed, shape, smooth, strength):
    """Noise, or up the slopes of smooth hills, where squares catch."""
    rng = np.random.default_rng(seed)
    if smooth:
        hills = ndimage.gaussian_filter(rng.normal(size=(shape[0] + 1, shape[1] + 1)), smooth)
        flows = np.stack([np.diff(hills, axis=0)[:, 1:], np.diff(hills, axis=1)[1:]], axis=-1)
    else:
        flows = rng.normal(size=(*shape, 2))
    return (strength * flows / max(np.abs(flows).max(), 1e-9)).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    smooth=st.sampled_from([0.0, 2.0, 6.0]),
    strength=st.sampled_from([0.3, 1.0, 4.0]),
    iterations=st.sampled_from([0, 1, 7, 8, 9, 63, 64, 65, 200]),
    limit=st.sampled_from([0.5, 3.0, 256.0]),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    cut=st.tuples(*[st.sampled_from([0, 5])] * 4),
)
def test_ends_and_travel(device, seed, shape, smooth, strength, iterations, limit, share, cut):
    """Rough fields cycle and settle, smooth ones travel; the window may be cut from a slide."""
    flows = make_flows(seed, shape, smooth, strength)
    foreground = np.random.default_rng(seed + 1).random(shape) < share
    bounds = Bounds(-cut[0], -cut[1], shape[0] - 1 + cut[2], shape[1] - 1 + cut[3])
    expected = CpuDynamics(flows).follow(foreground, bounds, iterations, limit)
    found = DeviceDynamics(flows, device).follow(foreground, bounds, iterations, limit)
    for name, ours, theirs in zip(("ends", "travel"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs), name


def test_the_fields_hold_all_that_can_happen():
    """Or the test above shows little: who cycles, leaves the window, goes too far, is caught."""
    flows = make_flows(0, (60, 60), 0.0, 4.0)
    foreground = np.ones((60, 60), bool)
    bounds = Bounds(-5, -5, 64, 64)
    ends, travel = follow(flows, foreground, bounds, 200, 256.0)
    assert (ends != follow(flows, foreground, bounds, 199, 256.0)[0]).sum() > 100
    assert ((ends == DROPPED) & (travel < 256)).sum() > 100
    assert (follow(flows, foreground, bounds, 200, 3.0)[1] > 3).sum() > 100
    calm = make_flows(0, (60, 60), 2.0, 1.0)
    travel = follow(calm, foreground, bounds, 200, 256.0)[1]
    assert ((travel == np.round(travel)) & (travel > 0)).sum() > 100  # the far side of a square


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    coarse=st.integers(1, 24),
    n_labels=st.integers(1, 9),
)
def test_flow_errors(device, seed, shape, coarse, n_labels):
    """Of cells that touch, lie in pieces, reach the window's edge, are single pixels or absent."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, n_labels + 1, (70 // coarse + 1, 70 // coarse + 1))
    labels = np.kron(blocks, np.ones((coarse, coarse), int))[: shape[0], : shape[1]]
    labels[rng.random(shape) < 0.1] = 0
    labels = labels.astype(np.int32)
    flows = make_flows(seed, shape, 2.0, 1.0)
    cells = tabulate(labels, rng.choice([-1, 0, 1, 1], n_labels), n_labels)
    found = DeviceDynamics(flows, device).measure_errors(labels, cells)
    expected = CpuDynamics(flows).measure_errors(labels, cells)
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


def make_field(seed, size):
    """Flows at five times unit length and logits of simulated tissue, with noise, as float16."""
    ids = render(Tissue(size, size, seed=seed, stained_fraction=0.8), Region(0, 0, size, size))[1]
    labels = np.unique(ids, return_inverse=True)[1].reshape(ids.shape)
    field = np.empty((3, size, size), np.float32)
    field[:2] = 5.0 * compute_flows(labels)
    field[2] = np.where(labels > 0, 3.0, -3.0)
    noise = np.random.default_rng(seed).normal(size=field.shape)
    return (field + 2.0 * ndimage.gaussian_filter(noise, (0, 1, 1))).astype(np.float16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("flow_threshold", [0.4, 0.0])
def test_tiles(device, flow_threshold):
    flows = make_field(0, 384)
    limits = TraceSettings(flow_threshold=flow_threshold)
    window, core = Region(0, 0, 384, 384), Region(60, 70, 300, 384)
    how = (flows, window, core, (384, 400), limits)
    expected, found = trace_tile(*how), trace_tile(*how, device)
    assert expected.keys.size > 30
    assert (expected.n_rejected > 0) == (flow_threshold > 0)
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(found.keys, expected.keys)
    assert found.max_travel_px == expected.max_travel_px
    assert found.n_rejected == expected.n_rejected
