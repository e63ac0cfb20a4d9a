"""Consistency: outputs move, mirror and turn with the tissue, and training brings it about."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from densebatch.base.geometry import Region
from densebatch.models.network import CPnet
from densebatch.simulation.tissue import Tissue, render
from densebatch.training import train as training
from densebatch.training.annotated import make_annotated
from densebatch.training.augmentation import draw_orientation, draw_shift, orient, sample_batch
from densebatch.training.consistency import (
    ask_teachers,
    compute_inconsistency,
    consistency_at,
    orient_inputs,
    restore_outputs,
)
from densebatch.training.recipe import Recipe
from densebatch.training.train import train

RECIPE = Recipe(
    widths=(2, 8, 16, 32),
    steps=40,
    batch=2,
    patch_px=64,
    warmup_steps=2,
    learning_rate=5e-3,
    consistency=4.0,
    autocast=False,
)


@pytest.fixture(scope="module")
def images():
    pixels, ids = render(Tissue(160, 160, seed=0), Region(0, 0, 160, 160))
    labels = np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.int32)
    return [make_annotated("tissue", pixels[:1], labels, RECIPE)]


@pytest.mark.parametrize("turn", range(8))
def test_restored_outputs_are_those_of_the_crop(turn):
    """A flow field turned by the augmentation, which computes it from labels, is turned back."""
    field = np.random.default_rng(0).normal(size=(3, 24, 24)).astype(np.float32)
    logits, flows = orient(field[2], field[:2], turn)
    turned = torch.from_numpy(np.concatenate([flows, logits[None]]).copy())[None]
    assert np.array_equal(restore_outputs(turned, turn)[0].numpy(), field)
    planes = torch.from_numpy(field)[None]
    expected = orient(field, field[:2], turn)[0]
    assert np.array_equal(orient_inputs(planes, turn)[0].numpy(), expected)


def test_inconsistency_is_zero_for_outputs_that_move_along():
    generator = torch.Generator().manual_seed(0)
    field = torch.randn(2, 3, 40, 40, generator=generator)
    dy, dx = 3, 5
    output = field[:, :, :32, :32].clone()
    moved = field[:, :, dy : dy + 32, dx : dx + 32].clone()
    assert compute_inconsistency(output, moved, (dy, dx)) == 0
    assert compute_inconsistency(output, moved, (dy, dx - 1)) > 0.1
    moved[0, 0] += 2.0  # one of two crops, one of two flow components: 4 / 4 of the mean
    assert compute_inconsistency(output, moved, (dy, dx)) == pytest.approx(4 / 4 / 2, rel=1e-5)


def test_weight_rises_after_the_warm_up():
    weights = [consistency_at(step, RECIPE) for step in range(20)]
    assert weights[:3] == [0, 0, 0]
    assert weights[6] == pytest.approx(2.0)  # half of 4, half of 8 steps after the warm-up of 2
    assert weights[10:] == [4.0] * 10
    at_once = RECIPE.model_copy(update={"warmup_steps": 0})
    assert [consistency_at(step, at_once) for step in (0, 2, 9)] == [0.0, 2.0, 4.0]


def _differ(network, images):
    """Inconsistency with oneself, in units of the outputs' variance."""
    values = []
    for step in range(1000, 1008):
        inputs = torch.from_numpy(sample_batch(images, RECIPE, step)[0])
        crops, moved = inputs[: RECIPE.batch], inputs[RECIPE.batch :]
        with torch.no_grad():
            output = network.eval()(crops)
        said = ask_teachers([network], moved, RECIPE, step)
        difference = compute_inconsistency(output, said, draw_shift(RECIPE, step))
        values.append(float(difference) / float(output.var()))
    return np.mean(values)


def test_training_with_consistency(images, tmp_path):
    with_it, curve = train(images, RECIPE, tmp_path / "a.pt")
    assert all(math.isfinite(point.loss) for point in curve)
    plain, _ = train(images, RECIPE.model_copy(update={"consistency": 0.0}), tmp_path / "b.pt")
    assert _differ(with_it, images) < _differ(plain, images)


def test_the_teacher_is_the_average_in_evaluation_mode(images, tmp_path, monkeypatch):
    """It sees the moved crops, once a step after the warm-up, and gets no gradient."""
    seen = []
    teach = training.compute_teaching_loss

    def watch(output, teachers, moved, recipe, step):
        (teacher,) = teachers
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        loss = teach(output, teachers, moved, recipe, step)
        assert not teacher.training
        assert not any(p.grad is not None for p in teacher.parameters())
        assert all(torch.equal(v, before[n]) for n, v in teacher.state_dict().items())
        expected = sample_batch(images, recipe, step)[0][recipe.batch :]
        assert np.array_equal(moved.numpy(), expected)
        seen.append(step)
        return loss

    monkeypatch.setattr(training, "compute_teaching_loss", watch)
    train(images, RECIPE.model_copy(update={"steps": 5}), tmp_path / "a.pt")
    assert seen == [3, 4]


def test_several_teachers_are_asked_in_turn():
    """Each crop by one of them, each teacher as often as the others, in orientations of its own."""

    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value, self.seen = value, []

        def forward(self, x):
            self.seen.append(x.clone())
            return torch.full((len(x), 3, *x.shape[-2:]), self.value)

    recipe = RECIPE.model_copy(update={"flips": False, "quarter_turns": False})
    moved = torch.rand(4, 2, 16, 16)
    for count in (1, 2, 3, 5):
        teachers = [Constant(float(place)) for place in range(count)]
        asked = []
        for step in range(count):
            said = ask_teachers(teachers, moved, recipe, step)
            assert torch.equal(said, said[:, :1, :1, :1].expand_as(said))
            asked.append(said[:, 0, 0, 0].tolist())
            assert len(set(asked[-1])) == min(count, 4)
        for crop in range(4):
            assert {teacher[crop] for teacher in asked} == set(range(count))
        for place, teacher in enumerate(teachers):
            crops = torch.cat(teacher.seen)
            assert len(crops) == 4
            assert all(any(torch.equal(c, m) for c in crops) for m in moved), place
    turns = [[draw_orientation(RECIPE, step, place) for step in range(20)] for place in (0, 1)]
    assert turns[0] != turns[1]


def test_a_symmetric_network_agrees_with_its_teacher(images):
    """One that looks at single pixels says the same in every orientation."""
    torch.manual_seed(0)
    network = CPnet(RECIPE.widths).eval()

    class Pointwise(torch.nn.Module):
        def forward(self, x):
            return torch.cat([0 * x, x[:, :1]], dim=1)

    # turned in three ways, and another teacher otherwise
    step = next(
        s
        for s in range(999)
        if draw_orientation(RECIPE, s) == 5 and draw_orientation(RECIPE, s, 1) == 2
    )
    inputs = torch.from_numpy(sample_batch(images, RECIPE, step)[0])
    crops, moved = inputs[: RECIPE.batch], inputs[RECIPE.batch :]
    shift = draw_shift(RECIPE, step)
    for teachers, agrees in (([Pointwise()], True), ([Pointwise()] * 2, True), ([network], False)):
        with torch.no_grad():
            output = teachers[0](crops)
        said = ask_teachers(teachers, moved, RECIPE, step)
        assert (float(compute_inconsistency(output, said, shift)) < 1e-12) == agrees
