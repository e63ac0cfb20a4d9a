"""Yes/no masks where labels are meant: refused by every command, or labelled where asked for."""

import csv
import json

import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from PIL import Image
from scipy import ndimage

from densebatch.base.errors import InputError
from densebatch.cli.main import cli
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings

LABEL = ScoreSettings(label_components=True)


def run(*args):
    """Run a command; an expected error is raised, as the main command would see it."""
    result = CliRunner().invoke(cli, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def complain(*args):
    with pytest.raises(InputError) as caught:
        run(*args)
    assert caught.value.exit_code == 2
    return str(caught.value)


def draw_cells():
    """42 cells that do not touch."""
    labels = np.zeros((96, 112), np.uint16)
    for k in range(42):
        y, x = 16 * (k // 7) + 2, 16 * (k % 7) + 2
        labels[y : y + 11, x : x + 11] = k + 1
    return labels


CELLS = draw_cells()


def write_npy(path, pixels):
    np.save(path.with_suffix(".npy"), pixels)
    return path.with_suffix(".npy")


def write_tiff(path, pixels):
    tifffile.imwrite(path.with_suffix(".tif"), pixels, compression="zlib")
    return path.with_suffix(".tif")


def write_png(path, pixels):
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def write_zarr(path, pixels):
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, chunks=(16, 16))
    array[...] = pixels
    return path


FORMATS = {"npy": write_npy, "tiff": write_tiff, "png": write_png, "zarr": write_zarr}
VALUES = {
    "0 and 1": (CELLS > 0).astype(np.uint8),
    "0 and 255": (CELLS > 0).astype(np.uint8) * 255,
    "bool": CELLS > 0,
}


@pytest.fixture
def labels(tmp_path):
    """A label image on which half of the cells are wrong."""
    pred = CELLS.copy()
    pred[:48] = np.roll(pred[:48], 8, 1)
    return write_npy(tmp_path / "labels", pred)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("values", VALUES)
def test_score_refuses_masks_on_either_side_and_labels_them_where_asked(
    tmp_path, labels, form, values
):
    mask = FORMATS[form](tmp_path / "mask", VALUES[values])
    for pair in ((mask, labels), (labels, mask), (labels, labels, "--also", mask)):
        message = complain("score", *pair)
        assert message.startswith(f"{mask} ")
        assert "a yes/no mask" in message
        assert "--label-components" in message
    asked = "--label-components", "--json", "-"
    (image,) = json.loads(run("score", labels, mask, *asked).stdout)["images"]
    expected = score_labels(CELLS, np.load(labels))
    assert (image["n_truth"], image["n_pred"]) == (42, 42)
    assert image["iou"]["0.50"]["ap"] == expected.at(0.5).ap
    assert image["labelled"] == ["truth"]
    (image,) = json.loads(run("score", mask, labels, *asked).stdout)["images"]
    assert image["iou"]["0.50"]["ap"] == expected.at(0.5).ap
    assert image["labelled"] == ["pred"]


def test_every_report_says_what_was_labelled(tmp_path, labels):
    mask, page, table = (
        write_png(tmp_path / "m", CELLS > 0),
        tmp_path / "r.html",
        tmp_path / "t.csv",
    )
    pair = "score", labels, mask, "--also", mask
    more = "--report", page, "--csv", table
    shown = run(*pair, "--label-components", *more).stdout
    told = (
        "Yes/no masks whose 8-connected pieces were taken for cells: 1 of 1 of the truth, 1 of 2 "
        "predicted."
    )
    assert told in " ".join(shown.split())
    assert told in page.read_text()
    assert page.read_text().count("data:image/png;base64,") > 1
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["labelled"] for row in rows] == ["truth"] * 10 + ["truth pred"] * 10
    document = json.loads(run(*pair, "--label-components", "--json", "-").stdout)
    assert document["settings"]["label_components"] is True
    sides = [[image["labelled"] for image in p["images"]] for p in document["predictions"]]
    assert sides == [[["truth"]], [["truth", "pred"]]]


def test_one_label_in_many_pieces_may_be_meant(tmp_path, labels):
    mask = write_npy(tmp_path / "mask", VALUES["0 and 255"])
    page = tmp_path / "r.html"
    asked = "--no-label-components", "--report", page, "--json", "-"
    document = json.loads(run("score", labels, mask, *asked).stdout)
    assert document["images"][0]["n_truth"] == 1
    assert document["settings"]["label_components"] is False
    assert document["images"][0]["labelled"] == []
    assert "Each label was taken for one cell, in however many pieces." in page.read_text()


