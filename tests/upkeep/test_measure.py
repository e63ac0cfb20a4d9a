"""A finished result is measured again: other channels, quantiles, another image on its grid."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage.io import imsave

from densebatch.base.errors import InputError
from densebatch.run.segment import segment
from densebatch.upkeep import measure as module
from densebatch.upkeep.measure import measure
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import verify
from tests.helpers.damage import KINDS, SHAPE, flip, list_again, make_result, read_files
from tests.helpers.run_files import Watcher, call_main, read_result, simulate, write_tiff
from tests.helpers.slide_files import write_zarr


@pytest.fixture(scope="module", params=KINDS)
def result(request, tmp_path_factory):
    """A result, which a test leaves as it was."""
    return make_result(tmp_path_factory.mktemp("measured"), request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A result of OME-Zarr 0.5, to copy."""
    return make_result(tmp_path_factory.mktemp("made"), "0.5")


@pytest.fixture
def copied(made, tmp_path):
    """The same for one test; its slide is where it was."""
    out = tmp_path / "out"
    shutil.copytree(made[0], out)
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another image on the grid of these results."""
    pixels = np.random.default_rng(5).normal(100, 20, (3, *SHAPE)).astype(np.float32)
    pixels[1, 40, 1000:1200] = np.nan
    folder = tmp_path_factory.mktemp("other")
    return write_tiff(folder / "b.ome.tif", pixels, ["CD4", "CD8", "CD20"]), pixels


def assert_right(out):
    found = verify(out)
    assert found.is_right, [str(f) for f in found.findings]
    return found


def test_measured_again_the_table_has_the_bytes_of_the_run(result):
    """Also of cells that lie in two shards, whose pixels come together from both."""
    out, _, tops = result
    files = read_files(tops)
    labels, table = read_result(out, tops[-1].parent if len(tops) > 1 else None)
    assert (table["x0"] < 2048).sum() < len(table["x0"])
    assert np.unique(labels[:, 2040:2056]).size > 2
    found = measure(out)
    assert found.n_cells == len(table["id"])
    after = read_files(tops)
    changed = {path.name for path in files if files[path] != after.pop(path)}
    assert not after
    assert changed <= {"run.json"}  # its content is written anew, and is the same
    assert json.loads((out / "run.json").read_bytes())["measured"] == found.measured
    assert_right(out)


def test_other_channels_and_quantiles(copied, made, tmp_path):
    found = measure(copied, channels=["DAPI"], quantiles=(0.9, 0.025), neighbour_radius=12)
    assert found.measured["channels"] == ["DAPI"]
    expected = tmp_path / "expected"
    options = {"membrane": ("CD3",), "workers": 0, "tile": 640, "image": "none"}
    again = segment(
        made[1], expected, channels=("1",), quantiles=(0.9, 0.025), neighbour_radius=12, **options
    )
    assert (copied / "cells.parquet").read_bytes() == again.table.read_bytes()
    names = pq.read_table(copied / "cells.parquet").column_names
    statistics = ("mean", "total", "std", "median", "q90", "q2.5")
    assert names[-6:] == [f"{each}_DAPI" for each in statistics]
    assert not any("CD3" in name for name in names)
    assert_right(copied)
    assert_right(expected)
    flip(copied / "cells.parquet", np.random.default_rng(0))
    assert not verify(copied).is_right
    assert repair(copied, workers=0).repaired == ["cells.parquet"]
    assert (copied / "cells.parquet").read_bytes() == again.table.read_bytes()


def test_only_the_channels_that_are_asked_for_are_read(made, tmp_path, monkeypatch):
    from densebatch.stages import number

    read = []

    def note(work, channel, region):
        read.append(channel)
        return read_pieces(work, channel, region)

    read_pieces = number.read_pieces
    monkeypatch.setattr(number, "read_pieces", note)
    options = {"membrane": ("CD3",), "workers": 0, "image": "none"}
    out = tmp_path / "out"
    done = segment(made[1], out, channels=("DAPI",), **options)
    assert set(read) == {1}
    assert done.report["slide_channels"] == [1]
    assert_right(out)
    made[1].touch()  # so that the pixels that were read are compared
    try:
        assert_right(out)
    finally:
        segment(made[1], out, channels=("DAPI",), **options)


def test_another_image(copied, other):
    path, pixels = other
    labels, before = read_result(copied)
    found = measure(copied, source=path, channels=["CD8,CD20"])
    assert found.measured["from"]["path"] == str(path)
    _, table = read_result(copied)
    for name in before:
        if not name.startswith(("mean_", "total_", "std_", "median_")):
            np.testing.assert_array_equal(table[name], before[name])
    assert [name for name in table if name.startswith("mean_")] == ["mean_CD8", "mean_CD20"]
    for row, cell in enumerate(table["id"]):
        inside = pixels[1][labels == cell].astype(float)
        inside = inside[np.isfinite(inside)]
        values = [table[f"{each}_CD8"][row] for each in ("mean", "total", "std", "median")]
        expected = [inside.mean(), inside.sum(), inside.std(), np.median(inside)]
        np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert not assert_right(copied).notes
    bytes_before = (copied / "cells.parquet").read_bytes()
    (copied / "cells.parquet").unlink()
    assert repair(copied, workers=0).repaired == ["cells.parquet"]
    assert (copied / "cells.parquet").read_bytes() == bytes_before


def test_another_image_that_is_gone_or_has_changed_is_told(copied, other, tmp_path):
    path = tmp_path / "moved.ome.tif"
    shutil.copy(other[0], path)
    measure(copied, source=path)
    path.touch()
    (note,) = assert_right(copied).notes
    assert note == f"intensities were not compared: {path}: has changed since it was measured"
    path.unlink()
    (note,) = assert_right(copied).notes
    assert "moved.ome.tif does not exist" in note
    with pytest.raises(InputError, match="does not exist"):
        measure(copied, source=path)
    measure(copied)  # the run's own slide, once more
    assert not assert_right(copied).notes


def test_the_runs_own_command_is_complete_whatever_was_measured_since(copied, made):
    options = {"membrane": ("CD3",), "workers": 0, "tile": 512, "ngff": "0.5"}
    measure(copied, channels=["CD3"], quantiles=[0.5])
    for more in ({}, {"channels": ("CD3",), "quantiles": (0.5,)}):
        watcher = Watcher()
        segment(made[1], copied, progress=watcher, **more, **options)
        assert watcher.notes[-1] == f"{copied}: this run is already complete"
    files = read_files([copied])
    with pytest.raises(InputError) as caught:
        segment(made[1], copied, channels=("DAPI",), **options)
    assert str(caught.value) == (
        f"{copied}: this run is complete, and measured other channels, quantiles, neighbours or "
        "markers than are asked for; `densebatch measure OUT` measures again without segmenting"
    )
    assert read_files([copied]) == files


def test_bad_input_is_one_sentence_and_changes_nothing(copied, made, other, tmp_path, capsys):
    pixels = np.zeros((1, *SHAPE), np.uint16)
    narrow = write_tiff(tmp_path / "narrow.ome.tif", pixels[:, :, :-1], ["a"])
    fine = write_tiff(tmp_path / "fine.ome.tif", pixels, ["a"], um_per_px=0.25)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(copied, unfinished)
    for name in ("run.json", "digests.sha256"):
        (unfinished / name).unlink()
    shutil.rmtree(unfinished / ".kept")
    damaged = tmp_path / "damaged"
    shutil.copytree(copied, damaged)
    shard = "segmentation.ome.zarr/labels/cells/0/c/0/0"
    flip(damaged / shard, np.random.default_rng(0))
    files = read_files([tmp_path])
    grid = f"accepted is an image on the grid of the labels in {copied}"
    for arguments, sentence in [
        ((copied, "--channels", "CD9"), "has no channel 'CD9'; accepted are 'CD3', 'DAPI', or an"),
        ((copied, "--channels", "CD3,7"), "has no channel '7'"),
        ((copied, "--quantiles", "1.5"), "setting 'quantiles.0' = '1.5': input should be less"),
        ((copied, "--quantiles", "0.5,0.5"), "the quantiles 0.5, 0.5 are not distinct"),
        ((copied, "--quantiles", "a"), "setting 'quantiles.0' = 'a': input should be a valid"),
        ((copied, "--neighbour-radius", "0"), "setting 'neighbour_radius' = 0.0"),
        ((copied, "--from", narrow), f"{narrow}: has 70 x 2199 px; {grid}, 70 x 2200 px"),
        ((copied, "--from", fine), f"{fine}: has pixels of 0.25 um; {grid}, of 0.5 um"),
        ((copied, "--from", tmp_path / "none.tif"), "none.tif does not exist"),
        ((copied, "--from", other[0], "--channels", "CD3"), "has no channel 'CD3'; accepted are"),
        ((copied, "--scene", "0"), "--scene is of the image of --from, which is not given"),
        ((tmp_path,), f"{tmp_path}: is no output of densebatch"),
        ((unfinished,), f"{unfinished}: is no finished result; the run's own command continues it"),
        ((damaged,), f"{damaged}: {shard}: is damaged: it does not fit its checksum; `densebatch"),
    ]:
        code, out, err = call_main(capsys, "measure", *arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: "), err
        assert err.count("\n") == 1
        assert sentence in err
    assert read_files([tmp_path]) == files


def test_an_image_at_another_place_is_refused(tmp_path):
    out, slide, _ = make_result(tmp_path, "in place")
    moved = tmp_path / "moved.ome.zarr"
    shutil.copytree(slide, moved)
    document = moved / "zarr.json"
    told = json.loads(document.read_bytes())
    for dataset in told["attributes"]["ome"]["multiscales"][0]["datasets"]:
        steps = dataset["coordinateTransformations"]
        steps.append({"type": "translation", "translation": [0] * len(steps[0]["scale"])})
    measure(out, source=moved)
    for dataset in told["attributes"]["ome"]["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"][-1]["translation"][-1] = 5.0
    document.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"begins 10 px from where the run's slide does"):
        measure(out, source=moved)


def test_the_command_tells_what_it_did(copied, capsys):
    code, out, _ = call_main(capsys, "measure", copied, "--channels", "CD3", "--quantiles", "0.9")
    assert code == 0
    n_cells = pq.ParquetFile(copied / "cells.parquet").metadata.num_rows
    assert out == f"{n_cells} cells measured in 1 channel\ncells   {copied}/cells.parquet\n"


def test_a_failure_on_the_way_leaves_the_result_as_it_was(copied, monkeypatch):
    files = read_files([copied])

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_table", fail)
    with pytest.raises(KeyboardInterrupt):
        measure(copied, channels=["CD3"])
    assert read_files([copied]) == files


@pytest.mark.parametrize("writes", [0, 1, 2, "table", 3])
def test_a_kill_between_the_last_writes_costs_nothing(copied, monkeypatch, writes):
    """The result is the old or the new one, and what tells of it can be mended."""
    old = (copied / "cells.parquet").read_bytes()
    write, replace = module.write_atomic, Path.replace
    left = [3 if writes == "table" else writes]

    class KilledError(BaseException):
        pass

    def write_or_die(path, data):
        if copied not in path.parents or "repair" not in str(path):
            if not left[0]:
                raise KilledError
            left[0] -= 1
        write(path, data)

    def replace_or_die(path, target):
        if writes == "table" and target == copied / "cells.parquet":
            raise KilledError
        return replace(path, target)

    monkeypatch.setattr(module, "write_atomic", write_or_die)
    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(KilledError):
        measure(copied, channels=["CD3"])
    monkeypatch.undo()
    assert repair(copied, workers=0).is_right
    assert_right(copied)
    is_old = (copied / "cells.parquet").read_bytes() == old
    names = pq.read_table(copied / "cells.parquet").column_names
    assert is_old == ("mean_DAPI" in names) == (writes in (0, 1, 2))
    measure(copied)
    assert (copied / "cells.parquet").read_bytes() == old


def test_a_piece_of_another_image_that_cannot_be_read(copied, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 99, (2, *SHAPE)).astype(np.uint16)
    other = write_zarr(tmp_path / "b.zarr", pixels, labels=["a", "b"], n_levels=1)
    chunks = sorted(p for p in (other / "0").rglob("*") if p.is_file() and p.name.isdigit())
    chunks[-1].write_bytes(b"damaged")
    code, _, err = call_main(capsys, "measure", copied, "--from", other)
    assert code == 3
    assert "1 piece of the image cannot be read, the first at pixels" in err
    labels, table = read_result(copied)
    told = json.loads((copied / "run.json").read_bytes())["measured"]["unread"]
    (y0, x0, y1, x1), channel = told[0]["region"], told[0]["channel"]
    cut = np.unique(labels[y0:y1, x0:x1])
    for each in ("mean", "total", "std", "median"):
        lost = table["id"][np.isnan(table[f"{each}_{channel}"])]
        assert lost.tolist() == cut[cut > 0].tolist()
    assert_right(copied)
    assert 0 < cut.size < table["id"].size


POSITIVE = {
    "fraction": ["CD3=900"],
    "positive": ["CD3:fraction=0.3", "DAPI:median=mixture"],
    "phenotype": ["CD3+ DAPI-", "T cell=CD3+"],
}


def test_positive_cells_are_measured_after_the_run_as_with_it(copied, made, tmp_path):
    """And are verified, made again where the table is damaged, and gone when nobody asks."""
    found = measure(copied, **POSITIVE)
    labels, _ = read_result(copied)
    pixels = simulate(*SHAPE, seed=3)
    table = pq.read_table(copied / "cells.parquet")
    inside = [labels == cell for cell in table["id"].to_pylist()]
    share = np.array([(pixels[0][cell] > 900).mean() for cell in inside])
    np.testing.assert_array_equal(table["fraction_CD3"], share)
    is_bright = np.array([np.median(pixels[1][cell]) for cell in inside])
    told = json.loads((copied / "run.json").read_bytes())["positivity"]
    assert told == found.positivity
    cut = told["markers"][1]["cut"]
    assert table["positive_DAPI"].to_pylist() == (is_bright >= cut).tolist()
    both = (share >= 0.3) & (is_bright < cut)
    assert table["phenotype_CD3+ DAPI-"].to_pylist() == both.tolist()
    assert [each["positive"] for each in told["phenotypes"]] == [both.sum(), (share >= 0.3).sum()]
    options = {name: tuple(texts) for name, texts in POSITIVE.items()}
    options |= {"membrane": ("CD3",), "workers": 0}
    again = segment(made[1], tmp_path / "again", tile=640, image="none", **options)
    watcher = Watcher()
    segment(made[1], copied, tile=512, ngff="0.5", progress=watcher, **options)
    assert watcher.notes[-1] == f"{copied}: this run is already complete"
    assert again.table.read_bytes() == (copied / "cells.parquet").read_bytes()
    assert again.report["positivity"] == told
    assert_right(again.out)
    assert_right(copied)
    flip(copied / "cells.parquet", np.random.default_rng(0))
    assert repair(copied, workers=0).repaired == ["cells.parquet"]
    assert again.table.read_bytes() == (copied / "cells.parquet").read_bytes()
    measure(copied)
    assert (copied / "cells.parquet").read_bytes() == (made[0] / "cells.parquet").read_bytes()
    assert json.loads((copied / "run.json").read_bytes())["positivity"]["markers"] == []


def test_what_a_faulty_program_says_of_positive_cells_is_found(copied):
    measure(copied, **POSITIVE)
    path, report = copied / "cells.parquet", copied / "run.json"
    table, told = pq.read_table(path), report.read_bytes()
    flags = table["positive_CD3"].to_pylist()
    column = table.column_names.index("positive_CD3")

    def find(changed, document=told):
        pq.write_table(changed, path, write_page_checksum=True)
        report.write_bytes(document)
        list_again(copied)
        return "; ".join(str(each) for each in verify(copied).findings)

    other = table.set_column(column, "positive_CD3", pa.array([not flags[0], *flags[1:]]))
    assert "'positive_CD3' is not what the labels and pixels say in 1 rows, the first is cel" in (
        find(other)
    )
    more = table.append_column("mean_CD9", table["mean_CD3"])
    assert find(more) == "cells.parquet: has columns that nobody asked for: 'mean_CD9'"
    turned = table.select(table.column_names[::-1])
    assert find(turned) == "cells.parquet: has its columns in another order"
    assert find(table.drop(["median_CD3"])) == "cells.parquet: has no column 'median_CD3'"
    said = json.loads(told)
    said["positivity"]["phenotypes"][0]["positive"] += 1
    assert find(table, json.dumps(said).encode()) == (
        "run.json: tells of other numbers of positive cells than the table has"
    )
    said = json.loads(told)
    said["positivity"]["markers"][1]["cut"] *= 1.001
    assert "run.json: tells of the cut" in find(table, json.dumps(said).encode())
    assert find(table) == ""


def test_cells_under_the_labels_of_another_run(copied, made, tmp_path):
    other = shutil.copytree(made[0], tmp_path / "other")
    labels, _ = read_result(copied)
    cover = labels.copy()
    cover[:, 900:] = 0
    imsave(tmp_path / "cover.png", (cover > 0).astype(np.uint16), check_contrast=False)
    measure(copied, positive=[f"CD3=labels:{other}", f"DAPI=labels:{tmp_path / 'cover.png'}"])
    table = pq.read_table(copied / "cells.parquet")
    assert set(table["fraction_CD3"].to_pylist()) == {1.0}
    share = np.array([(cover[labels == cell] > 0).mean() for cell in table["id"].to_pylist()])
    assert ((share > 0) & (share < 1)).any()
    np.testing.assert_array_equal(table["fraction_DAPI"], share)
    assert table["positive_DAPI"].to_pylist() == (share >= 0.5).tolist()
    assert not assert_right(copied).notes
    again = segment(
        made[1], tmp_path / "again", workers=0, tile=640, membrane=("CD3",), image="none",
        positive=(f"CD3=labels:{other}", f"DAPI=labels:{tmp_path / 'cover.png'}"),
    )  # fmt: skip
    assert again.table.read_bytes() == (copied / "cells.parquet").read_bytes()
    (tmp_path / "cover.png").touch()
    (note,) = assert_right(copied).notes
    assert note == (
        f"what lies under the labels of {tmp_path / 'cover.png'} was not compared: they have "
        "changed, or are gone"
    )
    (tmp_path / "cover.png").unlink()
    assert assert_right(copied).notes == [note]


def test_bad_markers_are_one_sentence_and_change_nothing(copied, tmp_path, capsys):
    narrow = tmp_path / "narrow.png"
    imsave(narrow, np.ones((SHAPE[0], 9), np.uint16), check_contrast=False)
    files = read_files([copied])
    for arguments, sentence in [
        (("--positive", "CD9=4"), "has no channel 'CD9'; accepted are 'CD3', 'DAPI', or an index"),
        (("--positive", "CD3=4", "--positive", "cd3=5"), "the channel 'CD3' has one already"),
        (("--positive", "CD3=high"), "'high' is no cut; accepted is a number, otsu, mixture, or"),
        (("--positive", "CD3=4", "--channels", "DAPI"), "the channel 'CD3' is not measured"),
        (("--positive", "CD3:q90=4"), "the q90 of 'CD3' is not measured; accepted are mean,"),
        (("--positive", "CD3:fraction=4"), "the fraction of 'CD3' is not measured"),
        (("--positive", f"CD3=labels:{narrow}"), f"{narrow}: has 70 x 9 px; accepted with --posi"),
        (("--positive", "CD3=labels:nowhere"), "nowhere does not exist; accepted are"),
        (("--fraction", "CD3=x"), "--fraction 'CD3=x': 'x' is no value; accepted is a number"),
        (("--phenotype", "CD3+"), "'CD3+' is no combination of markers; accepted is [NAME=]A+ B-"),
    ]:
        code, out, err = call_main(capsys, "measure", copied, *arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: "), err
        assert err.count("\n") == 1
        assert sentence in err
    assert read_files([copied]) == files


def test_the_command_tells_of_markers(copied, capsys):
    code, out, _ = call_main(
        capsys, "measure", copied, "--positive", "CD3=0", "--positive", "DAPI=otsu",
        "--phenotype", "T=CD3+ DAPI+",
    )  # fmt: skip
    assert code == 0
    lines = out.splitlines()
    n_cells = pq.ParquetFile(copied / "cells.parquet").metadata.num_rows
    assert lines[1] == f"CD3+  {n_cells} of {n_cells} cells (mean_CD3 from 0 on)"
    assert re.fullmatch(r"DAPI\+  \d+ of \d+ cells \(mean_DAPI from [\d.]+ on, otsu\)", lines[2])
    assert lines[3].startswith("note: DAPI: the cut is not to be trusted: the cells' values do not")
    assert lines[4].startswith("T  ")
    assert lines[4].endswith(" cells (CD3+ DAPI+)")
