import csv
import io
import json
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from click.testing import CliRunner
from PIL import Image

from densebatch.base.errors import CapacityError, InputError
from densebatch.cells.pairs import pair_labels
from densebatch.cells.read import open_labels
from densebatch.cli.score import score
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from tests.helpers.real_tissue import DATA, needs_data

KEYS = {"tp", "fp", "fn", "ap", "precision", "recall", "f1"}


def run(*args):
    """Run the command; an expected error is raised, as the main command would see it."""
    result = CliRunner().invoke(score, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def complain(*args):
    with pytest.raises(InputError) as caught:
        run(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def pair():
    truth = np.kron(np.arange(1, 26).reshape(5, 5) * 3000, np.ones((8, 8), int)).astype(np.uint32)
    pred = np.roll(truth, 1, 0)
    pred[pred == 3000] = 0
    return truth, pred


def write_zarr(path, image, **options):
    array = zarr.create_array(path, shape=image.shape, dtype=image.dtype, **options)
    array[...] = image
    return array


def write_ome_zarr(path, image, names=("cells",), ngff="0.5"):
    new = ngff == "0.5"

    def attributes(**values):
        return {"ome": {"version": ngff, **values}} if new else values

    scales = {"multiscales": [{"axes": [{"name": a} for a in "yx"], "datasets": [{"path": "0"}]}]}
    root = zarr.open_group(path, mode="w", zarr_format=3 if new else 2)
    root.attrs.update(attributes(**scales))
    root.create_array("0", shape=image.shape, dtype="uint16", chunks=(16, 16))
    labels = root.create_group("labels")
    labels.attrs.update(attributes(labels=list(names)))
    for name in names:
        group = labels.create_group(name)
        group.attrs.update(attributes(**scales, **{"image-label": {}}))
        array = group.create_array("0", shape=image.shape, dtype="uint32", chunks=(16, 16))
        array[...] = image
    return path


def write_as(kind, path, image):
    if kind == "png":
        path = path.with_suffix(".png")
        Image.fromarray(image.astype(np.uint16)).save(path)
    elif kind == "rgb png":
        path = path.with_suffix(".png")
        path.write_bytes(imagecodecs.png_encode(np.stack([image.astype(np.uint16)] * 3, -1)))
    elif kind == "palette png":
        path = path.with_suffix(".png")
        picture = Image.fromarray((image // 3000).astype(np.uint8), "P")
        picture.putpalette([5] * 768)
        picture.save(path)
    elif kind.endswith("tiff"):
        path = path.with_suffix(".tif")
        options = {
            "plain tiff": {},
            "tiled tiff": {"tile": (16, 16), "compression": "zlib"},
            "striped tiff": {"rowsperstrip": 3, "compression": "zstd"},
            "big-endian tiff": {"byteorder": ">"},
            "ome tiff": {"ome": True, "compression": "zlib", "tile": (16, 16)},
        }
        tifffile.imwrite(path, image, **options[kind])
    elif kind == "npy":
        path = path.with_suffix(".npy")
        np.save(path, image.astype(np.int64))
    elif kind == "zarr 2":
        write_zarr(path, image, chunks=(7, 9), zarr_format=2)
    elif kind == "zarr 3":
        write_zarr(path, image[None, None], chunks=(1, 1, 10, 10), shards=(1, 1, 20, 20))
    elif kind.startswith("ome-zarr label"):
        path = write_ome_zarr(path.with_suffix(".ome.zarr"), image, ngff=kind[-3:]) / "labels/cells"
    elif kind.startswith("ome-zarr image"):
        path = write_ome_zarr(path.with_suffix(".ome.zarr"), image, ngff=kind[-3:])
    else:
        write_ome_zarr(path / "segmentation.ome.zarr", image)
    return path


KINDS = [
    *("png", "rgb png", "palette png", "plain tiff", "tiled tiff", "striped tiff"),
    *("big-endian tiff", "ome tiff", "npy", "zarr 2", "zarr 3", "ome-zarr label 0.5"),
    *("ome-zarr label 0.4", "ome-zarr image 0.5", "ome-zarr image 0.4", "densebatch output"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_alike(tmp_path, pair, kind):
    pred = write_as(kind, tmp_path / "pred", pair[1])
    np.save(tmp_path / "truth.npy", pair[0])
    labels = open_labels(pred)
    assert np.array_equal(labels[5:30, 2:40] > 0, pair[1][5:30, 2:40] > 0)
    expected = score_labels(*pair)
    found = score_labels(open_labels(tmp_path / "truth.npy"), labels, workers=2)
    assert found.by_threshold == expected.by_threshold
    assert found.ari == expected.ari


def test_json_has_the_keys_that_scripts_rely_on(tmp_path, pair):
    paths = [
        write_as("tiled tiff", tmp_path / f"{n}_x", i) for n, i in zip("tp", pair, strict=True)
    ]
    result = run(paths[1], paths[0], "--json", "-")
    record = json.loads(result.stdout)
    (image,) = record["images"]
    assert {"name", "n_truth", "n_pred", "ari", "dice", "iou"} <= image.keys()
    assert list(image["iou"]) == [f"0.{k}" for k in range(50, 100, 5)]
    assert image["iou"]["0.50"].keys() >= KEYS
    assert (image["name"], image["n_truth"], image["n_pred"]) == ("t_x", 25, 24)
    expected = score_labels(*pair)
    assert record["mean"]["0.50"]["ap"] == image["iou"]["0.50"]["ap"] == expected.at(0.5).ap
    assert record["mean_ap"] == expected.mean_ap


def test_options_reach_the_scores(tmp_path, pair):
    paths = [write_as("npy", tmp_path / name, i) for name, i in zip("tp", pair, strict=True)]
    region = np.zeros(pair[0].shape, np.uint8)
    region[:8] = 1
    np.save(tmp_path / "region.npy", region)
    options = ["--iou", "0.9", "--iou", "0.70", "--matching", "hungarian", "--min-size", "60"]
    options += ["--ignore-below", "3", "--ignore", tmp_path / "region.npy", "--boundary", "1"]
    record = json.loads(run(paths[1], paths[0], *options, "--workers", "2", "--json", "-").stdout)
    settings = ScoreSettings(("0.7", "0.9"), "hungarian", 60, 3)
    expected = score_labels(*pair, settings, ignore=region, boundary_px=1)
    assert list(record["images"][0]["iou"]) == ["0.70", "0.90"]
    assert record["images"][0]["iou"]["0.70"]["fn"] == expected.at("0.7").fn
    assert record["images"][0]["boundary"]["truth_near"] == expected.boundary.truth_near
    assert record["settings"]["min_size"] == 60


def test_undefined_ratios_are_null(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4), int))
    record = json.loads(run(tmp_path / "a.npy", tmp_path / "a.npy", "--json", "-").stdout)
    assert record["mean"]["0.50"]["ap"] is None
    assert record["images"][0]["iou"]["0.50"]["precision"] is None


@pytest.fixture
def folders(tmp_path, pair):
    """Predictions named as by Cellpose; truth beside its pictures."""
    for name in ("pred", "other", "truth"):
        (tmp_path / name).mkdir()
    for k, name in enumerate("ABC"):
        for folder, ending, image in (
            ("pred", "_img_cp_masks", pair[1]),
            ("other", "_pred", np.roll(pair[1], k, 0)),
            ("truth", "_masks", pair[0]),
        ):
            write_as("png", tmp_path / folder / f"{name}{ending}", image)
        write_as("png", tmp_path / "truth" / f"{name}_img", pair[0])
    return tmp_path


def test_folders_are_paired_by_name_and_the_rule_is_told(folders):
    result = run(folders / "pred", folders / "truth")
    assert "Paired 3 images by name" in result.stderr
    assert "Left out 3 files that are no label images by their names" in result.stderr
    assert "AP 0.50" in result.stdout
    assert "mean / pooled" in result.stdout


def test_what_has_no_partner_is_an_error_unless_allowed(folders):
    (folders / "pred" / "B_img_cp_masks.png").unlink()
    message = complain(folders / "pred", folders / "truth")
    assert "1 label image of" in message
    assert "without a partner of the same name: B_masks.png;" in message
    result = run(folders / "pred", folders / "truth", "--allow-missing", "--json", "-")
    assert [image["name"] for image in json.loads(result.stdout)["images"]] == ["A", "C"]
    assert "Left out 1 label image without a partner: B_masks.png." in result.stderr


def test_two_label_images_of_one_name_are_an_error(folders):
    (folders / "pred" / "A_masks.npy").write_bytes(b"")
    assert "A_img_cp_masks.png and A_masks.npy" in complain(folders / "pred", folders / "truth")


def test_a_folder_of_plain_names(tmp_path, pair):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        write_as("npy", tmp_path / folder / "one", pair[0])
        write_ome_zarr(tmp_path / folder / "two.ome.zarr", pair[0])
    found = pair_labels(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in found.pairs] == ["one", "two"]


def test_csv_and_report_and_comparison(folders):
    report, table = folders / "report.html", folders / "scores.csv"
    result = run(
        *(folders / "pred", folders / "truth", "--also", folders / "other", "--csv", table),
        *("--report", report, "--image", folders / "truth", "--json", "-"),
    )
    record = json.loads(result.stdout)
    assert [p["prediction"] for p in record["predictions"]] == ["pred", "other"]
    assert record["comparison"][0]["unit"] == "image"
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == 2 * 3 * 10
    assert float(rows[0]["ap"]) == record["images"][0]["iou"]["0.50"]["ap"]
    page = report.read_text()
    assert page.count("<svg") == 3
    # three images as a whole and up to six worst fields, of each prediction
    assert 6 < page.count("data:image/png;base64,") <= 18
    assert "Wilcoxon" in page
    for chart in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + chart.split("</svg>")[0] + "</svg>")


def test_a_slide_is_pictured_by_fields_only(tmp_path):
    small = np.random.default_rng(0).integers(0, 50_000, (70, 70)).astype(np.uint32)
    slide = np.kron(small, np.ones((32, 32), np.uint32))
    for name in "tp":
        write_zarr(tmp_path / f"{name}.zarr", slide, chunks=(512, 512))
    run(tmp_path / "p.zarr", tmp_path / "t.zarr", "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64,") == 9
    assert "a field drawn by chance" in page


@needs_data
def test_published_mean_over_the_shared_images():
    preds = DATA / "predictions"
    result = run(preds / "cyto-train7", DATA / "test", "--min-size", "100", "--json", "-")
    record = json.loads(result.stdout)
    with (DATA / "published_ap.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["min_size_px"] == "100"]
    expected = sum(float(row["ap"]) for row in rows) / 4
    assert record["mean"]["0.50"]["ap"] == pytest.approx(expected, abs=1e-6)
    assert len(record["images"]) == 4


BAD_ARRAYS = [
    (np.zeros((4, 4), complex), "holds values of type complex128; a label image has one whole num"),
    (np.full((4, 4), 0.5), "holds the value 0.5; a label image has one whole number"),
    (np.array([[1, -2]]), "holds the negative label -2; labels are 0 to 4294967295"),
    (np.ones((4, 4), bool), "holds a yes/no mask (bool)"),
    (np.ones((3, 4, 4), int), "has 3 planes (shape (3, 4, 4)); a label image has one"),
    (np.arange(48).reshape(8, 2, 3), "is a colour picture whose planes differ"),
    (np.ones(4, int), "has shape (4,); an image has rows and columns"),
    (np.ones((0, 4), int), "has shape (0, 4); accepted are 1 to"),
    (np.array([{"masks": 1}]), "is not a plain array"),
]


@pytest.mark.parametrize(("array", "message"), BAD_ARRAYS, ids=lambda v: str(v)[:20])
def test_arrays_that_are_no_labels(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    said = complain(tmp_path / "bad.npy", tmp_path / "bad.npy")
    assert said.startswith(f"{tmp_path / 'bad.npy'} {message}")


def test_bad_files(tmp_path, pair):
    good = write_as("png", tmp_path / "good", pair[0])
    other = write_as("npy", tmp_path / "level", pair[0][::2, ::2])
    assert f"{other} is 20x20 px but {good} is 40x40 px (the smaller one looks like" in complain(
        other, good
    )
    assert "does not exist; accepted are PNG, TIFF" in complain(tmp_path / "none.png", good)
    assert "one label image but" in complain(good, tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    assert "is of an unknown kind; accepted are" in complain(tmp_path / "photo.jpg", good)
    (tmp_path / "fake.png").write_bytes(b"GIF89a")
    assert "is not a PNG" in complain(tmp_path / "fake.png", good)
    assert "--json - and --csv - both" in complain(good, good, "--json", "-", "--csv", "-")
    assert "there is no folder" in complain(good, good, "--csv", tmp_path / "no" / "x.csv")
    assert "given twice" in complain(good, good, "--also", good)
    assert "an IoU threshold is a number above 0" in complain(good, good, "--iou", "2")
    (tmp_path / "empty").mkdir()
    assert "has no label images" in complain(tmp_path / "empty", tmp_path / "empty")
    coloured = np.stack([pair[0] % 256, pair[0] % 7, pair[0] % 5], -1).astype(np.uint8)
    Image.fromarray(coloured).save(tmp_path / "rgb.png")
    assert "is a colour picture whose planes differ" in complain(tmp_path / "rgb.png", good)
    Image.fromarray(pair[0] > 0).save(tmp_path / "bits.png")
    assert "holds a yes/no mask (1 bit per pixel)" in complain(tmp_path / "bits.png", good)


def test_damaged_png(tmp_path, pair):
    path = write_as("png", tmp_path / "a", pair[0])
    coded = path.read_bytes()
    for damaged in (coded[:-40], coded[:20], coded[:60] + bytes([coded[60] ^ 8]) + coded[61:]):
        path.write_bytes(damaged)
        assert str(path) in complain(path, path)
    huge = coded[:16] + (2**31 - 1).to_bytes(4, "big") * 2 + coded[24:]
    path.write_bytes(huge)
    with pytest.raises(CapacityError, match="declares 2147483647x2147483647 px, which needs"):
        open_labels(path)


def test_damaged_tiff(tmp_path, pair):
    path = write_as("tiled tiff", tmp_path / "a", pair[0])
    coded = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        offsets, lengths = tif.pages[0].dataoffsets, tif.pages[0].databytecounts
        place = tif.pages[0].tags["TileByteCounts"].valueoffset
    # a tile without bytes reads as zeros, that is, as background
    width = next(w for w in (2, 4) if coded[place:].startswith(lengths[0].to_bytes(w, "little")))
    path.write_bytes(coded[:place] + bytes(width) + coded[place + width :])
    assert "is damaged: a piece of 0 bytes" in complain(path, path)
    flipped = bytearray(coded)
    for k in range(4):
        flipped[offsets[0] + lengths[0] // 2 + k] ^= 0xFF
    path.write_bytes(bytes(flipped))
    assert f"{path} cannot be read at rows" in complain(path, path)
    path.write_bytes(coded[: offsets[-1] + 2])
    assert str(path) in complain(path, path)


ZARR_LAYOUTS = {
    "zarr 3": {"chunks": (16, 16)},
    "zarr 2": {"chunks": (16, 16), "zarr_format": 2},
    "sharded": {"chunks": (10, 10), "shards": (20, 20)},
    "uncompressed": {"chunks": (16, 16), "compressors": None},
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("layout", ZARR_LAYOUTS)
def test_a_damaged_chunk_is_never_background(tmp_path, pair, layout):
    path = tmp_path / "labels.zarr"
    write_zarr(path, pair[0], **ZARR_LAYOUTS[layout])
    chunk = min(p for p in path.rglob("*") if p.is_file() and p.name[0] not in ".z")
    whole = chunk.read_bytes()
    for damaged in (b"", whole[:3], whole[: len(whole) // 2]):
        chunk.write_bytes(damaged)
        message = complain(path, path)
        assert message.startswith(f"{path} cannot be read at rows 0 to 40, columns 0 to 40: the")
        assert str(chunk.relative_to(path)) in message
    chunk.unlink()
    chunk.mkdir()
    assert "is no file, where a chunk is to be" in complain(path, path)


def test_zarr_groups_without_one_label_image(tmp_path, pair):
    two = write_ome_zarr(tmp_path / "two.ome.zarr", pair[0], names=("cells", "nuclei"))
    message = complain(two, two)
    assert f"{two} has 2 label images (cells, nuclei); give the path of one" in message
    run(two / "labels" / "nuclei", two / "labels" / "cells")
    plain = zarr.open_group(tmp_path / "plain.zarr", mode="w")
    plain.create_array("0", shape=(4, 4), dtype="uint8")
    assert "is a zarr group without a label image" in complain(
        tmp_path / "plain.zarr", tmp_path / "plain.zarr"
    )
    run(tmp_path / "plain.zarr" / "0", tmp_path / "plain.zarr" / "0")


def test_absurd_zarr_metadata_are_refused_before_anything_is_read(tmp_path):
    zarr.create_array(tmp_path / "wide", shape=(10**9, 10**9), chunks=(512, 512), dtype="u4")
    assert "has shape (1000000000, 1000000000); accepted are 1 to" in complain(
        tmp_path / "wide", tmp_path / "wide"
    )
    zarr.create_array(tmp_path / "big", shape=(10**6, 10**6), chunks=(10**6, 10**6), dtype="u4")
    assert "is stored in chunks of 4000.0 GB" in complain(tmp_path / "big", tmp_path / "big")
    (tmp_path / "wide" / "zarr.json").write_text("{")
    assert "wide/zarr.json is not a readable JSON document" in complain(
        tmp_path / "wide", tmp_path / "wide"
    )


class TestScene:
    @pytest.fixture
    def files(self, tmp_path, pair):
        """Two cores in each file, of which the first are alike."""
        truth, pred = pair
        for name, labels in (("truth", truth), ("pred", pred)):
            for core in (truth, labels):
                tifffile.imwrite(tmp_path / f"{name}.tif", core, append=True)
        return tmp_path / "pred.tif", tmp_path / "truth.tif"

    def test_it_chooses_in_both(self, files, pair):
        aps = [
            json.loads(run(*files, "--scene", scene, "--json", "-").stdout)["images"][0]["iou"]
            for scene in ("0", "1")
        ]
        expected = score_labels(*pair)
        assert aps[0]["0.50"]["ap"] == 1
        assert aps[1]["0.50"]["ap"] == pytest.approx(expected.at(0.5).ap)
        assert "none was chosen" in complain(*files)
        assert "holds no image '7'" in complain(*files, "--scene", "7")

    def test_files_of_one_image_are_taken_as_they_are(self, files, pair, tmp_path):
        np.save(tmp_path / "one.npy", pair[1])
        found = run(tmp_path / "one.npy", files[1], "--scene", "1", "--json", "-").stdout
        expected = score_labels(*pair)
        assert json.loads(found)["images"][0]["iou"]["0.50"]["ap"] == pytest.approx(
            expected.at(0.5).ap
        )

    def test_on_threads_with_pictures(self, files, tmp_path):
        options = ["--scene", "1", "--workers", "2", "--report", tmp_path / "a.html"]
        run(*files, *options, "--image", files[1])
        assert (tmp_path / "a.html").read_text().count("<img") >= 1

    def test_what_was_left_out_is_told(self, tmp_path, pair):
        truth, pred = pair
        tifffile.imwrite(tmp_path / "pred.tif", pred)
        with tifffile.TiffWriter(tmp_path / "truth.tif") as writer:
            writer.write(truth[:9, :20], subfiletype=1)
            writer.write(truth)
        told = run(tmp_path / "pred.tif", tmp_path / "truth.tif").stderr
        assert "truth.tif: the file holds 2 images, of which 1 is left out: 9 x 20 px" in told
