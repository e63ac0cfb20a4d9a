"""`densebatch merge`: files in, labels, table and report out."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from densebatch.cells.labels import read_labels
from densebatch.studies.merge import merge_label_tiles
from tests.helpers.label_files import validate
from tests.helpers.label_tiles import cut_tiles, grow_cells, in_raster_order, tile_regions
from tests.helpers.run_files import call_main

RNG = np.random.default_rng(3)
TRUTH = in_raster_order(grow_cells((90, 120), RNG.integers(0, 120, (90, 2)), 6))


def write_tiles(folder, truth=TRUTH, tile=50, overlap=28, kind="npy", name="t_y{y}_x{x}"):
    folder.mkdir(exist_ok=True)
    tiles = cut_tiles(truth, tile_regions(truth.shape, tile, overlap), np.random.default_rng(0))
    for y, x, labels in tiles:
        path = folder / f"{name.format(y=y, x=x)}.{kind}"
        if kind == "npy":
            np.save(path, labels)
        elif kind == "tif":
            tifffile.imwrite(path, labels.astype(np.uint32), compression="zlib")
        else:  # PNG has no labels above 65535
            small = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
            Image.fromarray(small.astype(np.uint16)).save(path)
    return folder


@pytest.mark.parametrize("kind", ["npy", "tif", "png"])
def test_tiles_of_every_kind(tmp_path, kind):
    source = write_tiles(tmp_path / "tiles", kind=kind)
    result = merge_label_tiles([source], tmp_path / "out", pixel_size=0.5)
    np.testing.assert_array_equal(read_labels(result.labels)[:], TRUTH)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells.parquet", "merge.json", "segmentation.ome.zarr",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    told = json.loads((tmp_path / "out/merge.json").read_text())
    assert told == result.report
    assert (told["cells"], told["overlap_px"]) == (TRUTH.max(), 28)
    merging = told["merging"]
    assert merging["labels"] == told["cells"] + merging["merged"]
    assert merging["resolved_px"] == 0
    assert merging["larger_than_overlap"] == merging["dropped_pieces"] == told["notes"] == []


def test_the_table_is_that_of_the_labels(tmp_path):
    result = merge_label_tiles([write_tiles(tmp_path / "t")], tmp_path / "out", pixel_size=0.5)
    table = pq.read_table(result.table).to_pydict()
    assert table["id"] == list(range(1, int(TRUTH.max()) + 1))
    assert table["area_px"] == np.bincount(TRUTH.ravel())[1:].tolist()
    rows, cols = np.nonzero(TRUTH == 7)
    assert table["y_px"][6] == pytest.approx(rows.mean())
    assert table["x_um"][6] == pytest.approx((cols.mean() + 0.5) * 0.5)
    assert not any(table["touches_missing"])


def test_several_shards_and_levels(tmp_path):
    """The slide is larger than a shard in both directions, and has tiles at two corners only."""
    shape = (2100, 2200)
    truth = np.zeros(shape, np.uint32)
    truth[:90, :120] = TRUTH
    truth[2010:, 2080:] = np.where(TRUTH, TRUTH + TRUTH.max(), 0)
    truth[2040:2056, 2040:2056] = 2 * TRUTH.max() + 1  # over the corner of four shards
    folder = tmp_path / "t"
    folder.mkdir()
    for k, (y, x) in enumerate([(0, 0), (0, 60), (2000, 2000), (2000, 2060)]):
        labels = truth[y : y + 100, x : min(x + 140, shape[1])]
        np.save(folder / f"{k}_y{y}_x{x}.npy", labels)
    result = merge_label_tiles([folder], tmp_path / "out")
    found = read_labels(result.labels)[:]
    assert result.report["shape"] == list(shape)
    np.testing.assert_array_equal(found, in_raster_order(truth))
    for level in range(1, 4):
        np.testing.assert_array_equal(
            read_labels(result.labels, level)[:], found[:: 2**level, :: 2**level]
        )
    unseen = result.report["unseen_px"]
    assert unseen == shape[0] * shape[1] - 100 * 200 - 100 * 200
    assert any(note.startswith(f"{unseen} pixels") for note in result.report["notes"])
    table = pq.read_table(result.table).to_pydict()
    assert table["area_px"] == np.bincount(found.ravel())[1:].tolist()
    assert sum(table["touches_missing"]) == 0  # cells end before the tiles do
    assert all(value is None for value in table["y_um"])


def test_cells_beside_what_no_tile_holds(tmp_path):
    labels = np.zeros((20, 20), np.uint16)
    labels[5:15, 14:] = 3
    labels[0:4, 0:4] = 4
    np.save(tmp_path / "a_y0_x0.npy", labels)
    other = np.zeros((10, 20), np.uint16)
    np.save(tmp_path / "a_y15_x15.npy", other)
    result = merge_label_tiles([tmp_path], tmp_path / "out")
    assert pq.read_table(result.table).to_pydict()["touches_missing"] == [False, True]


def test_cells_larger_than_the_overlap_are_told(tmp_path):
    truth = np.zeros((40, 100), np.uint32)
    truth[10:30, 20:80] = 1
    truth[31:39, 20:30] = 2
    source = write_tiles(tmp_path / "t", truth, tile=45, overlap=10)
    result = merge_label_tiles([source], tmp_path / "out")
    np.testing.assert_array_equal(read_labels(result.labels)[:], truth)
    (larger,) = result.report["merging"]["larger_than_overlap"]
    assert larger == {"region": [10, 20, 30, 80], "tiles": ["t_y0_x0.npy", "t_y0_x35.npy",
                                                            "t_y0_x55.npy"]}  # fmt: skip
    assert any("less than two diameters" in note for note in result.report["notes"])


def test_other_readers_take_the_labels(tmp_path):
    from densebatch.cells.pyramid_spec import PyramidSpec

    merge_label_tiles([write_tiles(tmp_path / "t")], tmp_path / "out")
    validate(PyramidSpec(str(tmp_path / "out/segmentation.ome.zarr"), "0.5", 90, 120, 1))


def test_the_command(capsys, tmp_path):
    source = tmp_path / "t"
    source.mkdir()
    for row, y in enumerate((0, 25)):
        for col, x in enumerate((0, 25, 50)):
            np.save(source / f"scan_row{row + 1}_col{col + 1}.npy", TRUTH[y : y + 50, x : x + 50])
    arguments = (source, tmp_path / "out", "--step", 25, "--pixel-size", 0.5)
    code, out, _ = call_main(capsys, "merge", *arguments)
    assert code == 0
    told = json.loads((tmp_path / "out/merge.json").read_text())
    assert f"{told['cells']} cells of {told['merging']['labels']} labels in 6 tiles" in out
    assert told["um_per_px"] == 0.5
    np.testing.assert_array_equal(
        read_labels(tmp_path / "out/segmentation.ome.zarr")[:], in_raster_order(TRUTH[:75, :100])
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full((50, 50), 0.5), "holds the value 0.5; a label image has one whole number per"),
        (np.full((50, 50), -3), "holds the negative label -3; labels are 0 to"),
        (np.ones((50, 50), bool), "holds a yes/no mask (bool)"),
        (np.ones((3, 50, 50), np.uint8), "has 3 planes (shape (3, 50, 50)); a label image has one"),
        (np.ones(50, np.uint8), "has shape (50,); an image has rows and columns"),
    ],
)
def test_pixels_that_are_no_labels(capsys, tmp_path, labels, words):
    source = write_tiles(tmp_path / "t")
    np.save(source / "t_y22_x0.npy", labels)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call_main(capsys, "merge", source, tmp_path / "new/out")
    assert (code, out) == (2, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith(f"error: {source / 't_y22_x0.npy'} ")
    assert words in sentence
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pixel-size", "nan"), "setting 'pixel_size' = nan: "),
        (("--step", "0"), "0 is not in the range x>=1"),
    ],
)
def test_settings_that_cannot_work(capsys, tmp_path, options, words):
    source = write_tiles(tmp_path / "t")
    code, _, err = call_main(capsys, "merge", source, tmp_path / "out", *options)
    assert code == 2
    assert words in err


def test_an_output_that_holds_something(capsys, tmp_path):
    source = write_tiles(tmp_path / "t")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    code, _, err = call_main(capsys, "merge", source, tmp_path / "out")
    assert code == 2
    assert "out: holds 'thesis.tex'; accepted is a new or empty folder" in err
    assert call_main(capsys, "merge", source, source / "t_y0_x0.npy")[0] == 2
    (tmp_path / "empty").mkdir()
    assert call_main(capsys, "merge", source, tmp_path / "empty")[0] == 0
