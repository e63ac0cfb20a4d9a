"""The scale at which a network sees a slide, and the reason for it."""

import pytest

from densebatch.base.errors import InputError
from densebatch.models.model import Model
from densebatch.planning.scale import choose_rescale
from tests.helpers.checkpoint_files import WIDTHS


def make_model(um_per_px=None, diameter_px=30.0, default_diameter_px=30.0):
    return Model("m", "/m", "0", WIDTHS, diameter_px, um_per_px, default_diameter_px)


@pytest.mark.parametrize(
    ("model", "um_per_px", "diameter_px", "factor", "reason"),
    [
        # a diameter decides over everything
        (make_model(0.5), 0.25, 15.0, 2.0, "cells of 15 px, network trained on 30 px"),
        (make_model(), None, 60.0, 0.5, "cells of 60 px, network trained on 30 px"),
        # then pixel sizes
        (make_model(0.5), 0.25, None, 0.5, "slide 0.25 um/px, network 0.5 um/px"),
        (make_model(0.5), 1.0, None, 2.0, "slide 1 um/px, network 0.5 um/px"),
        # then the model alone
        (
            make_model(0.5, 30, 15),
            None,
            None,
            2.0,
            "pixel size unknown, taken as 1 um/px, that of the model's images",
        ),
        (
            make_model(None, 30, 15),
            0.25,
            None,
            2.0,
            "model's default cell diameter 15 px, network trained on 30 px",
        ),
        (
            make_model(None, 17, 17),
            None,
            None,
            1.0,
            "model's default cell diameter 17 px, network trained on 17 px",
        ),
    ],
)
def test_rescale_follows_what_is_known(model, um_per_px, diameter_px, factor, reason):
    assert choose_rescale(model, um_per_px, diameter_px) == (factor, reason)


@pytest.mark.parametrize(
    ("um_per_px", "factor"),
    [
        (0.5, 1),
        (0.514, 1),
        (0.486, 1),
        (0.516, 1.032),
        (0.484, 0.968),
        (4.0, 8.0),
        (0.03125, 0.0625),
    ],
)
def test_a_factor_near_1_is_1(um_per_px, factor):
    found, _ = choose_rescale(make_model(0.5), um_per_px, None)
    assert found == pytest.approx(factor, abs=1e-12)
    assert (found == 1.0) == (factor == 1)


@pytest.mark.parametrize(
    ("um_per_px", "factor"), [(4.01, "8.02"), (0.0312, "0.0624"), (1e9, "2e+09")]
)
def test_a_factor_out_of_range_is_refused(um_per_px, factor):
    with pytest.raises(InputError) as caught:
        choose_rescale(make_model(0.5), um_per_px, None)
    assert str(caught.value) == (
        f"the slide would be rescaled by {factor} (slide {um_per_px:g} um/px, network 0.5 um/px); "
        "accepted is 0.0625 to 8: check --pixel-size or --diameter"
    )


@pytest.mark.parametrize("diameter_px", [0.0, -3.0, float("nan"), float("inf")])
def test_a_diameter_that_is_none_is_refused(diameter_px):
    with pytest.raises(InputError, match=rf"^diameter {diameter_px} px: accepted are positive"):
        choose_rescale(make_model(0.5), 0.5, diameter_px)
