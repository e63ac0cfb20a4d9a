"""Train a CPnet on annotated tissue; resumable to the step.

The crops of a step are decided by (seed, step) alone and the checkpoint holds weights, averages
and optimiser state, so a run that resumes gives the weights of an uninterrupted one, on the same
kind of device and the same number of threads.
"""

from __future__ import annotations

import copy
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from densebatch.base.errors import InputError
from densebatch.models.model import load_network
from densebatch.models.network import CPnet
from densebatch.training.annotated import measure_diameters
from densebatch.training.batches import count_processes, draw_batches
from densebatch.training.consistency import compute_teaching_loss, consistency_at
from densebatch.training.curve import CurvePoint, write_curve
from densebatch.training.optimisers import build_optimisers
from densebatch.training.recipe import Recipe
from densebatch.training.simulated import simulate_annotated

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from densebatch.models.model import ModelSpec
    from densebatch.training.annotated import AnnotatedImage

_VALIDATIONS = 5  # in the course of a training


def compute_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cellpose's loss: half the mean squared error of 5x flows plus binary cross-entropy.

    Parameters
    ----------
    output : `(n, 3, h, w)`, see `CPnet`
    target : `(n, 4, h, w)`: 5 dy, 5 dx, inside a cell, weight of the pixel

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


@torch.no_grad()
def _update_average(average: CPnet, network: CPnet, decay: float) -> None:
    kept, new = average.state_dict(), network.state_dict()
    names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
    # all at once: on a GPU, starting so many short kernels takes longer than running them
    average_all = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average_all([kept[n] for n in names], [new[n] for n in names], None)
    for name in kept.keys() - names:
        kept[name].copy_(new[name])


def build_network(
    images: Sequence[AnnotatedImage], recipe: Recipe, start: ModelSpec | None = None
) -> CPnet:
    """The network before the first step: of random weights, or of a model of the same widths."""
    torch.manual_seed(recipe.seed)
    if start is None:
        network = CPnet(recipe.widths)
    elif start.widths != recipe.widths:
        raise ValueError(
            f"model {start.name} has widths {start.widths}, the recipe {recipe.widths}"
        )
    else:
        network = load_network(start)
    seen = [measure_diameters([image.labels]) for image in images if image.labels.any()]
    read = [measure_diameters([i.labels]) / i.scale for i in images if i.labels.any()]
    with torch.no_grad():
        network.diam_mean.fill_(float(np.concatenate(seen).mean()))
        network.diam_labels.fill_(float(np.concatenate(read).mean()))
    return network


