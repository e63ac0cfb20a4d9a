"""Checkpoints: a training goes on as if it had not stopped, and from nothing else's progress."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.training import progress
from densebatch.training.train import train
from tests.helpers.checkpoint_files import Bomb
from tests.helpers.small_training import SMALL, Stopped, is_same, vary


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The checkpoint of a finished training, and its network."""
    path = tmp_path_factory.mktemp("trained") / "a.pt"
    return path, train(images, SMALL, path)[0]


@pytest.fixture
def checkpoint(trained, tmp_path):
    """A copy of the checkpoint."""
    return Path(shutil.copy(trained[0], tmp_path))


@pytest.mark.parametrize(
    ("optimiser", "stop_at", "consistency"),
    [("adamw", 6, 0.0), ("muon", 6, 2.0), ("sgd", 6, 0.0), ("adamw", 5, 0.0)],
)
def test_resumed_run_equals_uninterrupted(
    images, tmp_path, caplog, optimiser, stop_at, consistency
):
    """Stopped after a step that was not saved yet (6), and before a validation is saved (5)."""
    recipe = vary(
        optimiser=optimiser, consistency=consistency, mean_steps=4 * (optimiser == "muon")
    )

    def score(network, step):
        return {"map": float(network.output[2].bias.detach().sum()) + step}

    whole, curve = train(images, recipe, tmp_path / "whole.pt", validate=score)

    def stop(point):
        if point.step == stop_at:
            raise Stopped

    # a checkpoint after every step, but not after the last one
    cut = tmp_path / "cut.pt"
    with pytest.raises(Stopped):
        train(images, recipe, cut, checkpoint_seconds=0, validate=score, on_step=stop)
    steps = []
    with caplog.at_level(logging.INFO, "densebatch.training"):
        resumed, again = train(
            images, recipe, cut, validate=score, on_step=lambda point: steps.append(point.step)
        )
    assert steps == [6, 7, 8]
    told = [(record.event, record.fields) for record in caplog.records]
    assert ("training resumed", {"step": 5, "checkpoint": str(cut)}) in told
    validated = [fields["step"] for event, fields in told if event == "training validated"]
    assert validated == ([5, 7, 8] if stop_at == 5 else [7, 8])
    assert told[-1][0] == "training finished"
    assert is_same(whole, resumed)
    assert again == curve
    assert [point.step for point in curve if point.scores] == [2, 4, 5, 7, 8]
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "cut.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["map"]) == pytest.approx(curve[-1].scores["map"], abs=1e-4)


def test_the_result_is_the_mean_of_the_last_steps(images, trained, tmp_path, monkeypatch):
    """And what validates on the way is what would be the result then."""
    seen = []
    update = progress.update_average

    def keep(average, network, decay):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        update(average, network, decay)

    validated = {}

    def validate(network, step):
        validated[step] = {k: v.clone() for k, v in network.state_dict().items()}
        return {}

    path, plain = trained
    monkeypatch.setattr(progress, "update_average", keep)
    found, curve = train(images, vary(mean_steps=3), tmp_path / "mean.pt", validate=validate)
    assert len(curve) == 8
    assert not is_same(plain, found)
    last = seen[-6::2]  # each step adds to the average, then to the mean
    for name, value in found.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in last]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)
    kept = torch.load(path, weights_only=True)
    assert all(torch.equal(value, kept["average"][k]) for k, value in plain.state_dict().items())
    assert all(torch.equal(value, validated[8][k]) for k, value in found.state_dict().items())


def test_checkpoint_from_before_a_setting_was_there(images, trained, checkpoint):
    """What it did not know was at its default."""
    state = torch.load(checkpoint, weights_only=True)
    del state["identity"]["recipe"]["pasting"]
    torch.save(state, checkpoint)
    assert is_same(train(images, SMALL, checkpoint)[0], trained[1])
    with pytest.raises(InputError, match="another recipe"):
        train(images, vary(pasting=0.5), checkpoint)


def test_checkpoint_of_another_recipe_is_refused(images, checkpoint):
    with pytest.raises(InputError, match="another recipe"):
        train(images, vary(seed=2), checkpoint)
    with pytest.raises(InputError, match="another recipe, other images or other models"):
        train(images[:1], SMALL, checkpoint)


@pytest.mark.parametrize("content", ["cut", "other", "list", "key", "text", "program"])
def test_damaged_progress_is_refused(images, checkpoint, content, tmp_path):
    trap = tmp_path / "executed"
    if content == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    elif content == "program":
        torch.save({"identity": Bomb(trap)}, checkpoint)
    elif content == "text":
        checkpoint.write_text("progress")
    else:
        state = torch.load(checkpoint, weights_only=True)
        state["network"] = {} if content == "other" else state["network"]
        state = [state] if content == "list" else state
        if content == "key":
            del state["average"]
        torch.save(state, checkpoint)
    with pytest.raises(InputError, match=r"a\.pt: is damaged, or no progress of a training"):
        train(images, SMALL, checkpoint)
    assert not trap.exists()
