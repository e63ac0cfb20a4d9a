"""Label images of two folders find each other by name."""

from __future__ import annotations

import pytest

from densebatch.base.errors import InputError
from densebatch.cells.pairs import find_annotated, find_partners, list_label_images, pair_labels


def fill(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


def test_endings_and_file_types_do_not_count(tmp_path):
    pred = fill(tmp_path / "pred", "a_img_cp_masks.png", "b_pred.tif", "b.png", ".c_masks.png")
    truth = fill(tmp_path / "truth", "a_masks.tiff", "b_gt.png")
    found = pair_labels(pred, truth)
    assert [(p.name, p.pred.name, p.truth.name) for p in found.pairs] == [
        ("a", "a_img_cp_masks.png", "a_masks.tiff"),
        ("b", "b_pred.tif", "b_gt.png"),
    ]
    assert found.unpaired == ()
    assert "Left out 1 file that are no label images by their names: b.png." in found.rule


def test_what_has_no_partner_is_refused_or_left_out(tmp_path):
    pred = fill(tmp_path / "pred", "a.png", "b.png")
    truth = fill(tmp_path / "truth", "a.png", "c.png")
    with pytest.raises(InputError, match=r"2 label images .* without a partner .*: b.png, c.png;"):
        pair_labels(pred, truth)
    found = pair_labels(pred, truth, allow_missing=True)
    assert [pair.name for pair in found.pairs] == ["a"]
    assert [path.name for path in found.unpaired] == ["b.png", "c.png"]


def test_two_label_images_of_one_name_are_refused(tmp_path):
    folder = fill(tmp_path / "a", "x_masks.png", "x_gt.png")
    with pytest.raises(InputError, match="both label images of x"):
        list_label_images(folder)


def test_images_are_found_for_their_labels(tmp_path):
    folder = fill(tmp_path / "a", "x_img.png", "x_masks.png", "y.ome.tif", "y_masks.png")
    labels = list_label_images(folder)
    assert {name: path.name for name, path in labels.items()} == {
        "x": "x_masks.png",
        "y": "y_masks.png",
    }
    partners = find_partners(folder, list(labels))
    assert {name: path.name for name, path in partners.items()} == {
        "x": "x_img.png",
        "y": "y.ome.tif",
    }
    assert [(f.name, f.image.name, f.labels.name) for f in find_annotated(folder)] == [
        ("x", "x_img.png", "x_masks.png"),
        ("y", "y.ome.tif", "y_masks.png"),
    ]
    (folder / "y.ome.tif").unlink()
    with pytest.raises(InputError, match="no image of the name y"):
        find_annotated(folder)
