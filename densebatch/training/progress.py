"""A training as far as it has come: what the next step needs, and the checkpoint of that."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.training.curve import CurvePoint, write_curve
from densebatch.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from densebatch.models.model import Model
    from densebatch.models.network import CPnet
    from densebatch.training.annotated import AnnotatedImage


def identify_training(
    images: Sequence[AnnotatedImage],
    recipe: Recipe,
    start: Model | None,
    teachers: Sequence[Model],
) -> dict[str, Any]:
    """All that decides the weights, as a checkpoint states it.

    Parameters
    ----------
    images
        Annotated images.
    recipe
        The recipe; its text about the data decides nothing.
    start
        Model whose weights are trained further, if any.
    teachers
        Models that the network is drawn to.

    Returns
    -------
    dict
        Plain values; equal for trainings that give equal weights.
    """
    return {
        "recipe": _describe(recipe),
        "images": {image.name: image.sha256 for image in images},
        "start": start.sha256 if start is not None else None,
        "teachers": [teacher.sha256 for teacher in teachers],
    }


def _describe(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"about"})


@dataclass
class TrainingState:
    """The state of a training between two steps.

    Attributes
    ----------
    network : being trained
    average : of its weights, in which those of early steps fade; the mean teacher
    mean : of its weights after each of the recipe's last `mean_steps`
    optimisers : of the network
    curve : one point for each step that is done
    """

    network: CPnet
    average: CPnet
    mean: CPnet
    optimisers: Sequence[torch.optim.Optimizer]
    curve: list[CurvePoint] = field(default_factory=list)

    @property
    def steps_done(self) -> int:
        """How many steps were taken, which is the number of the next one."""
        return len(self.curve)

    def choose_result(self, recipe: Recipe) -> CPnet:
        """The network that would be the result now: the mean as soon as there is one."""
        averaging = self.steps_done > recipe.steps - recipe.mean_steps
        return self.mean if averaging else self.average

    def copy_result(self, recipe: Recipe) -> CPnet:
        """Copy `choose_result` to the CPU, where further steps do not change it."""
        return copy.deepcopy(self.choose_result(recipe)).cpu()

    def add_step(self, loss: float, recipe: Recipe) -> None:
        """Note a step that was taken, and let the averages follow the network.

        Parameters
        ----------
        loss
            Before the step.
        recipe
            For how the weights are averaged.
        """
        step = self.steps_done
        # Early on the average follows more closely, or it would remember the random start.
        update_average(self.average, self.network, min(recipe.average, (step + 1) / (step + 10)))
        mean_from = recipe.steps - recipe.mean_steps
        if step >= mean_from:
            update_average(self.mean, self.network, 1.0 - 1.0 / (step + 1 - mean_from))
        self.curve.append(CurvePoint(step + 1, loss, {}))

    def save(self, checkpoint: Path, identity: Mapping[str, Any]) -> None:
        """Write the checkpoint, and the curve beside it as CSV; see `identify_training`."""
        state = {
            "identity": dict(identity),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "mean": self.mean.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "curve": [(p.step, p.loss, p.scores) for p in self.curve],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(checkpoint, buffer.getvalue())
        write_curve(self.curve, checkpoint.with_suffix(".csv"))

    def restore(self, checkpoint: Path, identity: Mapping[str, Any]) -> None:
        """Put everything where a checkpoint left it.

        Raises
        ------
        InputError
            If the checkpoint is damaged, or of another recipe, other images or other models.
        """
        device = next(self.network.parameters()).device
        try:
            state = torch.load(checkpoint, map_location=device, weights_only=True)
            found = state["identity"]
            # A setting that was introduced after the checkpoint was written had its default.
            found["recipe"] = _describe(Recipe.model_validate(found["recipe"]))
            if found == identity:
                for name in ("network", "average", "mean"):
                    getattr(self, name).load_state_dict(state[name])
                for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
                    optimiser.load_state_dict(kept)
                self.curve = [CurvePoint(*point) for point in state["curve"]]
                return
        except Exception as error:  # a damaged file can raise nearly anything in a parser
            raise InputError(
                f"{checkpoint}: is damaged, or no progress of a training; remove it to start again"
            ) from error
        raise InputError(
            f"{checkpoint}: belongs to another recipe, other images or other models; choose "
            "another output or remove it"
        )


@torch.no_grad()
def update_average(average: CPnet, network: CPnet, decay: float) -> None:
    """Bring averaged weights nearer to a network's.

    Parameters
    ----------
    average
        Changed: `decay` times itself and the rest of the network. Counters become the network's.
    network
        In training.
    decay
        From 0, which takes over the network's weights, to 1.
    """
    kept, new = average.state_dict(), network.state_dict()
    names = [name for name, tensor in kept.items() if tensor.is_floating_point()]
    # All at once, because on a GPU starting so many short kernels takes longer than running them.
    average_all = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average_all([kept[n] for n in names], [new[n] for n in names], None)
    for name in kept.keys() - names:
        kept[name].copy_(new[name])
