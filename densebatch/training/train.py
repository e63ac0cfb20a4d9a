"""Train a CPnet on annotated tissue; resumable to the step.

The crops of a step are decided by (seed, step) alone and the checkpoint (`training.progress`) holds
weights, averages and optimiser state. A training that resumes therefore gives the weights of an
uninterrupted one, on the same kind of device and with the same number of threads.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from densebatch.base.log import log_event
from densebatch.models.model import CPNET, load_network
from densebatch.models.network import CPnet
from densebatch.training.annotated import measure_diameters
from densebatch.training.batches import count_processes, draw_batches
from densebatch.training.consistency import compute_teaching_loss, consistency_at
from densebatch.training.optimisers import build_optimisers
from densebatch.training.progress import TrainingState, identify_training
from densebatch.training.simulated import simulate_annotated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from densebatch.models.model import Model
    from densebatch.training.annotated import AnnotatedImage
    from densebatch.training.curve import CurvePoint
    from densebatch.training.recipe import Recipe

log = logging.getLogger(__name__)

_ONLY_CPNET = "is no Cellpose 1-3 network, and only these are trained here and taught by"
_VALIDATIONS = 5  # in the course of a training


def compute_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cellpose's loss: half the mean squared error of 5x flows plus binary cross-entropy.

    Parameters
    ----------
    output : `(n, 3, h, w)`, see `CPnet`
    target : `(n, 4, h, w)`: 5 dy, 5 dx, inside a cell, weight of the pixel

    Returns
    -------
    scalar

    Notes
    -----
    Stringer et al. 2021, Methods; with all weights 1 it is cellpose 3.1.1.3
    `train._loss_fn_seg`.
    """
    weight = target[:, 3]
    flow = (output[:, :2] - target[:, :2]).square() * weight[:, None]
    probability = functional.binary_cross_entropy_with_logits(
        output[:, 2], target[:, 2], weight=weight
    )
    return flow.mean() / 2.0 + probability


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, the peak while tissue is simulated, then cosine decay to the final rate."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    top = max(recipe.warmup_steps, recipe.simulated_steps)
    done = max(0, step - top) / max(1, recipe.steps - top)
    left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return recipe.learning_rate * (recipe.final_rate + (1.0 - recipe.final_rate) * left)


def build_network(
    images: Sequence[AnnotatedImage], recipe: Recipe, start: Model | None = None
) -> CPnet:
    """Make the network of the first step, which knows the images' cell diameters.

    Parameters
    ----------
    images
        To train on; some hold cells.
    recipe
        For the widths, and the seed of random weights.
    start
        Model of the same widths whose weights are taken instead of random ones.

    Raises
    ------
    ValueError
        If the widths differ.
    """
    torch.manual_seed(recipe.seed)
    if start is None:
        network = CPnet(recipe.widths)
    elif start.kind != CPNET:
        raise ValueError(f"model {start.name}: {_ONLY_CPNET}")
    elif start.widths != recipe.widths:
        raise ValueError(
            f"model {start.name} has widths {start.widths}, the recipe {recipe.widths}"
        )
    else:
        network = load_network(start)
    seen = [measure_diameters([image.labels]) for image in images if image.labels.any()]
    read = [measure_diameters([i.labels]) / i.scale for i in images if i.labels.any()]
    with torch.no_grad():
        seen_px = float(np.concatenate(seen).mean())
        network.diam_mean.fill_(recipe.diameter_px or seen_px)
        network.diam_labels.fill_(float(np.concatenate(read).mean()))
    return network


