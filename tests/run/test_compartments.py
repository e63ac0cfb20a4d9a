"""Cells and nuclei of one slide become one result: ids, masks and table, come what may."""

from __future__ import annotations

import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from skimage.measure import regionprops_table

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells.labels import read_labels
from densebatch.compartments.matching import match_nuclei
from densebatch.compartments.names import COMPARTMENTS
from densebatch.planning.settings import SegmentSettings
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from densebatch.run.status import read_status
from densebatch.scoring.contingency import Contingency
from densebatch.simulation.tissue import Tissue, render_with_nuclei
from densebatch.stages.join import JoinTile
from densebatch.stages.predict import PredictGroup
from densebatch.upkeep.measure import measure
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import verify
from tests.helpers.damage import flip, read_files
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    count_calls,
    list_workers,
    output_bytes,
    read_report,
    read_result,
    run_command,
    simulate,
    start_command,
    write_tiff,
)
from tests.helpers.slide_files import write_zarr

SHAPE = (110, 2150)  # two shards
PLAIN = {
    "membrane": ("CD3",), "nuclei": "DAPI", "model": "dense-tiny", "workers": 0, "tile": 512,
}  # fmt: skip
OPTIONS = {**PLAIN, "compartments": True, "nuclei_model": "watershed", "quantiles": (0.9,)}
MODELLED = {**OPTIONS, "nuclei_model": "dense-tiny", "nuclei_diameter": 16, "expand": 2.0}
NAMES = ("nuclei", "cytoplasm", "membrane")


@pytest.fixture(scope="module")
def pixels():
    found = simulate(*SHAPE, seed=4)
    found[0, :, 900:1300] //= 8  # no cells here, but nuclei
    return found


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.ome.tif", pixels, ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def joined(slide, tmp_path_factory):
    """Cells with compartments, and nuclei without a cell grown into one."""
    out = tmp_path_factory.mktemp("joined") / "out"
    segment(slide, out, **OPTIONS, expand=2.0)
    return out


@pytest.fixture(scope="module")
def expected(joined):
    return output_bytes(joined)


@pytest.fixture(scope="module")
def modelled(slide, tmp_path_factory):
    """The same with nuclei that no tile has a say in, because a model finds them."""
    out = tmp_path_factory.mktemp("modelled") / "out"
    segment(slide, out, **MODELLED)
    return output_bytes(out)


def read_image(out, name):
    return np.asarray(zarr.open_array(out / f"segmentation.ome.zarr/labels/{name}/0", mode="r"))


def read_run(out, role):
    return read_labels(out / "runs" / role / "segmentation.ome.zarr")[:]


def test_masks_are_what_cells_and_nuclei_make_of_each_other(joined):
    cells, nuclei = read_run(joined, "cells"), read_run(joined, "nuclei")
    table = Contingency.from_arrays(nuclei, cells)
    match = match_nuclei(table.truth, table.pred, table.count, int(nuclei.max()))
    found, columns = read_result(joined)
    n_before = int(cells.max())
    assert np.array_equal(np.where(found <= n_before, found, 0), cells)
    assert found.max() == n_before + match.orphans.size > n_before > 50
    owners = match.cells.copy()
    owners[match.orphans - 1] = n_before + 1 + np.arange(match.orphans.size)
    assert np.array_equal(np.load(joined / ".kept" / "nuclei.npy"), owners)
    of_pixels = np.concatenate([[0], owners])[nuclei]
    masks = {name: read_image(joined, name) for name in NAMES}
    assert np.array_equal(sum(masks.values()), found)
    group = zarr.open_group(joined / "segmentation.ome.zarr", mode="r")
    assert [c["label"] for c in group.attrs["ome"]["omero"]["channels"]] == ["CD3", "DAPI"]
    assert group["labels"].attrs["ome"]["labels"] == ["cells", *NAMES]
    assert np.array_equal(masks["nuclei"], np.where(of_pixels == found, found, 0))
    # Cells that were grown are their nuclei, where no other cell was, and 4 px around.
    grown = found > n_before
    orphan = np.isin(nuclei, match.orphans) & (cells == 0)
    assert (found[orphan] == of_pixels[orphan]).all()
    y, x = np.nonzero(grown)
    sources = np.argwhere(orphan)
    for at in list(zip(y, x, strict=True))[::97]:
        assert ((sources - at) ** 2).sum(axis=1).min() <= 16
    told = read_report(joined)["compartments"]
    counts = np.bincount(owners, minlength=found.max() + 1)[1:]
    assert told["nuclei"] == nuclei.max()
    assert told["orphans"] == told["cells_grown_from_nuclei"] == match.orphans.size
    assert told["cells_without_nucleus"] == (counts == 0).sum() > 0
    assert told["cells_with_several_nuclei"] == (counts > 1).sum()
    assert np.array_equal(columns["n_nuclei"], counts)
    assert np.array_equal(columns["from_nucleus"], np.arange(counts.size) >= n_before)
    assert np.array_equal(
        columns["nucleus_area"], np.bincount(masks["nuclei"].ravel(), minlength=counts.size + 1)[1:]
    )


