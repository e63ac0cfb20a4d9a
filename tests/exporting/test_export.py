"""An export appears whole or not at all, and of a finished, undamaged result alone."""

from __future__ import annotations

import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from densebatch.base.errors import InputError
from densebatch.cli.exchange import export as command
from densebatch.exporting import outlines
from densebatch.exporting.columns import sort_columns
from densebatch.exporting.export import KINDS, TARGETS, export
from densebatch.exporting.options import DEFAULT_SIMPLIFY_PX
from densebatch.run.segment import segment
from densebatch.upkeep.verify import verify
from tests.helpers.damage import make_result
from tests.helpers.exports import add_columns, make_odd_result
from tests.helpers.run_files import Watcher, call_main, simulate, write_tiff
from tests.helpers.slide_files import write_zarr


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """OUT of a run, which a test leaves as it was, but for exports in it."""
    return make_result(tmp_path_factory.mktemp("result"), "0.5")[0]


@pytest.fixture
def copied(result, tmp_path):
    """A copy for one test."""
    shutil.copytree(result, tmp_path / "out", ignore=shutil.ignore_patterns("cells[-.]*[!t]"))
    return tmp_path / "out"


def list_all(folder):
    return sorted(path for path in folder.rglob("*"))


def test_the_command_knows_every_kind():
    (kind,) = [option for option in command.params if option.name == "kind"]
    assert tuple(kind.type.choices) == KINDS
    (simplify,) = [option for option in command.params if option.name == "simplify"]
    assert simplify.default == DEFAULT_SIMPLIFY_PX


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_by_its_command(copied, capsys, kind):
    code, told, _ = call_main(capsys, "export", copied, "--to", kind)
    path = copied / TARGETS[kind].name
    n_cells = pq.read_metadata(copied / "cells.parquet").num_rows
    assert (code, told) == (0, f"{n_cells} cells\nexport  {path}\n")
    assert path.exists()
    assert not list(copied.glob(".*.partial"))
    assert verify(copied).is_right
    before = list_all(copied)
    code, _, said = call_main(capsys, "export", copied, "--to", kind)
    assert (code, said) == (
        2, f"error: {path}: exists; remove it or choose another path\n",
    )  # fmt: skip
    assert list_all(copied) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_without_a_cell(tmp_path, kind):
    out = make_odd_result(tmp_path, np.zeros((40, 50), np.uint32), um_per_px=None)
    assert export(out, kind).n_cells == 0
    assert (out / TARGETS[kind].name).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_again(copied, tmp_path, kind):
    """And whatever the windows that labels are read in."""
    suffix = TARGETS[kind].suffixes[0]
    if kind == "anndata":
        suffix = ".zarr"  # HDF5 has times in it
    paths = [export(copied, kind, tmp_path / f"{n}{suffix}").path for n in range(2)]
    found = [
        [(p.relative_to(path), p.read_bytes()) for p in list_all(path) if p.is_file()]
        if path.is_dir()
        else path.read_bytes()
        for path in paths
    ]
    if kind == "ome-tiff":  # OME-XML has an identity of its own
        return
    assert found[0] == found[1]


def test_windows_change_nothing(copied, tmp_path, monkeypatch):
    first = export(copied, "geojson", tmp_path / "a.geojson").path.read_bytes()
    monkeypatch.setattr(outlines, "_WINDOW_PX", 16)
    assert export(copied, "geojson", tmp_path / "b.geojson").path.read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_and_nothing_is_left(copied, capsys, kind):
    chunk = next(p for p in (copied / "segmentation.ome.zarr/labels/cells/0").rglob("*")
                 if p.is_file() and p.name != "zarr.json")  # fmt: skip
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + b"123456789")
    before = list_all(copied)
    code, told, said = call_main(capsys, "export", copied, "--to", kind)
    assert (code, told) == (2, "")
    assert said.count("\n") == 1
    assert f"is damaged, {chunk.relative_to(copied)} is damaged: it does not fit" in said
    assert list_all(copied) == before
    chunk.write_bytes(whole)
    table = copied / "cells.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    code, _, said = call_main(capsys, "export", copied, "--to", kind)
    assert code == 2
    assert "cells.parquet is damaged" in said
    assert list_all(copied) == before


