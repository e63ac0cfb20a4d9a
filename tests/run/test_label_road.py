"""A segmenter's labels, through tiles and workers, to labels of the slide."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import zarr
from skimage.io import imsave

from benchmarks.label_functions import label_by_surroundings
from benchmarks.stitching.faults import count_faults
from densebatch.base.errors import DensebatchError
from densebatch.base.geometry import Region
from densebatch.merging.in_memory import merge_tiles
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from densebatch.run.status import read_status
from densebatch.scoring.score import score_labels
from densebatch.simulation.tissue import Tissue, render
from densebatch.stages.label import read_image
from densebatch.stages.work import Work
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import verify
from tests.helpers.damage import flip, read_files
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    output_bytes,
    read_report,
    read_result,
    simulate,
    tasks_folder,
    write_tiff,
)
from tests.helpers.slide_files import write_zarr

SHAPE = (420, 530)
DIAMETER = 16
SURROUNDINGS = "benchmarks.label_functions:label_by_surroundings"
FAILING = "tests.helpers.label_functions:fail_in_bright_tiles"
OPTIONS = {
    "membrane": ("DAPI",),
    "segmenter": SURROUNDINGS,
    "segmenter_options": {"diameter_px": DIAMETER},
    "tile": 160,
    "overlap": 48,
    "workers": 0,
}


@pytest.fixture(scope="module")
def pixels():
    return simulate(*SHAPE, seed=4, cell_diameter_px=DIAMETER)


@pytest.fixture(scope="module")
def slide(pixels, tmp_path_factory):
    return write_tiff(tmp_path_factory.mktemp("slide") / "a.ome.tif", pixels, ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def clean(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "out"
    segment(slide, out, **OPTIONS)
    return out


def mark_tiles(pixels, plan, tiles):
    """Pixels by whose first one a function tells these tiles from all others."""
    marked = pixels.copy()
    for tile, region in enumerate(plan.layout.regions):
        marked[1, region.y0, region.x0] = 60000 if tile in tiles else 0
    return marked


@pytest.fixture
def failing(pixels, slide, tmp_path):
    """A slide, its settings, and the file that makes tiles 5 and 6 fail."""
    plan = build_plan(slide, SegmentSettings(**OPTIONS))
    marked = mark_tiles(pixels, plan, {5, 6})
    path = write_tiff(tmp_path / "marked.ome.tif", marked, ["CD3", "DAPI"])
    trouble = tmp_path / "trouble"
    trouble.write_text("fail")
    given = {"diameter_px": DIAMETER, "trouble": str(trouble)}
    # The marks would be taken for debris.
    settings = {
        **OPTIONS, "segmenter": FAILING, "segmenter_options": given, "mask_debris": False,
    }  # fmt: skip
    return path, settings, trouble, plan


def count_calls(trouble):
    return trouble.with_suffix(".calls").stat().st_size


def test_labels_are_those_of_merging_in_memory(slide, clean):
    """The stages make what the three steps of merging make of all tiles at once."""
    plan = OutputFolder(clean).read_marker()
    work = Work("/nowhere/plan.json", 160)
    image, unread = read_image_of(plan, work, Region(0, 0, *SHAPE))
    assert not unread
    tiles = [
        (r.y0, r.x0, label_by_surroundings(image[:, *r.slices], um_per_px=0.5,
                                           options={"diameter_px": DIAMETER}))
        for r in plan.layout.regions
    ]  # fmt: skip
    merged = merge_tiles(tiles, SHAPE)
    labels, table = read_result(clean)
    np.testing.assert_array_equal(labels, merged.labels)
    np.testing.assert_array_equal(table["area_px"], np.bincount(labels.ravel())[1:])
    told = read_report(clean)["merging"]
    assert told["candidate_pairs"] == merged.decision.candidate_pairs
    assert told["merged"] == merged.decision.merged
    assert told["resolved_px"] == merged.resolved_px
    assert told["tiles"] == len(plan.layout.regions)
    assert len(told["larger_than_overlap"]) == len(merged.decision.larger)


def read_image_of(plan, work, region):
    """`read_image` of a plan that lies nowhere."""

    class Elsewhere(Work):
        @property
        def plan(self):
            return plan

    return read_image(Elsewhere(work.plan_path, work.tile_px), plan, region)


def test_labels_are_those_of_the_whole_slide(slide, clean, tmp_path):
    segment(slide, tmp_path / "out", **{**OPTIONS, "tile": 4096})
    whole, _ = read_result(tmp_path / "out")
    faults = count_faults(whole, read_result(clean)[0])
    assert faults["cells"] > 400
    assert faults["good"] >= 0.995
    assert faults["cut"] == faults["merges"] == faults["duplicates"] == 0


@pytest.mark.parametrize(
    ("workers", "shuffle"), [(0, 3), pytest.param(1, None, marks=pytest.mark.slow), (2, 5)]
)
def test_bits_do_not_depend_on_workers_and_order(slide, clean, tmp_path, workers, shuffle):
    segment(slide, tmp_path / "out", shuffle=shuffle, **{**OPTIONS, "workers": workers})
    assert_same_output(tmp_path / "out", output_bytes(clean))


@pytest.mark.slow
def test_a_network_finds_the_same_cells_on_both_roads(tmp_path):
    """As labels of tiles and by its flows; `benchmarks/label_road.py` asks it of real fields."""
    pixels, truth = (render(Tissue(760, 900, seed=9), Region(0, 0, 760, 900))[k] for k in (0, 1))
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"])
    shared = {"membrane": ("CD3",), "tile": 512, "workers": 0}
    segment(slide, tmp_path / "flows", model="dense-small", **shared)
    segment(
        slide, tmp_path / "labels", segmenter="benchmarks.label_functions:label_by_flows",
        segmenter_options={"model": "dense-small"}, overlap=64, **shared,
    )  # fmt: skip
    flows, labels = (read_result(tmp_path / name)[0] for name in ("flows", "labels"))
    assert count_faults(flows, labels, 0.8)["good"] >= 0.97
    scores = [score_labels(truth, found).by_threshold[0].ap for found in (flows, labels)]
    assert scores[0] > 0.7
    assert abs(scores[0] - scores[1]) <= 0.01


def test_what_the_segmenter_sees(tmp_path):
    """Planes in their order, 0 to 1 however bright, and the pixel size."""
    pixels = np.random.default_rng(1).integers(0, 900, (3, 300, 300), np.uint16)
    pixels[0, 40, 40] = 65000
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["A", "B", "C"], 0.25)
    segment(
        slide, tmp_path / "out", membrane=("A", "B"), nuclei="C", workers=0, tile=300, overlap=20,
        segmenter="tests.helpers.label_functions:label_planes",
    )  # fmt: skip
    plan = OutputFolder(tmp_path / "out").read_marker()
    image, _ = read_image_of(plan, Work("/nowhere/plan.json", 300), Region(0, 0, 300, 300))
    assert image.shape == (2, 300, 300)
    assert image.dtype == np.float32
    assert (image.min(), image.max()) == (0, 1)
    labels, _ = read_result(tmp_path / "out")
    assert [labels[1, 1], labels[5, 5], labels[9, 9]] == [1, 2, 3]
    report = read_report(tmp_path / "out")
    assert report["cells"] == 3
    assert report["segmenter"]["options"]["levels"] == list(plan.levels)
    assert len(plan.levels) == 2


def test_a_failing_tile_costs_its_own_area_and_is_tried_again(failing, tmp_path, capsys):
    slide, options, trouble, plan = failing
    out = tmp_path / "out"
    result = segment(slide, out, **options)
    assert result.is_partial
    regions = [plan.layout.regions[tile] for tile in (5, 6)]
    boxes = [[r.y0, r.x0, r.y1, r.x1] for r in regions]
    assert [tile["region"] for tile in result.failed_tiles] == boxes
    assert all("the kettle is empty" in tile["reason"] for tile in result.failed_tiles)
    only = np.zeros(SHAPE, bool)
    for region in regions:
        only[region.slices] = True
    for tile, region in enumerate(plan.layout.regions):
        if tile not in (5, 6):
            only[region.slices] = False
    missing = zarr.open_array(out / "segmentation.ome.zarr/labels/missing/0", mode="r")[:] == 1
    np.testing.assert_array_equal(missing, only)
    assert result.missing_px == only.sum() > 0
    labels, table = read_result(out)
    assert not labels[only].any()
    assert 0 < table["touches_missing"].sum() < table["touches_missing"].size
    assert "have no labels" in result.tell_missing()
    calls, labelled = count_calls(trouble), len(plan.layout.regions)
    assert calls >= labelled
    # The same command tries the two again, and nothing else.
    trouble.unlink()
    again = segment(slide, out, **options)
    assert not again.is_partial
    assert count_calls(trouble) == calls + 2
    segment(slide, tmp_path / "whole", **options)
    assert_same_output(out, output_bytes(tmp_path / "whole"))
    assert verify(out).is_right


@pytest.mark.slow
def test_a_segmenter_that_takes_its_worker_along(failing, tmp_path):
    slide, options, trouble, _ = failing
    trouble.write_text("die")
    result = segment(slide, tmp_path / "out", **{**options, "workers": 2})
    assert len(result.failed_tiles) == 2
    assert result.missing_px > 0


def test_a_run_that_was_stopped_goes_on(failing, tmp_path):
    """What had been labelled is not labelled again, and bytes are those of a run at once."""
    slide, options, trouble, plan = failing
    trouble.unlink()
    expected = tmp_path / "whole"
    segment(slide, expected, **options)
    whole = count_calls(trouble)
    assert whole == len(plan.layout.regions)

    def stop():
        raise KeyboardInterrupt

    out = tmp_path / "out"
    for stage in ("compare", "paint", "number"):
        with pytest.raises(KeyboardInterrupt):
            segment(slide, out, progress=Watcher(**{stage: stop}), **options)
        assert count_calls(trouble) == 2 * whole
    progress = Watcher()
    segment(slide, out, progress=progress, **options)
    assert count_calls(trouble) == 2 * whole
    assert progress.stages["label"] == (whole, whole)
    assert progress.stages["compare"] == (whole, whole)
    assert_same_output(out, output_bytes(expected))


def test_no_tile_could_be_labelled(slide, tmp_path):
    bad = {**OPTIONS, "segmenter": "tests.helpers.label_functions:return_negatives"}
    with pytest.raises(DensebatchError, match=r"no tile could be segmented: .*returned -1"):
        segment(slide, tmp_path / "out", **bad)


def test_cells_larger_than_the_overlap_are_told_and_kept(slide, tmp_path):
    progress = Watcher()
    large = {**OPTIONS, "segmenter": "tests.helpers.label_functions:label_all"}
    result = segment(slide, tmp_path / "out", progress=progress, **large)
    assert result.cells == 1
    assert (read_result(tmp_path / "out")[0] == 1).all()
    told = read_report(tmp_path / "out")["merging"]["larger_than_overlap"]
    assert [each["region"] for each in told] == [[0, 0, *SHAPE]]
    assert any("1 cell larger than the overlap" in note for note in progress.notes)


@pytest.mark.parametrize("damaged", ["labels/cells/0", "labels/cells/1"])
def test_a_damaged_result_is_mended(slide, tmp_path, damaged):
    out = tmp_path / "out"
    segment(slide, out, **OPTIONS)
    files = read_files([out])
    rng = np.random.default_rng(1)
    chosen = [p for p in files if damaged in p.as_posix() and "/c/" in p.as_posix()]
    for path in chosen:
        flip(path, rng)
    assert not verify(out).is_right
    mended = repair(out, workers=0)
    assert mended.is_right, [str(f) for f in mended.findings] + mended.notes
    assert read_files([out]) == files


def test_a_damaged_partial_result_is_mended(failing, tmp_path):
    slide, options, _, _ = failing
    out = tmp_path / "out"
    segment(slide, out, **options)
    files = read_files([out])
    rng = np.random.default_rng(2)
    work = tasks_folder(out)
    for path in [
        out / "segmentation.ome.zarr/labels/cells/0/c/0/0",
        next((work / "tiles").glob("3.zarr/c/0/0")),
        work / "tiles/2-bands.npz",
        next(work.glob("trace-160/painted-1-1.npz")),
        next(work.glob("journal/label-8.json")),
    ]:
        flip(path, rng)
    assert not verify(out).is_right
    mended = repair(out, workers=0)
    assert mended.is_right, [str(f) for f in mended.findings] + mended.notes
    found = read_files([out / "segmentation.ome.zarr"])
    assert found == {p: data for p, data in files.items() if p in found}


def test_another_tile_is_another_run(slide, clean, capsys):
    arguments = [
        "segment", slide, clean, "--membrane", "DAPI", "--segmenter", SURROUNDINGS,
        "--segmenter-options", json.dumps({"diameter_px": DIAMETER}), "--workers", 0,
    ]  # fmt: skip
    code, _, err = call_main(capsys, *arguments, "--tile", 160, "--overlap", 48)
    assert (code, "already complete" in err) == (0, True)
    for other, told in (
        (["--tile", 200, "--overlap", 48], "tile_px was 160 and is now 200"),
        (["--tile", 160, "--overlap", 50], "overlap_px was 48 and is now 50"),
    ):
        code, _, err = call_main(capsys, *arguments, *other)
        assert code == 2
        assert told in err
    code, _, err = call_main(capsys, "segment", slide, clean, "--membrane", "DAPI")
    assert code == 2
    assert f"made by the segmenter {SURROUNDINGS} and are now asked for by a model" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--segmenter", "watershed", "--flow-threshold", "0.3"], "--flow-threshold is for models"),
        (["--segmenter", "watershed", "--min-size", "3"], "--min-size is for models"),
        (["--segmenter", "watershed", "--model", "dense"], "--model is for models"),
        (["--overlap", "30"], "--overlap is accepted with --segmenter only"),
        (["--segmenter-options", "{}"], None),
        (["--segmenter-options", '{"a": 1}'], "--segmenter-options is accepted with --segmenter"),
        (["--segmenter", "watershed", "--segmenter-options", "[1]"], "is not an object"),
        (["--segmenter", "watershed", "--segmenter-options", "{"], "is not JSON"),
        (["--segmenter", "watershed", "--segmenter-options", '{"a": 1}'], "a"),
        (["--segmenter", "watershed", "--tile", "100", "--overlap", "60"], "up to half of --tile"),
        (["--segmenter", "watershed", "--tile", "64"], "an overlap of 80 px"),
        (["--segmenter", "watersheds"], "accepted are watershed"),
        (["--segmenter", "tests.no_module:f"], "there is no module"),
    ],
)
def test_what_is_refused(slide, tmp_path, capsys, arguments, told):
    code, _, err = call_main(
        capsys, "plan", slide, tmp_path / "out", "--membrane", "CD3", *arguments
    )
    if told is None:
        assert code == 0
        return
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("um_per_px", "given", "overlap", "told"),
    [
        (0.5, [], 80, "4 diameters of cells of 10 um (20 px)"),
        (0.5, ["--diameter", "9"], 48, "4 diameters of cells of 9 px, as stated"),
        (None, [], 80, "at 0.5 um/px, as the pixel size is unknown"),
        (0.5, ["--overlap", "33"], 33, "less than 2 diameters of cells of 10 um (20 px)"),
        (0.5, ["--overlap", "40"], 40, "is to find cells of 10 um (20 px)"),
        (0.5, ["--overlap", "40", "--segmenter-options", '{"diameter_um": 6}'], 40, None),
    ],
)
def test_the_overlap_is_told(tmp_path, capsys, um_per_px, given, overlap, told):
    pixels = simulate(200, 300, seed=1)
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"], um_per_px)
    arguments = ["plan", slide, tmp_path / "out", "--membrane", "CD3", "--segmenter", "watershed"]
    code, out, _ = call_main(capsys, *arguments, *given, "--json")
    assert code == 0
    plan = json.loads(out)["plan"]
    assert plan["overlap_px"] == overlap
    notes = [note for note in plan["notes"] if "share" in note or "is to find" in note]
    assert len(notes) == (told is not None)
    assert all(told in note for note in notes)
    code, out, _ = call_main(capsys, *arguments, *given)
    assert code == 0
    assert "segmenter  watershed" in out
    assert f"share {overlap} px" in out


def test_status_counts_its_stages(slide, clean, failing, tmp_path):
    assert [s.stage for s in read_status(OutputFolder(clean)).stages] == [
        "label",
        "compare",
        "paint",
        "number",
    ]
    marked, options, trouble, plan = failing
    trouble.unlink()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(marked, tmp_path / "out", progress=Watcher(paint=stop), **options)
    n = len(plan.layout.regions)
    stages = {
        s.stage: (s.done, s.tasks) for s in read_status(OutputFolder(tmp_path / "out")).stages
    }
    assert stages["label"] == stages["compare"] == (n, n)
    assert stages["paint"][0] == 0


def test_a_sweep_says_why_not(pixels, tmp_path, capsys):
    imsave(tmp_path / "a_img.png", np.clip(pixels[1] // 40, 0, 255).astype(np.uint8))
    imsave(tmp_path / "a_masks.png", np.eye(*SHAPE, dtype=np.uint8), check_contrast=False)
    (tmp_path / "sweep.yaml").write_text("segment:\n  segmenter: watershed\n")
    code, _, err = call_main(
        capsys, "sweep", tmp_path, "-o", tmp_path / "out", "-c", tmp_path / "sweep.yaml"
    )
    assert code == 2
    assert "a segmenter has none" in err


def test_nothing_is_labelled_where_the_slide_cannot_be_read(pixels, tmp_path):
    """Also not by tiles that see no pixel of it, although they reach into its surroundings."""
    slide = write_zarr(tmp_path / "a.ome.zarr", pixels, labels=["CD3", "DAPI"], chunks=(1, 40, 40))
    chunk = slide / "0/c/1/4/4"
    data, state = chunk.read_bytes(), chunk.stat()

    def write(content):
        chunk.write_bytes(content)
        os.utime(chunk, ns=(state.st_atime_ns, state.st_mtime_ns))

    write(b"\0" * len(data))
    out = tmp_path / "out"
    result = segment(slide, out, **OPTIONS)
    assert result.is_partial
    region = Region(160, 160, 200, 200)
    assert [u["region"] for u in read_report(out)["unread"]] == [[160, 160, 200, 200]]
    missing = zarr.open_array(out / "segmentation.ome.zarr/labels/missing/0", mode="r")[:] == 1
    around = region.expand(OPTIONS["overlap"] // 2)
    assert missing[around.slices].all()
    assert missing.sum() == around.area
    # The hole begins where a tile ends, which has cells in what the hole leaves in doubt.
    plan = OutputFolder(out).read_marker()
    assert any(r.intersect(around) and not r.intersect(region) for r in plan.layout.regions)
    labels, table = read_result(out)
    assert not labels[missing].any()
    assert labels[~missing].any()
    assert table["touches_missing"].any()
    assert verify(out).is_right
    write(data)
    assert not segment(slide, out, **OPTIONS).is_partial
    assert read_result(out)[0][missing].any()
