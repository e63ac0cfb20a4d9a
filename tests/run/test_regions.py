"""A part of a slide: what is done there is what is done on all of it, and nothing elsewhere."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from imageio.v3 import imwrite

from densebatch.base.geometry import Region
from densebatch.cells import labels
from densebatch.cells.verify import read_spec
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import Progress, run_slide, segment
from densebatch.run.start import ExecutorStart
from densebatch.stages import predict
from densebatch.stages.missing import missing_spec
from densebatch.upkeep.content import Content
from densebatch.upkeep.measure import make_table
from densebatch.upkeep.repair import repair
from densebatch.upkeep.verify import verify
from tests.helpers.damage import flip, list_again, read_files
from tests.helpers.networks import save_with_patches
from tests.helpers.run_files import (
    assert_same_output,
    call_main,
    output_bytes,
    read_report,
    read_result,
    simulate,
    write_tiff,
)

SIDE, PATCH = 600, 64
WATERSHED = {
    "membrane": ("DAPI",), "segmenter": "watershed", "tile": 160, "overlap": 48, "diameter": 12,
    "image": "none", "channels": ("DAPI",), "workers": 0,
}  # fmt: skip


def read_regions(out):
    return pq.read_table(out / "cells.parquet", columns=["region"])["region"].to_pylist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A slide, areas on it, and a model with small patches."""
    folder = tmp_path_factory.mktemp("regions")
    write_tiff(folder / "a.ome.tif", simulate(SIDE, SIDE, seed=4), ["CD3", "DAPI"])
    tumor = [[130, 110], [480, 140], [500, 520], [120, 470], [130, 110]]
    stroma = [[400, 200], [500, 200], [500, 300], [400, 300], [400, 200]]
    areas = [
        {"type": "Feature", "properties": {"name": name},
         "geometry": {"type": "Polygon", "coordinates": [ring]}}
        for name, ring in (("Tumor", tumor), ("Stroma", stroma))
    ]  # fmt: skip
    (folder / "roi.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": areas})
    )
    hole = [[200, 300], [240, 300], [240, 340], [200, 340], [200, 300]]
    (folder / "exclude.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [hole]}))
    save_with_patches(folder / "m.safetensors", PATCH)
    return folder


def options(folder, **more):
    return {
        "membrane": ("CD3",), "model": str(folder / "m.safetensors"), "workers": 0,
        "image": "none", "roi": folder / "roi.geojson", "exclude": folder / "exclude.geojson",
        **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def clean(folder):
    """A run of all of the slide, and one of the areas with the same bounds."""
    out = {name: folder / name for name in ("all", "part")}
    segment(folder / "a.ome.tif", out["all"], **options(folder, roi=None, exclude=None))
    [bounds] = OutputFolder(out["all"]).read_marker().membrane
    settings, progress = SegmentSettings(**options(folder)), Progress()
    with Driver(progress) as driver, ExecutorStart(settings, progress.note) as starting:
        run_slide(
            folder / "a.ome.tif", OutputFolder(out["part"]), settings, driver, starting, progress,
            limits=[(bounds.low, bounds.high)],
        )  # fmt: skip
    return out


def find_inside(out, shape=(SIDE, SIDE)):
    return OutputFolder(out).read_marker().region.show(Region(0, 0, *shape))


def test_cells_deep_inside_are_those_of_the_whole_slide(clean):
    """Bit for bit, if they lie inside by more than a patch; and nothing lies outside."""
    (whole, _), (part, table) = (read_result(clean[name]) for name in ("all", "part"))
    areas = find_inside(clean["part"])
    assert not part[areas == 0].any()
    assert set(np.unique(part)) - {0} == set(table["id"])
    outside = np.pad(areas == 0, PATCH, constant_values=True)
    sums = np.pad(outside, ((1, 0), (1, 0))).cumsum(0, dtype=np.int64).cumsum(1, dtype=np.int64)
    side = 2 * PATCH + 1
    near = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    cut = np.unique(whole[near > 0])
    deep = np.setdiff1d(np.unique(whole), cut)
    assert deep.size > 20
    inside = np.isin(whole, deep)
    pairs = np.unique(np.stack([whole[inside], part[inside]]), axis=1)
    assert pairs.shape[1] == deep.size
    assert pairs.min() > 0
    assert np.isin(part, pairs[1]).sum() == inside.sum()
    # Most cells are the same up to the edge.
    same = (whole > 0) == (part > 0)
    assert same[areas > 0].mean() > 0.98


def test_the_record_and_the_table_know_the_areas(folder, clean):
    report, areas = read_report(clean["part"]), find_inside(clean["part"])
    names = OutputFolder(clean["part"]).read_marker().region.names
    assert report["region"]["area_px"] == np.count_nonzero(areas)
    assert set(report["region"]["names"]) == {"Tumor", "Stroma"}
    assert report["region"]["files"]["roi"]["path"] == str(folder / "roi.geojson")
    assert "runs" not in report["plan"]["region"]
    assert report["missing_px"] == 0
    labels, table = read_result(clean["part"])
    y, x = (np.floor(table[name] + 0.5).astype(int) for name in ("y_px", "x_px"))
    expected = np.array([None, *names])[areas[y, x]].tolist()
    assert read_regions(clean["part"]) == expected
    assert {"Tumor", "Stroma"} <= set(expected)
    beside = np.pad(areas, 1, mode="edge") == 0
    near = np.zeros_like(areas, bool)
    for dy in range(3):
        for dx in range(3):
            near |= beside[dy : dy + SIDE, dx : dx + SIDE]
    touching = np.isin(table["id"], labels[near])
    np.testing.assert_array_equal(table["touches_missing"], touching)
    assert 0 < touching.sum() < touching.size / 2


def test_cost_follows_the_area(folder, clean):
    """Only patches that hold a pixel of the areas are evaluated, and blocks in them surveyed."""
    whole, part = (OutputFolder(clean[name]).read_marker() for name in ("all", "part"))
    areas = find_inside(clean["part"])
    for row, col in part.lattice.cores:
        patch = part.lattice.patch(row, col).clip(SIDE, SIDE)
        assert part.active_cores[row, col] == areas[patch.slices].any()
    assert part.network_patches < 0.6 * whole.network_patches
    assert read_report(clean["part"])["network_patches"] == part.network_patches
    own = build_plan(folder / "a.ome.tif", SegmentSettings(**options(folder)))
    assert own.membrane[0].low != whole.membrane[0].low


def test_a_survey_counts_the_blocks_of_the_areas(folder, tmp_path):
    """What is outside has no part in what becomes 0 and 1, be it as bright as it may."""
    pixels = simulate(SIDE, SIDE, seed=4)
    areas = build_plan(folder / "a.ome.tif", SegmentSettings(**options(folder))).region
    blocks = areas.choose_blocks(32).repeat(32, 0).repeat(32, 1)[:SIDE, :SIDE]
    other = write_tiff(tmp_path / "b.ome.tif", np.where(blocks, pixels, 40_000), ["CD3", "DAPI"])
    found = [
        build_plan(slide, SegmentSettings(**options(folder))).membrane[0]
        for slide in (folder / "a.ome.tif", other)
    ]
    assert (found[0].low, found[0].high) == (found[1].low, found[1].high)
    assert found[0].tissue_fraction == found[1].tissue_fraction > 0.9


def test_tiles_and_interruptions_do_not_matter(folder, clean, tmp_path, monkeypatch):
    part = folder / "own"
    segment(folder / "a.ome.tif", part, **options(folder))
    out = tmp_path / "small"
    with monkeypatch.context() as patched:

        def stop(*_):
            raise KeyboardInterrupt

        patched.setattr("densebatch.run.flow_steps._count_missing", stop)
        with pytest.raises(KeyboardInterrupt):
            segment(folder / "a.ome.tif", out, **options(folder, tile=96))
    before = predict.model_loads
    segment(folder / "a.ome.tif", out, **options(folder, tile=96))
    assert predict.model_loads == before
    assert_same_output(out, output_bytes(part))


def test_another_region_is_another_run(folder, clean, capsys):
    told = call_main(
        capsys, "segment", folder / "a.ome.tif", folder / "part", "--membrane", "CD3",
        "--model", folder / "m.safetensors", "--image", "none", "--workers", 0,
        "--roi", folder / "roi.geojson",
    )  # fmt: skip
    assert told[0] == 2
    assert (
        "holds another run: region that counts (--roi, --exclude, --tissue) is another" in told[2]
    )


def test_plan_tells_the_area(folder, clean, capsys):
    code, told, _ = call_main(
        capsys, "plan", folder / "a.ome.tif", folder / "new", "--membrane", "CD3",
        "--roi", folder / "roi.geojson", "--workers", 0,
    )  # fmt: skip
    assert code == 0
    assert "region     0.1" in told
    assert "Mpx in 'Stroma', 'Tumor'," in told
    assert "of the region)" in told


def test_verify_and_repair_know_the_region(folder, clean, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(clean["part"], out)
    assert not verify(out).findings
    before = read_files([out])
    [shard] = (out / "segmentation.ome.zarr/labels/cells/0/c").rglob("*/0")
    flip(shard, np.random.default_rng(0))
    (out / "cells.parquet").unlink()
    assert not repair(out, workers=0).findings
    assert read_files([out]) == before


def plant(out, name, place, value):
    """Write a pixel of a label image as a faulty run would have: all the rest is made of it."""
    folder = OutputFolder(out)
    plan, report = folder.read_marker(), read_report(out)
    spec = read_spec(folder.root(plan), in_place=False)
    content = Content(
        plan, folder.trees(plan)[-1], folder.table, spec, report, (), 1, Progress()
    )  # fmt: skip
    if name == "missing":
        spec = missing_spec(plan, spec.root)
        labels.create(spec, label_attrs={})
        labels.finalize(spec, n_cells=None, provenance={})
        folder.report.write_text(json.dumps(report | {"missing_px": 1}))
    zarr.open_array(labels.label_path(spec) / "0", mode="r+")[place] = value
    for level in range(1, spec.n_levels):
        [index] = labels.shard_grid(spec, level)
        labels.downsample_labels(spec, level, labels.shard_grid(spec, level)[index])
    make_table(content, content.open_pixels(), folder.table)
    list_again(out, f"segmentation.ome.zarr/labels/{name}")


@pytest.mark.parametrize("name", ["cells", "missing"])
def test_verify_finds_what_lies_outside(clean, tmp_path, name):
    """Where all else fits, for levels, table and checksums were made of it."""
    out = shutil.copytree(clean["part"], tmp_path / "out")
    cells, _ = read_result(out)
    y, x = np.argwhere((find_inside(out)[:, 1:] == 0) & (cells[:, :-1] > 0))[0]
    plant(out, name, (y, x + 1), cells[y, x] if name == "cells" else 1)
    assert [str(finding) for finding in verify(out).findings] == [
        f"segmentation.ome.zarr/labels/{name}/0/c/0/0: 1 px outside of the region are not 0 "
        f"(rows 0 to {SIDE}, columns 0 to {SIDE})"
    ]


def test_verify_finds_other_names_and_another_region(clean, tmp_path):
    out = shutil.copytree(clean["part"], tmp_path / "out")
    report, path = read_report(out), out / "cells.parquet"
    report["region"]["area_px"] += 1
    (out / "run.json").write_text(json.dumps(report))
    table = pq.read_table(path)
    names = ["Tumor" if name == "Stroma" else name for name in table["region"].to_pylist()]
    at = table.column_names.index("region")
    pq.write_table(table.set_column(at, table.schema.field(at), [names]), path)
    list_again(out)
    first, second = (str(finding) for finding in verify(out).findings)
    assert first == "run.json: tells of another region than the run had"
    assert second.startswith("cells.parquet: 'region' is not what the labels and pixels say in ")
    assert second.endswith("Tumor instead of Stroma")


def test_segmenters_are_shown_tiles_of_the_areas(folder, clean):
    """Labels are those of all tiles, cut to the areas, which here a small mask tells."""
    mask = np.zeros((30, 30), np.uint8)
    mask[14:28, 14:29] = np.tri(14, 15)
    imwrite(folder / "mask.png", mask)
    results = {}
    for name, roi in (("labels-all", None), ("labels-part", folder / "mask.png")):
        segment(folder / "a.ome.tif", folder / name, **WATERSHED, roi=roi)
        results[name] = read_result(folder / name)[0]
    plan = OutputFolder(folder / "labels-part").read_marker()
    whole = OutputFolder(folder / "labels-all").read_marker()
    areas = find_inside(folder / "labels-part")
    kept = [tile for tile in whole.layout.regions if areas[tile.slices].any()]
    assert list(plan.layout.regions) == kept
    assert len(kept) < len(whole.layout.regions) / 2
    assert not results["labels-part"][areas == 0].any()
    assert not verify(folder / "labels-part").findings
    same = (results["labels-part"] > 0) == (results["labels-all"] > 0)
    assert same[areas > 0].mean() > 0.98


def test_cells_that_grow_stay_in_the_areas(folder):
    out = folder / "grown"
    settings = {**WATERSHED, "membrane": (), "nuclei": "DAPI", "nuclei_model": "watershed",
                "tile": 256}  # fmt: skip
    for name in ("segmenter", "overlap", "diameter"):
        del settings[name]
    segment(folder / "a.ome.tif", out, **settings, expand=3.0, roi=folder / "roi.geojson")
    areas = find_inside(out)
    assert OutputFolder(out).inner("nuclei").read_marker().region == (
        OutputFolder(out).read_marker().region
    )
    labels, _ = read_result(out)
    nuclei, _ = read_result(OutputFolder(out).inner("nuclei").path)
    assert not labels[areas == 0].any()
    assert np.count_nonzero(labels) > 1.1 * np.count_nonzero(nuclei)
    assert set(read_regions(out)) >= {"Tumor", "Stroma"}
    assert not verify(out).findings
