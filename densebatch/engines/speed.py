"""How fast this machine multiplies matrices, which is nearly all that a transformer does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from densebatch.engines.backend import Precision

_DTYPES: dict[Precision, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
# As a block of Cellpose-SAM has them: the tokens of a patch, and the layers of its perceptron.
_ROWS, _INNER, _COLS = 1024, 1024, 4096
_ROUNDS = 3


def measure_flop_per_s(device: str, precision: Precision, threads: int) -> float:
    """Floating-point operations in a second, of the best of some products.

    Parameters
    ----------
    device
        `cpu` or `cuda`.
    precision
        `f32` or `bf16`.
    threads
        Of a CPU.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        dtype = _DTYPES[precision]
        a = torch.ones(_ROWS, _INNER, dtype=dtype, device=device)
        b = torch.ones(_COLS, _INNER, dtype=dtype, device=device)
        best = min(_time_product(a, b) for _ in range(_ROUNDS + 1))
    finally:
        torch.set_num_threads(before)
    return 2 * _ROWS * _INNER * _COLS / best


def _time_product(a: torch.Tensor, b: torch.Tensor) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        product = torch.nn.functional.linear(a, b)
        product[0, 0].item()  # a device goes on working until it is asked for the result
        return time.perf_counter() - start
