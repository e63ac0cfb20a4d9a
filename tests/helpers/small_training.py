"""A recipe for trainings of a second, and what tests ask of their results."""

from __future__ import annotations

import numpy as np
import torch
from skimage.io import imsave

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.training.recipe import Recipe

SMALL = Recipe(
    widths=(2, 8, 16, 32),
    steps=8,
    batch=2,
    patch_px=64,
    warmup_steps=2,
    rotation=True,
    scaling=0.2,
    autocast=False,
)


def vary(**update):
    """The small recipe with other settings."""
    return SMALL.model_copy(update=update)


def write_annotated(path):
    """Two simulated fields with their masks, `t0` and `t1`, in a folder."""
    for index in range(2):
        pixels, labels = render(Tissue(128, 160, seed=index), Region(0, 0, 128, 160))
        imsave(path / f"t{index}_img.png", pixels[0], check_contrast=False)
        imsave(path / f"t{index}_masks.png", labels.astype(np.uint16), check_contrast=False)
    return path


class Stopped(Exception):
    """Raised by a test to interrupt a training."""


def is_same(a, b):
    """Whether two networks have the same weights, bit by bit."""
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())
