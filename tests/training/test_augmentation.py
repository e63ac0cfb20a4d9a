"""Crops: decided by seed and step; their flows belong to their labels however they are turned."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from skimage.io import imsave

from densebatch.base.geometry import Region
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.diffusion import compute_flows
from densebatch.tracing.foreground import FLOW_SCALE
from densebatch.training.annotated import EDGE_PX, load_annotated
from densebatch.training.augmentation import (
    draw_orientation,
    draw_shift,
    find_borders,
    orient,
    sample_batch,
)
from densebatch.training.recipe import Recipe

PLAIN = Recipe(
    widths=(2, 8, 16, 32),
    batch=4,
    patch_px=64,
    flips=False,
    quarter_turns=False,
    gamma=0,
    brightness=0,
    offset=0,
    noise=0,
)

WINDOW = np.s_[EDGE_PX : EDGE_PX + 64, EDGE_PX : EDGE_PX + 64]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for index in range(2):
        pixels, labels = render(Tissue(160, 192, seed=index), Region(0, 0, 160, 192))
        imsave(path / f"t{index}_img.png", pixels[0], check_contrast=False)
        imsave(path / f"t{index}_masks.png", labels.astype(np.uint16), check_contrast=False)
    return load_annotated(path, PLAIN)[0]


def test_batch_is_decided_by_seed_and_step(images):
    recipe = PLAIN.model_copy(update={"rotation": True, "scaling": 0.3, "noise": 0.1})
    first, second = sample_batch(images, recipe, 3), sample_batch(images, recipe, 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], sample_batch(images, recipe, 4)[0])
    other = recipe.model_copy(update={"seed": 1})
    assert not np.array_equal(first[0], sample_batch(images, other, 3)[0])
    assert first[0].shape == (4, 2, 64, 64)
    assert first[1].shape == (4, 4, 64, 64)
    assert set(np.unique(first[1][:, 2])) == {0.0, 1.0}
    assert np.all(first[1][:, 3] == 1)


@pytest.mark.parametrize(("exponent", "expected"), [(1.0, 0.8), (0.5, 2 / 3), (0.0, 0.5)])
def test_images_are_drawn_by_their_area(images, exponent, expected):
    """Of an image and a brighter one of four times its area."""
    small = images[0]
    large = replace(
        small,
        image=np.nan_to_num(np.tile(small.image, (1, 2, 2))) + 10,
        labels=np.tile(small.labels, (2, 2)),
        flows=np.tile(small.flows, (1, 2, 2)),
    )
    recipe = PLAIN.model_copy(update={"area_exponent": exponent, "batch": 400})
    inputs, _ = sample_batch([small, large], recipe, 0)
    assert (inputs[:, 0].max(axis=(1, 2)) > 5).mean() == pytest.approx(expected, abs=0.07)


def test_plain_crops_are_windows_of_the_images(images):
    """Where nothing is known of an image, beyond its edge, they are zero."""
    drawn = [sample_batch(images, PLAIN, step) for step in range(3)]
    n_edges = 0
    parts = (np.concatenate(part) for part in zip(*drawn, strict=True))
    for crop, target in zip(*parts, strict=True):
        shown = [np.nan_to_num(image.image[0]) for image in images]
        places = [
            (image, y, x)
            for image, pixels in zip(images, shown, strict=True)
            for y, x in itertools.product(*(range(n - 63) for n in pixels.shape))
            if np.array_equal(pixels[y : y + 64 : 9, x + 32], crop[0, ::9, 32])
            and np.array_equal(pixels[y : y + 64, x : x + 64], crop[0])
        ]
        assert len(places) == 1
        image, y, x = places[0]
        window = np.s_[y : y + 64, x : x + 64]
        assert np.array_equal(target[:2], FLOW_SCALE * image.flows[:, *window])
        assert np.array_equal(target[2], image.labels[window] > 0)
        n_edges += bool(np.isnan(image.image[0][window]).any())
    assert 0 < n_edges < 12


def test_nothing_is_what_jitter_leaves_beyond_an_edge(images):
    recipe = PLAIN.model_copy(update={"shading": 0.5, "gamma": 0.3, "noise": 0.05, "offset": 0.1})
    (plain, _), (jittered, _) = (sample_batch(images, r, 0) for r in (PLAIN, recipe))
    assert ((plain == 0) & (jittered == 0))[:, 0].mean() > 0.05
    assert np.isfinite(jittered).all()


@pytest.mark.parametrize("turn", range(8))
def test_flows_turn_with_the_labels(images, turn):
    """Flows of a turned image are those computed from its turned labels."""
    labels, flows = orient(images[0].labels, images[0].flows, turn)
    expected = compute_flows(np.ascontiguousarray(labels))
    # ties in the centre's choice may fall otherwise in a turned cell; nearly all agree
    agree = np.abs(flows - expected).max(axis=0)[labels > 0] < 1e-3
    assert agree.mean() > 0.9


@pytest.mark.parametrize(
    ("flips", "quarter_turns", "expected"),
    [(True, True, 8), (True, False, 4), (False, True, 4), (False, False, 1)],
)
def test_orientations_are_those_allowed(images, flips, quarter_turns, expected):
    """Of a crop as large as its image, exactly the allowed orientations are seen."""
    square = [
        type(images[0])(
            "square",
            images[0].image[:, *WINDOW],
            images[0].labels[WINDOW],
            images[0].flows[:, *WINDOW],
            "",
        )
    ]
    recipe = PLAIN.model_copy(update={"flips": flips, "quarter_turns": quarter_turns})
    crops = [crop for step in range(24) for crop in sample_batch(square, recipe, step)[0]]
    seen = {crop[0].tobytes() for crop in crops}
    allowed = {
        np.ascontiguousarray(orient(square[0].image[0], square[0].flows, turn)[0]).tobytes()
        for turn in range(8)
    }
    assert len(seen) == expected
    assert seen <= allowed
    if quarter_turns and not flips:
        turned = {np.ascontiguousarray(np.rot90(square[0].image[0], k)).tobytes() for k in range(4)}
        assert seen == turned


def test_flows_of_turned_and_scaled_crops(images):
    """They are unit vectors, and agree with flows computed from the crop's own whole cells."""
    recipe = PLAIN.model_copy(update={"rotation": True, "scaling": 0.3})
    angles = []
    for step in range(6):
        _, targets = sample_batch(images, recipe, step)
        for target in targets:
            inside = target[2] > 0
            flows = target[:2] / FLOW_SCALE
            assert np.allclose(np.hypot(*flows)[inside], 1, atol=1e-3) or inside.sum() == 0
            assert not flows[:, ~inside].any()
    # one image that is a single disc: every flow must point at the disc's centre after warping
    y, x = np.mgrid[:160, :192]
    disc = ((y - 80) ** 2 + (x - 96) ** 2 <= 20**2).astype(np.int32)
    image = type(images[0])(
        "disc", np.stack([disc, 0 * disc]).astype(np.float32), disc, compute_flows(disc), ""
    )
    for step in range(8):
        inputs, targets = sample_batch([image], recipe, step)
        for crop, target in zip(inputs, targets, strict=True):
            inside = target[2] > 0
            if inside.sum() < 600:
                continue
            # flows of a disc are radial; the least-squares meeting point of all flow lines
            ys, xs = np.nonzero(inside)
            dy, dx = target[0][inside], target[1][inside]
            normal = np.stack([-dx, dy], axis=1)
            centre, *_ = np.linalg.lstsq(normal, -dx * ys + dy * xs, rcond=None)
            towards = np.stack([centre[0] - ys, centre[1] - xs])
            length = np.hypot(*towards)
            far = length > 4
            cosine = (towards[0] * dy + towards[1] * dx)[far] / (length[far] * FLOW_SCALE)
            assert np.median(cosine) > 0.98
            assert abs(crop[0][inside].mean() - 1) < 0.1
            angles.append(len(ys))
    assert len(angles) >= 4
    assert max(angles) > 1.3 * min(angles)  # scaling changed the disc's visible area


