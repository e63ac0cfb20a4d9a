"""Recipes are strict, and what is wrong with one is a sentence."""

from __future__ import annotations

import pytest

from densebatch.base.errors import InputError
from densebatch.training.recipe import Recipe, load_recipe


def test_recipes_are_strict(tmp_path):
    def load(text, **overrides):
        (tmp_path / "r.yaml").write_text(text)
        return load_recipe(tmp_path / "r.yaml", **overrides)

    assert load("steps: 5", steps=7).steps == 7
    assert load("").steps == Recipe().steps
    with pytest.raises(
        InputError, match=r"r\.yaml: setting 'stepz' = 5: .*; accepted settings: widths"
    ):
        load("stepz: 5")
    with pytest.raises(InputError, match="'steps' = 0: input should be greater than 0"):
        load("steps: 0")
    with pytest.raises(InputError, match="a number is accepted, not a truth value"):
        load("scaling: yes")
    with pytest.raises(InputError, match="patch_px is a multiple of 8"):
        load("patch_px: 100")
    with pytest.raises(InputError, match="percentiles rise"):
        load("percentiles: [99, 1]")
    with pytest.raises(InputError, match="simulated_steps, 5, must be fewer than steps, 5"):
        load("simulated_steps: 5", steps=5)
    assert load("um_per_px: null").um_per_px is None
    assert load("diameter_px: 16\nscales: 3\nscale_spread: 1").stretches == (0.5, 1.0, 2.0)
    assert load("").stretches == (1.0,)
    with pytest.raises(InputError, match="are around a diameter_px, which is not set"):
        load("scales: 3\nscale_spread: 1")
    with pytest.raises(InputError, match="scale_spread is for 2 scales and more"):
        load("diameter_px: 16\nscale_spread: 1")
    with pytest.raises(InputError, match="scale_spread is for 2 scales and more"):
        load("diameter_px: 16\nscales: 2")
    with pytest.raises(InputError, match="holds a list"):
        load("[1, 2]")
    with pytest.raises(InputError, match="not a readable YAML file"):
        load("a: [")
    with pytest.raises(InputError, match="not a readable YAML file"):
        load_recipe(tmp_path / "none.yaml")
