"""A sample sheet's form is checked as a whole, and its cells become settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from densebatch.base.errors import InputError
from densebatch.cohorts.rows import list_slides, name_sample
from densebatch.cohorts.sheet import COLUMNS, read_sheet
from densebatch.planning.settings import SegmentSettings, load_settings
from tests.helpers.cohort_slides import write_sheet
from tests.helpers.run_files import call_main

PLAIN = SegmentSettings()


@pytest.fixture
def folder(tmp_path):
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder, text, settings=PLAIN, listed=frozenset()):
    sheet = folder / "sheet.csv"
    sheet.write_bytes(text.encode())
    return read_sheet(sheet, settings, listed)


def refused(folder, text):
    """What is said of a sheet, line by line."""
    with pytest.raises(InputError) as told:
        read(folder, text)
    return str(told.value).removeprefix(f"{folder / 'sheet.csv'}: ").splitlines()


def test_cells_are_settings_and_what_is_empty_is_the_command_s(folder):
    settings = load_settings(None, membrane=("CD3",), diameter_um=7.0, workers=2, pixel_size=0.4)
    text = (
        "\ufeffslide, sample ,membrane,nuclei,pixel_size,diameter,model,scene\r\n"
        'a.tif,one,"CD4,CD8",DAPI,0.25,12,dense-tiny,1\r\n'
        "\r\n"
        f"{folder / 'b.tif'},two,,,,,,\r\n"
        "a.tif,three,,,,auto\r\n"
    )
    one, two, three = read(folder, text, settings, frozenset({"channels"}))
    assert (one.sample, one.slide) == ("one", folder / "a.tif")
    assert one.listed == {"membrane", "channels"}
    changed = {"membrane": ("CD4,CD8",), "nuclei": "DAPI", "pixel_size": 0.25, "diameter": 12.0,
               "diameter_um": None, "model": "dense-tiny", "scene": "1"}  # fmt: skip
    assert one.settings.model_dump() == {**settings.model_dump(), **changed}
    assert (two.sample, two.slide, two.settings) == ("two", folder / "b.tif", settings)
    assert two.listed == {"channels"}
    assert (three.settings.diameter, three.settings.diameter_um) == ("auto", None)


def test_all_faults_are_told_with_their_lines(folder, capsys):
    text = (
        "sample,slide,pixel_size,model\n"
        "a,a.tif,x,\n"
        "A,b.tif,,nosuch\n"
        "b/c,gone.tif,,nosuch\n"
        ",ftp://bucket/a.zarr,,\n"
        "\n"
        "d,,0,dense-tiny,more\n"
        '"e\nf",a.tif,,\n'
        "a,a.tif,,\n"
    )
    told = refused(folder, text)
    expected = [
        "12 faults",
        "line 2: setting 'pixel_size' = 'x': ",
        "line 3: sample 'A' stands in line 2 already (as 'a', which some systems take for it)",
        "line 3: model 'nosuch' is neither bundled",
        "line 4: sample 'b/c' has '/' in it; accepted is the name of a folder",
        f"line 4: slide {folder / 'gone.tif'} does not exist",
        "line 4: model 'nosuch' is neither bundled",
        "line 5: sample '' is empty",
        "line 5: ftp:/bucket/a.zarr: is an address (ftp://) and no path",
        "line 7: has 5 cells in 4 columns",
        "line 7: names no slide",
        "line 7: setting 'pixel_size' = '0': ",
        "line 9: sample 'e\\nf' has '\\n' in it",
        "line 10: sample 'a' stands in line 2 already",
    ]
    assert len(told) == len(expected)
    assert told[0] == f"{len(expected) - 1} faults"
    for line, start in zip(told[1:], expected[1:], strict=True):
        assert line.startswith(start)
    out = folder / "out"
    code, printed, err = call_main(capsys, "segment", "--sheet", folder / "sheet.csv", out)
    assert (code, printed) == (2, "")
    assert "line 10: sample 'a' stands in line 2 already" in err
    assert not out.exists()


def test_columns_that_are_unknown_or_missing(folder):
    told = refused(folder, "sample,path,sample,tile\na,a.tif,,\n")
    accepted = ["sample", "slide", *(n for n, c in COLUMNS.items() if c.setting in known())]
    assert told[0] == "4 faults"
    assert told[1] == "line 1: column 'sample' stands there 2 times"
    assert told[2].startswith(
        f"line 1: column 'path' is unknown; accepted are {', '.join(accepted)}"
    )
    assert told[3].startswith("line 1: column 'tile' is unknown")
    assert told[4].startswith("line 1: without the column 'slide'")


def known():
    return SegmentSettings.model_fields


@pytest.mark.parametrize("name", [n for n, c in COLUMNS.items() if c.setting not in known()])
def test_a_column_whose_setting_there_is_not_yet(folder, name):
    (_, told) = refused(folder, f"sample,slide,{name}\na,a.tif,\n")
    assert told.startswith(f"line 1: column {name!r}: there is no such setting yet")


def test_files_that_are_no_sheet(folder):
    assert refused(folder, "\n , \n") == [
        "is empty; accepted is a CSV file with the columns sample, slide"
    ]
    assert refused(folder, "sample,slide\n")[0].startswith("has column names and no row")
    assert refused(folder, 'sample,slide\n"a,a.tif\n')[0].startswith("not a readable CSV file")
    (folder / "sheet.csv").write_bytes(b"sample,slide\n\xff,a.tif\n")
    with pytest.raises(InputError, match="not a readable CSV file in UTF-8"):
        read_sheet(folder / "sheet.csv", PLAIN)
    with pytest.raises(InputError, match=re.escape(f"{folder / 'none.csv'}: not a readable CSV")):
        read_sheet(folder / "none.csv", PLAIN)


def test_a_model_beside_the_sheet(folder, monkeypatch):
    """A path in a sheet is relative to it, wherever the command is called."""
    from densebatch.models.model import bundled_path

    (folder / "ours.safetensors").write_bytes(bundled_path("dense-tiny").read_bytes())
    monkeypatch.chdir(Path("/"))
    (row,) = read(folder, "sample,slide,model\na,a.tif,ours.safetensors\n")
    assert row.settings.model == str(folder / "ours.safetensors")


# slides without a sheet


def test_names_of_slides():
    names = {"a/s1.ome.tif": "s1", "s2.zarr/": "s2", "s3.OME.ZARR": "s3", "s4_mask.png": "s4_mask",
             "plain": "plain"}  # fmt: skip
    assert {path: name_sample(Path(path)) for path in names} == names


def test_slides_of_one_name_are_refused(tmp_path):
    slides = [tmp_path / "x" / "a.ome.tif", tmp_path / "b.tif", tmp_path / "y" / "A.zarr"]
    with pytest.raises(InputError) as told:
        list_slides(slides, PLAIN, frozenset())
    assert str(told.value).startswith(f"{slides[0]} and {slides[2]} would both be written to 'A'")
    rows = list_slides(slides[:2], PLAIN, frozenset({"membrane"}))
    assert [(row.sample, row.listed) for row in rows] == [("a", {"membrane"}), ("b", {"membrane"})]


def test_a_sheet_or_slides(capsys, folder):
    sheet = write_sheet(folder / "sheet.csv", {"sample": "a", "slide": "a.tif"})
    arguments = ("segment", "--sheet", sheet, folder / "b.tif", folder / "out")
    code, _, err = call_main(capsys, *arguments)
    assert code == 2
    assert f"--sheet {sheet} names the slides, and so does {folder / 'b.tif'}" in err


def test_areas_beside_the_sheet(folder):
    """A file, or the folder of a mask."""
    (folder / "a.geojson").touch()
    (folder / "mask.zarr").mkdir()
    [row, other] = read(
        folder, "sample,slide,roi,exclude\na,a.tif,a.geojson,mask.zarr\nb,b.tif,,none.roi\n"
    )
    assert row.settings.roi == folder / "a.geojson"
    assert row.settings.exclude == folder / "mask.zarr"
    assert (other.settings.roi, other.settings.exclude) == (None, Path("none.roi"))
