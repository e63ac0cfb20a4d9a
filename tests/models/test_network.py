"""Our CPnet against cellpose 3.1.1.3's: same names, same outputs."""

from __future__ import annotations

import pytest
import torch

from densebatch.models.network import FULL_WIDTH, HALF_WIDTH, CPnet

stock = pytest.importorskip("cellpose.resnet_torch")


def _randomise(network: torch.nn.Module) -> None:
    """Weights and running statistics as after training, so that every term counts."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)


@pytest.mark.parametrize("widths", [FULL_WIDTH, HALF_WIDTH])
@pytest.mark.parametrize("shape", [(2, 2, 224, 224), (1, 2, 64, 136)])
def test_outputs_equal_stock(widths, shape):
    torch.manual_seed(0)
    reference = stock.CPnet(list(widths), 3, sz=3)
    _randomise(reference)
    ours = CPnet(widths)
    assert not any(ours.load_state_dict(reference.state_dict()))
    x = torch.rand(shape)
    with torch.inference_mode():
        expected = reference.eval()(x)[0]
        found = ours.eval()(x)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_checkpoint_of_stock_round_trips(tmp_path):
    torch.manual_seed(1)
    reference = stock.CPnet(list(FULL_WIDTH), 3, sz=3)
    reference.save_model(tmp_path / "stock")
    ours = CPnet(FULL_WIDTH)
    ours.load_state_dict(torch.load(tmp_path / "stock", weights_only=True))
    torch.save(ours.state_dict(), tmp_path / "ours")
    again = stock.CPnet(list(FULL_WIDTH), 3, sz=3)
    again.load_model(tmp_path / "ours")
    x = torch.rand(1, 2, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), again.eval()(x)[0], atol=1e-5, rtol=0)
