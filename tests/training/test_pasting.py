"""Pasting moves whole cells, and says what it spoilt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.diffusion import compute_flows
from densebatch.training.pasting import Crop, paste_disc

SIDE = 96


def make_crop(seed, edge, weight=1.0):
    """A crop over an image's edge: `edge` is what lies within the image."""
    pixels, labels = render(Tissue(SIDE, SIDE, seed=seed), Region(0, 0, SIDE, SIDE))
    inside = np.zeros(labels.shape, bool)
    inside[edge] = True
    labels = np.where(inside, labels, 0)
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int32)
    return Crop(
        np.where(inside, pixels, np.nan).astype(np.float32), labels, compute_flows(labels),
        np.full(labels.shape, weight, np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def crops():
    return [make_crop(1, np.s_[:, 20:]), make_crop(2, np.s_[:80], weight=2.0)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_pixel_is_one_of_the_crops(crops, seed):
    """And a pasted cell is there whole, an old one whole or without weight in what is left."""
    onto, other = crops
    pasted = paste_disc(onto, other, np.random.default_rng(seed))
    changed = (pasted.pixels != onto.pixels) & ~np.isnan(onto.pixels)
    new = changed.any(0) | (pasted.labels > onto.labels.max())
    for field in ("pixels", "flows"):
        mixed, first, second = (getattr(crop, field) for crop in (pasted, onto, other))
        assert np.array_equal(mixed, np.where(new, second, first), equal_nan=True)
    assert np.array_equal(np.isnan(pasted.pixels), np.isnan(onto.pixels))
    cut = set(other.labels[79])  # they touch what is not known
    old_ids, new_ids = (
        set(np.unique(pasted.labels[place])) - {0} for place in (~new, new & (pasted.labels > 0))
    )
    assert not old_ids & new_ids
    for label in new_ids:
        assert label - onto.labels.max() not in cut
        whole = other.labels == label - onto.labels.max()
        assert np.array_equal(pasted.labels == label, whole)
        assert (pasted.weight[whole] == 2).all()
    for label in old_ids:
        before, after = onto.labels == label, pasted.labels == label
        assert not (after & ~before).any()
        lost = 1 - after.sum() / before.sum()
        assert set(pasted.weight[after]) == {0.0 if lost > 0.1 else 1.0}
    background = pasted.labels == 0
    assert np.array_equal(pasted.weight[background], np.where(new, 2, 1)[background])


def test_nothing_is_pasted_where_nothing_is_known(crops):
    onto, other = crops
    blank = np.full_like(onto.pixels, np.nan)
    rng = np.random.default_rng
    beside = paste_disc(onto._replace(pixels=blank), other, rng(0))
    assert np.isnan(beside.pixels).all()
    assert np.array_equal(beside.labels, onto.labels)
    unknown = paste_disc(onto, other._replace(pixels=blank), rng(0))
    assert np.array_equal(unknown.labels, onto.labels)
    assert np.array_equal(unknown.weight, onto.weight)


def test_discs_differ_and_are_decided_by_the_generator(crops):
    labels = [paste_disc(*crops, np.random.default_rng(seed)).labels for seed in (0, 0, 1)]
    assert np.array_equal(labels[0], labels[1])
    assert not np.array_equal(labels[0], labels[2])
    new = [
        paste_disc(*crops, np.random.default_rng(seed)).labels > crops[0].labels.max()
        for seed in range(20)
    ]
    assert 0.02 < np.mean(new) < 0.5
