"""Optimisers of a recipe: AdamW, Cellpose's SGD, and Muon for the convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from densebatch.models.network import CPnet
    from densebatch.training.recipe import Recipe

_SGD_MOMENTUM = 0.9  # Cellpose's
_MUON_MOMENTUM = 0.95
_MUON_ROUNDS = 5
# These coefficients of the quintic iteration let small singular values grow fastest among those
# that end between about 0.7 and 1.2 (Jordan et al. 2024, Muon).
_MUON_QUINTIC = (3.4445, -4.7750, 2.0315)
_MUON_RMS = 0.2  # of an update in units of the rate, as AdamW's is (Liu et al. 2025, section 2.2)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is brought to equal singular values (Jordan et al. 2024).

    A convolution's weights `(out, in, h, w)` are taken as the matrix `(out, in h w)`. PyTorch's own
    `torch.optim.Muon` accepts matrices only.

    Parameters
    ----------
    weights
        Tensors of two axes and more.
    lr
        Rate; the root mean square of an update is 0.2 times that.
    weight_decay
        Decoupled, times the rate.
    dtype
        Of the rounds that find the update. They bring singular values near 1, not to it, so
        bfloat16 serves, and is three times as fast where a processor computes in it.
    """

    def __init__(
        self,
        weights: Iterable[torch.Tensor],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Update every weight that has a gradient; `closure` is not accepted."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[torch.Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    rows = len(weight)
                    alike.setdefault((rows, weight.numel() // rows), []).append(weight)
            for shape, weights in alike.items():
                self._update(weights, shape, group["lr"], group["weight_decay"])

    def _update(
        self, weights: list[torch.Tensor], shape: tuple[int, int], rate: float, decay: float
    ) -> None:
        """Update weights of one shape together: a GPU is slow at many short kernels."""
        grads = [weight.grad for weight in weights if weight.grad is not None]
        for weight, grad in zip(weights, grads, strict=True):
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(grad)
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, grads, 1.0 - _MUON_MOMENTUM)
        ahead = torch._foreach_lerp(grads, momenta, _MUON_MOMENTUM)
        stacked = torch.stack([one.reshape(shape) for one in ahead])
        updates = orthogonalize(stacked, self._dtype).unbind()
        torch._foreach_mul_(weights, 1.0 - rate * decay)
        torch._foreach_add_(
            weights,
            [one.reshape(weight.shape) for one, weight in zip(updates, weights, strict=True)],
            alpha=-rate * _MUON_RMS * max(shape) ** 0.5,
        )


def orthogonalize(matrix: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Matrices `(..., m, n)` of the same singular vectors, singular values all brought near 1.

    Five rounds of `a X + (b A + c A A) X` with `A = X X^T` (Newton-Schulz), in `dtype`.
    """
    a, b, c = _MUON_QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: torch.Tensor = matrix.mT if tall else matrix
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = (x / (norm + 1e-7)).to(dtype).contiguous()
    for _ in range(_MUON_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def build_optimisers(network: CPnet, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Build the recipe's optimiser; beside Muon, AdamW for all that is no inner convolution.

    Muon gives all directions of a matrix the same weight. That suits neither the first convolution,
    of two channels, nor the last, of three outputs.
    """
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        return [
            torch.optim.SGD(weights.values(), lr=rate, momentum=_SGD_MOMENTUM, weight_decay=decay)
        ]
    if recipe.optimiser == "adamw":
        return [torch.optim.AdamW(weights.values(), lr=rate, weight_decay=decay)]
    inner = {
        name
        for name, p in weights.items()
        if p.ndim == 4 and p.shape[1] > network.widths[0] and not name.startswith("output.")
    }
    return [
        torch.optim.AdamW(
            [p for name, p in weights.items() if name not in inner], lr=rate, weight_decay=decay
        ),
        Muon(
            [weights[name] for name in sorted(inner)],
            lr=rate,
            weight_decay=decay,
            dtype=torch.bfloat16 if recipe.autocast else torch.float32,
        ),
    ]
