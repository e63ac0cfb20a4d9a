"""Optimisers: Muon's update against a singular value decomposition, and who gets which."""

from __future__ import annotations

import copy

import pytest
import torch

from densebatch.models.network import CPnet
from densebatch.training.optimisers import Muon, build_optimisers, orthogonalize
from densebatch.training.recipe import Recipe


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (8, 8)])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-4), (torch.bfloat16, 0.05)])
def test_singular_values_come_near_one_and_vectors_stay(shape, dtype, off):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix, dtype)
    assert result.dtype == torch.float32
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    along = u.T @ result @ v.T
    values = torch.diagonal(along)
    # values that start very small need more rounds; those here are within the iteration's reach
    assert values.min() > 0.5
    assert values.max() < 1.3
    torch.testing.assert_close(along, torch.diag(values), atol=off, rtol=0)


def test_update_is_decay_plus_orthogonal_step():
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3, generator=generator))
    before = weight.detach().clone()
    weight.grad = torch.randn(8, 4, 3, 3, generator=generator)
    # first step: momentum is 0.05 g, looked ahead 0.05 g + 0.95 (0.05 g), a multiple of g
    direction = orthogonalize(weight.grad.reshape(8, 36)).reshape(weight.shape)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 36**0.5 * direction
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-4)
    rms = (0.2 * 36**0.5 * direction).square().mean().sqrt()
    assert rms == pytest.approx(0.2, rel=0.25)


def test_weights_of_one_shape_are_updated_as_if_alone():
    """However different their gradients are, over several steps."""
    torch.manual_seed(2)
    start = [torch.randn(8, 4, 3, 3) for _ in range(3)] + [torch.randn(4, 8, 3, 3)]
    together, apart = ([torch.nn.Parameter(w.clone()) for w in start] for _ in range(2))
    optimisers = [Muon(together, lr=0.1, weight_decay=0.1)]
    optimisers += [Muon([w], lr=0.1, weight_decay=0.1) for w in apart]
    for _ in range(3):
        for k, (one, other) in enumerate(zip(together, apart, strict=True)):
            one.grad = torch.randn(one.shape) * 10.0 ** (3 * k - 4)
            other.grad = one.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_weight_has_one_optimiser(name):
    network = CPnet((2, 8, 16, 32))
    optimisers = build_optimisers(network, Recipe(optimiser=name))
    owned = [id(p) for o in optimisers for g in o.param_groups for p in g["params"]]
    assert sorted(owned) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    if name == "muon":
        matrices = [p for g in optimisers[1].param_groups for p in g["params"]]
        assert all(p.ndim == 4 for p in matrices)
        ends = {id(network.output[2].weight), id(network.downsample.down[0].proj[1].weight)}
        assert not ends & {id(p) for p in matrices}
        assert len(matrices) > 20


def test_momentum_survives_a_checkpoint():
    weight = torch.nn.Parameter(torch.eye(4))
    first = Muon([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.arange(16.0).reshape(4, 4)
    first.step()
    twin = torch.nn.Parameter(weight.detach().clone())
    second = Muon([twin], lr=0.1, weight_decay=0.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for parameter in (weight, twin):
        parameter.grad = torch.ones(4, 4)
    first.step()
    second.step()
    assert torch.equal(weight, twin)
