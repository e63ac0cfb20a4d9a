"""Training: reproducible, drawn to its teachers, and it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.models.model import find_model, load_network
from densebatch.training import batches, simulated
from densebatch.training import train as train_module
from densebatch.training.augmentation import sample_batch
from densebatch.training.train import build_network, compute_loss, learning_rate_at, train
from densebatch.training.validation import write_model
from tests.helpers.small_training import SMALL, Stopped, is_same, vary


def test_same_seed_same_weights_and_another_seed_others(images, tmp_path):
    recipe = vary(autocast=True, steps=4)
    first, _ = train(images, recipe, tmp_path / "a.pt")
    second, _ = train(images, recipe, tmp_path / "b.pt")
    other, _ = train(images, vary(autocast=True, steps=4, seed=1), tmp_path / "c.pt")
    assert is_same(first, second)
    assert not is_same(first, other)


def test_start_from_a_model(images, tmp_path):
    first, _ = train(images, SMALL, tmp_path / "a.pt")
    write_model(first, tmp_path / "first.safetensors", SMALL, {})
    model = find_model(str(tmp_path / "first.safetensors"))
    network = build_network(images, SMALL, model)
    assert torch.equal(network.output[2].weight, load_network(model).output[2].weight)
    assert not is_same(network, build_network(images, SMALL))
    with pytest.raises(ValueError, match="has widths"):
        build_network(images, vary(widths=(2, 8, 16)), model)


@pytest.mark.slow
def test_a_teacher_is_what_the_network_is_drawn_to(images, tmp_path):
    """More than by its own average; and what it says is part of the training."""
    recipe = vary(
        steps=60,
        learning_rate=1e-2,
        consistency=8.0,
        warmup_steps=1,
        flips=False,
        quarter_turns=False,
    )
    wide = vary(widths=(2, 12, 24, 48))
    biased = build_network(images, wide).eval()
    with torch.no_grad():  # says the same of everything: to be told from what labels teach
        biased.output[2].weight.zero_()
        biased.output[2].bias.copy_(torch.tensor([3.0, -2.0, 4.0]))
    write_model(biased, tmp_path / "t.safetensors", wide, {})
    model = find_model(str(tmp_path / "t.safetensors"))
    pupil, _ = train(images, recipe, tmp_path / "pupil.pt", teachers=[model])
    alone, _ = train(images, recipe, tmp_path / "alone.pt")
    inputs = torch.from_numpy(sample_batch(images, recipe, 1000)[0])
    with torch.no_grad():
        pupils, alones = (network.eval()(inputs)[:, :2] for network in (pupil, alone))
    said = torch.tensor([3.0, -2.0])[:, None, None]
    assert (pupils - said).square().mean() < 0.5 * (alones - said).square().mean()
    with pytest.raises(InputError, match="other models"):
        train(images, recipe, tmp_path / "pupil.pt")
    with pytest.raises(InputError, match="other models"):
        train(images, recipe, tmp_path / "alone.pt", teachers=[model])
    again, _ = train(images, recipe, tmp_path / "pupil.pt", teachers=[model])
    assert is_same(pupil, again)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"consistency": 0.0}, "no weight"),
        ({"percentiles": (0.0, 99.0)}, "percentiles"),
        ({"um_per_px": 0.25}, "um/px"),
    ],
)
def test_a_teacher_of_other_images_is_refused(images, tmp_path, changed, told):
    write_model(build_network(images, SMALL), tmp_path / "t.safetensors", SMALL, {})
    model = find_model(str(tmp_path / "t.safetensors"))
    recipe = vary(**{"consistency": 1.0, **changed})
    with pytest.raises(ValueError, match=told):
        train(images, recipe, tmp_path / "a.pt", teachers=[model])
    deep = vary(widths=(2, 4, 4, 4, 4, 4), patch_px=64)
    write_model(build_network(images, deep), tmp_path / "d.safetensors", deep, {})
    model = find_model(str(tmp_path / "d.safetensors"))
    with pytest.raises(ValueError, match="multiple of 16"):
        train(images, vary(consistency=1.0, patch_px=72), tmp_path / "a.pt", teachers=[model])


def _losses(network, images, recipe, steps):
    """Of a network in evaluation mode, on the crops of some steps."""
    values = []
    with torch.no_grad():
        for step in steps:
            inputs, targets = map(torch.from_numpy, sample_batch(images, recipe, step))
            values.append(float(compute_loss(network.eval()(inputs), targets)))
    return np.mean(values)


def test_loss_falls(images, tmp_path):
    recipe = vary(steps=60, learning_rate=5e-3)
    network, curve = train(images, recipe, tmp_path / "a.pt")
    # crops that were not trained on, the same for both
    before = _losses(build_network(images, recipe), images, recipe, range(1000, 1010))
    assert _losses(network, images, recipe, range(1000, 1010)) < 0.8 * before
    assert len(curve) == 60


def test_simulated_tissue_comes_first(images, tmp_path, monkeypatch):
    """And an interrupted run goes on with it as if it had not stopped."""
    monkeypatch.setattr(simulated, "_N_IMAGES", 2)
    monkeypatch.setattr(simulated, "_SIDE_PX", 128)
    recipe = vary(simulated_steps=5)
    tissue = simulated.simulate_annotated(images, recipe)
    seen = []
    draw = batches.sample_batch

    def watch(source, recipe, step):
        seen.append((step, source[0].name))
        return draw(source, recipe, step)

    monkeypatch.setattr(batches, "sample_batch", watch)
    whole, curve = train(images, recipe, tmp_path / "whole.pt")
    assert seen == [(k, tissue[0].name if k < 5 else images[0].name) for k in range(8)]

    def stop(point):
        if point.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train(images, recipe, tmp_path / "cut.pt", checkpoint_seconds=0, on_step=stop)
    resumed, again = train(images, recipe, tmp_path / "cut.pt")
    assert again == curve
    assert is_same(whole, resumed)
    assert not is_same(whole, train(images, SMALL, tmp_path / "without.pt")[0])


def test_diverging_training_says_so(images, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "_take_step", lambda *_: float("nan"))
    with pytest.raises(ValueError, match="loss became nan at step 1; lower the learning rate"):
        train(images, SMALL, tmp_path / "a.pt")


def test_learning_rate():
    recipe = vary(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    recipe = vary(steps=100, warmup_steps=10, simulated_steps=40, learning_rate=1.0)
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert set(rates[10:41]) == {1.0}
    assert rates[70] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    half = recipe.model_copy(update={"final_rate": 0.5})
    assert learning_rate_at(70, half) == pytest.approx(0.75)
    assert learning_rate_at(100, half) == pytest.approx(0.5)
    kept = recipe.model_copy(update={"final_rate": 1.0})
    assert {learning_rate_at(step, kept) for step in range(10, 101)} == {1.0}


def test_loss_is_cellposes():
    loss = pytest.importorskip("cellpose.train")._loss_fn_seg
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(2, 3, 16, 16, generator=generator)
    labels = (torch.rand(2, 16, 16, generator=generator) > 0.5).float()
    flows = torch.rand(2, 2, 16, 16, generator=generator)
    target = torch.cat([5 * flows, labels[:, None], torch.ones(2, 1, 16, 16)], dim=1)
    stock = loss(torch.cat([labels[:, None], flows], dim=1).numpy(), output, torch.device("cpu"))
    torch.testing.assert_close(compute_loss(output, target), stock)
    # a pixel of weight 3 counts as three
    target[:, 3, :8] = 3.0
    upper = compute_loss(
        output[:, :, :8], torch.cat([target[:, :3], target[:, 3:] * 0 + 1], 1)[:, :, :8]
    )
    lower = compute_loss(output[:, :, 8:], target[:, :, 8:])
    torch.testing.assert_close(compute_loss(output, target), (3 * upper + lower) / 2)
