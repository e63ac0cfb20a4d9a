"""Small networks with weights that show what is done with them, and patches to show them."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from densebatch.base.geometry import Region
from densebatch.engines.backend import PatchShape
from densebatch.models.model import find_model, load_network, save_model
from densebatch.models.network import CPnet
from densebatch.planning.settings import DEFAULT_MODEL

SHAPE = PatchShape(80, 64, Region(8, 8, 72, 56))
# relative RMS of the difference to float32 that rounding to each precision may cost
CLOSE = {"f32": 5e-4, "bf16": 3e-2}

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="the extra `cpu` is not installed"
)


def save_with_patches(path, patch_px):
    """The default network as a model of small patches, of which a small slide has several."""
    spec = find_model(DEFAULT_MODEL)
    save_model(
        load_network(spec), path, um_per_px=0.5, patch_px=patch_px, margin_px=2,
        percentiles=spec.percentiles, nuclei=False, card={},
    )  # fmt: skip


def trained(widths, seed=0):
    """A network whose every weight and statistic is far from its neutral value."""
    torch.manual_seed(seed)
    network = CPnet(widths)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(-1.5, 1.5)
            module.bias.data.normal_(0, 0.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.bias.data.normal_(0, 0.5)
    return network.eval()


def make_patches(n=5):
    """Noise, `(2, h, w)` float32 each."""
    return list(np.random.default_rng(0).random((n, 2, SHAPE.height, SHAPE.width), np.float32))


def relative_rms(found, expected):
    difference = found.astype(np.float64) - expected
    return np.sqrt(np.square(difference).mean() / np.square(expected, dtype=np.float64).mean())
