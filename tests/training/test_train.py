"""Training: reproducible, resumable to the step, validated on unseen tissue, and it learns."""

from __future__ import annotations

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from skimage.io import imsave

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.geometry import Region
from densebatch.cli.main import cli
from densebatch.models.model import find_model, load_network
from densebatch.planning.scale import choose_rescale
from densebatch.planning.settings import DEFAULT_MODEL
from densebatch.slides.simulated import Tissue, render
from densebatch.training import batches
from densebatch.training import train as training
from densebatch.training.annotated import EDGE_PX, load_annotated, measure_diameters
from densebatch.training.augmentation import sample_batch
from densebatch.training.batches import draw_batches
from densebatch.training.recipe import Recipe, load_recipe
from densebatch.training.simulated import simulate_annotated
from densebatch.training.train import (
    build_network,
    compute_loss,
    learning_rate_at,
    train,
)
from densebatch.training.validation import validate, write_model

SMALL = Recipe(
    widths=(2, 8, 16, 32),
    steps=8,
    batch=2,
    patch_px=64,
    warmup_steps=2,
    rotation=True,
    scaling=0.2,
    autocast=False,
)


def vary(**update):
    return SMALL.model_copy(update=update)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for index in range(2):
        pixels, labels = render(Tissue(128, 160, seed=index), Region(0, 0, 128, 160))
        imsave(path / f"t{index}_img.png", pixels[0], check_contrast=False)
        imsave(path / f"t{index}_masks.png", labels.astype(np.uint16), check_contrast=False)
    return path


@pytest.fixture(scope="module")
def images(folder):
    return load_annotated(folder, SMALL)[0]


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def test_same_seed_same_weights_and_another_seed_others(images, tmp_path):
    recipe = vary(autocast=True, steps=4)
    first, _ = train(images, recipe, tmp_path / "a.pt")
    second, _ = train(images, recipe, tmp_path / "b.pt")
    other, _ = train(images, vary(autocast=True, steps=4, seed=1), tmp_path / "c.pt")
    assert _same(first, second)
    assert not _same(first, other)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("optimiser", "stop_at", "consistency"),
    [("adamw", 6, 0.0), ("muon", 6, 2.0), ("sgd", 6, 0.0), ("adamw", 5, 0.0)],
)
def test_resumed_run_equals_uninterrupted(images, tmp_path, optimiser, stop_at, consistency):
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
    resumed, again = train(
        images, recipe, cut, validate=score, on_step=lambda point: steps.append(point.step)
    )
    assert steps == [6, 7, 8]
    assert _same(whole, resumed)
    assert again == curve
    assert [point.step for point in curve if point.scores] == [2, 4, 5, 7, 8]
    assert (tmp_path / "cut.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    rows = list(csv.DictReader((tmp_path / "cut.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["map"]) == pytest.approx(curve[-1].scores["map"], abs=1e-4)


def test_the_result_is_the_mean_of_the_last_steps(images, tmp_path, monkeypatch):
    """And what validates on the way is what would be the result then."""
    seen = []
    update = training._update_average

    def keep(average, network, decay):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        update(average, network, decay)

    validated = {}

    def validate(network, step):
        validated[step] = {k: v.clone() for k, v in network.state_dict().items()}
        return {}

    plain, _ = train(images, SMALL, tmp_path / "plain.pt")
    monkeypatch.setattr(training, "_update_average", keep)
    found, curve = train(images, vary(mean_steps=3), tmp_path / "mean.pt", validate=validate)
    assert len(curve) == 8
    assert not _same(plain, found)
    last = seen[-6::2]  # each step adds to the average, then to the mean
    for name, value in found.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([weights[name].double() for weights in last]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)
    kept = torch.load(tmp_path / "plain.pt", weights_only=True)
    assert all(torch.equal(value, kept["average"][k]) for k, value in plain.state_dict().items())
    assert all(torch.equal(value, validated[8][k]) for k, value in found.state_dict().items())


def test_checkpoint_from_before_a_setting_was_there(images, tmp_path):
    """What it did not know was at its default."""
    path = tmp_path / "a.pt"
    network, _ = train(images, SMALL, path)
    state = torch.load(path, weights_only=True)
    del state["identity"]["recipe"]["pasting"]
    torch.save(state, path)
    assert _same(train(images, SMALL, path)[0], network)
    with pytest.raises(InputError, match="another recipe"):
        train(images, vary(pasting=0.5), path)


def test_checkpoint_of_another_recipe_is_refused(images, tmp_path):
    train(images, SMALL, tmp_path / "a.pt")
    with pytest.raises(InputError, match="another recipe"):
        train(images, vary(seed=2), tmp_path / "a.pt")
    with pytest.raises(InputError, match="another recipe, other images or other models"):
        train(images[:1], SMALL, tmp_path / "a.pt")


