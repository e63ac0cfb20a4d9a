"""PyTorch on a CPU: what is cast, and the threads that it borrows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from densebatch.engines.pytorch import TorchBackend, cast_network
from tests.helpers.networks import SHAPE, trained


def test_norms_stay_in_float32():
    network = trained((2, 8, 16))
    cast = cast_network(network, "bf16")
    norms = [m for m in cast.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in cast.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {p.dtype for m in norms for p in m.parameters()} == {torch.float32}
    assert {p.dtype for m in others for p in m.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_threads_are_given_back_after_a_failure():
    backend = TorchBackend(trained((2, 8, 16)), SHAPE, "f32", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(RuntimeError, match="running_mean"):
            backend.evaluate(np.zeros((1, 5, 80, 64), np.float32))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