def test_what_is_no_finished_result_is_refused(copied, tmp_path, capsys):
    for path, reason in ((tmp_path / "none", "is no output"), (tmp_path, "is no output")):
        code, _, said = call_main(capsys, "export", path, "--to", "csv")
        assert code == 2
        assert said.startswith(f"error: {path}: {reason} of densebatch")
    (copied / "run.json").unlink()
    shutil.rmtree(copied / ".kept")
    code, _, said = call_main(capsys, "export", copied, "--to", "csv")
    assert code == 2
    assert said.startswith(f"error: {copied}: holds no finished run")
    assert not list(tmp_path.rglob("cells.csv"))


def test_a_run_that_was_stopped_is_refused(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(300, 300), ["CD3", "DAPI"])

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(slide, tmp_path / "out", membrane=("CD3",), workers=0, tile=256,
                progress=Watcher(number=stop))  # fmt: skip
    with pytest.raises(InputError, match="holds no finished run"):
        export(tmp_path / "out", "csv")


def test_labels_of_another_result_are_refused(tmp_path):
    """Of a merge there are no checksums; areas tell."""
    out = make_odd_result(tmp_path)
    table = pq.read_table(out / "cells.parquet")
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    columns["area_px"] = pa.array([9, *table["area_px"].to_pylist()[1:]], pa.int64())
    pq.write_table(pa.table(columns), out / "cells.parquet", write_page_checksum=True)
    before = list_all(tmp_path)
    with pytest.raises(InputError, match=r"cell 1 has 8 px, and 9 px in .*cells\.parquet"):
        export(out, "geojson")
    assert list_all(tmp_path) == before


def test_names_and_places(copied, tmp_path, capsys):
    with pytest.raises(InputError, match=r"is no name for ome-tiff; accepted .* \.ome\.tif"):
        export(copied, "ome-tiff", tmp_path / "a.tif")
    assert export(copied, "csv", tmp_path / "new" / "deep" / "a.csv").path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        export(copied, "csv", tmp_path / "file" / "a.csv")
    for simplify in ("nan", "inf"):
        code, _, said = call_main(
            capsys, "export", copied, "--to", "geojson", "--simplify", simplify
        )
        assert (code, said) == (2, f"error: --simplify {simplify}: accepted are 0 px and more\n")
    code, _, said = call_main(capsys, "export", copied, "--to", "qupath")
    assert code == 2
    assert "'geojson'" in said


def test_a_killed_export_does_not_hinder_the_run(copied):
    """Its leavings, files and folders, go when the run's command is given again."""
    (copied / ".cells.spatialdata.zarr.1-ab.partial" / "labels").mkdir(parents=True)
    (copied / ".cells.csv.1-ab.partial").write_text("")
    report = json.loads((copied / "run.json").read_text())
    (copied / "run.json").unlink()
    shutil.copy(report["plan"]["slide"]["path"], copied.parent)
    segment(report["plan"]["slide"]["path"], copied, membrane=("CD3",), workers=0, tile=512)
    assert not list(copied.glob(".*.partial"))


def test_partial_results_are_exported_with_a_note(tmp_path, capsys):
    """Of a slide with a chunk that cannot be read."""
    pixels = simulate(200, 1100, seed=8)
    slide = write_zarr(tmp_path / "a.ome.zarr", pixels, labels=["CD3", "DAPI"], chunks=(1, 64, 64))
    (slide / "0" / "c" / "0" / "1" / "15").write_bytes(b"no chunk")
    out = tmp_path / "out"
    assert segment(slide, out, membrane=("CD3",), workers=0, tile=100).missing_px
    code, told, said = call_main(capsys, "export", out, "--to", "anndata")
    assert code == 0
    assert told.splitlines()[1] == f"export  {out / 'cells.h5ad'}"
    assert "the result is partial: " in said
    with h5py.File(out / "cells.h5ad") as file:
        assert b"piece of the slide cannot be read" in file["uns/densebatch/missing"][()]


def test_columns_of_compartments_and_doubled_names():
    names = ["id", "mean_A", "mean_A_1", "mean_A_nucleus", "mean_A_1_nucleus", "q2.5_A",
             "q2.5_A_1", "positive_A", "area_px"]  # fmt: skip
    found = sort_columns(names)
    assert found.channels == ("A", "A_1")
    assert found.matrices == {
        "mean": ("mean_A", "mean_A_1"),
        "mean_nucleus": ("mean_A_nucleus", "mean_A_1_nucleus"),
        "q2.5": ("q2.5_A", "q2.5_A_1"),
    }
    assert found.others == ("id", "positive_A", "area_px")


