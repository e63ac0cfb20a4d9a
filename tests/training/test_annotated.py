"""Annotated images: pairing, reading, holding out, normalising, rescaling."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage
from skimage.io import imsave
from skimage.segmentation import find_boundaries

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells.pairs import find_annotated
from densebatch.simulation.debris import put_specks
from densebatch.simulation.tissue import Tissue, render
from densebatch.tracing.diffusion import compute_flows
from densebatch.training.annotated import (
    EDGE_PX,
    is_held_out,
    load_annotated,
    make_annotated,
    measure_diameters,
)
from densebatch.training.augmentation import sample_batch
from densebatch.training.recipe import Recipe
from tests.helpers.run_files import simulate

RECIPE = Recipe(widths=(2, 8, 16, 32), patch_px=64)
INSIDE = np.s_[EDGE_PX:-EDGE_PX, EDGE_PX:-EDGE_PX]


def draw(seed):
    pixels, labels = render(Tissue(128, 160, seed=seed), Region(0, 0, 128, 160))
    return pixels[0], labels.astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for index in range(3):
        pixels, labels = draw(index)
        imsave(path / f"t{index}_img.png", pixels, check_contrast=False)
        imsave(path / f"t{index}_masks.png", labels, check_contrast=False)
    return path


def test_pairs_are_found_by_name(folder):
    assert [f.name for f in find_annotated(folder)] == ["t0", "t1", "t2"]


def test_every_format_gives_the_same_image(tmp_path, folder):
    """PNG, OME-TIFF with a channel chosen by name, and OME-Zarr with its labels inside."""
    pixels, labels = draw(0)
    (tmp_path / "tiff").mkdir()
    tifffile.imwrite(
        tmp_path / "tiff/t0.ome.tif",
        np.stack([pixels[::-1], pixels]),
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3"]}},
    )
    tifffile.imwrite(tmp_path / "tiff/t0_masks.tif", labels)
    root = zarr.open_group(tmp_path / "zarr/t0.ome.zarr", mode="w", zarr_format=3)
    for where, data in (("0", pixels), ("labels/cells/0", labels.astype(np.uint32))):
        root.create_array(where, data=data, chunks=(64, 64))

    def describe(**more):
        axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
        transform = [{"type": "scale", "scale": [0.5, 0.5]}]
        levels = [{"path": "0", "coordinateTransformations": transform}]
        return {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}], **more}

    root.attrs["ome"] = describe()
    root["labels"].attrs["ome"] = {"version": "0.5", "labels": ["cells"]}
    root["labels/cells"].attrs["ome"] = describe(**{"image-label": {}})
    expected = load_annotated(folder, RECIPE)[0][0]
    (from_tiff,), _ = load_annotated(
        tmp_path / "tiff", RECIPE.model_copy(update={"membrane": ("CD3",)})
    )
    (from_zarr,), _ = load_annotated(tmp_path / "zarr", RECIPE)
    for found in (from_tiff, from_zarr):
        assert found.name == "t0"
        assert np.array_equal(found.image, expected.image, equal_nan=True)
        assert np.array_equal(found.labels, expected.labels)
        assert np.array_equal(found.flows, expected.flows)
        assert found.sha256 == expected.sha256


def test_nuclei_are_the_second_input(tmp_path):
    pixels, labels = draw(0)
    tifffile.imwrite(
        tmp_path / "t.ome.tif",
        np.stack([pixels, pixels[::-1]]),
        metadata={"axes": "CYX", "Channel": {"Name": ["CD3", "DAPI"]}},
    )
    tifffile.imwrite(tmp_path / "t_masks.tif", labels)
    recipe = RECIPE.model_copy(update={"membrane": ("CD3",), "nuclei": "DAPI"})
    (image,), _ = load_annotated(tmp_path, recipe)
    assert np.allclose(image.image[1], image.image[0][::-1], equal_nan=True)
    assert image.image[0][INSIDE].any()


def test_percentiles_become_0_and_1(folder):
    image = load_annotated(folder, RECIPE)[0][0]
    assert np.percentile(image.image[0][INSIDE], [1, 99]) == pytest.approx([0, 1], abs=1e-5)
    assert not image.image[1][INSIDE].any()


def test_an_image_has_an_edge(folder):
    """Nothing around; cells that it cuts have their flows inside it."""
    image = load_annotated(folder, RECIPE)[0][0]
    assert image.labels.shape == (128 + 2 * EDGE_PX, 160 + 2 * EDGE_PX)
    outside = np.ones(image.labels.shape, bool)
    outside[INSIDE] = False
    assert np.isnan(image.image[:, outside]).all()
    assert np.isfinite(image.image[:, ~outside]).all()
    assert not image.flows[:, outside].any()
    assert not image.labels[outside].any()
    labels = image.labels[INSIDE]
    assert np.array_equal(labels > 0, draw(0)[1] > 0)
    assert labels[0].any()
    assert np.array_equal(image.flows[:, *INSIDE], compute_flows(np.ascontiguousarray(labels)))


def test_held_out_parts_are_not_trained_on(folder):
    recipe = RECIPE.model_copy(update={"validation_columns": 0.25})
    images, held_out = load_annotated(folder, recipe, ["t1"])
    assert [i.name for i in images] == ["t0", "t2"]
    assert [h.name for h in held_out] == ["t0", "t1", "t2"]
    assert [h.labels.shape for h in held_out] == [(128, 40), (128, 160), (128, 40)]
    assert images[0].labels[INSIDE].shape == (128, 120)
    pixels, labels = draw(0)
    assert np.array_equal(held_out[0].pixels[0], pixels[:, 120:])
    cells = np.unique(held_out[0].labels[held_out[0].labels > 0]).size
    assert cells == np.unique(labels[:, 120:][labels[:, 120:] > 0]).size


def test_images_are_chosen_by_name_or_number(folder):
    def names(**update):
        images, _ = load_annotated(folder, RECIPE.model_copy(update=update))
        return [image.name for image in images]

    assert names(train_images=("t2", "t0")) == ["t0", "t2"]
    assert len(names(train_images=2)) == 2
    assert names(train_images=2, seed=1) == names(train_images=2, seed=1)
    assert len({tuple(names(train_images=1, seed=seed)) for seed in range(10)}) > 1
    with pytest.raises(InputError, match="train_images is 4, and there are 3"):
        names(train_images=4)
    with pytest.raises(InputError, match="no image 'x' to train on; there are t0, t1, t2"):
        names(train_images=("x",))


def test_rescaled_images_have_the_wanted_diameter(folder):
    images, _ = load_annotated(folder, RECIPE.model_copy(update={"diameter_px": 30.0}))
    for image in images:
        assert np.median(measure_diameters([image.labels])) == pytest.approx(30, rel=0.02)
    assert images[0].image.shape[1:] == images[0].labels.shape == images[0].flows.shape[1:]


def test_an_image_is_there_at_several_scales(folder):
    recipe = Recipe(patch_px=64, diameter_px=20.0, scales=3, scale_spread=0.5)
    images, _ = load_annotated(folder, recipe)
    assert [image.name for image in images] == ["t0"] * 3 + ["t1"] * 3 + ["t2"] * 3
    for image, diameter in zip(images[:3], (20 / 2**0.5, 20, 20 * 2**0.5), strict=True):
        assert np.median(measure_diameters([image.labels])) == pytest.approx(diameter, rel=0.03)
        inside = np.ascontiguousarray(image.labels[INSIDE])
        assert np.array_equal(image.flows[:, *INSIDE], compute_flows(inside))


def test_a_rescaled_image_that_is_smaller_than_a_crop_has_more_around_it(folder):
    """Cells of 14 px brought to 5 px leave 46 x 57 px of an image, which a crop of 224 px shows."""
    recipe = Recipe(diameter_px=5.0)
    image = load_annotated(folder, recipe)[0][0]
    seen = np.isfinite(image.image[0])
    assert min(image.labels.shape) >= recipe.patch_px
    assert seen.any(axis=1).sum() < 60
    assert image.labels.astype(bool)[~seen].sum() == 0
    inputs, targets = sample_batch([image], recipe, 0)
    assert inputs.shape[2:] == targets.shape[2:] == (224, 224)
    assert targets[:, 2].any()


def test_images_are_held_out_by_their_names(folder):
    """Neither other images nor the seed move the line, which is where the hash puts it."""
    names = [f"image-{k}" for k in range(400)]
    shares = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 for name in names]
    assert [is_held_out(name, 0.15) for name in names] == [share < 0.15 for share in shares]
    assert 40 <= sum(share < 0.15 for share in shares) <= 80
    bits = {k: hashlib.sha256(f"t{k}".encode()).hexdigest()[:8] for k in range(3)}
    fractions = {f"t{k}": int(digits, 16) / 2**32 for k, digits in bits.items()}
    least = min(fractions, key=fractions.__getitem__)
    share = fractions[least] + 1e-6
    for seed in (0, 1):
        recipe = RECIPE.model_copy(update={"validation_share": share, "seed": seed})
        images, held_out = load_annotated(folder, recipe)
        assert [image.name for image in held_out] == [least]
        assert least not in [image.name for image in images]
        assert len(images) == 2
    with pytest.raises(InputError, match="every image is held out"):
        load_annotated(folder, RECIPE.model_copy(update={"validation_share": 0.99999}))


def test_collated_image_is_four_copies_without_cut_cells(folder):
    whole = load_annotated(folder, RECIPE)[0][0]
    collated = load_annotated(folder, RECIPE.model_copy(update={"collation": True}))[0][0]
    labels, flows = collated.labels[INSIDE], collated.flows[:, *INSIDE]
    image, original = collated.image[0][INSIDE], whole.image[0][INSIDE]
    assert labels.shape == (256, 320)
    edge = np.zeros((128, 160), bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    cut = set(np.unique(whole.labels[INSIDE][edge])) - {0}
    assert cut
    n_kept = len(set(np.unique(whole.labels)) - cut - {0})
    assert np.unique(labels).size - 1 == 4 * n_kept
    assert not labels[128].any()
    assert np.array_equal(flows[:, :128, :160], flows[:, 128:, 160:])
    kept = labels[:128, :160] > 0
    assert np.array_equal(image[:128, :160][kept], original[kept])


def test_what_cannot_be_used_is_named(tmp_path, folder):
    with pytest.raises(InputError, match="not a folder"):
        find_annotated(tmp_path / "none")
    with pytest.raises(InputError, match="no annotated image; accepted are X_img with X_masks"):
        find_annotated(tmp_path)
    imsave(tmp_path / "x_masks.png", np.zeros((80, 70), np.uint16), check_contrast=False)
    with pytest.raises(InputError, match=r"x_masks\.png: no image of the name x"):
        find_annotated(tmp_path)
    imsave(tmp_path / "x_img.png", np.zeros((80, 80), np.uint8), check_contrast=False)
    with pytest.raises(InputError, match="labels of 80 x 70 px for an image of 80 x 80 px"):
        load_annotated(tmp_path, RECIPE)
    imsave(tmp_path / "x_masks.png", np.zeros((80, 80), np.uint16), check_contrast=False)
    with pytest.raises(InputError, match="hold no cell"):
        load_annotated(tmp_path, RECIPE)
    with pytest.raises(InputError, match="128 x 160 px to train on are smaller than a crop of 136"):
        load_annotated(folder, RECIPE.model_copy(update={"patch_px": 136}))
    with pytest.raises(InputError, match="no image 'y' to hold out; there are t0, t1, t2"):
        load_annotated(folder, RECIPE, ["y"])
    with pytest.raises(InputError, match="every image is held out"):
        load_annotated(folder, RECIPE, ["t0", "t1", "t2"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused(tmp_path, value):
    """One of them would make the percentiles, and with them the whole image, NaN: empty."""
    pixels, labels = draw(0)
    pixels = pixels.astype(np.float32)
    pixels[5, 7] = value
    tifffile.imwrite(tmp_path / "a_img.tif", pixels)
    imsave(tmp_path / "a_masks.png", labels, check_contrast=False)
    with pytest.raises(InputError, match="image a: 1 pixels are NaN, infinite or beyond float32"):
        load_annotated(tmp_path, RECIPE)


@pytest.mark.parametrize("membrane", [("M",), ("M", "N")])
def test_debris_of_images_moves_nothing_beside_it(tmp_path, membrane):
    """Its percentiles leave debris out, and the network is trained to see 0 there, as in slides."""
    clean = simulate(512, 512, 1) // 8
    pixels, covered = put_specks(clean, 100, 40, 6)
    recipe = RECIPE.model_copy(update={"membrane": membrane})
    labels = np.zeros(covered.shape, np.int32)
    plain = make_annotated("a", clean[: len(membrane)], labels, recipe)
    found = make_annotated("a", pixels[: len(membrane)], labels, recipe)
    beside = ~ndimage.binary_dilation(covered, np.ones((5, 5)))
    assert (plain.masked_fraction, found.masked_fraction > 0.02) == (0, True)
    assert not found.image[0][INSIDE][covered].any()
    difference = found.image[0][INSIDE][beside] - plain.image[0][INSIDE][beside]
    assert np.abs(difference).max() < 0.1


def write_masks(folder, image, labels):
    """One annotated image whose labels are as given."""
    folder.mkdir()
    imsave(folder / "t_img.png", image, check_contrast=False)
    np.save(folder / "t_masks.npy", labels)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: labels[None, ..., None],
        lambda labels: labels[..., None],
        lambda labels: labels[None, None],
        lambda labels: labels.astype(np.float32),
        lambda labels: labels.astype(np.float64)[..., None, None],
    ],
)
def test_labels_with_axes_of_length_1_or_as_floats(tmp_path, change):
    pixels, labels = draw(0)
    plain, _ = load_annotated(write_masks(tmp_path / "plain", pixels, labels), RECIPE)
    found, _ = load_annotated(write_masks(tmp_path / "odd", pixels, change(labels)), RECIPE)
    assert np.array_equal(found[0].labels, plain[0].labels)
    assert found[0].sha256 == plain[0].sha256


def part_cells(labels):
    """Inner pixels of cells, which do not touch."""
    return (labels > 0) & ~find_boundaries(labels, mode="inner")


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_masks_are_no_labels_until_their_pieces_are_cells(tmp_path, dtype):
    pixels, labels = draw(0)
    inside = part_cells(labels)
    folder = write_masks(tmp_path / "masks", pixels, inside.astype(dtype))
    with pytest.raises(InputError, match=r"t_masks\.npy (looks like|holds) a yes/no mask"):
        load_annotated(folder, RECIPE)
    recipe = RECIPE.model_copy(update={"label_components": True})
    (found,), _ = load_annotated(folder, recipe)
    pieces = ndimage.label(inside, np.ones((3, 3)))[0]
    assert np.array_equal(found.labels[INSIDE], pieces)
    (plain,), _ = load_annotated(write_masks(tmp_path / "pieces", pixels, pieces), recipe)
    assert found.sha256 == plain.sha256


def test_masks_of_classes_are_no_labels(tmp_path):
    pixels, labels = draw(0)
    classes = (labels > 0) + part_cells(labels).astype(int)
    folder = write_masks(tmp_path / "classes", pixels, classes)
    for asked in (None, True):
        with pytest.raises(InputError, match="looks like a mask of classes: its 2 labels lie in"):
            load_annotated(folder, RECIPE.model_copy(update={"label_components": asked}))
    recipe = RECIPE.model_copy(update={"label_components": False})
    (found,), _ = load_annotated(folder, recipe)
    assert found.labels.max() == 2


def test_a_scene_is_that_of_images_and_labels(tmp_path):
    drawn = [draw(seed) for seed in (0, 1)]
    for pixels, labels in drawn:
        tifffile.imwrite(tmp_path / "t0_img.tif", pixels, append=True)
        tifffile.imwrite(tmp_path / "t0_masks.tif", labels, append=True)
    with pytest.raises(InputError, match=r"t0_img\.tif holds 2 images and none was chosen"):
        load_annotated(tmp_path, RECIPE)
    recipe = RECIPE.model_copy(update={"scene": "1"})
    (image,), _ = load_annotated(tmp_path, recipe)
    np.testing.assert_array_equal(image.labels[INSIDE] > 0, drawn[1][1] > 0)
