"""What annotated images tell of themselves, and what a recipe assumes where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.names import explain_choice, join_notes, quote_names
from densebatch.cells.pairs import find_annotated
from densebatch.slides.slide import open_slide

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from densebatch.training.recipe import Recipe

_SAME = 0.01  # pixel sizes that differ by less are one size


def settle_recipe(folder: Path, recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Complete a recipe with the pixel size that the images tell.

    The pixel size goes into the model's card, and decides at which scale the model sees slides.

    Parameters
    ----------
    folder
        See `find_annotated`.
    recipe
        Its `um_per_px` holds if it was stated, whatever the images tell.

    Returns
    -------
    recipe : Recipe
        With the images' pixel size, if it was not stated and they tell another than its default.
    notes : list of str
        What a user should know of what was assumed, a sentence each.

    Raises
    ------
    InputError
        If images cannot be opened, or tell different pixel sizes and the recipe states none.
    """
    told: dict[str, float | None] = {}
    notes = []
    for file in find_annotated(folder):
        slide = open_slide(file.image, recipe.scene, recipe.axes, z=recipe.z, t=recipe.t)
        told[file.name] = slide.info.um_per_px
        named = [("membrane", name) for name in recipe.membrane]
        named += [("nuclei", recipe.nuclei)] if recipe.nuclei is not None else []
        for role, name in named:
            slide.channel_index(name)  # refuses what is no channel, or several
            if (remark := explain_choice(slide.info.channels, name)) is not None:
                notes.append((file.name, f"{role} {name} {remark}"))
        notes += [(file.name, note) for note in slide.info.notes]
    joined = join_notes(notes, len(told))
    if "um_per_px" in recipe.model_fields_set:
        return recipe, [*joined, *_explain_contradictions(told, recipe.um_per_px)]
    settled, more = _settle_pixel_size(folder, told, recipe)
    return settled, [*joined, *more]


def _explain_contradictions(told: Mapping[str, float | None], stated_um: float | None) -> list[str]:
    others = [
        name
        for name, um in told.items()
        if None not in (um, stated_um) and not _is_same(um, stated_um)
    ]
    if not others:
        return []
    return [
        f"the recipe's pixel size {stated_um:g} um/px is used; another is told by "
        f"{quote_names(others)}, the first {told[others[0]]:g} um/px"
    ]


def _settle_pixel_size(
    folder: Path, told: Mapping[str, float | None], recipe: Recipe
) -> tuple[Recipe, list[str]]:
    """Pixel size of images, where the recipe states none."""
    known = {name: um for name, um in told.items() if um is not None}
    if not known:
        return recipe, [
            f"pixel size unknown: the images are taken to be of {recipe.um_per_px:g} um/px, which "
            "goes into the model's card; if it is another, the model sees slides at a wrong "
            "scale: state um_per_px in the recipe"
        ]
    first, size = next(iter(known.items()))
    for name, um in known.items():
        if not _is_same(um, size):
            raise InputError(
                f"{folder}: image {first!r} is of {size:g} um/px and {name!r} of {um:g}; state "
                "in the recipe, as um_per_px, at which the model is to see slides"
            )
    unknown = [name for name in told if name not in known]
    notes = (
        [f"{quote_names(unknown)}: pixel size unknown, taken as {size:g} um/px, that of the others"]
        if unknown
        else []
    )
    if _is_same(size, recipe.um_per_px):
        return recipe, notes
    return recipe.model_copy(update={"um_per_px": size}), notes


def _is_same(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) <= _SAME * b
