import io
import logging

import numpy as np
import pytest
from PIL import Image

from densebatch.base.errors import InputError
from densebatch.scoring import files
from densebatch.scoring.files import (
    ScoreOptions,
    draw_pictures,
    score_files,
)
from densebatch.scoring.overlay import RED, YELLOW
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings

SETTINGS = ScoreSettings(("0.5", "0.75"))


def tissue(shape=(96, 64), pitch=8):
    """A lattice of square cells, and a prediction without the first row of them."""
    y, x = np.indices(shape) // pitch
    truth = np.where((np.indices(shape) % pitch > 0).all(0), y * 1000 + x + 1, 0)
    return truth, np.where(y == 0, 0, truth)


@pytest.fixture
def folders(tmp_path):
    truth, pred = tissue()
    for folder in ("truth", "pred", "images", "regions"):
        (tmp_path / folder).mkdir()
    for k, name in enumerate(("a", "b")):
        np.save(tmp_path / "truth" / f"{name}_masks.npy", truth)
        np.save(tmp_path / "pred" / f"{name}_pred.npy", pred if k == 0 else truth)
        np.save(tmp_path / "images" / f"{name}.npy", np.where(truth > 0, 900, 5).astype(np.uint16))
        np.save(tmp_path / "regions" / f"{name}.npy", (np.indices(truth.shape)[0] < 8).astype(int))
    return tmp_path


def test_scores_are_those_of_arrays(folders):
    options = ScoreOptions(SETTINGS, boundary_px=1, field_px=32)
    told = []
    found = score_files(
        folders / "pred",
        folders / "truth",
        options,
        workers=2,
        show_progress=lambda done, total: told.append((done, total)),
    )
    truth, pred = tissue()
    for name, image, labels in zip("ab", found.images, (pred, truth), strict=True):
        expected = score_labels(truth, labels, SETTINGS, name=name, boundary_px=1, field_px=32)
        assert image == expected
    assert [pair.name for pair in found.pairing.pairs] == ["a", "b"]
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_two_files_are_a_pair(folders):
    found = score_files(folders / "pred" / "a_pred.npy", folders / "truth" / "a_masks.npy")
    assert [image.at(0.5).fn for image in found.images] == [8]
    assert found.images[0].settings == ScoreSettings()


def test_ignored_regions_are_paired_by_name(folders):
    options = ScoreOptions(SETTINGS, ignore=folders / "regions")
    first, _ = score_files(folders / "pred", folders / "truth", options).images
    assert (first.at(0.5).fn, first.at(0.5).fp, first.n_truth) == (0, 0, 96)
    (folders / "regions" / "b.npy").unlink()
    with pytest.raises(InputError, match="has no ignored region for b"):
        score_files(folders / "pred", folders / "truth", options)
    np.save(folders / "regions" / "b.npy", np.zeros((5, 5), int))
    with pytest.raises(InputError, match="must show the same pixels"):
        score_files(folders / "pred", folders / "truth", options)


def test_fields_are_small_in_small_images(tmp_path, monkeypatch):
    truth, _ = tissue((600, 300))
    np.save(tmp_path / "t.npy", truth)

    def edges():
        (image,) = score_files(tmp_path / "t.npy", tmp_path / "t.npy").images
        return sorted({field.region.y0 for field in image.fields})

    assert edges() == [0, 256, 512]
    monkeypatch.setattr(files, "WHOLE_PX", 600 * 300 - 1)
    assert edges() == [0]


def read(picture):
    with Image.open(io.BytesIO(picture.png)) as image:
        return np.asarray(image)


def test_pictures_are_of_whole_images_and_the_worst_fields(folders):
    options = ScoreOptions(SETTINGS, field_px=32)
    scores = score_files(folders / "pred", folders / "truth", options)
    pictures = draw_pictures(scores, options)
    captions = [picture.caption for picture in pictures]
    # six fields an image, and the six worst of all: those of the first rows are worse than others
    assert [c for c in captions if "worst" not in c] == [
        "a: AP 0.917 at IoU ≥ 0.50",
        "b: AP 1.000 at IoU ≥ 0.50",
    ]
    worst = [c for c in captions if "worst" in c]
    assert worst[:2] == [
        "a, one of the worst fields: AP 0.750 at IoU ≥ 0.50, rows 0 to 32, columns 0 to 32",
        "a, one of the worst fields: AP 0.750 at IoU ≥ 0.50, rows 0 to 32, columns 32 to 64",
    ]
    assert len(worst) == 6
    whole, field = read(pictures[0]), read(pictures[1])
    assert whole.shape == (4 * 96, 4 * 64, 3)
    assert field.shape == (4 * 32, 4 * 32, 3)
    # The edge of a field is no outline, so that its last pixels may differ.
    inner = (slice(0, 4 * 31), slice(0, 4 * 31))
    assert np.array_equal(field[inner], whole[inner])
    missed, found = ((whole == colour).all(-1) for colour in (RED, YELLOW))
    assert missed[: 4 * 8].any()
    assert not missed[4 * 8 :].any()
    assert found.any()
    assert not found[: 4 * 8].any()


def test_pictures_are_drawn_on_the_image(folders):
    scores = score_files(folders / "pred", folders / "truth")
    pictures = draw_pictures(scores, ScoreOptions(image=folders / "images"))
    plain = draw_pictures(scores, ScoreOptions())
    assert [p.caption for p in pictures] == [p.caption for p in plain]
    greys = []
    for picture in (read(pictures[0]), read(plain[0])):
        is_grey = (picture == picture[..., :1]).all(-1)
        greys.append(np.unique(picture[is_grey]).tolist())
    assert greys == [[0, 199], [0]]
    np.save(folders / "images" / "a.npy", np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match=r"a\.npy is 5x5 px but .* shows the same pixels"):
        draw_pictures(scores, ScoreOptions(image=folders / "images"))


def test_a_slide_is_pictured_by_fields(folders, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_PX", 0)
    monkeypatch.setattr(files, "N_WORST", 2)
    monkeypatch.setattr(files, "N_SAMPLE", 3)
    options = ScoreOptions(field_px=32)
    pair = folders / "pred" / "a_pred.npy", folders / "truth" / "a_masks.npy"
    captions = [p.caption for p in draw_pictures(score_files(*pair, options), options)]
    assert len(captions) == len({*captions}) == 5
    assert [("worst" in c, "drawn by chance" in c) for c in captions] == [
        *[(True, False)] * 2,
        *[(False, True)] * 3,
    ]


def test_what_was_scored_is_logged(folders, caplog):
    with caplog.at_level(logging.INFO, "densebatch.scoring"):
        score_files(folders / "pred", folders / "truth")
    assert [record.event for record in caplog.records] == [
        "label images paired",
        "image scored",
        "image scored",
    ]
    assert caplog.records[0].fields["n"] == 2
    assert caplog.records[1].fields == {
        "image": "a",
        "truth_cells": 96,
        "predicted_cells": 88,
        "ap": round(88 / 96, 4),
    }
