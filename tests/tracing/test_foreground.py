"""Widened halves are NumPy's, to the bit; what is not finite is found wherever it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densebatch.tracing.foreground import mask_flows

EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY_HALF[np.isfinite(EVERY_HALF)]


def field(dy, dx, logit, dtype):
    return np.stack(np.broadcast_arrays(dy, dx, logit)).astype(dtype).reshape(3, 1, -1)


def test_every_half():
    foreground, unit = mask_flows(field(FINITE, FINITE[::-1], 1, np.float16), 0.0)
    assert foreground.all()
    wide = FINITE.astype(np.float32)
    expected = np.stack([wide / np.float32(5), wide[::-1] / np.float32(5)], -1)[None]
    assert unit.tobytes() == expected.tobytes()


@pytest.mark.parametrize("threshold", [0.0, -1.5, 2.0])
def test_the_threshold_of_every_half(threshold):
    foreground, unit = mask_flows(field(5, -5, FINITE, np.float16), threshold)
    assert (foreground[0] == (threshold < FINITE)).all()
    assert (unit[foreground] == [1, -1]).all()
    assert (unit[~foreground] == 0).all()


def test_singles_and_halves_agree():
    flows = np.random.default_rng(0).normal(0, 4, (3, 40, 57)).astype(np.float16)
    for found, expected in zip(
        mask_flows(flows, 0.3), mask_flows(flows.astype(np.float32), 0.3), strict=True
    ):
        assert found.tobytes() == expected.tobytes()


def test_processors_that_take_subnormal_numbers_for_zero():
    """As PyTorch can tell them to; the smallest halves are no less exact for it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot be told")
    try:
        foreground, unit = mask_flows(field(FINITE, 0, FINITE, np.float16), 0.0)
    finally:
        torch.set_flush_denormal(False)
    assert (foreground[0] == (FINITE > 0)).all()
    assert (
        unit[0, :, 0] == np.where(FINITE > 0, FINITE.astype(np.float32) / np.float32(5), 0)
    ).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("plane", [0, 1, 2])
def test_what_is_not_finite_is_refused(dtype, value, plane):
    flows = np.full((3, 5, 33), -1, dtype)
    flows[plane, 3, 32] = value
    with pytest.raises(ValueError, match="not finite"):
        mask_flows(flows, 0.0)