def test_truth_values_that_may_be_unknown(tmp_path):
    out = make_odd_result(tmp_path)
    add_columns(out, {
        "mean_A": [1.0, 2.0, 3.0, 4.0, 5.0],
        "positive_A": [True, None, False, True, False],
        "phenotype_T cell": [True, False, False, True, False],
    })  # fmt: skip
    with h5py.File(export(out, "anndata", tmp_path / "a.h5ad").path) as file:
        assert list(file["layers"]) == []
        flags, cells = file["obs/positive_A"], file["obs/phenotype_T_cell"]
        assert flags.attrs["encoding-type"] == "nullable-boolean"
        assert flags["mask"][:].tolist() == [False, True, False, False, False]
        assert flags["values"][:].tolist() == [True, False, False, True, False]
        assert not cells["mask"][:].any()
    told = json.loads(export(out, "geojson", tmp_path / "a.geojson").path.read_text())
    measured = [each["properties"]["measurements"] for each in told["features"]]
    assert [each.get("positive_A") for each in measured] == [1, None, 0, 1, 0]
    assert [each["phenotype_T cell"] for each in measured] == [1, 0, 0, 1, 0]
    lines = export(out, "csv", tmp_path / "a.csv").path.read_text().splitlines()
    assert [line.split(",")[-2:] for line in lines[1:3]] == [["true", "true"], ["", "false"]]


def test_names_of_regions(tmp_path):
    """Of a few cells, which may be unknown; SpatialData has a column `region` of its own."""
    out = make_odd_result(tmp_path)
    names = ["Tumor", None, "Stroma", "Tumor", None]
    add_columns(out, {"region": names})
    with h5py.File(export(out, "anndata", tmp_path / "a.h5ad").path) as file:
        column = file["obs/region"]
        assert column.attrs["encoding-type"] == "categorical"
        texts = [text.decode() for text in column["categories"][:]]
        assert [None if k < 0 else texts[k] for k in column["codes"][:]] == names
    table = zarr.open_group(export(out, "spatialdata", tmp_path / "a.zarr").path)["tables/table"]
    assert table["obs/region/categories"][:].tolist() == ["cells"]
    assert table["obs/region_1/codes"][:].tolist() == [0, -1, 1, 0, -1]
    told = json.loads(export(out, "geojson", tmp_path / "a.geojson").path.read_text())
    found = [each["properties"].get("metadata", {}) for each in told["features"]]
    assert [each.get("region") for each in found] == names
    lines = export(out, "csv", tmp_path / "a.csv").path.read_text().splitlines()
    assert [line.rsplit(",", 1)[1] for line in lines[1:3]] == ['"Tumor"', ""]
    shown = pq.read_table(export(out, "geoparquet", tmp_path / "a.parquet").path)
    assert shown["region"].to_pylist() == names


OF_TABLES = ("csv", "mcmicro-csv", "anndata")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_TABLES])
def test_damaged_labels_without_a_list_of_checksums(tmp_path, kind):
    """Of a merge: each chunk has a checksum of its own."""
    out = make_odd_result(tmp_path)
    (chunk,) = (out / "segmentation.ome.zarr" / "labels" / "cells" / "0" / "c").rglob("0/0")
    content = bytearray(chunk.read_bytes())
    content[3] ^= 64
    chunk.write_bytes(content)
    before = list_all(tmp_path)
    with pytest.raises(InputError, match="labels/cells"):
        export(out, kind)
    assert list_all(tmp_path) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ome-tiff"])
def test_a_damaged_table_without_a_list_of_checksums(tmp_path, kind):
    """Of a merge: each page of the table has a checksum."""
    out = make_odd_result(tmp_path)
    table = out / "cells.parquet"
    content = bytearray(table.read_bytes())
    content[40] ^= 64
    table.write_bytes(content)
    before = list_all(tmp_path)
    with pytest.raises(InputError, match=r"cells\.parquet"):
        export(out, kind)
    assert list_all(tmp_path) == before
