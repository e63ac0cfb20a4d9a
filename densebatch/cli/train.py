"""`densebatch train`."""

from __future__ import annotations

import os
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from densebatch.base.errors import InputError
from densebatch.cli.logs import LoggedCommand
from densebatch.cli.options import add_options, image_options, label_components_option

if TYPE_CHECKING:
    from densebatch.models.model import Model
    from densebatch.models.network import CPnet
    from densebatch.training.annotated import AnnotatedImage, HeldOut
    from densebatch.training.curve import CurvePoint
    from densebatch.training.recipe import Recipe

_TOLD_STEPS = 20


@click.command(cls=LoggedCommand)
@click.argument("images", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Model to write, .safetensors; checkpoint and training curve go beside it.",
)
@click.option("-c", "--config", type=click.Path(path_type=Path), help="Recipe as YAML.")
@click.option(
    "--start", metavar="MODEL", help="Train this model further, instead of random weights."
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="MODEL",
    help="Draw the network to what this model says, instead of its own average (distillation); "
    "repeatable: one crop after the other asks the next.",
)
@click.option("--steps", type=int, help="Override the recipe's number of steps.")
@click.option("--seed", type=int, help="Override the recipe's seed.")
@click.option(
    "--hold-out",
    multiple=True,
    metavar="NAME",
    help="Image to validate with instead of training on it; repeatable.",
)
@add_options(image_options)
@label_components_option
def train(
    images: Path,
    output: Path,
    config: Path | None,
    start: str | None,
    teachers: tuple[str, ...],
    steps: int | None,
    seed: int | None,
    hold_out: tuple[str, ...],
    label_components: bool | None,
    **chosen: str | None,
) -> None:
    """Train a network on IMAGES, a folder of annotated images.

    \b
    Accepted are X_img with X_masks (PNG, TIFF, OME-TIFF, zarr) and OME-Zarr images with labels.
    Progress is kept in OUTPUT.pt; the same command goes on from it.
    """  # noqa: D301  the backspace is click's mark for a paragraph that keeps its lines
    from densebatch.models.model import find_model
    from densebatch.training.annotated import load_annotated
    from densebatch.training.image_facts import settle_recipe
    from densebatch.training.recipe import load_recipe
    from densebatch.training.train import train as run_training

    if output.suffix != ".safetensors":
        raise InputError(f"{output}: a model's name ends in .safetensors")
    _check_output(output)
    recipe = load_recipe(
        config, steps=steps, seed=seed, label_components=label_components, **chosen
    )
    origin = find_model(start) if start is not None else None
    masters = [find_model(teacher) for teacher in teachers]
    recipe, notes = settle_recipe(images, recipe)
    data, held_out = load_annotated(images, recipe, hold_out)
    notes += [
        f"image {image.name}: {image.masked_fraction:.2%} of its pixels are taken for debris: its "
        "percentiles leave them out and the network sees 0 there; "
        "if it is cells, state mask_debris: false in the recipe"
        for image in {image.name: image for image in data}.values()  # one of several copies
        if image.masked_fraction
    ]
    for note in notes:
        click.echo(note, err=True)
    begun = time.monotonic()
    losses: list[float] = []

    def tell(point: CurvePoint) -> None:
        losses.append(point.loss)
        if point.step % _TOLD_STEPS == 0 or point.scores or point.step == recipe.steps:
            recent = losses[-_TOLD_STEPS:]
            scores = "".join(f"  {name} {value:.4f}" for name, value in point.scores.items())
            click.echo(
                f"step {point.step}/{recipe.steps}  loss {sum(recent) / len(recent):.4f}{scores}  "
                f"{time.monotonic() - begun:.0f} s"
            )

    check = partial(_validate, recipe=recipe, held_out=held_out) if held_out else None
    try:
        network, curve = run_training(
            data, recipe, output.with_suffix(".pt"), start=origin, teachers=masters,
            validate=check, on_step=tell,
        )  # fmt: skip
        models = {
            "start": _name(origin) if origin is not None else "random",
            "teachers": [_name(master) for master in masters] or "its average",
        }
        _write(output, network, curve, recipe, data, held_out, {**models, "notes": notes})
    except ValueError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error


def _name(model: Model) -> dict[str, str]:
    return {"name": model.name, "sha256": model.sha256}


def _write(
    output: Path,
    network: CPnet,
    curve: list[CurvePoint],
    recipe: Recipe,
    data: list[AnnotatedImage],
    held_out: list[HeldOut],
    facts: dict[str, Any],
) -> None:
    """The model with its card, and the picture of its training."""
    from densebatch.training.curve import draw_curve
    from densebatch.training.validation import write_model

    card = {
        "name": output.stem,
        "recipe": recipe.model_dump(mode="json", exclude={"about"}),
        "data": {image.name: image.sha256 for image in data},
        "held_out": [image.name for image in held_out],
        "validation": curve[-1].scores,
        **facts,
        "versions": {name: version(name) for name in ("densebatch", "torch", "numpy")},
        "about": recipe.about,
    }
    write_model(network, output, recipe, card)
    picture = output.with_suffix(".svg")
    draw_curve(curve, picture)
    click.echo(f"model  {output}\ncurve  {output.with_suffix('.csv')}, {picture}")


def _check_output(output: Path) -> None:
    """Refuse, before hours of training, a place that nothing can be written to."""
    existing = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    is_free = existing.is_file() if existing == output.absolute() else existing.is_dir()
    if not is_free or not os.access(existing, os.W_OK):
        kind = "is a folder" if existing.is_dir() else "is a file"
        raise InputError(
            f"{output}: cannot be written, {existing} {'is not writable' if is_free else kind}; "
            "accepted is a new or an earlier model's file"
        )


def _validate(
    network: CPnet, step: int, *, recipe: Recipe, held_out: list[HeldOut]
) -> dict[str, float]:
    from densebatch.training.validation import validate

    del step  # every validation is alike
    return validate(network, recipe, held_out)
