"""Turn a Cellpose checkpoint into a model file of our own, which says how it is to be used."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.models.card import read_use
from densebatch.models.flow_models import get_kind, list_packages
from densebatch.models.model import CPNET, Model, find_model, load_network, save_model

if TYPE_CHECKING:
    from pathlib import Path


def import_model(
    checkpoint: str,
    output: Path,
    *,
    um_per_px: float | None = None,
    diameter_px: float | None = None,
    patch_px: int | None = None,
    percentiles: tuple[float, float] | None = None,
    nuclei: bool | None = None,
    licence: str | None = None,
    source: str | None = None,
) -> Model:
    """Write a checkpoint's weights, bit by bit, with a card.

    Parameters
    ----------
    checkpoint
        Anything that `find_model` takes. It is read as tensors: no pickle is executed.
    output
        `.safetensors` file to write; must not exist.
    um_per_px
        Pixel size of the images that the network saw in training, after they were rescaled for
        it, micrometres.
    diameter_px
        Cell diameter at the network's scale, pixels.
    patch_px, percentiles, nuclei
        See `Model`.
    licence, source
        Of the weights, for the card. Whatever is None stays as the checkpoint has it.

    Returns
    -------
    Model
        Of the written file.

    Raises
    ------
    InputError
        If the checkpoint is refused, a value is out of range, or the output exists or cannot be
        written.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a model's name ends in .safetensors")
    if output.exists():
        raise InputError(f"{output}: exists; remove it or choose another name")
    model = find_model(checkpoint)
    if patch_px not in (None, model.patch_px) and not get_kind(model.kind).stretches:
        raise InputError(
            f"patch {patch_px} px: accepted is {model.patch_px}, because {model.name} takes "
            "patches of no other size"
        )
    use = {
        "um_per_px": model.um_per_px if um_per_px is None else um_per_px,
        "patch_px": model.patch_px if patch_px is None else patch_px,
        "margin_px": model.margin_px,
        "percentiles": list(model.percentiles if percentiles is None else percentiles),
        "nuclei": model.nuclei if nuclei is None else nuclei,
    }
    accepted = read_use(output, use)
    if diameter_px is not None and not 0.1 <= diameter_px <= 10_000:
        raise InputError(f"diameter {diameter_px:g} px: accepted are 0.1 to 10000")
    network = load_network(model)
    if hasattr(network, "diam_mean"):
        # An old checkpoint holds no diameters; the new file holds what is known of them.
        network.diam_mean.data.fill_(model.diameter_px if diameter_px is None else diameter_px)
        same = model.default_diameter_px == model.diameter_px
        default = diameter_px if same and diameter_px is not None else model.default_diameter_px
        network.diam_labels.data.fill_(default)
    elif diameter_px is not None:
        raise InputError(f"diameter {diameter_px:g} px: files of {model.kind!r} cannot state one")
    card = {
        **{key: value for key, value in model.card.items() if key not in ("use", "name")},
        "name": output.stem,
        **({"kind": model.kind} if model.kind != CPNET else {}),
        **dict(zip(["package"], list_packages(model.kind), strict=False)),
        "imported": {"name": model.name, "sha256": model.sha256, "by": version("densebatch")},
        **({"source": source} if source is not None else {}),
        **({"licence": licence} if licence is not None else {}),
    }
    try:
        save_model(network, output, **accepted, card=card, half=False)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from error
    return find_model(str(output))
