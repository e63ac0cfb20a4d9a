"""Validation: held-out images by the path that slides take."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from densebatch.cli.main import cli
from densebatch.models.model import find_model, load_network
from densebatch.planning.scale import choose_rescale
from densebatch.planning.settings import DEFAULT_MODEL
from densebatch.training.annotated import HeldOut, load_annotated, measure_diameters
from densebatch.training.recipe import Recipe
from densebatch.training.train import train
from densebatch.training.validation import validate, write_model
from tests.helpers.small_training import SMALL, vary

NAMES = {"map", "map_iou_70", "map_iou_90", "map_100"}


def test_a_model_of_rescaled_images_knows_their_scale(folder, tmp_path):
    """Cells of 14 px brought to 30 for the training are brought to 30 for segmentation too."""
    recipe = vary(diameter_px=30.0, um_per_px=0.5, steps=2)
    images, held_out = load_annotated(folder, recipe, ["t1"])
    native = measure_diameters([load_annotated(folder, SMALL, ["t1"])[0][0].labels]).mean()
    network, _ = train(images, recipe, tmp_path / "a.pt")
    assert float(network.diam_labels) == pytest.approx(native, rel=0.05)
    assert float(network.diam_mean) == pytest.approx(30.0, rel=0.1)
    write_model(network, tmp_path / "a.safetensors", recipe, {})
    factor = float(network.diam_mean / network.diam_labels)
    model = find_model(str(tmp_path / "a.safetensors"))
    assert choose_rescale(model, 0.5, None)[0] == pytest.approx(factor)
    assert choose_rescale(model, 0.25, None)[0] == pytest.approx(factor / 2)
    assert choose_rescale(model, None, None)[0] == pytest.approx(factor)
    assert set(validate(network, recipe, held_out)) == NAMES


def test_validation_is_what_segment_and_score_give(folder, tmp_path):
    """The bundled model on a held-out image, by `validate` and by the two commands."""
    model = find_model(DEFAULT_MODEL)
    recipe = Recipe(patch_px=model.patch_px, percentiles=model.percentiles)
    _, held_out = load_annotated(folder, vary(patch_px=64), ["t1"])
    scores = validate(load_network(model), recipe, held_out)
    run = CliRunner().invoke
    write_model(load_network(model), tmp_path / "same.safetensors", recipe, {})
    arguments = [
        "--workers",
        "0",
        "--pixel-size",
        "0.5",
        "--model",
        str(tmp_path / "same.safetensors"),
    ]
    result = run(cli, ["segment", str(folder / "t1_img.png"), str(tmp_path / "out"), *arguments])
    assert result.exit_code == 0, result.output
    result = run(cli, ["score", str(tmp_path / "out"), str(folder / "t1_masks.png"), "--json", "-"])
    ap = json.loads(result.stdout)["images"][0]["iou"]["0.50"]["ap"]
    assert ap == pytest.approx(scores["map"], abs=1e-6)
    assert scores["map"] > 0.3
    assert set(scores) == NAMES
    assert scores["map"] > scores["map_iou_70"] > scores["map_iou_90"]


def test_rescaled_images_are_validated_at_their_own_scale(folder):
    """Of an image enlarged twice, a recipe with a diameter finds what it finds of the image."""
    model = find_model(DEFAULT_MODEL)
    _, (image,) = load_annotated(folder, vary(patch_px=64), ["t1"])
    grown = HeldOut(
        "twice", image.pixels.repeat(2, 1).repeat(2, 2), image.labels.repeat(2, 0).repeat(2, 1)
    )
    recipe = Recipe(um_per_px=None, diameter_px=model.diameter_px)
    network = load_network(model)
    small, large, native = (
        validate(network, chosen, [one])["map"]
        for chosen, one in ((recipe, image), (recipe, grown), (Recipe(), grown))
    )
    assert large == pytest.approx(small, abs=0.05)
    assert native < large - 0.2
