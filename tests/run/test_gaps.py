"""What a failure costs, and where it is said: label image `missing`, table, report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr
from scipy import ndimage

from densebatch.base.geometry import Grid
from densebatch.cells.read import open_labels
from densebatch.run import steps
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from densebatch.stages.missing import missing_spec
from densebatch.stages.predict import PredictGroup
from densebatch.stages.trace import TraceTile
from tests.helpers.deadly_tasks import DeadlyGroup, DeadlyTile
from tests.helpers.label_files import validate
from tests.helpers.run_files import (
    Watcher,
    cells_alike,
    output_bytes,
    read_report,
    read_result,
    simulate,
    tasks_folder,
    write_tiff,
)
from tests.helpers.slide_files import write_zarr

SHAPE = (760, 1100)
TILE = 128
OPTIONS = {"membrane": ("CD3",), "tile": TILE, "workers": 0, "model": "dense-tiny"}


GROUP_PX = 250


@pytest.fixture(scope="module")
def pixels():
    return simulate(*SHAPE, seed=4)


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.ome.tif", pixels, ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def clean(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean")
    segment(slide, out, **OPTIONS)
    return output_bytes(out), *read_result(out)


def read_missing(root, level=0):
    return zarr.open_array(root / "labels/missing" / str(level), mode="r")[:] == 1


def lose_tile(monkeypatch, place):
    run = TraceTile.run

    def trace(task):
        if (task.row, task.col) == place:
            raise ValueError("broken tile")
        return run(task)

    monkeypatch.setattr(TraceTile, "run", trace)


def check_gaps(out, clean, root=None):
    """Cells outside of what is missing are those of a clean run; the table says who touches it."""
    root = root or out / "segmentation.ome.zarr"
    labels, table = read_result(out, root)
    missing = read_missing(root)
    assert (labels[missing] == 0).all()
    assert cells_alike(labels[~missing], clean[1][~missing])
    beside = ndimage.maximum_filter(missing, 3)
    touching = np.unique(labels[beside])
    assert table["id"][table["touches_missing"]].tolist() == touching[touching > 0].tolist()
    assert read_report(out)["missing_px"] == missing.sum()
    return labels, table, missing


def test_without_a_failure_nothing_is_missing(slide, clean):
    expected, _, table = clean
    assert not any("missing" in name for name in expected if "labels" in name)
    assert table["touches_missing"].dtype == bool
    assert not table["touches_missing"].any()


def test_cells_that_a_lost_tile_cuts_are_told(slide, clean, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        lose_tile(patch, (2, 2))
        result = segment(slide, tmp_path, **OPTIONS)
    labels, table, missing = check_gaps(tmp_path, clean)
    core = Grid(*SHAPE, TILE, TILE)[2, 2]
    assert missing[core.slices].all()
    assert missing.sum() == result.missing_px == TILE**2
    # every cell whose area is not that of the clean run is among those that touch it
    whole = dict(zip(*np.unique(clean[1], return_counts=True), strict=True))
    cut = [
        cell for cell, area in zip(table["id"], table["area_px"], strict=True)
        if whole[clean[1][labels == cell][0]] != area
    ]  # fmt: skip
    assert len(cut) > 5
    assert set(cut) <= set(table["id"][table["touches_missing"]])
    report = read_report(tmp_path)
    assert report["tracebacks"] == [
        f"work/{tasks_folder(tmp_path).name}/failures/trace-128-2-2.txt"
    ]
    assert "ValueError: broken tile" in (tmp_path / report["tracebacks"][0]).read_text()
    assert "the label image 'missing'" in result.tell_missing()
    # whoever asks for the labels gets the cells
    assert np.array_equal(open_labels(tmp_path)[:, :], labels)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("in_place", [False, True])
def test_missing_is_a_label_image_as_the_cells_are(
    pixels, tmp_path, monkeypatch, version, in_place
):
    slide = tmp_path / "a.ome.zarr"
    write_zarr(slide, pixels, labels=["CD3", "DAPI"], chunks=(1, 128, 128), version=version)
    root = slide if in_place else tmp_path / "out/segmentation.ome.zarr"
    options = {**OPTIONS, "in_place": in_place, **({} if in_place else {"ngff": version})}
    with monkeypatch.context() as patch:
        lose_tile(patch, (0, 0))
        segment(slide, tmp_path / "out", **options)
    levels = len(list((root / "labels/cells").glob("[0-9]")))
    assert len(list((root / "labels/missing").glob("[0-9]"))) == levels
    for level in range(levels):
        marks, cells = (
            zarr.open_array(root / "labels" / name / str(level), mode="r")
            for name in ("missing", "cells")
        )
        assert (marks.shape, marks.dtype, marks.chunks) == (cells.shape, cells.dtype, cells.chunks)
    documents = [zarr.open_group(root / "labels" / name, mode="r").attrs.asdict() for name in
                 ("missing", "cells")]  # fmt: skip
    for document in documents:
        document.pop("densebatch")
        document.get("ome", document)["image-label"].pop("properties", None)  # areas of cells
    text = json.dumps(documents[1]).replace('"name": "cells"', '"name": "missing"')
    assert json.loads(text) == documents[0]
    group = zarr.open_group(root / "labels", mode="r").attrs.asdict()
    assert group.get("ome", group)["labels"] == ["cells", "missing"]
    plan = OutputFolder(tmp_path / "out").read_marker()
    validate(replace(missing_spec(plan, str(root)), in_place=False))
    assert read_missing(root)[:TILE, :TILE].all()
    # whole again, nothing speaks of it any more
    assert not segment(slide, tmp_path / "out", **options).is_partial
    assert not (root / "labels/missing").exists()
    group = zarr.open_group(root / "labels", mode="r").attrs.asdict()
    assert group.get("ome", group)["labels"] == ["cells"]


def test_labels_of_somebody_else_named_missing_stay(pixels, tmp_path):
    slide = write_zarr(tmp_path / "a.ome.zarr", pixels, labels=["CD3", "DAPI"])
    theirs = zarr.create_group(slide / "labels/missing", attributes={"by": "somebody"})
    assert not segment(slide, tmp_path / "out", **OPTIONS, in_place=True).is_partial
    assert zarr.open_group(slide / "labels/missing", mode="r").attrs["by"] == "somebody"
    assert theirs.attrs["by"] == "somebody"


def test_a_group_that_fails_costs_its_own_area(slide, clean, tmp_path, monkeypatch):
    """Not all tiles that look into it: these are traced as far as flows are known."""
    run = PredictGroup.run

    def fail(task):
        if (task.row, task.col) == (1, 1):
            raise RuntimeError("the network\nbreaks")
        return run(task)

    with monkeypatch.context() as patch:
        patch.setattr(PredictGroup, "run", fail)
        result = segment(slide, tmp_path, **OPTIONS)
    report = read_report(tmp_path)
    assert report["failed_tiles"] == []
    (group,) = report["failed_groups"]
    assert group["group"] == [1, 1]
    assert group["reason"] == "RuntimeError: the network"
    y0, x0, y1, x1 = group["region"]
    _, _, missing = check_gaps(tmp_path, clean)
    assert missing[y0:y1, x0:x1].all()
    lost = np.zeros(SHAPE, bool)
    lost[y0:y1, x0:x1] = True
    cut = np.isin(clean[1], clean[1][ndimage.maximum_filter(lost, 7)]) & (clean[1] > 0)
    assert missing.sum() < 1.1 * (lost | cut).sum()
    assert "the network has not been evaluated in 1 group of patches" in result.tell_missing()
    watcher = Watcher()
    assert not segment(slide, tmp_path, progress=watcher, **OPTIONS).is_partial
    total, done = watcher.stages["predict"]
    assert total - done == 1
    assert output_bytes(tmp_path) == clean[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["predict", "trace"])
def test_a_task_that_kills_its_worker_every_time_costs_its_own_area(
    slide, clean, tmp_path, monkeypatch, stage
):
    task = {"predict": DeadlyGroup, "trace": DeadlyTile}[stage]
    with monkeypatch.context() as patch:
        patch.setattr(steps, task.__mro__[1].__name__, task)
        result = segment(slide, tmp_path, **OPTIONS | {"workers": 2})
    _, _, missing = check_gaps(tmp_path, clean)
    report = read_report(tmp_path)
    rows = report["failed_groups" if stage == "predict" else "failed_tiles"]
    assert len(rows) == 1
    assert not report["failed_tiles" if stage == "predict" else "failed_groups"]
    y0, x0, y1, x1 = rows[0]["region"]
    assert missing[y0:y1, x0:x1].all()
    assert missing.sum() < (1.9 if stage == "predict" else 1.01) * (y1 - y0) * (x1 - x0)
    assert rows[0]["reason"] in (tmp_path / report["tracebacks"][0]).read_text()
    assert result.is_partial
    assert not segment(slide, tmp_path, **OPTIONS | {"workers": 2}).is_partial
    assert output_bytes(tmp_path) == clean[0]
