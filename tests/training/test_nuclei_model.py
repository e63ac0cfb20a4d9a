"""The bundled nuclei model, on the images of its recipe's validation share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from densebatch.base.geometry import Region
from densebatch.cells.pairs import find_annotated
from densebatch.cells.read import open_labels
from densebatch.models.model import find_model, load_network
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from densebatch.slides.slide import open_slide
from densebatch.training.annotated import HeldOut, is_held_out, measure_diameters
from densebatch.training.recipe import Recipe, load_recipe
from densebatch.training.validation import validate

MODEL = "dense-nuclei"
RECIPE = Path(__file__).parents[2] / "configs/train/dense-nuclei.yaml"
FOLDER = Path(
    os.environ.get(
        "DENSEBATCH_TEST_NUCLEI", Path(__file__).parents[3] / "shared/data/bbbc038-fluo/train"
    )
)
LEAST = {"map": 0.86, "map_iou_70": 0.72, "map_iou_90": 0.30}

needs_images = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no images in {FOLDER}")


def list_held_out():
    share = load_recipe(RECIPE).validation_share
    return [file for file in find_annotated(FOLDER) if is_held_out(file.name, share)]


def test_the_model_is_that_of_its_recipe():
    model, recipe = find_model(MODEL), load_recipe(RECIPE)
    assert model.widths == recipe.widths
    assert model.diameter_px == recipe.diameter_px
    assert model.um_per_px is None
    assert not model.nuclei
    assert model.card["name"] == MODEL
    # What recipes have been given since is as before where it is not stated.
    stated = Recipe.model_validate(model.card["recipe"])
    assert stated.model_copy(update={"about": recipe.about}) == recipe
    assert model.card["about"] == recipe.about


@needs_images
def test_no_image_was_trained_on_and_held_out():
    card, held_out = find_model(MODEL).card, [file.name for file in list_held_out()]
    assert card["held_out"] == held_out
    assert len(held_out) == 61
    every = {file.name for file in find_annotated(FOLDER)}
    assert set(card["data"]) == every - set(held_out)


@needs_images
@pytest.mark.slow
def test_held_out_images_score_as_the_card_says():
    held_out = []
    for file in list_held_out():
        slide, labels = open_slide(file.image), open_labels(file.labels)[:, :].astype(np.int32)
        pixels = slide.read(0, Region(0, 0, *labels.shape))
        held_out.append(HeldOut(file.name, pixels[None], labels))
    model = find_model(MODEL)
    scores = validate(load_network(model), load_recipe(RECIPE), held_out)
    for name, least in LEAST.items():
        assert scores[name] >= least
        assert scores[name] == pytest.approx(model.card["validation"][name], abs=0.01)


@needs_images
@pytest.mark.slow
def test_an_estimated_diameter_is_nearly_as_good_as_the_true_one(tmp_path):
    """Of every third image; the means over all are in the model's card."""
    scores = {"auto": [], "true": []}
    for file in list_held_out()[::3]:
        truth = open_labels(file.labels)[:, :].astype(np.uint32)
        true_px = float(np.median(measure_diameters([truth.astype(np.int32)])))
        for name, diameter in (("auto", "auto"), ("true", true_px)):
            result = segment(
                file.image, tmp_path / f"{file.name}-{name}", model=MODEL, diameter=diameter,
                workers=0, image="none", device="cpu",
            )  # fmt: skip
            found = open_labels(result.labels)[:, :]
            score = score_labels(truth, found, ScoreSettings(label_components=False))
            scores[name].append([score.at(iou).ap for iou in ("0.50", "0.70", "0.90")])
    auto, true = (np.mean(scores[name], axis=0) for name in ("auto", "true"))
    assert (auto >= true - 0.03).all(), (auto, true)