def test_reports_of_label_images_are_as_they_were(tmp_path, labels):
    page, table = tmp_path / "r.html", tmp_path / "t.csv"
    result = run("score", labels, labels, "--report", page, "--csv", table, "--json", "-")
    document = json.loads(result.stdout)
    assert "label_components" not in document["settings"]
    assert "labelled" not in document["images"][0]
    assert "labelled" not in table.read_text()
    assert "pieces" not in page.read_text()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("values", VALUES)
def test_an_ignored_region_is_a_mask_by_its_meaning(tmp_path, labels, form, values):
    region = np.zeros(CELLS.shape, bool)
    region[:48, :50] = region[:48, 60:] = True
    pixels = region if values == "bool" else region * VALUES[values].max()
    path = FORMATS[form](tmp_path / "region", pixels)
    truth = write_npy(tmp_path / "truth", CELLS)
    found = json.loads(run("score", labels, truth, "--ignore", path, "--json", "-").stdout)
    expected = score_labels(CELLS, np.load(labels), ignore=region)
    assert found["images"][0]["iou"]["0.50"]["fn"] == expected.at(0.5).fn
    assert expected.at(0.5).fn < score_labels(CELLS, np.load(labels)).at(0.5).fn


def test_in_python_too():
    mask = VALUES["0 and 255"]
    for pair, role in (((mask, CELLS), "the truth"), ((CELLS, mask), "the prediction")):
        with pytest.raises(InputError, match=f"^{role} looks like a yes/no mask: its only label"):
            score_labels(*pair)
    for values in VALUES.values():
        score = score_labels(values, CELLS, LABEL, boundary_px=1)
        assert (score.at(0.95).ap, score.boundary.f1, score.labelled) == (1, 1, ("truth",))
    assert score_labels(CELLS, CELLS, LABEL).labelled == ()
    with pytest.raises(InputError, match="the prediction is 96x110 px but the truth is 96x112"):
        score_labels(mask, mask[:, :110], LABEL)
    with pytest.raises(InputError, match=r"the truth has shape .* has rows and columns"):
        score_labels(mask[None], mask[None], LABEL)
    stored = zarr.array(CELLS > 0, chunks=(7, 9))
    assert score_labels(CELLS, stored, LABEL).at(0.95).ap == 1
    region = zarr.array(CELLS % 2 > 0, chunks=(7, 9))
    assert score_labels(CELLS, CELLS * 0, ignore=region).at(0.5).fn == 21


def test_cells_that_touch_become_one(tmp_path):
    touching = np.kron(np.arange(1, 26).reshape(5, 5), np.ones((8, 8), np.uint8))
    touching[20] = 0
    truth = write_npy(tmp_path / "truth", touching)
    mask = write_npy(tmp_path / "mask", touching > 0)
    found = json.loads(run("score", mask, truth, "--label-components", "--json", "-").stdout)
    assert (found["images"][0]["n_truth"], found["images"][0]["n_pred"]) == (25, 2)


@pytest.mark.parametrize("values", VALUES)
def test_train_refuses_masks_before_anything_is_written(tmp_path, values):
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images" / "a_img", (CELLS > 0).astype(np.uint8) * 90)
    mask = write_tiff(tmp_path / "images" / "a_masks", VALUES[values])
    command = "train", tmp_path / "images", "-o", tmp_path / "m.safetensors"
    message = complain(*command)
    assert message.startswith(f"{mask} ")
    assert "a yes/no mask" in message
    assert "--label-components" in message
    # With it the next thing that is wrong is told: the image is smaller than a crop.
    assert "smaller than a crop" in complain(*command, "--label-components")
    assert not list(tmp_path.glob("m.*"))


def test_pieces_are_8_connected():
    mask = np.eye(20, dtype=bool)
    mask[3, 10:14] = True
    expected = ndimage.label(mask, np.ones((3, 3)))[0]
    assert score_labels(expected, mask, LABEL).at(0.95).ap == 1
    assert expected.max() == 2


def test_a_prediction_of_classes_is_told(tmp_path):
    """A poor prediction is scored; of one that has hardly any label a reader must hear why."""
    truth = np.zeros((90, 160), np.uint16)
    for k in range(40):
        truth[10 * (k // 8) : 10 * (k // 8) + 8, 20 * (k % 8) : 20 * (k % 8) + 15] = k + 1
    np.save(tmp_path / "truth.npy", truth)
    np.save(tmp_path / "pred.npy", np.where(truth, truth % 2 + 1, 0).astype(np.uint8))
    done = run("score", tmp_path / "pred.npy", tmp_path / "truth.npy")
    assert "pred.npy: has 2 labels where the truth has 40 cells" in done.stderr