def train(
    images: Sequence[AnnotatedImage],
    recipe: Recipe,
    checkpoint: Path,
    *,
    start: Model | None = None,
    teachers: Sequence[Model] = (),
    validate: Callable[[CPnet, int], Mapping[str, float]] | None = None,
    checkpoint_seconds: float = 120.0,
    on_step: Callable[[CurvePoint], None] | None = None,
) -> tuple[CPnet, list[CurvePoint]]:
    """Train a CPnet, or go on from a checkpoint of the same recipe.

    Parameters
    ----------
    images
        Annotated images.
    recipe
        The recipe.
    checkpoint
        File of weights, averages and optimiser state, which stays when the training is finished.
        The training curve is written beside it as CSV.
    start
        Model whose weights are trained further; random weights without.
    teachers
        Models that the network is drawn to with the weight `recipe.consistency` (distillation,
        Hinton et al. 2015); each crop asks the next one. Without any, its own average is asked.
    validate
        Called five times in the course of the training, last with the final weights: with the
        network that would be the result, in evaluation mode, and the number of finished steps.
        Returns named scores, which go into the curve; they decide nothing.
    checkpoint_seconds
        Seconds between checkpoints.
    on_step
        Called with each new point of the curve.

    Returns
    -------
    network : CPnet
        In evaluation mode, on the CPU: averaged, or with `recipe.mean_steps` the mean (Izmailov et
        al. 2018, Averaging weights leads to wider optima).
    curve : list of CurvePoint
        One point for each step.

    Raises
    ------
    InputError
        If the checkpoint is damaged, or of another recipe, other images or other models.
    ValueError
        If the start has other widths, a teacher has no weight or takes other images, or the loss
        is not finite.
    """
    for teacher in teachers:
        _check_teacher(teacher, recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True
    begun = time.monotonic()
    state = _make_state(images, recipe, start, device)
    asked = [_load_teacher(teacher, device) for teacher in teachers] or [state.average]
    identity = identify_training(images, recipe, start, teachers)
    if checkpoint.exists():
        state.restore(checkpoint, identity)
        log_event(log, "training resumed", step=state.steps_done, checkpoint=str(checkpoint))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    # A training may have been stopped between a step and its validation.
    _validate_last(state, recipe, validate)
    first = state.steps_done
    simulated = simulate_annotated(images, recipe) if first < recipe.simulated_steps else []
    log_event(
        log, "training begins", step=first, steps=recipe.steps, images=len(images),
        simulated_images=len(simulated), device=device.type,
    )  # fmt: skip
    saved = time.monotonic()
    state.network.train()
    batches = draw_batches(images, simulated, recipe, first, count_processes(device))
    for step, (inputs, targets) in enumerate(batches, first):
        loss = _take_step(state, asked, inputs, targets, recipe, step)
        if not math.isfinite(loss):
            raise ValueError(f"loss became {loss} at step {step + 1}; lower the learning rate")
        state.add_step(loss, recipe)
        if step + 1 in _list_stops(recipe):
            state.save(checkpoint, identity)  # the steps are kept if the validation fails
            _validate_last(state, recipe, validate)
        if on_step is not None:
            on_step(state.curve[-1])
        if time.monotonic() - saved > checkpoint_seconds:
            state.save(checkpoint, identity)
            saved = time.monotonic()
    state.save(checkpoint, identity)
    seconds = round(time.monotonic() - begun, 1)
    log_event(log, "training finished", steps=state.steps_done, seconds=seconds)
    return state.choose_result(recipe).cpu(), state.curve


def _make_state(
    images: Sequence[AnnotatedImage],
    recipe: Recipe,
    start: Model | None,
    device: torch.device,
) -> TrainingState:
    """Make network, averages and optimisers ready for the first step."""
    network = build_network(images, recipe, start).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, mean = (copy.deepcopy(network).eval() for _ in range(2))
    return TrainingState(network, average, mean, build_optimisers(network, recipe))


def _load_teacher(teacher: Model, device: torch.device) -> CPnet:
    network: CPnet = load_network(teacher).eval().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _list_stops(recipe: Recipe) -> set[int]:
    """Numbers of finished steps after which the network is validated."""
    return {math.ceil(recipe.steps * k / _VALIDATIONS) for k in range(1, _VALIDATIONS + 1)}


def _validate_last(
    state: TrainingState,
    recipe: Recipe,
    validate: Callable[[CPnet, int], Mapping[str, float]] | None,
) -> None:
    """Score what would be the result now, if the last step is one to validate and has no scores."""
    if validate is None or state.steps_done not in _list_stops(recipe):
        return
    point = state.curve[-1]
    if not point.scores:
        point.scores.update(validate(state.copy_result(recipe), point.step))
        log_event(log, "training validated", step=point.step, scores=point.scores)


def _check_teacher(teacher: Model, recipe: Recipe) -> None:
    """Refuse a teacher that takes other images than its pupil, or would have no influence."""
    name = f"teacher {teacher.name}"
    if teacher.kind != CPNET:
        raise ValueError(f"{name}: {_ONLY_CPNET}")
    if not recipe.consistency:
        raise ValueError(f"{name}: the recipe's consistency is 0, which gives it no weight")
    unit = 2 ** (len(teacher.widths) - 2)
    if recipe.patch_px % unit:
        raise ValueError(f"{name}: takes crops of a multiple of {unit} px, not {recipe.patch_px}")
    if tuple(teacher.percentiles) != tuple(recipe.percentiles):
        raise ValueError(
            f"{name}: knows images by their percentiles {teacher.percentiles}, the recipe's are "
            f"{recipe.percentiles}"
        )
    scales = (teacher.um_per_px, recipe.um_per_px)
    if recipe.diameter_px is None and None not in scales and scales[0] != scales[1]:
        raise ValueError(f"{name}: is for {scales[0]} um/px, the recipe for {scales[1]}")


def _take_step(
    state: TrainingState,
    teachers: Sequence[CPnet],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    recipe: Recipe,
    step: int,
) -> float:
    """Forward, backward and update of the network; the loss before the update."""
    network = state.network
    device = next(network.parameters()).device
    batch = inputs.to(device, non_blocking=True, memory_format=torch.channels_last)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.autocast):
        output = network(batch[: recipe.batch]).float()
    loss = compute_loss(output, targets.to(device, non_blocking=True))
    weight = consistency_at(step, recipe)
    if weight > 0:
        moved = batch[recipe.batch :]
        loss = loss + weight * compute_teaching_loss(output, teachers, moved, recipe, step)
    network.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        optimiser.step()
    return float(loss.detach())
