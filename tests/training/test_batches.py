"""Batches: drawn ahead they are the same, and a lost process is one sentence."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from densebatch.base.errors import DensebatchError
from densebatch.training import batches
from densebatch.training.batches import draw_batches
from tests.helpers.small_training import SMALL, vary


def test_a_lost_process_that_draws_crops(images, monkeypatch):
    """As one is for which a container has too little shared memory: one sentence."""
    monkeypatch.setattr(batches, "sample_batch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DensebatchError, match="drawing crops in 1 processes"):
        list(draw_batches(images, [], SMALL, 0, processes=1))


def test_batches_that_are_drawn_ahead(images):
    """In other processes: the same, in the same order."""
    recipe = vary(simulated_steps=3, consistency=1.0)
    simulated = images[::-1]
    ahead = list(draw_batches(images, simulated, recipe, 2, processes=2))
    asked = list(draw_batches(images, simulated, recipe, 2, processes=0))
    assert len(ahead) == len(asked) == recipe.steps - 2
    for one, other in zip(ahead, asked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