def test_images_smaller_than_a_turned_crop_are_mirrored(images):
    recipe = PLAIN.model_copy(update={"rotation": True, "scaling": 0.5, "patch_px": 128})
    inputs, targets = sample_batch(images, recipe, 0)
    assert np.isfinite(inputs).all()
    assert targets[:, 2].mean() > 0.1


def test_border_weight(images):
    recipe = PLAIN.model_copy(update={"border_weight": 2.0})
    _, targets = sample_batch(images, recipe, 0)
    assert set(np.unique(targets[:, 3])) == {1.0, 3.0}
    labels = np.zeros((8, 8), np.int32)
    labels[2:5, 1:4], labels[2:5, 4:7] = 1, 2
    borders = find_borders(labels)
    assert borders[3, 3]
    assert borders[3, 4]
    assert borders[1, 2]
    assert not borders[3, 2]
    assert not borders[6, 2]


def test_small_cells_weigh_more(images):
    """By their area in the image, also where a crop cuts them; no more and no less than allowed."""
    recipe = PLAIN.model_copy(update={"size_weight": 1.0})
    areas = np.concatenate([image.areas[1:] for image in images])
    expected = {round(w, 4) for w in np.clip(areas.mean() / areas, 0.5, 3.0)}
    seen = set()
    for step in range(12):
        _, targets = sample_batch(images, recipe, step)
        inside, weight = targets[:, 2] > 0, targets[:, 3]
        assert (weight[~inside] == 1).all()
        seen |= {round(float(w), 4) for w in np.unique(weight[inside])}
    assert seen <= expected
    assert len(seen) > len(expected) / 2
    half = recipe.model_copy(update={"size_weight": 0.5})
    _, milder = sample_batch(images, half, 11)
    free = (weight > 0.5) & (weight < 3)
    assert np.allclose(milder[:, 3][free], np.sqrt(weight[free]), atol=1e-6)