def test_the_table_is_that_of_the_masks(joined, pixels):
    found, columns = read_result(joined)
    names = pq.read_schema(joined / "cells.parquet").names
    wanted = [
        f"{statistic}_{channel}{ending}"
        for ending in ("", *(f"_{name}" for name in COMPARTMENTS))
        for channel in ("CD3", "DAPI")
        for statistic in ("mean", "total", "std", "median", "q90")
    ]
    assert names[-len(wanted) :] == wanted
    images = {"": found}
    images |= {f"_{c}": read_image(joined, n) for c, n in zip(COMPARTMENTS, NAMES, strict=True)}
    for ending, image in images.items():
        for index, channel in enumerate(("CD3", "DAPI")):
            values = pixels[index]
            props = regionprops_table(image, values, ["label", "mean_intensity", "area"])
            rows = props["label"] - 1
            mean = np.full(len(columns["id"]), np.nan)
            mean[rows] = props["mean_intensity"]
            np.testing.assert_allclose(columns[f"mean_{channel}{ending}"], mean, rtol=1e-12)
            total = np.full(mean.size, np.nan)
            total[rows] = mean[rows] * props["area"]
            np.testing.assert_allclose(columns[f"total_{channel}{ending}"], total, rtol=1e-12)
            for row in rows[::23]:
                inside = values[image == row + 1]
                for statistic, value in (
                    ("std", inside.std()), ("median", np.median(inside)),
                    ("q90", np.quantile(inside, 0.9)),
                ):  # fmt: skip
                    got = columns[f"{statistic}_{channel}{ending}"][row]
                    assert got == pytest.approx(value, rel=1e-9), (statistic, channel, ending)


def test_cells_keep_their_bits_without_growth(slide, tmp_path):
    segment(slide, tmp_path / "joined", **OPTIONS)
    segment(slide, tmp_path / "alone", **PLAIN, quantiles=(0.9,))
    alone = output_bytes(tmp_path / "alone")
    found = output_bytes(tmp_path / "joined")
    for name, content in alone.items():
        if "/labels/cells/" in name and "/c/" in name:
            assert found[name] == content
    _, here = read_result(tmp_path / "joined")
    _, there = read_result(tmp_path / "alone")
    for name, column in there.items():
        np.testing.assert_array_equal(here[name], column)
    assert not here["from_nucleus"].any()


def test_nuclei_alone_grow_into_cells(slide, tmp_path):
    options = {**OPTIONS, "membrane": ()}
    segment(slide, tmp_path / "out", **options, expand=3.0)
    nuclei, found = read_run(tmp_path / "out", "nuclei"), read_image(tmp_path / "out", "cells")
    assert not (tmp_path / "out" / "runs" / "cells").exists()
    assert np.array_equal(found[nuclei > 0], nuclei[nuclei > 0])
    assert np.array_equal(read_image(tmp_path / "out", "nuclei"), nuclei)
    from skimage.segmentation import expand_labels

    assert np.array_equal(found > 0, expand_labels(nuclei, 6) > 0)
    assert read_report(tmp_path / "out")["cells"] == nuclei.max()
    assert verify(tmp_path / "out").is_right


def test_bits_do_not_depend_on_tiles_and_order(slide, tmp_path, expected, modelled):
    segment(slide, tmp_path / "b", **{**MODELLED, "tile": 100}, shuffle=3)
    assert_same_output(tmp_path / "b", modelled)
    segment(slide, tmp_path / "c", **OPTIONS, expand=2.0, shuffle=5)
    assert_same_output(tmp_path / "c", expected)


def test_what_was_finished_is_not_repeated(slide, tmp_path, expected, monkeypatch):
    """A session that ends in the last steps leaves runs that the next one takes as they are."""
    out, options = tmp_path / "out", {**OPTIONS, "expand": 2.0}

    class Stop(BaseException):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop):
        segment(slide, out, **options, progress=Watcher(number=stop))
    status = read_status(OutputFolder(out))
    assert status.state == "interrupted"
    done = {stage.stage: (stage.tasks, stage.done) for stage in status.stages}
    assert done["join"] == (5, 5)
    assert done["cells: trace"] == (5, 5)
    assert not verify(out).finished
    work = count_calls(monkeypatch, PredictGroup, "run")
    joins = count_calls(monkeypatch, JoinTile, "run")
    segment(slide, out, **options)
    assert not work["run"]
    assert not joins["run"]
    assert_same_output(out, expected)
    watched = Watcher()
    segment(slide, out, **options, progress=watched)
    assert not watched.stages
    assert watched.notes[-1].endswith("this run is already complete")
    with pytest.raises(InputError, match="holds another run"):
        segment(slide, out, **{**options, "nuclei_diameter": 30})
    with pytest.raises(InputError, match=r"ring_px was 2\.0 and is now 4\.0"):
        segment(slide, out, **options, membrane_width=2.0)


