"""The CUDA backend on a GPU; what of it runs on a CPU is in `test_backend`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densebatch.engines.backend import evaluate_patches
from densebatch.engines.cuda import CudaBackend
from densebatch.engines.pytorch import TorchBackend
from densebatch.models.network import HALF_WIDTH
from tests.helpers.networks import CLOSE, SHAPE, make_patches, relative_rms, trained


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_on_a_gpu(precision, compiled):
    patches = make_patches()
    network = trained(HALF_WIDTH)
    cpu = evaluate_patches(TorchBackend(network, SHAPE, "f32", 1), patches)
    device = CudaBackend(network, SHAPE, precision, 3, compiled=compiled)
    found = evaluate_patches(device, patches)
    assert relative_rms(found, cpu) < CLOSE[precision]
    assert np.array_equal(evaluate_patches(device, patches[::-1])[::-1], found)
