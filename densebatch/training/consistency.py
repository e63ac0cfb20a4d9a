"""Train a network to give the same outputs for tissue that is moved, mirrored or turned.

A network that pools does not do that by itself: its cells depend on where a patch begins. The
averaged network, which changes slowly, is the teacher (mean teacher, Tarvainen and Valpola 2017):
it sees each crop a few pixels further and in another orientation, and the network is drawn to its
outputs for the pixels that both see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from densebatch.training.augmentation import draw_orientation, draw_shift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.models.network import CPnet
    from densebatch.training.recipe import Recipe


def orient_inputs(inputs: torch.Tensor, turn: int) -> torch.Tensor:
    """Bring `(n, c, h, w)` planes into one of eight orientations, see `augmentation.orient`."""
    if turn & 1:
        inputs = inputs.flip(-2)
    if turn & 2:
        inputs = inputs.flip(-1)
    return inputs.mT if turn & 4 else inputs


def restore_outputs(outputs: torch.Tensor, turn: int) -> torch.Tensor:
    """Bring outputs `(n, 3, h, w)` for oriented inputs back to the inputs' first orientation.

    Flow components change signs and places with the axes.
    """
    dy, dx, rest = outputs[:, 0], outputs[:, 1], outputs[:, 2]
    if turn & 4:
        dy, dx, rest = dx.mT, dy.mT, rest.mT
    if turn & 2:
        dy, dx, rest = dy.flip(-1), -dx.flip(-1), rest.flip(-1)
    if turn & 1:
        dy, dx, rest = -dy.flip(-2), dx.flip(-2), rest.flip(-2)
    return torch.stack([dy, dx, rest], dim=1)


@torch.no_grad()
def ask_teachers(
    teachers: Sequence[CPnet], moved: torch.Tensor, recipe: Recipe, step: int
) -> torch.Tensor:
    """Evaluate moved crops, each by one of the teachers in turn.

    A squared difference has its mean gradient where the target is the mean, so over many steps the
    network is drawn to the mean of all teachers, at the cost of one.

    Parameters
    ----------
    teachers
        The averaged network, or others that are distilled; in evaluation mode.
    moved
        `(n, 2, h, w)`, see `augmentation.sample_batch`.
    recipe, step
        They decide which teacher a crop asks, and the orientation in which each sees its crops.

    Returns
    -------
    tensor
        `(n, 3, h, w)` float32, in the orientation of `moved`.
    """
    said = moved.new_empty((len(moved), 3, *moved.shape[-2:]))
    for place, teacher in enumerate(teachers):
        crops = slice((place - step) % len(teachers), None, len(teachers))
        if not len(moved[crops]):
            continue
        turn = draw_orientation(recipe, step, place)
        seen = orient_inputs(moved[crops], turn).contiguous(memory_format=torch.channels_last)
        with torch.autocast(moved.device.type, dtype=torch.bfloat16, enabled=recipe.autocast):
            said[crops] = restore_outputs(teacher(seen).float(), turn)
    return said


def compute_inconsistency(
    output: torch.Tensor, expected: torch.Tensor, shift: tuple[int, int]
) -> torch.Tensor:
    """Measure how outputs for crops and for moved crops differ where both see the same pixels.

    Parameters
    ----------
    output : `(n, 3, h, w)`, see `CPnet`
    expected : `(n, 3, h, w)`, of crops that begin `shift` further
    shift : rows and columns

    Returns
    -------
    scalar
        Half the mean squared difference of 5x flows plus that of cell probabilities, weighted
        like the terms of `train.compute_loss`.
    """
    dy, dx = shift
    height, width = output.shape[-2:]
    first, second = output[..., dy:, dx:], expected[..., : height - dy, : width - dx]
    flow = (first[:, :2] - second[:, :2]).square().mean()
    probability = (first[:, 2].sigmoid() - second[:, 2].sigmoid()).square().mean()
    return flow / 2.0 + probability


def consistency_at(step: int, recipe: Recipe) -> float:
    """Weight in a step: 0 while the rate warms up, then rising linearly for four times as long.

    Early on the average lags behind, and its outputs are worth little.
    """
    ramp = 4 * max(1, recipe.warmup_steps)
    return recipe.consistency * min(1.0, max(0, step - recipe.warmup_steps) / ramp)


def compute_teaching_loss(
    output: torch.Tensor,
    teachers: Sequence[CPnet],
    moved: torch.Tensor,
    recipe: Recipe,
    step: int,
) -> torch.Tensor:
    """Compute the inconsistency with the teachers in a step; `consistency_at` is its weight.

    Parameters
    ----------
    output
        `(n, 3, h, w)` of the network, for the crops.
    teachers, moved, recipe, step
        See `ask_teachers`.

    Returns
    -------
    scalar
        See `compute_inconsistency`.
    """
    expected = ask_teachers(teachers, moved, recipe, step)
    return compute_inconsistency(output, expected, draw_shift(recipe, step))