def train(
    images: Sequence[AnnotatedImage],
    recipe: Recipe,
    checkpoint: Path,
    *,
    start: ModelSpec | None = None,
    teachers: Sequence[ModelSpec] = (),
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
        Where weights, averages and optimiser state are kept; removed by nobody. The training
        curve is written beside it as CSV.
    start
        Model whose weights are trained further; random weights without.
    teachers
        Models that the network is drawn to, as much as `recipe.consistency` says (distillation,
        Hinton et al. 2015), asked by one crop after the other in turn; without any, its own
        average.
    validate
        Called with the network that would be the result, in evaluation mode, and the number of
        finished steps, five times in the course of the training, at last with the final weights;
        gives named scores. Nothing is chosen by them here.
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
    network = build_network(images, recipe, start).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, mean = (copy.deepcopy(network).eval() for _ in range(2))
    asked = [load_network(teacher).eval().to(device) for teacher in teachers] or [average]
    for network_asked in asked:
        network_asked.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimisers = build_optimisers(network, recipe)
    identity: dict[str, Any] = {
        "recipe": _describe(recipe),
        "images": {image.name: image.sha256 for image in images},
        "start": start.sha256 if start is not None else None,
        "teachers": [teacher.sha256 for teacher in teachers],
    }
    curve: list[CurvePoint] = []
    if checkpoint.exists():
        curve = _resume(checkpoint, identity, (network, average, mean), optimisers)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        partial = checkpoint.with_suffix(".partial")
        state = {
            "identity": identity,
            "network": network.state_dict(),
            "average": average.state_dict(),
            "mean": mean.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "curve": [(p.step, p.loss, p.scores) for p in curve],
        }
        torch.save(state, partial)
        partial.replace(checkpoint)
        write_curve(curve, checkpoint.with_suffix(".csv"))

    def score_last() -> None:
        point = curve[-1]
        if validate is not None and point.step in stops and not point.scores:
            point.scores.update(validate(copy.deepcopy(result()).cpu(), point.step))

    def result() -> CPnet:
        return mean if len(curve) > mean_from else average

    mean_from = recipe.steps - recipe.mean_steps
    stops = {math.ceil(recipe.steps * k / _VALIDATIONS) for k in range(1, _VALIDATIONS + 1)}
    if curve:
        score_last()  # a stop may have come between a step and its validation
    simulated = simulate_annotated(images, recipe) if len(curve) < recipe.simulated_steps else []
    saved = time.monotonic()
    network.train()
    batches = draw_batches(images, simulated, recipe, len(curve), count_processes(device))
    for step, (inputs, targets) in enumerate(batches, len(curve)):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate_at(step, recipe)
        loss = _take_step(network, asked, optimisers, inputs, targets, recipe, step)
        if not math.isfinite(loss):
            raise ValueError(f"loss became {loss} at step {step + 1}; lower the learning rate")
        # Early on the average follows more closely, or it would remember the random start.
        _update_average(average, network, min(recipe.average, (step + 1) / (step + 10)))
        if step >= mean_from:
            _update_average(mean, network, 1.0 - 1.0 / (step + 1 - mean_from))
        curve.append(CurvePoint(step + 1, loss, {}))
        if step + 1 in stops:
            save()  # whatever happens to a validation, the steps are kept
            score_last()
        if on_step is not None:
            on_step(curve[-1])
        if time.monotonic() - saved > checkpoint_seconds:
            save()
            saved = time.monotonic()
    save()
    return result().cpu(), curve


def _check_teacher(teacher: ModelSpec, recipe: Recipe) -> None:
    """Refuse a teacher that would see something else than its pupil, or have no say."""
    name = f"teacher {teacher.name}"
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


def _describe(recipe: Recipe) -> dict[str, Any]:
    """All that decides weights; the text about the data does not."""
    return recipe.model_dump(mode="json", exclude={"about"})


def _resume(
    checkpoint: Path,
    identity: Mapping[str, Any],
    networks: tuple[CPnet, CPnet, CPnet],
    optimisers: Sequence[torch.optim.Optimizer],
) -> list[CurvePoint]:
    """Put everything where the checkpoint left it; the curve so far."""
    device = next(networks[0].parameters()).device
    try:
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        found = state["identity"]
        # settings that came later have their defaults in it
        one = found.pop("teacher", None)
        found.setdefault("teachers", [one] if one is not None else [])
        found["recipe"] = _describe(Recipe.model_validate(found["recipe"]))
        if found == identity:
            for network, name in zip(networks, ("network", "average", "mean"), strict=True):
                network.load_state_dict(state[name])
            for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(kept)
            return [CurvePoint(*point) for point in state["curve"]]
    except Exception as error:  # a damaged file can raise nearly anything in a parser
        raise InputError(
            f"{checkpoint}: is damaged, or no progress of a training; remove it to start again"
        ) from error
    raise InputError(
        f"{checkpoint}: belongs to another recipe, other images or other models; choose another "
        "output or remove it"
    )


def _take_step(
    network: CPnet,
    teachers: Sequence[CPnet],
    optimisers: Sequence[torch.optim.Optimizer],
    inputs: torch.Tensor,
    targets: torch.Tensor,
    recipe: Recipe,
    step: int,
) -> float:
    """Forward, backward and update; the loss before the update."""
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
    for optimiser in optimisers:
        optimiser.step()
    return float(loss.detach())
