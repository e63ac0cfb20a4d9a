"""`densebatch train`."""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import yaml

from densebatch.errors import InputError
from densebatch.models import find_model, save_model
from densebatch.training import TrainSettings, load_training_images
from densebatch.training import train as run_training

_MARGIN_PX = 8


def load_recipe(path: Path | None) -> tuple[TrainSettings, dict[str, Any]]:
    """Recipe from YAML: training settings, and what goes into the card as it is (`about`).

    Raises
    ------
    InputError
        For an unreadable file or an unknown key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{path}: not a readable YAML file ({error})") from error
    about = values.pop("about", {})
    known = {f.name for f in fields(TrainSettings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(
            f"{path}: unknown setting {unknown[0]!r}; "
            f"accepted are {', '.join(sorted(known))}, about"
        )
    for name in ("widths", "percentiles"):
        if name in values:
            values[name] = tuple(values[name])
    return TrainSettings(**values), about


@click.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Model to write, .safetensors; checkpoint and loss curve go beside it.",
)
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Recipe as YAML.")
@click.option(
    "--start", metavar="MODEL", help="Train this model further, instead of random weights."
)
@click.option("--steps", type=int, help="Override the recipe's number of steps.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Image to hold out; repeatable.")
def train(
    images: Path,
    output: Path,
    config: Path | None,
    start: str | None,
    steps: int | None,
    exclude: tuple[str, ...],
) -> None:
    """Train a network on IMAGES, a folder of *_img.png with *_masks.png.

    Progress is kept in OUTPUT.pt; the same command goes on from it.
    """  # fmt: skip
    settings, about = load_recipe(config)
    if steps is not None:
        settings = TrainSettings(**{**asdict(settings), "steps": steps})
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a model's name ends in .safetensors")
    try:
        data = load_training_images(images, settings, exclude)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    origin = find_model(start) if start is not None else None
    begun = time.monotonic()
    window: list[float] = []

    def tell(step: int, loss: float) -> None:
        window.append(loss)
        if step % 20 == 0:
            mean = sum(window[-20:]) / len(window[-20:])
            click.echo(f"step {step}/{settings.steps}  loss {mean:.4f}  "
                       f"{time.monotonic() - begun:.0f} s")  # fmt: skip

    try:
        network = run_training(
            data, settings, output.with_suffix(".pt"), start=origin, on_step=tell
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    card = {
        "name": output.stem,
        "recipe": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()},
        "data": {image.name: image.sha256 for image in data},
        "held_out": list(exclude),
        "start": {"name": origin.name, "sha256": origin.sha256} if origin is not None else "random",
        "versions": {name: version(name) for name in ("densebatch", "torch", "numpy")},
        "about": about,
    }
    save_model(
        network,
        output,
        um_per_px=settings.um_per_px,
        patch_px=settings.patch_px,
        margin_px=_MARGIN_PX,
        percentiles=settings.percentiles,
        nuclei=settings.nuclei > 0,
        card=card,
    )
    click.echo(f"model  {output}")
