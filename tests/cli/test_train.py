"""`densebatch train`: a model with its card, and what the command refuses."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from skimage.io import imread

from densebatch.base.errors import DensebatchError
from densebatch.cli.main import cli
from densebatch.models.model import find_model
from tests.helpers.small_training import write_annotated


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_annotated(tmp_path_factory.mktemp("images"))


def test_command_trains_validates_and_writes_a_model_with_its_card(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "widths: [2, 8, 16, 32]\nsteps: 5\nbatch: 2\npatch_px: 64\nwarmup_steps: 1\n"
        "validation_columns: 0.25\nautocast: false\nabout: {data: simulated}\n"
    )
    output = tmp_path / "new/model.safetensors"
    command = ["train", str(folder), "-o", str(output), "-c", str(recipe), "--hold-out", "t1"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "map_100" in result.output
    model = find_model(str(output))
    assert model.patch_px == 64
    assert model.um_per_px == 0.5
    assert not model.nuclei
    card = model.card
    assert card["recipe"]["steps"] == 5
    assert list(card["data"]) == ["t0"]
    assert card["held_out"] == ["t0", "t1"]
    assert set(card["validation"]) == {"map", "map_100", "map_iou_70", "map_iou_90"}
    assert card["about"] == {"data": "simulated"}
    [note] = card["notes"]
    assert note.startswith("pixel size unknown: the images are taken to be of 0.5 um/px")
    assert note in result.output
    assert card["start"] == "random"
    assert card["teachers"] == "its average"
    picture = output.with_suffix(".svg").read_text()
    assert picture.startswith("<svg xmlns=")
    assert "Mean AP, held out" in picture
    before = output.read_bytes()
    again = CliRunner().invoke(cli, command)  # goes on from its last step, which was the last
    assert again.exit_code == 0, again.output
    assert output.read_bytes() == before


def test_command_refuses_what_cannot_work(folder, tmp_path):
    def refusal(*arguments):
        result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
        assert isinstance(result.exception, DensebatchError), result.output
        return str(result.exception)

    out = tmp_path / "m.safetensors"
    assert "ends in .safetensors" in refusal(folder, "-o", tmp_path / "m.pt")
    assert "not a folder" in refusal(tmp_path / "none", "-o", out)
    assert "to hold out" in refusal(folder, "-o", out, "--hold-out", "x")
    assert "smaller than a crop" in refusal(folder, "-o", out)
    assert "nonesuch" in refusal(folder, "-o", out, "--start", "nonesuch")
    assert "nonesuch" in refusal(folder, "-o", out, "--teacher", "nonesuch")
    (tmp_path / "file").touch()
    (tmp_path / "d.safetensors").mkdir()
    assert "file is a file" in refusal(folder, "-o", tmp_path / "file/m.safetensors")
    assert "is a folder" in refusal(folder, "-o", tmp_path / "d.safetensors")
    (tmp_path / "file").unlink()
    (tmp_path / "d.safetensors").rmdir()
    assert not list(tmp_path.iterdir())


def test_command_trains_on_planes_of_stacks(folder, tmp_path):
    """A stack's plane gives the weights of the plane by itself, and the card says which."""
    stacks = tmp_path / "stacks"
    shutil.copytree(folder, stacks)
    for path in sorted(stacks.glob("*_img.png")):
        plane = imread(path)
        path.unlink()
        stack = np.stack([plane // 2, plane, plane[::-1]])
        tifffile.imwrite(path.with_suffix(".ome.tif"), stack, metadata={"axes": "ZYX"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("widths: [2, 8, 16, 32]\nsteps: 1\nbatch: 2\npatch_px: 64\nautocast: false\n")
    cards, weights = {}, {}
    for name, images, options in (
        ("plane", folder, []),
        ("stack", stacks, ["--z", "1"]),
    ):
        output = tmp_path / name / "m.safetensors"
        command = ["train", str(images), "-o", str(output), "-c", str(recipe), *options]
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
        cards[name] = find_model(str(output)).card
        weights[name] = load_file(output)
    assert cards["stack"]["data"] == cards["plane"]["data"]
    assert (cards["stack"]["recipe"]["z"], cards["plane"]["recipe"]["z"]) == ("1", None)
    for name, values in weights["plane"].items():
        assert torch.equal(values, weights["stack"][name]), name
    refused = CliRunner().invoke(cli, [*command[:-2], "--hold-out", "t1"])
    assert re.search(r"3 images along Z .*; choose one with --z", str(refused.exception))
