"""A survey in bands, done anywhere and in any order, finds what one process finds, to the bit."""

from __future__ import annotations

import pickle
import random
from dataclasses import fields

import numpy as np
import pytest

from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run import prepare, start
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from densebatch.simulation.debris import put_discs, put_specks
from densebatch.slides.slide import open_slide
from densebatch.survey import reader
from densebatch.survey.channel import survey_channel
from tests.helpers.run_files import Watcher, simulate, write_tiff
from tests.helpers.slide_files import write_zarr


def do_in_any_order(calls, seed=0):
    """A map as workers do it: arguments and results travel, and who is first is chance."""

    def do_all(function, items):
        order = list(enumerate(items))
        random.Random(seed).shuffle(order)
        found = {}
        for place, item in order:
            call = pickle.dumps((function, item))
            calls.append(len(call))
            function_again, arguments = pickle.loads(call)
            found[place] = pickle.loads(pickle.dumps(function_again(*arguments)))
        return [found[place] for place in range(len(items))]

    return do_all


def assert_same(found, expected):
    assert found.bounds == expected.bounds
    for field in fields(found):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b, field.name


TISSUE = simulate(300, 420, seed=2)[:1]


def odd_float():
    pixels = TISSUE.astype(np.float32) - 700
    pixels[0, 5, 7], pixels[0, 200, 300], pixels[0, 201, 300] = np.nan, np.inf, -np.inf
    return pixels


KINDS = {
    "16 bits": lambda: TISSUE,
    "8 bits": lambda: (TISSUE // 16).astype(np.uint8),
    "signed": lambda: TISSUE.astype(np.int16) - 500,
    "32 bits": lambda: TISSUE.astype(np.uint32) * 70000,
    "floats": odd_float,
    "specks": lambda: put_specks(TISSUE, 20, 6, 3)[0],
    "rare cells": lambda: put_discs(TISSUE // 8, 15, 16, 3)[0],
    "nothing": lambda: np.zeros_like(TISSUE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_do_not_depend_on_who_reads(kind, tmp_path, monkeypatch):
    slide = open_slide(write_tiff(tmp_path / "a.ome.tif", KINDS[kind](), ["CD3"]))
    whole = survey_channel(slide, 0, (1.0, 99.0))
    for side in (64, 160):
        monkeypatch.setattr(reader, "_READ_PX", side)
        here = survey_channel(slide, 0, (1.0, 99.0))
        calls = []
        found = survey_channel(slide, 0, (1.0, 99.0), elsewhere=do_in_any_order(calls, side))
        assert_same(found, here)
        assert len(calls) >= -(-300 // side)
        assert max(calls) < 20_000, "pixels travel"
        # The digest of the content is of regions, all else knows no regions.
        assert found.bounds.low == whole.bounds.low
        assert found.bounds.high == whole.bounds.high
        np.testing.assert_array_equal(found.lowest, whole.lowest)


def test_what_cannot_be_read_is_the_same_everywhere(tmp_path, monkeypatch):
    path = tmp_path / "a.ome.zarr"
    write_zarr(path, TISSUE, labels=["CD3"], chunks=(1, 60, 60))
    (path / "0" / "c" / "0" / "2" / "3").write_bytes(b"damaged")
    slide = open_slide(path)
    monkeypatch.setattr(reader, "_READ_PX", 96)
    here = survey_channel(slide, 0, (1.0, 99.0))
    found = survey_channel(slide, 0, (1.0, 99.0), elsewhere=do_in_any_order([]))
    assert len(here.unread) == 1
    assert_same(found, here)


@pytest.mark.slow
def test_workers_survey_large_slides(tmp_path, monkeypatch):
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(2200, 500, seed=1), ["CD3", "DAPI"])
    expected = build_plan(slide, SegmentSettings(membrane=("CD3",), model="dense-tiny"))
    monkeypatch.setattr(prepare, "MANY_READS", 2)
    monkeypatch.setattr(start, "MAX_THREADS", 1)
    watched = Watcher()
    segment(
        slide, tmp_path / "out", membrane=("CD3",), model="dense-tiny", workers=2, progress=watched
    )
    assert watched.stages["survey"] == (2, 0)
    plan = OutputFolder(tmp_path / "out").require_marker()
    assert plan.membrane == expected.membrane
    assert plan.active == expected.active
