"""Runs of what looks like tissue alone: the cells of the whole slide, for less work."""

import json

import numpy as np
import pytest

from densebatch.base.geometry import Region
from densebatch.cohorts.sheet import read_sheet
from densebatch.planning.planner import build_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.driver import Driver
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import Progress, run_slide, segment
from densebatch.run.start import ExecutorStart
from densebatch.upkeep.verify import verify
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

SHAPE, PATCH = (700, 900), 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A slide that is half glass with specks on it, and a model with small patches."""
    folder = tmp_path_factory.mktemp("tissue")
    pixels = simulate(*SHAPE, seed=2, empty_fraction=0.6)
    pixels[:, 40:52, 30:42] = 3000
    write_tiff(folder / "a.ome.tif", pixels, ["M", "DAPI"])
    save_with_patches(folder / "m.safetensors", PATCH)
    return folder


def options(folder, **more):
    return {
        "membrane": ("M",), "nuclei": "DAPI", "model": str(folder / "m.safetensors"),
        "workers": 0, "image": "none", "tissue": "auto", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def outs(folder):
    """A run of all of the slide, and one of its tissue with the same bounds."""
    outs = {name: folder / name for name in ("all", "tissue")}
    segment(folder / "a.ome.tif", outs["all"], **options(folder, tissue="none"))
    [bounds] = OutputFolder(outs["all"]).read_marker().membrane
    settings, progress = SegmentSettings(**options(folder)), Progress()
    with Driver(progress) as driver, ExecutorStart(settings, progress.note) as starting:
        run_slide(
            folder / "a.ome.tif", OutputFolder(outs["tissue"]), settings, driver, starting,
            progress, limits=[(bounds.low, bounds.high)],
        )  # fmt: skip
    return outs


def find_inside(out):
    return OutputFolder(out).read_marker().region.find_inside(Region(0, 0, *SHAPE))


def test_cells_are_those_of_the_whole_slide(outs):
    (whole, _), (part, table) = (read_result(outs[name]) for name in ("all", "tissue"))
    inside = find_inside(outs["tissue"])
    assert 0.4 < inside.mean() < 0.8
    assert not inside[40:52, 30:42].any()
    ids = np.unique(whole[inside])[1:]
    assert ids.size > 300
    kept = np.isin(whole, ids)
    assert not kept[~inside].any()
    np.testing.assert_array_equal(part > 0, kept)
    pairs = np.unique(np.stack([whole[kept], part[kept]]), axis=1)
    assert pairs.shape[1] == ids.size == len(table["id"])
    assert not table["touches_missing"].any()


def test_it_costs_less(folder, outs):
    """Also than where patches without signal are skipped, and far less where they are not."""
    whole, part = (OutputFolder(outs[name]).read_marker() for name in ("all", "tissue"))
    assert part.network_patches < whole.network_patches
    every, some = (
        build_plan(
            folder / "a.ome.tif",
            SegmentSettings(**options(folder, tissue=tissue, skip_background=False)),
        )
        for tissue in ("none", "auto")
    )
    assert some.network_patches < 0.85 * every.network_patches
    inside = find_inside(outs["tissue"])
    assert some.membrane[0].tissue_fraction > 1.2 * every.membrane[0].tissue_fraction
    for row, col in some.lattice.cores:
        patch = some.lattice.patch(row, col).clip(*SHAPE)
        assert some.active_cores[row, col] <= inside[patch.slices].any()


def test_the_record_tells_how(folder, outs, capsys):
    report, plan = read_report(outs["tissue"]), OutputFolder(outs["tissue"]).read_marker()
    told = report["tissue"]
    assert told == report["plan"]["tissue"]
    assert told["share"] == pytest.approx(report["region"]["share"], abs=1e-3)
    assert [about["name"] for about in told["channels"]] == ["M", "DAPI"]
    assert report["region"]["files"] == {}
    assert report["settings"]["tissue"] == "auto"
    assert read_report(outs["all"])["tissue"] is None
    assert verify(outs["tissue"]).is_right
    code, shown, _ = call_main(
        capsys, "plan", folder / "a.ome.tif", folder / "new", "--membrane", "M", "--nuclei", "DAPI",
        "--tissue", "auto", "--workers", 0,
    )  # fmt: skip
    assert code == 0
    dapi = plan.tissue.channels[1]
    assert f"tissue     {plan.tissue.share:.1%} of the slide, found by M above" in shown
    assert f"DAPI above {dapi.threshold:.4g} on level 0, with a margin of 100 px" in shown
    assert "Mpx, " in shown


def test_tiles_do_not_matter_and_another_area_is_another_run(folder, outs, tmp_path, capsys):
    for out, tile in ((folder / "own", 2048), (tmp_path / "small", 160)):
        segment(folder / "a.ome.tif", out, **options(folder, tile=tile))
    assert_same_output(tmp_path / "small", output_bytes(folder / "own"))
    code, _, err = call_main(
        capsys, "segment", folder / "a.ome.tif", folder / "own", "--membrane", "M", "--nuclei",
        "DAPI", "--model", folder / "m.safetensors", "--image", "none", "--workers", 0,
    )  # fmt: skip
    assert code == 2
    assert "region that counts (--roi, --exclude, --tissue) is another" in err


def test_nuclei_and_cells_have_one_area(folder, tmp_path):
    out = tmp_path / "joined"
    settings = {
        "membrane": ("M",), "nuclei": "DAPI", "segmenter": "watershed", "diameter": 12,
        "nuclei_model": "watershed", "nuclei_diameter": 9, "compartments": True,
        "tile": 400, "workers": 0, "image": "none", "channels": ("DAPI",), "tissue": "auto",
    }  # fmt: skip
    segment(folder / "a.ome.tif", out, **settings)
    plans = [OutputFolder(out).read_marker()]
    plans += [OutputFolder(out).inner(role).read_marker() for role in ("cells", "nuclei")]
    assert len({plan.region.digest for plan in plans}) == 1
    assert all(plan.tissue == plans[0].tissue for plan in plans)
    assert not read_result(out)[0][~find_inside(out)].any()
    assert read_report(out)["tissue"]["share"] == plans[0].tissue.share
    assert verify(out).is_right


def test_a_slide_without_glass_is_told(folder, tmp_path, capsys):
    slide = write_tiff(tmp_path / "b.ome.tif", simulate(300, 300, seed=1), ["M", "DAPI"])
    command = ("plan", slide, tmp_path / "out", "--membrane", "M", "--workers", 0)
    code, shown, _ = call_main(capsys, *command, "--tissue", "auto")
    assert code == 0
    assert "note       --tissue auto: the brightness of 'M' does not fall into two classes" in shown
    assert "all of the slide counts" in shown
    told = [
        json.loads(call_main(capsys, *command, *more, "--json")[1])
        for more in ((), ("--tissue", "auto"))
    ]
    assert told[0]["fingerprint"] == told[1]["fingerprint"]
    assert told[1]["tissue"]["share"] is None


def test_a_column_of_a_sheet(folder, tmp_path):
    sheet = tmp_path / "a.csv"
    sheet.write_text(f"sample,slide,tissue\na,{folder}/a.ome.tif,auto\nb,{folder}/a.ome.tif,\n")
    rows = read_sheet(sheet, SegmentSettings(membrane=("M",)))
    assert [row.read_settings().tissue for row in rows] == ["auto", "none"]
