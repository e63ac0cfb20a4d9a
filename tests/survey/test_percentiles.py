"""Percentiles of several slides together are those of all their pixels, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densebatch.survey.channel import count_low_bits_again, survey_channel
from densebatch.survey.percentiles import Pool
from tests.survey.test_channel import ArraySlide

PERCENTILES = (1.0, 99.0)


def draw(seed, dtype, side=96):
    """Pixels whose every block has contrast, so that all of them are tissue."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0 + seed, 300.0, (side, side + 32 * seed))
    return values.astype(dtype)


def pool_of(slides, dtype):
    pool = Pool(PERCENTILES, np.dtype(dtype))
    for slide in slides:
        pool.add(survey_channel(slide, 0, PERCENTILES, mask_debris=False).tissue)
    if pool.wanted.size:
        for slide in slides:
            pool.add_low_bits(count_low_bits_again(slide, 0, pool.wanted, mask_debris=False))
    return pool.find_limits()


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32"])
def test_they_are_those_of_the_union(dtype):
    pixels = [draw(seed, dtype) for seed in range(4)]
    slides = [ArraySlide(each) for each in pixels]
    every = np.concatenate([each.ravel() for each in pixels])
    expected = tuple(np.percentile(every.astype(np.float64), PERCENTILES))
    found = pool_of(slides, dtype)
    assert found == pytest.approx(expected, rel=0 if dtype != "float32" else 1e-6)
    assert pool_of(slides[::-1], dtype) == found
    # one slide alone: the bounds that it has by itself
    bounds = survey_channel(slides[0], 0, PERCENTILES, mask_debris=False).bounds
    assert pool_of(slides[:1], dtype) == (bounds.low, bounds.high)


@given(st.permutations(range(4)))
def test_no_order_changes_a_bit(order):
    tissue = [np.random.default_rng(k).integers(0, 9, 65536) for k in range(4)]
    pool, again = Pool(PERCENTILES, np.dtype("uint16")), Pool(PERCENTILES, np.dtype("uint16"))
    for k in range(4):
        pool.add(tissue[k])
        again.add(tissue[order[k]])
    assert pool.find_limits() == again.find_limits()


def test_limits_replace_the_percentiles_and_nothing_else():
    slide = ArraySlide(draw(1, "uint16"))
    own = survey_channel(slide, 0, PERCENTILES)
    limits = own.bounds.low - 10, own.bounds.high + 500
    told = survey_channel(slide, 0, PERCENTILES, limits=limits)
    assert (told.bounds.low, told.bounds.high) == limits
    assert told.bounds.content == own.bounds.content
    assert told.bounds.tissue_fraction == own.bounds.tissue_fraction
    assert (told.highest < own.highest).all()  # normalised by them


def test_what_is_constant_stays_so():
    flat = ArraySlide(np.full((64, 64), 7, np.uint16))
    bounds = survey_channel(flat, 0, PERCENTILES, limits=(3.0, 9.0)).bounds
    assert (bounds.low, bounds.high) == (7.0, 7.0)
    assert Pool(PERCENTILES, np.dtype("uint16")).find_limits() is None