def test_pasted_crops_hold_cells_of_two_places(images):
    """As many as the recipe says; pixels and flows change together, weights follow the sizes."""
    recipe = PLAIN.model_copy(update={"pasting": 0.5, "batch": 1, "size_weight": 0.5})
    plain = recipe.model_copy(update={"pasting": 0.0})
    n_pasted = 0
    for step in range(60):
        (inputs, targets), (expected, before) = (
            sample_batch(images, r, step) for r in (recipe, plain)
        )
        same = (inputs == expected).all(axis=1)
        assert same.any()  # the crop that is pasted onto is the same
        kept = (targets[:, :3] == before[:, :3]).all(axis=1)
        assert (same <= kept).mean() > 0.999  # two grey values may be equal by chance
        assert set(np.unique(targets[:, 3][kept] / before[:, 3][kept])) <= {0.0, 1.0}
        n_pasted += not same.all()
    assert 18 <= n_pasted <= 42


def test_intensity_jitter_changes_the_image_and_not_the_target(images):
    recipe = PLAIN.model_copy(update={"shading": 0.5, "gamma": 0.3, "noise": 0.05})
    inputs, targets = sample_batch(images, recipe, 0)
    plain = sample_batch(images, PLAIN, 0)
    assert np.array_equal(targets[0], plain[1][0])  # of the first crop nothing was drawn before
    assert not np.array_equal(inputs[0], plain[0][0])
    assert np.isfinite(inputs).all()


def test_moved_crops_are_the_same_a_few_pixels_further(images):
    recipe = PLAIN.model_copy(
        update={
            "consistency": 1.0,
            "gamma": 0.2,
            "noise": 0.02,
            "flips": True,
            "rotation": True,
            "pasting": 0.5,
        }
    )
    shifts = set()
    for step in range(12):
        dy, dx = draw_shift(recipe, step)
        shifts.add((dy, dx))
        assert 0 <= min(dy, dx) <= max(dy, dx) <= 7
        inputs, targets = sample_batch(images, recipe, step)
        assert len(targets) == recipe.batch
        crops, moved = inputs[: recipe.batch], inputs[recipe.batch :]
        assert np.array_equal(crops[..., dy:, dx:], moved[..., : 64 - dy, : 64 - dx])
        assert not np.array_equal(crops[0], crops[1])
    assert len(shifts) > 8
    assert (0, 0) not in {draw_shift(recipe, step) for step in range(500)}
    assert {draw_orientation(recipe, step) for step in range(99)} == set(range(4))
    both = recipe.model_copy(update={"quarter_turns": True})
    assert {draw_orientation(both, step) for step in range(99)} == set(range(8))
    plain = recipe.model_copy(update={"flips": False, "quarter_turns": False})
    assert {draw_orientation(plain, step) for step in range(9)} == {0}
