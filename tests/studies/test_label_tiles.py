"""Where label tiles lie, as names, metadata and lists tell it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from densebatch.base.errors import InputError
from densebatch.studies.label_tiles import find_tiles

TILE = np.ones((8, 10), np.uint16)


def save(path, labels=TILE):
    np.save(path, labels)
    return path


def save_ome(path, y, x, size=0.5, unit="µm"):
    metadata = {
        "axes": "YX",
        "PhysicalSizeX": size,
        "PhysicalSizeY": size,
        "Plane": {"PositionX": x, "PositionY": y, "PositionXUnit": unit, "PositionYUnit": unit},
    }
    tifffile.imwrite(path, TILE, metadata=metadata)
    return path


def places(found):
    return {
        path.name: (region.y0, region.x0)
        for path, region in zip(found.files, found.layout.regions, strict=True)
    }


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a_y0_x0.npy", "a_y0_x6.npy"], [(0, 0), (0, 6)]),
        (["s1_x6_y000.npy", "s1_x0_y4.npy"], [(0, 6), (4, 0)]),
        (["Y0-X3_cp_masks.npy", "y3-X0_cp_masks.npy"], [(0, 3), (3, 0)]),
    ],
)
def test_pixels_in_the_name(tmp_path, names, wanted):
    for name in names:
        save(tmp_path / name)
    found = find_tiles([tmp_path])
    assert places(found) == dict(zip(names, wanted, strict=True))
    assert found.um_per_px is None


@pytest.mark.parametrize("names", [["t_r0_c0", "t_r1_c0", "t_r1_c1"],
                                   ["row1_col1", "row2_col1", "row2_col2"]])  # fmt: skip
def test_rows_and_columns_in_the_name(tmp_path, names):
    for name in names:
        save(tmp_path / f"{name}.npy")
    found = find_tiles([tmp_path], step=6)
    assert list(places(found).values()) == [(0, 0), (6, 0), (6, 6)]
    assert found.shape == (14, 16)
    with pytest.raises(InputError, match="its name tells row and column; give --step"):
        find_tiles([tmp_path])
    with pytest.raises(InputError, match=r"8 x 10 px, and tiles that are 10 px apart \(--step\)"):
        find_tiles([tmp_path], step=10)


def test_stage_positions(tmp_path):
    save_ome(tmp_path / "a.ome.tif", -20.0, 1000.0)
    save_ome(tmp_path / "b.ome.tif", -20.0, 1003.02)
    save_ome(tmp_path / "c.ome.tif", -0.018, 1.0, unit="mm")
    found = find_tiles([tmp_path])
    assert places(found) == {"a.ome.tif": (0, 0), "b.ome.tif": (0, 6), "c.ome.tif": (4, 0)}
    assert found.um_per_px == 0.5
    save_ome(tmp_path / "d.ome.tif", 0, 0, size=0.4)
    with pytest.raises(InputError, match=r"d.ome.tif: has pixels of 0.4 um, and a.ome.tif of 0.5"):
        find_tiles([tmp_path])


def test_stage_positions_without_a_unit_are_told(tmp_path):
    for name, x in (("a", 0.0), ("b", 3.0)):
        plane = {"PositionX": x, "PositionY": 0.0}
        metadata = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Plane": plane}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", TILE, metadata=metadata)
    found = find_tiles([tmp_path])
    assert list(places(found).values()) == [(0, 0), (0, 6)]
    assert found.notes == ("PositionX and PositionY have no unit: they are taken to be in um",)


@pytest.mark.parametrize("unit", ["reference frame", "pixel"])
def test_stage_positions_in_no_length(tmp_path, unit):
    save_ome(tmp_path / "a.ome.tif", 0, 0, unit=unit)
    with pytest.raises(InputError, match="does not tell where it lies; accepted are _y123_x456"):
        find_tiles([tmp_path])


def test_a_list(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(TILE).save(tmp_path / "in/one.png")
    save(tmp_path / "in/two.npy")
    table = tmp_path / "tiles.csv"
    table.write_text("\ufeffFile, Y, X, who\nin/one.png, 4, 0, me\nin/two.npy,0,2.0,me\n")
    assert places(find_tiles([table])) == {"two.npy": (0, 2), "one.png": (4, 0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,row,col\n", "has the columns file, row, col; accepted are file, y, x"),
        ("", "has the columns none; accepted are file, y, x"),
        ("file,y,x\n", "lists no tiles"),
        ("file,y,x\na.npy,-1,0\n", "line 2: y is '-1'; accepted are whole pixels from 0 on"),
        ("file,y,x\na.npy,0\n", "line 2: x is ''; accepted are whole pixels"),
        ("file,y,x\na.npy,0,1.5\n", "line 2: x is '1.5'; accepted are whole pixels"),
        ("file,y,x\nb.npy,0,0\n", "line 2: .*b.npy is no file"),
        ("file,y,x\na.npy,0,0\na.npy,0,3\n", "line 3: .*a.npy is listed twice"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, text, words):
    save(tmp_path / "a.npy")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        find_tiles([tmp_path / "t.csv"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no label tiles; accepted are .png, .tif, .tiff, .npy files"),
        (["a.npy"], "a.npy: does not tell where it lies; accepted are _y123_x456 in the name"),
        (["a_y0_x0.npy", "b.npy"], "b.npy: does not tell where it lies, as others do"),
        (["a_y0_x0.npy", "b_y0_x0.npy"], "a_y0_x0.npy and b_y0_x0.npy both lie at row 0, column 0"),
        (["a_y0_x0.npy", "a_y0_x10.npy"], "the tiles overlap nowhere (it has rows 0 to 8, columns"),
        (["a_y0_x0.npy", "a_y0_x9999999999.npy"], "accepted is less than 2147483648"),
        (["a_y0_x0.npy", "a_y0_x9.npy", "a_y2000000000_x2000000000.npy"],
         "px; accepted are 1099511627776 pixels at most"),
    ],
)  # fmt: skip
def test_tiles_that_cannot_be_used(tmp_path, names, words):
    for name in names:
        save(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(words)):
        find_tiles([tmp_path])


def test_files_that_are_given(tmp_path):
    one, other = save(tmp_path / "a_y0_x0.npy"), save(tmp_path / "a_y0_x6.npy")
    assert len(find_tiles([one, other]).files) == 2
    with pytest.raises(InputError, match="is given twice"):
        find_tiles([one, tmp_path])
    with pytest.raises(InputError, match=r"none\.npy: does not exist; accepted are label tiles"):
        find_tiles([tmp_path / "none.npy"])
    with pytest.raises(InputError, match="is a list of tiles; accepted is one alone"):
        find_tiles([one, save(tmp_path / "b.npy").rename(tmp_path / "b.csv")])
    with pytest.raises(InputError, match=r"--step is given, and its name has no row and column"):
        find_tiles([one, other], step=4)


def test_a_tile_alone_is_told(tmp_path):
    for name in ("a_y0_x0.npy", "a_y0_x6.npy", "a_y100_x0.npy"):
        save(tmp_path / name)
    (note,) = find_tiles([tmp_path]).notes
    assert note.startswith("1 of 3 tiles overlap no other, the first is a_y100_x0.npy")
