"""Small networks and checkpoints for tests."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.models.model import find_model, save_model
from densebatch.models.network import CPnet

WIDTHS = (2, 4, 8)
USE = {
    "um_per_px": 0.5,
    "patch_px": 96,
    "margin_px": 8,
    "percentiles": [1.0, 99.0],
    "nuclei": True,
}


class Bomb:
    """Pickled, it is a call; loaded carelessly, the call is made."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def make_network(widths=WIDTHS, seed=0, diam_mean=15.0):
    """With weights and running statistics as after training, so that every tensor counts."""
    generator = torch.Generator().manual_seed(seed)
    network = CPnet(widths, diam_mean=diam_mean)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data.uniform_(-0.3, 0.3, generator=generator)
    return network.eval()


def make_state(**changes):
    """A checkpoint's tensors; None takes one away."""
    state = OrderedDict(make_network().state_dict())
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    return OrderedDict((k, v) for k, v in state.items() if v is not None)


def save(network, path, **changes):
    """Write a network as a model file, by default of the use that `USE` tells."""
    card = {"name": "test", "recipe": {"seed": 0}}
    save_model(network, path, **(USE | {"card": card} | changes))
    return path


def outputs(network, seed=0, shape=(2, 2, 48, 64)):
    """What a network gives for a random input."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return network(x)


def refusal(path):
    """The sentence with which a file is refused, before any network is built from it."""
    with pytest.raises(InputError) as caught:
        find_model(str(path))
    message = str(caught.value)
    assert message.startswith(f"model {path}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message.removeprefix(f"model {path}: ")
