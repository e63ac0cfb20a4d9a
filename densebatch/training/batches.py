"""The batches of a training, one after another; drawn ahead where a GPU would wait for them.

Drawing crops takes a hundredth of a step on a CPU, but longer than the step itself on a GPU, for
which processes draw them ahead. A batch is decided by (seed, step) alone, so it does not depend on
the process that draws it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset

from densebatch.base.errors import DensebatchError
from densebatch.base.machine import count_cores
from densebatch.base.process import may_start_processes
from densebatch.training.augmentation import sample_batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from densebatch.training.annotated import AnnotatedImage
    from densebatch.training.recipe import Recipe

_MAX_PROCESSES = 4
_AHEAD = 2  # batches of each process, in shared memory, of which containers have little


class _Steps(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches by the number of their step."""

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        simulated: Sequence[AnnotatedImage],
        recipe: Recipe,
    ) -> None:
        self._images, self._simulated, self._recipe = images, simulated, recipe

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`sample_batch` of the step."""
        is_real = step >= self._recipe.simulated_steps
        inputs, targets = sample_batch(
            self._images if is_real else self._simulated, self._recipe, step
        )
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def count_processes(device: torch.device) -> int:
    """Count the processes that draw ahead: none for a CPU, whose cores the network needs."""
    if device.type == "cpu" or not may_start_processes():
        return 0
    return max(1, min(_MAX_PROCESSES, count_cores() - 1))


def draw_batches(
    images: Sequence[AnnotatedImage],
    simulated: Sequence[AnnotatedImage],
    recipe: Recipe,
    first: int,
    processes: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw the batches of all steps from the first to the recipe's last.

    Parameters
    ----------
    images, simulated
        Annotated images, and those of the recipe's first `simulated_steps`.
    recipe
        The recipe.
    first
        Number of the first step.
    processes
        How many draw ahead; with 0 a batch is drawn here when it is asked for.

    Yields
    ------
    inputs, targets
        See `augmentation.sample_batch`.

    Raises
    ------
    DensebatchError
        If a process was lost.
    """
    steps = _Steps(images, simulated, recipe)
    order = range(first, recipe.steps)
    if processes == 0:
        yield from (steps[step] for step in order)
        return
    loader = DataLoader(
        steps, batch_size=None, sampler=order, num_workers=processes, prefetch_factor=_AHEAD,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    try:
        yield from loader
    except RuntimeError as error:
        if str(error).startswith("Caught"):  # an error in `sample_batch`, with its traceback
            raise
        # A process was killed, as a rule for want of memory or shared memory.
        raise DensebatchError(
            f"drawing crops in {processes} processes failed: {' '.join(str(error).split())}"
        ) from error
