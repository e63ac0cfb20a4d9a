"""Small Cellpose-SAM networks, and files of them as cellpose 4 saves its own."""

from __future__ import annotations

import torch

from densebatch.models.sam import CellposeSamNet
from densebatch.models.sam_sizes import SamSizes

SMALL = SamSizes(
    inputs=3, width=32, heads=4, hidden=64, neck=16, token_px=8, grid=8, depth=3, wide=31,
    narrow=9, every=3,
)  # fmt: skip
"""Patches of 64 px; blocks 0 and 1 know 9 relative positions, and 2 knows 31, of the patch's 15."""


def make_sam(sizes=SMALL, seed=0):
    """With weights as after training, so that every tensor counts."""
    generator = torch.Generator().manual_seed(seed)
    network = CellposeSamNet(sizes)
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if "norm" in name or "neck.1" in name or "neck.3" in name:
            low, high = (0.5, 1.5) if name.endswith("weight") else (-0.3, 0.3)
            parameter.data.uniform_(low, high, generator=generator)
        else:
            parameter.data.normal_(0, 0.3, generator=generator)
    return network.eval()


def save_sam(path, sizes=SMALL, seed=0, foreground=0.0):
    """A file as cellpose 4 saves it; returns the network too.

    `foreground` is added to the logit of the cell probability: with 3 nearly everything is cells.
    """
    network = make_sam(sizes, seed)
    network.out.bias.data[2 * sizes.token_px**2 :] += foreground
    torch.save(network.state_dict(), path)
    return network
