"""What a weights file says besides its weights: digest, card, shapes.

It is read without torch, whose import takes a second, so that a plan with a bundled model does
without.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from densebatch.base.files import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CARD_KEY = "densebatch"
DIAMETERS = ("diam_mean", "diam_labels")  # names of weights, as in Cellpose's files


def digest_weights(path: Path) -> str:
    """SHA-256 of a weights file.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    return digest(path, f"model {path}")


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, list[int]], dict[str, float]]:
    """Read what precedes the weights in a file that `models.model.save_model` wrote.

    Returns
    -------
    card : dict
        Provenance and conditions of use.
    shapes : dict
        Of the tensors, by name.
    diameters : dict
        Those of `DIAMETERS` that the file holds, pixels.
    """
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        card: dict[str, Any] = json.loads(file.metadata()[CARD_KEY])
        shapes = {name: file.get_slice(name).get_shape() for name in names}
        diameters = {name: float(file.get_tensor(name)[0]) for name in DIAMETERS if name in names}
    return card, shapes, diameters


def infer_widths(shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """Channel widths of a CPnet checkpoint, read from the shapes of its projection weights.

    Parameters
    ----------
    shapes
        Of the checkpoint's tensors, by Cellpose's names.

    Returns
    -------
    tuple of int
        Input channels, then the width of each resolution.

    Raises
    ------
    ValueError
        If the names are not those of a CPnet.
    """
    widths: list[int] = []
    level = 0
    while (shape := shapes.get(f"downsample.down.res_down_{level}.proj.1.weight")) is not None:
        if len(shape) != 4:
            raise ValueError(f"projection weights of level {level} have {len(shape)} axes, not 4")
        if not widths:
            widths.append(int(shape[1]))
        widths.append(int(shape[0]))
        level += 1
    if level < 2:
        raise ValueError("no 'downsample.down.res_down_N.proj' weights: not a Cellpose 1-3 network")
    return tuple(widths)
