"""What every backend does with every network: its outputs, and a patch's bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from densebatch.engines.backend import evaluate_patches
from tests.helpers.networks import CLOSE, relative_rms


def check_trusted_part(backend, network, patches, kept, precision):
    """The outputs are the network's own in the part of each patch that is kept."""
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.stack(patches)))[:, :, *kept.slices].numpy()
    found = evaluate_patches(backend, patches)
    assert found.dtype == np.float16
    assert found.shape == (len(patches), 3, *kept.shape)
    assert relative_rms(found, expected) < CLOSE[precision]
    if precision == "bf16":
        assert relative_rms(found, expected) > CLOSE["f32"], "this was computed in float32"


def check_bits_stay(make, patches):
    """A patch's bits do not depend on lanes, company, order and threads; `make` takes lanes."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        alone = make(1)
        expected = evaluate_patches(alone, patches)
        beside = make(3)
        assert np.array_equal(evaluate_patches(beside, patches), expected)
        assert np.array_equal(evaluate_patches(beside, patches[::-1])[::-1], expected)
        assert np.array_equal(evaluate_patches(alone, patches[3:4]), expected[3:4])
        # as several tasks of one worker process
        with ThreadPoolExecutor(4) as pool:
            ones = list(pool.map(lambda p: evaluate_patches(beside, [p])[0], patches * 2))
        assert np.array_equal(ones, [*expected, *expected])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
