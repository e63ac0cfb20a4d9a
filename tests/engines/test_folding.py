"""The folded network is the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densebatch.engines.folding import fold_network
from densebatch.models.model import find_model, load_network
from densebatch.models.network import FULL_WIDTH, HALF_WIDTH, QUARTER_WIDTH, CPnet
from densebatch.planning.settings import DEFAULT_MODEL
from tests.helpers.networks import trained


def relative_difference(network, shape, dtype=torch.float32):
    x = torch.rand(shape, dtype=dtype)
    with torch.inference_mode():
        expected = network.to(dtype)(x)
        found = fold_network(network).to(dtype)(x)
    assert expected.std() > 1e-2
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("widths", [FULL_WIDTH, HALF_WIDTH, QUARTER_WIDTH, (2, 8, 16)])
@pytest.mark.parametrize("shape", [(1, 2, 64, 96), (2, 2, 32, 16)])
def test_outputs_are_the_networks(widths, shape):
    assert relative_difference(trained(widths), shape) < 1e-5


def test_the_bundled_networks_outputs_are_kept():
    assert relative_difference(load_network(find_model(DEFAULT_MODEL)), (1, 2, 96, 96)) < 1e-5


def test_the_algebra_is_exact():
    """With 53 bits the difference is that of the float32 weights: an error would be far larger."""
    assert relative_difference(trained((2, 8, 16, 24)), (1, 2, 64, 64), torch.float64) < 1e-6


def test_only_the_norms_that_have_to_stay_stay():
    """Of 41, 24 are folded, and 4 are one step with the addition of the style."""
    network = CPnet(FULL_WIDTH).eval()
    norms = [
        sum(isinstance(m, nn.BatchNorm2d) for m in n.modules())
        for n in (network, fold_network(network))
    ]
    assert norms == [41, 13]


def test_the_network_itself_is_left_alone():
    network = trained((2, 8, 16))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    folded = fold_network(network)
    assert torch.equal(torch.get_rng_state(), random)
    for tensor in folded.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        fold_network(CPnet((2, 8, 16)))
