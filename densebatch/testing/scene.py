"""A tile with cells whose places are known: inside, touching, and cut by the tile's border."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIDES = (13, 10)
"""Cells down and across; unlike, so that swapped axes show."""
_PITCH = 1.5
"""Distance of cells in diameters, on average."""
_EDGE_PX = 1.0


@dataclass(frozen=True)
class Scene:
    """A tile and its truth.

    Attributes
    ----------
    image : `(channels, y, x)` float32, 0 to 1: nuclei, with membranes around them before if two
    truth : `(y, x)` int32, nuclei from 1
    cut : numbers of the nuclei that the border cuts in two
    """

    image: NDArray[np.float32]
    truth: NDArray[np.int32]
    cut: frozenset[int]


def draw_scene(channels: int, diameter_px: float) -> Scene:
    """The same tile each time.

    Parameters
    ----------
    channels
        1 for nuclei, 2 for membrane and nuclei.
    diameter_px
        Of a nucleus; those of the tile have 0.85 to 1.15 of it.
    """
    rng = np.random.default_rng(0)
    pitch = _PITCH * diameter_px
    shape = (round((_SIDES[0] - 1) * pitch) + 3, round((_SIDES[1] - 1) * pitch) + 1)
    y, x = np.indices(shape, np.float32)
    truth = np.zeros(shape, np.int32)
    nuclei, membrane = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    cut = set()
    for number, (row, col) in enumerate(np.ndindex(_SIDES), start=1):
        at = np.array([row, col]) * pitch
        along_border = (row in (0, _SIDES[0] - 1), col in (0, _SIDES[1] - 1))
        shift = rng.uniform(-0.25, 0.25, 2) * diameter_px
        centre = at + np.where(along_border, 0, shift)
        radius = diameter_px / 2 * rng.uniform(0.85, 1.15)
        light = rng.uniform(0.6, 0.9)
        distance = np.hypot(y - centre[0], x - centre[1])
        truth[(distance <= radius) & (truth == 0)] = number
        nuclei = np.maximum(nuclei, light * _fall(distance - radius))
        ring = np.abs(distance - 1.35 * radius) - 0.1 * radius
        membrane = np.maximum(membrane, 0.8 * _fall(ring))
        if any(along_border):
            cut.add(number)
    planes = np.stack([membrane, nuclei][-channels:])
    noise = rng.normal(0, 0.02, planes.shape)
    return Scene(np.clip(planes + 0.05 + noise, 0, 1).astype(np.float32), truth, frozenset(cut))


def _fall(beyond: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light at a distance beyond an outline, px: 1 inside, 0 outside, soft between."""
    return np.clip(0.5 - beyond / (2 * _EDGE_PX), 0, 1)
