"""Score a network on held-out annotated images, by the path that slides take."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from densebatch.cells.read import open_labels
from densebatch.models.model import save_model
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from densebatch.training.annotated import measure_diameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.models.network import CPnet
    from densebatch.training.annotated import HeldOut
    from densebatch.training.recipe import Recipe

MARGIN_PX = 8  # of a patch's border, not trusted
# Names of the scores by the smallest area in px (the paper reports two) and the IoU.
_NAMED = {0: {"0.50": "map", "0.70": "map_iou_70", "0.90": "map_iou_90"}, 100: {"0.50": "map_100"}}


def write_model(network: CPnet, path: Path, recipe: Recipe, card: Mapping[str, object]) -> None:
    """Write a trained network with the conditions of use that its recipe implies.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    path
        Output, `.safetensors`.
    recipe
        It was trained with.
    card
        Provenance.

    Raises
    ------
    ValueError
        If a weight is beyond float16.
    """
    um_per_px = recipe.um_per_px
    if um_per_px is not None:  # at the network's scale, to which images may have been rescaled
        um_per_px *= float(network.diam_labels / network.diam_mean)
    save_model(
        network,
        path,
        um_per_px=um_per_px,
        patch_px=recipe.patch_px,
        margin_px=MARGIN_PX,
        percentiles=recipe.percentiles,
        nuclei=recipe.nuclei is not None,
        card=card,
    )


def validate(network: CPnet, recipe: Recipe, held_out: Sequence[HeldOut]) -> dict[str, float]:
    """Mean AP over held-out images: at IoU 0.5 without and with the paper's size filter, 0.7, 0.9.

    A network of rescaled images is given the true median diameter of each.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    recipe
        It was trained with.
    held_out
        What it was not trained with.

    Returns
    -------
    dict
        `map` and `map_100` (cells of at least 100 px on both sides), `map_iou_70` and `map_iou_90`,
        0 to 1, means over images.
    """
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="densebatch-") as scratch:
        model = Path(scratch) / "model.safetensors"
        write_model(network, model, recipe, {})
        for index, image in enumerate(held_out):
            slide = Path(scratch) / f"{index}.tif"
            tifffile.imwrite(slide, np.ascontiguousarray(image.pixels), metadata={"axes": "CYX"})
            n_membrane = len(image.pixels) - (recipe.nuclei is not None)
            result = segment(
                slide,
                Path(scratch) / str(index),
                model=str(model),
                membrane=tuple(str(k) for k in range(n_membrane)),
                nuclei=None if recipe.nuclei is None else str(n_membrane),
                pixel_size=recipe.um_per_px,
                diameter=_median_diameter(image) if recipe.diameter_px is not None else None,
                mask_debris=recipe.mask_debris,
                workers=0,
                image="none",
                # The reference needs no gate, which might refuse another backend.
                device="cpu",
                backend="torch",
            )
            found = open_labels(result.labels)[slice(None), slice(None)]
            for size, named in _NAMED.items():
                # Masks were refused when the images were read. A poor network may well leave one
                # cell in two pieces, and that is no reason to stop.
                settings = ScoreSettings(min_size=size, label_components=False)
                score = score_labels(image.labels.astype(np.uint32), found, settings)
                for iou, name in named.items():
                    scores.setdefault(name, []).append(score.at(iou).ap)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _median_diameter(image: HeldOut) -> float | None:
    return float(np.median(measure_diameters([image.labels]))) if image.labels.any() else None