@pytest.mark.parametrize("content", ["cut", "other", "list", "key", "text"])
def test_damaged_progress_is_refused(images, tmp_path, content):
    path = tmp_path / "a.pt"
    train(images, SMALL, path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "text":
        path.write_text("progress")
    else:
        state = torch.load(path, weights_only=True)
        state["network"] = {} if content == "other" else state["network"]
        state = [state] if content == "list" else state
        if content == "key":
            del state["average"]
        torch.save(state, path)
    with pytest.raises(InputError, match=r"a\.pt: is damaged, or no progress of a training"):
        train(images, SMALL, path)


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
    spec = find_model(str(tmp_path / "a.safetensors"))
    assert choose_rescale(spec, 0.5, None)[0] == pytest.approx(factor)
    assert choose_rescale(spec, 0.25, None)[0] == pytest.approx(factor / 2)
    assert choose_rescale(spec, None, None)[0] == pytest.approx(factor)
    assert set(validate(network, recipe, held_out)) == {"map", "map_100"}


def test_simulated_images_at_another_scale(images):
    recipe = vary(diameter_px=60.0, patch_px=800)
    simulated = simulate_annotated(images, recipe)
    diameters = [measure_diameters([image.labels]).mean() for image in simulated]
    assert max(diameters) > 1.3 * min(diameters)  # not all brought to one size
    inputs, _ = sample_batch(simulated, recipe, 0)
    assert inputs.shape[-1] == 800


def test_start_from_a_model(images, tmp_path):
    first, _ = train(images, SMALL, tmp_path / "a.pt")
    write_model(first, tmp_path / "first.safetensors", SMALL, {})
    spec = find_model(str(tmp_path / "first.safetensors"))
    network = build_network(images, SMALL, spec)
    assert torch.equal(network.output[2].weight, load_network(spec).output[2].weight)
    assert not _same(network, build_network(images, SMALL))
    with pytest.raises(ValueError, match="has widths"):
        build_network(images, vary(widths=(2, 8, 16)), spec)


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
    spec = find_model(str(tmp_path / "t.safetensors"))
    pupil, _ = train(images, recipe, tmp_path / "pupil.pt", teachers=[spec])
    alone, _ = train(images, recipe, tmp_path / "alone.pt")
    inputs = torch.from_numpy(sample_batch(images, recipe, 1000)[0])
    with torch.no_grad():
        pupils, alones = (network.eval()(inputs)[:, :2] for network in (pupil, alone))
    said = torch.tensor([3.0, -2.0])[:, None, None]
    assert (pupils - said).square().mean() < 0.5 * (alones - said).square().mean()
    with pytest.raises(InputError, match="other models"):
        train(images, recipe, tmp_path / "pupil.pt")
    with pytest.raises(InputError, match="other models"):
        train(images, recipe, tmp_path / "alone.pt", teachers=[spec])
    again, _ = train(images, recipe, tmp_path / "pupil.pt", teachers=[spec])
    assert _same(pupil, again)
    for name, teacher, models in (("pupil", spec.sha256, [spec]), ("alone", None, [])):
        # as it was written when there could be one only
        state = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        del state["identity"]["teachers"]
        torch.save({**state, "identity": {**state["identity"], "teacher": teacher}},
                   tmp_path / f"{name}.pt")  # fmt: skip
        train(images, recipe, tmp_path / f"{name}.pt", teachers=models)


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
    spec = find_model(str(tmp_path / "t.safetensors"))
    recipe = vary(**{"consistency": 1.0, **changed})
    with pytest.raises(ValueError, match=told):
        train(images, recipe, tmp_path / "a.pt", teachers=[spec])
    deep = vary(widths=(2, 4, 4, 4, 4, 4), patch_px=64)
    write_model(build_network(images, deep), tmp_path / "d.safetensors", deep, {})
    spec = find_model(str(tmp_path / "d.safetensors"))
    with pytest.raises(ValueError, match="multiple of 16"):
        train(images, vary(consistency=1.0, patch_px=72), tmp_path / "a.pt", teachers=[spec])


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


def test_a_lost_process_that_draws_crops(images, monkeypatch):
    """As one is for which a container has too little shared memory: one sentence."""
    monkeypatch.setattr(batches, "sample_batch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DensebatchError, match="drawing crops in 1 processes"):
        list(draw_batches(images, [], SMALL, 0, processes=1))


def test_batches_that_are_drawn_ahead(images):
    """In other processes: the same, in the same order."""
    recipe = vary(simulated_steps=3, consistency=1.0)
    simulated = simulate_annotated(images, recipe)
    ahead = list(draw_batches(images, simulated, recipe, 2, processes=2))
    asked = list(draw_batches(images, simulated, recipe, 2, processes=0))
    assert len(ahead) == len(asked) == recipe.steps - 2
    for one, other in zip(ahead, asked, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_simulated_tissue_comes_first(images, tmp_path, monkeypatch):
    """And an interrupted run goes on with it as if it had not stopped."""
    recipe = vary(simulated_steps=5)
    simulated = simulate_annotated(images, recipe)
    seen = []
    draw = batches.sample_batch

    def watch(source, recipe, step):
        seen.append((step, source[0].name))
        return draw(source, recipe, step)

    monkeypatch.setattr(batches, "sample_batch", watch)
    whole, curve = train(images, recipe, tmp_path / "whole.pt")
    assert seen == [(k, simulated[0].name if k < 5 else images[0].name) for k in range(8)]

    def stop(point):
        if point.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        train(images, recipe, tmp_path / "cut.pt", checkpoint_seconds=0, on_step=stop)
    resumed, again = train(images, recipe, tmp_path / "cut.pt")
    assert again == curve
    assert _same(whole, resumed)
    assert not _same(whole, train(images, SMALL, tmp_path / "without.pt")[0])


def test_simulated_images(images):
    first, second = (simulate_annotated(images, SMALL) for _ in range(2))
    assert len({image.sha256 for image in first}) == len(first) == 16
    assert [image.sha256 for image in first] == [image.sha256 for image in second]
    other = simulate_annotated(images, vary(seed=1))
    assert first[0].sha256 != other[0].sha256
    real = measure_diameters([image.labels for image in images]).mean()
    means = [measure_diameters([image.labels]).mean() / real for image in first]
    assert 0.6 < min(means) < 0.9  # smaller and larger ones than the annotated
    assert 1.1 < max(means) < 1.5
    assert all((image.image[1, EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX] == 0).all() for image in first)
    nuclear = simulate_annotated(images, vary(nuclei="DAPI"))
    assert all(np.nanmax(image.image[1]) > 0.5 for image in nuclear)


def test_diverging_training_says_so(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_take_step", lambda *_: float("nan"))
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


def test_validation_is_what_segment_and_score_give(folder, tmp_path):
    """The bundled model on a held-out image, by `validate` and by the two commands."""
    spec = find_model(DEFAULT_MODEL)
    recipe = Recipe(patch_px=spec.patch_px, percentiles=spec.percentiles)
    _, held_out = load_annotated(folder, vary(patch_px=64), ["t1"])
    scores = validate(load_network(spec), recipe, held_out)
    run = CliRunner().invoke
    write_model(load_network(spec), tmp_path / "same.safetensors", recipe, {})
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
    assert set(scores) == {"map", "map_100"}


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
    spec = find_model(str(output))
    assert spec.patch_px == 64
    assert spec.um_per_px == 0.5
    assert not spec.nuclei
    card = spec.card
    assert card["recipe"]["steps"] == 5
    assert list(card["data"]) == ["t0"]
    assert card["held_out"] == ["t0", "t1"]
    assert set(card["validation"]) == {"map", "map_100"}
    assert card["about"] == {"data": "simulated"}
    assert card["start"] == "random"
    assert card["teachers"] == "its average"
    picture = output.with_suffix(".svg").read_text()
    assert picture.startswith("<svg xmlns=")
    assert "Mean AP, held out" in picture
    before = output.read_bytes()
    again = CliRunner().invoke(cli, command)  # goes on from its last step, which was the last
    assert again.exit_code == 0, again.output
    assert output.read_bytes() == before


def test_recipes_are_strict(tmp_path):
    def load(text, **overrides):
        (tmp_path / "r.yaml").write_text(text)
        return load_recipe(tmp_path / "r.yaml", **overrides)

    assert load("steps: 5", steps=7).steps == 7
    assert load("").steps == Recipe().steps
    with pytest.raises(InputError, match=r"r\.yaml: unknown setting 'stepz'; accepted are widths"):
        load("stepz: 5")
    with pytest.raises(InputError, match="'steps': input should be greater than 0"):
        load("steps: 0")
    with pytest.raises(InputError, match="a number is accepted, not a truth value"):
        load("scaling: yes")
    with pytest.raises(InputError, match="patch_px is a multiple of 8"):
        load("patch_px: 100")
    with pytest.raises(InputError, match="percentiles rise"):
        load("percentiles: [99, 1]")
    with pytest.raises(InputError, match="simulated_steps are fewer than steps"):
        load("simulated_steps: 5", steps=5)
    with pytest.raises(InputError, match="holds a list"):
        load("[1, 2]")
    with pytest.raises(InputError, match="not a readable YAML file"):
        load("a: [")
    with pytest.raises(InputError, match="not a readable YAML file"):
        load_recipe(tmp_path / "none.yaml")


def test_command_refuses_what_cannot_work(folder, tmp_path):
    from densebatch.base.errors import DensebatchError

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


def test_curve_is_redrawn_without_validation(images, tmp_path):
    from densebatch.training.curve import draw_curve

    _, curve = train(images, SMALL, tmp_path / "a.pt")
    draw_curve(curve, tmp_path / "a.svg")
    assert "held out" not in (tmp_path / "a.svg").read_text()
