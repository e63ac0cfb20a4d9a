"""Damaged TIFF and PNG files end in one sentence or in pixels, whatever was changed."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.helpers.mutations import mutate, read_damaged

# Stored as it is, and coded.
PLAIN = ("one strip", "float32 rows", "OME-TIFF", "ImageJ")
CODED = ("tiles", "LZW tiles with predictor", "big-endian BigTIFF", "planar RGB tiles", "RGBA PNG")


def damage_and_read(slides, name, tmp_path, seeds):
    path, planes = slides[name]
    data, outcomes = path.read_bytes(), Counter()
    for seed in seeds:
        damaged = tmp_path / f"{seed}{path.suffix}"
        damaged.write_bytes(mutate(data, seed, heads=(0, -1)))
        outcomes[read_damaged(damaged, planes, is_coded=name in CODED)] += 1
        damaged.unlink()
    return outcomes


@pytest.mark.parametrize("name", [*PLAIN, *CODED])
def test_some_damaged_files(slides, name, tmp_path):
    assert damage_and_read(slides, name, tmp_path, range(20))["refused"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLAIN, *CODED])
def test_many_damaged_files(slides, name, tmp_path):
    outcomes = damage_and_read(slides, name, tmp_path, range(20, 520))
    assert outcomes["refused"] > 50
    assert sum(outcomes.values()) == 500
