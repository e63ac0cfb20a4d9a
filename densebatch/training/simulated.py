"""Simulated tissue to train on before annotated images: varied, plentiful, labelled exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.training.annotated import AnnotatedImage, make_annotated, measure_diameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.training.recipe import Recipe

_N_IMAGES = 16
_SIDE_PX = 768
_CELL_PX = (6.0, 200.0)  # what can be simulated


def simulate_annotated(images: Sequence[AnnotatedImage], recipe: Recipe) -> list[AnnotatedImage]:
    """Simulated images with cells as large as those of annotated ones, prepared as those are.

    Parameters
    ----------
    images
        Annotated images, of which only the cells' mean diameter is used.
    recipe
        For the channels, percentiles, scale and seed.

    Returns
    -------
    list of AnnotatedImage
        16 images of 768 px and more. Diameters vary by a third, as do density, clustering,
        brightness, background and noise from image to image: what a network learns from them has
        to hold for more than one slide. Equal arguments give equal images.
    """
    diameter = float(measure_diameters([image.labels for image in images]).mean())
    rng = np.random.default_rng([recipe.seed, 2])
    side = max(_SIDE_PX, recipe.patch_px)
    # The cells are simulated at the network's scale, so the images are not rescaled.
    at_scale = recipe.model_copy(update={"diameter_px": None})
    whole = Region(0, 0, side, side)
    result = []
    for index in range(_N_IMAGES):
        seed = int(rng.integers(2**63))
        cell_px = float(np.clip(diameter * rng.uniform(0.75, 1.3), *_CELL_PX))
        tissue = Tissue(
            side,
            side,
            seed=seed,
            cell_diameter_px=cell_px,
            min_area_px=min(30, int(0.3 * cell_px**2)),
            stained_fraction=rng.uniform(0.25, 0.95),
            clustering=rng.uniform(0.2, 1.0),
            cluster_px=rng.uniform(60.0, 250.0),
            background=rng.uniform(30.0, 500.0),
            brightness=rng.uniform(1000.0, 6000.0),
            shot_gain=rng.uniform(1.0, 10.0),
        )
        pixels, ids = render(tissue, whole)
        channels = pixels[:1] if recipe.nuclei is None else pixels
        labels = np.unique(ids, return_inverse=True)[1].reshape(ids.shape).astype(np.int32)
        result.append(make_annotated(f"simulated-{index}", channels, labels, at_scale))
    return result
