"""Damaged files end in one sentence or in right pixels: no traceback, no hang, no silent zeros."""

from __future__ import annotations

import faulthandler
from collections import Counter

import pytest

from tests.helpers.mutations import mutate, read_damaged
from tests.readers.conftest import FORMATS

pytestmark = pytest.mark.extra
_LONGEST_S = 10.0  # that reading one of these small files may take before it counts as a hang


def damage_and_read(written, name, tmp_path, seeds):
    path, planes, *_ = written(name)
    data = path.read_bytes()
    is_coded = "zstd" in name or "JPEG" in name
    outcomes: Counter[str] = Counter()
    try:
        for seed in seeds:
            damaged = tmp_path / f"{seed}{path.suffix}"
            damaged.write_bytes(mutate(data, seed, heads=(0, -1)))
            faulthandler.dump_traceback_later(_LONGEST_S, exit=True)
            outcomes[read_damaged(damaged, planes, is_coded=is_coded)] += 1
            damaged.unlink()
    finally:
        faulthandler.cancel_dump_traceback_later()
    return outcomes


@pytest.mark.parametrize("name", FORMATS)
def test_some_damaged_files(written, name, tmp_path):
    outcomes = damage_and_read(written, name, tmp_path, range(20))
    assert outcomes["refused"] >= 5
    assert sum(outcomes.values()) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_files(written, name, tmp_path):
    outcomes = damage_and_read(written, name, tmp_path, range(20, 520))
    assert outcomes["refused"] > 100
    assert sum(outcomes.values()) == 500
