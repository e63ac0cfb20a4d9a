"""What annotated images tell of themselves, against what the recipe says."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.io import imsave

from densebatch.base.errors import InputError
from densebatch.training.image_facts import settle_recipe
from densebatch.training.recipe import Recipe, load_recipe
from tests.helpers.run_files import write_tiff


def write_images(folder, *sizes, channels=("CD3", "DAPI")):
    """Images `t0`, `t1` and so on of these pixel sizes; None for one that does not tell."""
    pixels = np.zeros((2, 40, 50), np.uint16)
    for index, um_per_px in enumerate(sizes):
        if um_per_px is None:
            imsave(folder / f"t{index}_img.png", pixels[0], check_contrast=False)
        else:
            write_tiff(folder / f"t{index}_img.ome.tif", pixels, channels, um_per_px)
        imsave(folder / f"t{index}_masks.png", pixels[0], check_contrast=False)
    return folder


@pytest.mark.parametrize(
    ("sizes", "um_per_px", "words"),
    [
        ((0.25, 0.25), 0.25, []),
        ((0.5, 0.502), 0.5, []),
        ((0.501,), 0.5, []),
        ((None, None), 0.5, ["the images are taken to be of 0.5 um/px, which goes into the model"]),
        ((None, 0.25), 0.25, ["'t0': pixel size unknown, taken as 0.25 um/px, that of the others"]),
    ],
)
def test_the_images_pixel_size_is_that_of_the_model(tmp_path, sizes, um_per_px, words):
    recipe, notes = settle_recipe(write_images(tmp_path, *sizes), Recipe())
    assert recipe == Recipe(um_per_px=um_per_px)
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "stated", "notes"),
    [
        ((0.25, 0.25), 0.25, []),
        ((None,), 0.5, []),
        ((0.25,), None, []),
        (
            (0.25, 0.5, 0.3),
            0.5,
            [
                "the recipe's pixel size 0.5 um/px is used; another is told by 't0', 't2', the "
                "first 0.25 um/px"
            ],
        ),
    ],
)
def test_a_stated_pixel_size_holds(tmp_path, sizes, stated, notes):
    recipe = Recipe(um_per_px=stated)
    assert settle_recipe(write_images(tmp_path, *sizes), recipe) == (recipe, notes)


def test_images_of_several_pixel_sizes_need_a_stated_one(tmp_path):
    folder = write_images(tmp_path, 0.5, None, 0.25)
    with pytest.raises(
        InputError, match=r"image 't0' is of 0\.5 um/px and 't2' of 0\.25; state in the recipe"
    ):
        settle_recipe(folder, Recipe())


def test_a_channel_that_could_be_another_is_told(tmp_path):
    folder = write_images(tmp_path, 0.5, channels=("1", "0"))
    (tmp_path / "r.yaml").write_text("membrane: 0\nnuclei: '#0'")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.membrane == ("0",)
    _, notes = settle_recipe(folder, recipe)
    assert notes == [
        "membrane 0 is the channel labelled '0', at index 1; the one at index 0 is '#0'"
    ]