def test_every_file_is_checked_and_made_again(slide, joined, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(joined, out)
    report = verify(out)
    assert report.is_right, [str(found) for found in report.findings]
    files, rng = read_files([out]), np.random.default_rng(5)
    damaged = []
    for path, content in files.items():
        if content and not (".kept" in path.parts and path.suffix in (".copy", ".sha256")):
            flip(path, rng)
            damaged.append(path)
    named = {found.file for found in verify(out).findings}
    assert {p.relative_to(out).as_posix() for p in damaged} <= named
    mended = repair(out, workers=0)
    assert mended.is_right, [str(found) for found in mended.findings] + mended.notes
    assert {p: p.read_bytes() for p in files} == files


def test_masks_that_do_not_fit_the_cells_are_found(joined, tmp_path):
    from tests.helpers.damage import list_again

    out = tmp_path / "out"
    shutil.copytree(joined, out)
    array = zarr.open_array(out / "segmentation.ome.zarr/labels/membrane/0", mode="r+")
    image = array[:]
    y, x = np.argwhere(image > 0)[0]
    array[y, x] = 0
    list_again(out)
    found = [str(each) for each in verify(out).findings]
    assert any("is not what cells and nuclei make of it" in each for each in found), found


def test_without_the_runs_labels_are_not_made_again(joined, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(joined, out)
    shutil.rmtree(out / "runs")
    checked = verify(out)
    assert checked.is_right
    assert sum("is gone: damaged labels could not be made again" in n for n in checked.notes) == 2
    flip(out / "segmentation.ome.zarr/labels/nuclei/0/c/0/0", np.random.default_rng(0))
    mended = repair(out, workers=0)
    assert not mended.is_right
    assert any("without the run of the nuclei" in note for note in mended.notes)


def test_measured_again(joined, tmp_path, expected):
    out = tmp_path / "out"
    shutil.copytree(joined, out)
    measure(out, channels=("DAPI",))
    names = pq.read_schema(out / "cells.parquet").names
    assert "mean_DAPI_nucleus" in names
    assert "n_nuclei" in names
    assert not [name for name in names if "CD3" in name]
    assert verify(out).is_right
    measure(out, positive=("CD3:mean_membrane=otsu",), phenotype=("T=CD3+",))
    _, columns = read_result(out)
    told = read_report(out)["positivity"]["markers"][0]
    above = columns["mean_CD3_membrane"] >= told["cut"]
    known = ~np.isnan(columns["mean_CD3_membrane"])
    positive = columns["positive_CD3"][known].astype(bool)
    np.testing.assert_array_equal(positive, above[known])
    assert 0 < above.sum() < known.sum()
    assert verify(out).is_right
    measure(out, quantiles=(0.9,))
    assert_same_output(out, expected)


def test_a_gap_of_either_run_is_missing_in_both(slide, tmp_path, monkeypatch, modelled):
    predict = PredictGroup.run

    def fail(task):
        if "nuclei" in task.work.plan_path and (task.row, task.col) == (0, 1):
            raise ValueError("no luck")
        return predict(task)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(PredictGroup, "run", fail)
        result = segment(slide, out, **MODELLED)
    assert result.is_partial
    assert "no luck" in result.tell_missing()
    missing = read_image(out, "missing") > 0
    assert 0 < missing.sum() == result.missing_px < missing.size
    assert not read_image(out, "cells")[missing].any()
    assert verify(out).finished
    again = segment(slide, out, **MODELLED)
    assert not again.is_partial
    assert_same_output(out, modelled)


@pytest.mark.parametrize("ngff", ["0.4", pytest.param("0.5", marks=pytest.mark.slow)])
def test_in_the_slide(tmp_path, pixels, ngff, joined):
    slide = tmp_path / "a.ome.zarr"
    write_zarr(slide, pixels, labels=["CD3", "DAPI"], n_levels=2, version=ngff)
    segment(slide, tmp_path / "out", **OPTIONS, expand=2.0, in_place=True)
    for name in ("cells", *NAMES):
        array = zarr.open_array(slide / "labels" / name / "0", mode="r")
        assert np.array_equal(array[:], read_image(joined, name))
    rng, files = np.random.default_rng(1), read_files([slide / "labels"])
    for path in files:
        flip(path, rng)
    assert repair(tmp_path / "out", workers=0).is_right
    assert read_files([slide / "labels"]) == files


def test_what_is_refused(slide, tmp_path, capsys, pixels):
    out = tmp_path / "out"
    for arguments, words in (
        (["--compartments"], "--compartments needs the nuclear channel: name it with --nuclei"),
        (["--expand", "2"], "--expand needs the nuclear channel: name it with --nuclei"),
        (["--nuclei", "DAPI", "--nuclei-model", "cyto"], "--nuclei-model is accepted with"),
        (["--nuclei", "DAPI", "--compartments", "--nuclei-model", "none-such"], "none-such"),
        (["--nuclei", "DAPI", "--compartments", "--expand", "0"], "greater than 0"),
        (["--nuclei", "DAPI", "--compartments", "--channels", "CD9"], "CD9"),
    ):
        code, _, told = call_main(capsys, "segment", slide, out, "--membrane", "CD3", *arguments)
        assert code == 2, arguments
        assert words in told
        assert "Traceback" not in told
        assert not out.exists()
    bare = write_tiff(tmp_path / "b.ome.tif", pixels, ["CD3", "DAPI"], um_per_px=None)
    with pytest.raises(InputError, match="tells no pixel size, which --expand 2 um needs"):
        segment(bare, out, **OPTIONS, expand=2.0)
    assert not out.exists()


def test_the_plan_tells_both_runs(slide, tmp_path, capsys):
    code, told, _ = call_main(
        capsys, "plan", slide, tmp_path / "out", "--membrane", "CD3", "--nuclei", "DAPI",
        "--compartments", "--model", "dense-tiny", "--nuclei-diameter", 16, "--workers", 0,
    )  # fmt: skip
    assert code == 0
    assert "-- cells" in told
    assert "model      dense-nuclei" in told
    assert "joined     cells and nuclei; the membrane of a cell is 2 px wide" in told
    assert not (tmp_path / "out").exists()


def test_settings_of_the_runs():
    settings = SegmentSettings(membrane=("a",), nuclei="b", compartments=True, in_place=True)
    runs = settings.split_runs()
    assert list(runs) == ["cells", "nuclei"]
    assert runs["cells"].membrane == ("a",)
    assert runs["cells"].nuclei == runs["nuclei"].membrane[0] == "b"
    assert runs["nuclei"].model == "dense-nuclei"
    assert not any(run.in_place or run.is_joined for run in runs.values())
    alone = SegmentSettings(nuclei="b", expand=1.0, nuclei_model="module:function").split_runs()
    assert list(alone) == ["nuclei"]
    assert alone["nuclei"].segmenter == "module:function"
    assert [runs["nuclei"].diameter, alone["nuclei"].diameter] == ["auto", None]


@pytest.mark.slow
def test_kills_at_random_moments(slide, tmp_path):
    options = ["--membrane", "CD3", "--nuclei", "DAPI", "--compartments", "--expand", "2",
               "--model", "dense-tiny", "--nuclei-model", "dense-tiny", "--nuclei-diameter", "16",
               "--tile", "256"]  # fmt: skip
    whole = tmp_path / "whole"
    began = time.monotonic()
    assert run_command("segment", slide, whole, *options, "--workers", "2")[0] == 0
    lasted = time.monotonic() - began
    rng, out = np.random.default_rng(7), tmp_path / "out"
    for k in range(8):
        process = start_command("segment", slide, out, *options, "--workers", "2")
        time.sleep(float(rng.uniform(0.3, 1)) * lasted)
        if k % 2:
            for worker in list_workers(process.pid):
                worker.kill()
                break
        else:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
    assert run_command("segment", slide, out, *options, "--workers", "2")[0] == 0
    assert_same_output(out, output_bytes(whole))
    assert verify(out).is_right


def test_true_masks_find_their_nuclei():
    """Of simulated tissue whose cells and nuclei are known, each nucleus finds its own cell."""
    _, cells, nuclei = render_with_nuclei(Tissue(600, 600, seed=3), Region(0, 0, 600, 600))
    table = Contingency.from_arrays(nuclei, cells)
    match = match_nuclei(table.truth, table.pred, table.count, int(nuclei.max()))
    pairs = np.intersect1d(cells, nuclei[nuclei > 0])  # nuclei of dark cells are orphans
    assert pairs.size > 300
    assert np.mean(match.cells[pairs - 1] == pairs) >= 0.99
    dark = np.setdiff1d(nuclei[nuclei > 0], cells)
    assert np.isin(dark, match.orphans).mean() >= 0.99
