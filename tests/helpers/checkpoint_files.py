"""Small networks and checkpoints for tests."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

from densebatch.models.network import CPnet

WIDTHS = (2, 4, 8)


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
