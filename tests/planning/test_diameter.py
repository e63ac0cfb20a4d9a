"""The diameter of a slide's cells, estimated from a few fields."""

from __future__ import annotations

import math

import numpy as np
import pytest

from densebatch.base.geometry import Region
from densebatch.models.model import find_model
from densebatch.planning.diameter import (
    MAX_FIELDS,
    Sighting,
    choose_fields,
    estimate_diameter,
    find_fixed_point,
)
from densebatch.planning.planner import build_plan, draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.folder import OutputFolder
from densebatch.run.prepare import prepare
from densebatch.run.segment import segment
from densebatch.simulation.tissue import Tissue, render, render_with_nuclei
from densebatch.slides.slide import open_slide
from densebatch.survey.channel import survey_channel
from tests.helpers.run_files import simulate, write_tiff

MODEL = "dense-tiny"


def sight(*found):
    """Sightings of guesses, of what came back and of how much room the cells took up."""
    return [Sighting(guess, back, 9, room) for guess, back, room in found]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # what comes back is the same for all guesses but the one that is far too large
        (((40, 20, 0.1), (28, 16, 0.3), (20, 16, 0.3), (14, 16, 0.3), (10, 16, 0.3)), 16),
        # the smaller of two that come back is of pieces of cells
        (((40, 30, 0.3), (20, 30, 0.3), (10, 8, 0.3), (5, 8, 0.3)), 30),
        # the larger of two that come back is of a few clumps
        (((80, 90, 0.01), (40, 15, 0.3), (20, 15, 0.3), (10, 15, 0.3)), 15),
        # no guess comes back: what came back of the one with the most room
        (((40, 20, 0.1), (28, 15, 0.3), (20, 11, 0.2)), 15),
        (((40, math.nan, 0.0), (28, 20, 0.2), (14, math.nan, 0.1)), 20),
        (((40, math.nan, 0.0), (28, math.nan, 0.0)), None),
    ],
)
def test_the_largest_guess_that_comes_back_counts(found, expected):
    assert find_fixed_point(sight(*found)) == (expected and pytest.approx(expected, rel=0.06))


def survey(path):
    slide = open_slide(path)
    return slide, survey_channel(slide, 0, (1.0, 99.0))


def test_fields_are_of_tissue_and_spread(tmp_path):
    """Of a slide whose left part is empty; those of a small slide are smaller, and as many."""
    tissue = Tissue(1500, 2100, seed=3, empty_fraction=0.4)
    pixels, truth = render(tissue, Region(0, 0, 1500, 2100))
    _, seen = survey(write_tiff(tmp_path / "a.ome.tif", pixels[:1], ["M"]))
    fields = choose_fields([seen], truth.shape)
    assert len(fields) == MAX_FIELDS
    assert all(truth[field.slices].any() for field in fields)
    assert len({field.y0 for field in fields}) > 2
    assert fields == choose_fields([seen], truth.shape)
    _, small = survey(write_tiff(tmp_path / "b.ome.tif", pixels[:1, :260, -260:], ["M"]))
    fields = choose_fields([small], (260, 260))
    assert 4 <= len(fields) <= MAX_FIELDS
    assert all(field.clip(260, 260) == field and field.area for field in fields)
    _, blank = survey(write_tiff(tmp_path / "c.ome.tif", np.zeros((1, 300, 300), np.uint16), ["M"]))
    assert choose_fields([blank], (300, 300)) == []


def test_nothing_is_estimated_of_a_blank_slide(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((1, 300, 300), np.uint16), ["M"])
    plan = build_plan(slide, SegmentSettings(model=MODEL, diameter="auto"))
    assert plan.estimate.diameter_px is None
    assert plan.rescale == draft_plan(slide, SegmentSettings(model=MODEL)).rescale
    assert "diameter auto: too few cells are found" in " ".join(plan.notes)


@pytest.mark.slow
@pytest.mark.parametrize("cell_px", [10.0, 15.0, 33.0])
@pytest.mark.parametrize(
    ("model", "channel", "within"),
    [(MODEL, 0, 0.2), ("dense-nuclei", 1, 0.1)],  # the second was trained on several scales
)
def test_the_diameter_of_simulated_cells_is_estimated(tmp_path, model, channel, within, cell_px):
    side = round(700 * max(1.0, cell_px / 15))
    tissue = Tissue(side, side, seed=5, cell_diameter_px=cell_px, stained_fraction=0.7)
    pixels, *truths = render_with_nuclei(tissue, Region(0, 0, side, side))
    areas = np.unique(truths[channel], return_counts=True)[1][1:]
    true_px = float(np.median(2 * np.sqrt(areas / np.pi)))
    slide, seen = survey(write_tiff(tmp_path / "a.ome.tif", pixels[channel][None], ["M"]))
    fields = choose_fields([seen], (side, side))
    found = estimate_diameter(slide, find_model(model), [seen.bounds], None, fields, "cpu")
    assert found.diameter_px == pytest.approx(true_px, rel=within)
    assert found.cells > 30


@pytest.mark.slow
def test_a_run_estimates_once_and_keeps_to_it(tmp_path):
    """Neither tiles nor workers change it, and a run that goes on does not estimate again."""
    slide = write_tiff(
        tmp_path / "a.ome.tif", simulate(400, 420, seed=5, cell_diameter_px=25)[:1], ["M"], None
    )
    options = {"model": MODEL, "diameter": "auto", "device": "cpu", "image": "none"}
    first = segment(slide, tmp_path / "a", **options, workers=0)
    other = segment(slide, tmp_path / "b", **options, workers=2, tile=128)
    found = first.report["plan"]["estimate"]
    assert 20 < found["diameter_px"] < 30
    assert other.report["plan"]["estimate"] == found
    assert other.report["plan"]["rescale"] == first.report["plan"]["rescale"]
    assert first.labels.joinpath("0").exists()
    told = f"diameter auto: cells are taken to be {found['diameter_px']:g} px across, estimated"
    assert told in " ".join(first.report["plan"]["notes"])
    # As a GPU might have estimated it when the run began.
    settings = SegmentSettings(**options, workers=0)
    folder = OutputFolder(tmp_path / "c")
    plan = build_plan(slide, settings)
    began = draft_plan(slide, settings, type(plan.estimate)(21.5, 300, 8))
    folder.claim(began, restart=False)
    [again] = prepare([(slide, folder)], settings)
    assert again.plan.estimate.diameter_px == 21.5
    assert again.plan.rescale == began.rescale
    [anew] = prepare([(slide, folder)], settings, restart=True)
    assert anew.plan.estimate == plan.estimate
