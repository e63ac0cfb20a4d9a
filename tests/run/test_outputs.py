"""What a run leaves behind: the contract that scripts and viewers rely on."""

import io
import itertools
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from distributed import Client
from rich.console import Console

from densebatch.base.geometry import Region
from densebatch.cells import labels
from densebatch.cli.terminal import TerminalProgress
from densebatch.engines.pytorch import TorchBackend
from densebatch.measuring.schema import Measures, list_columns
from densebatch.run import segment as segment_module
from densebatch.run import session
from densebatch.run.segment import segment
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.slides.slide import open_slide
from densebatch.stages import predict, trace
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    count_calls,
    output_bytes,
    read_report,
    read_result,
    run_command,
    simulate,
    write_tiff,
)
from tests.helpers.slide_files import write_zarr

pytestmark = [
    # napari's plugin engine declares its pydantic models in a way that pydantic 2 is about to drop
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),
    # ome-zarr's own default of a Scaler, built and deprecated in the same package
    pytest.mark.filterwarnings("ignore:.*Scaler.*:DeprecationWarning"),
]

SHAPE = (560, 700)
MEMBRANE = {"membrane": ("CD3",), "workers": 0}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(*SHAPE, seed=4), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def done(slide, tmp_path_factory):
    """A run, and what was counted while it ran."""
    out = tmp_path_factory.mktemp("done")
    predict._loaded.clear()
    loads = predict.model_loads
    evaluated = []
    evaluate = TorchBackend.evaluate
    TorchBackend.evaluate = lambda self, batch: (
        evaluated.append(batch.shape),
        evaluate(self, batch),
    )[1]
    try:
        result = segment(slide, out, tile=300, **MEMBRANE)
    finally:
        TorchBackend.evaluate = evaluate
    return result, predict.model_loads - loads, evaluated


def read_image(out, level=0):
    return zarr.open_array(out / "segmentation.ome.zarr" / str(level), mode="r")[:]


# the report


def test_run_json(done, slide):
    result, _, _ = done
    report = read_report(result.out)
    assert report == result.report
    height, width = SHAPE
    assert report["cells"] == result.cells > 200
    assert report["slide_px"] == height * width
    assert report["failed_tiles"] == report["unread"] == []
    assert report["devices"] in (["cpu"], ["cuda"])
    assert report["engine"]["backend"] == report["plan"]["engine"]["backend"] == "torch"
    assert report["engine"]["device"] == report["devices"][0]
    assert set(report["seconds"]) == {
        "plan", "start", "predict_and_trace", "number", "total",
    }  # fmt: skip
    assert set(report["task_seconds"]) == {"predict", "trace", "number"}
    assert all(0 < s <= report["seconds"]["total"] for s in report["task_seconds"].values())
    assert sum(report["seconds"].values()) <= 2 * report["seconds"]["total"]
    assert len(report["model"]["sha256"]) == 64
    assert report["settings"]["membrane"] == ["CD3"]
    assert report["plan"]["slide"]["path"] == str(slide)
    assert report["plan"]["membrane"][0]["high"] > report["plan"]["membrane"][0]["low"]
    assert report["plan"]["um_per_px"] == 0.5
    assert {"densebatch", "torch", "numpy", "numba", "zarr", "dask"} <= set(report["versions"])
    assert 100 < report["worker_peak_rss_mb"] < 2000
    assert report["tasks_kept"] == 0
    assert report["labels"] == str(result.labels)
    _check_costs(report, result)
    # nothing of the work is left, and nothing else
    names = {".densebatch.json", "cells.parquet", "run.json", "segmentation.ome.zarr"}
    names |= {"digests.sha256", ".kept"}
    assert {p.name for p in result.out.iterdir()} == names


def _check_costs(report, result):
    stages = report["stages"]
    assert {s: set(stages[s]["parts"]) for s in stages} == {
        "predict": {"read", "network", "write"},
        "trace": {"read", "trace", "write"},
        "number": {
            "read",
            "table",
            "write",
            *(["pyramid"] if stages["number"]["tasks"] > 1 else []),
        },
    }
    for stage, cost in stages.items():
        in_parts = round(sum(cost["parts"].values()), 3)
        assert cost["seconds"] == report["task_seconds"][stage] >= in_parts > 0
        assert cost["mpx_per_second"] == pytest.approx(
            report["slide_px"] / 1e6 / cost["seconds"], abs=1e-4
        )
    # one process did one task after the other
    assert report["workers"] == 0
    assert report["network_seconds"] == pytest.approx(
        stages["predict"]["parts"]["network"], abs=2e-3
    )
    assert report["wall_over_network"] == pytest.approx(
        report["seconds"]["total"] / report["network_seconds"], rel=0.01
    )
    assert report["all_peak_rss_mb"] == report["peak_rss_mb"] >= report["worker_peak_rss_mb"]
    if sys.platform == "linux":
        written = sum(p.stat().st_size for p in result.out.rglob("*") if p.is_file())
        assert report["bytes_written"] > written  # and the flow field, which is gone
        assert report["bytes_written"] > stages["predict"]["bytes_written"] > 0
        assert report["bytes_read"] > stages["trace"]["bytes_read"] > 0


def test_the_network_sees_every_patch_once(done):
    result, loads, evaluated = done
    report = result.report
    assert loads == 1
    if report["devices"] == ["cpu"]:
        assert len(evaluated) == report["network_patches"]
        assert sum(n * h * w for n, _, h, w in evaluated) == report["network_px"]
    # another tile size does not bring another evaluation: see test_resume; nor does a smaller one
    assert report["network_redundancy"] == pytest.approx(
        report["network_px"] / report["network_covered_px"], abs=1e-4
    )


def test_table(done):
    result, _, _ = done
    table = pq.read_table(result.table)
    measures = Measures((0, 1))
    assert table.column_names == [c.name for c in list_columns(measures, ("CD3", "DAPI"))]
    assert [str(f.type) for f in table.schema] == [
        {"float64": "double"}.get(c.dtype, c.dtype) for c in list_columns(measures, ("a", "b"))
    ]
    assert result.report["measured"] == {
        "from": None,
        "channels": ["CD3", "DAPI"],
        "channel_indices": [0, 1],
        "quantiles": [],
        "neighbour_radius_um": 30.0,
        "shares": [],
        "markers": [],
        "phenotypes": [],
        "covers": {},
        "compartments": [],
        "regions": False,
        "unread": [],
    }
    assert result.report["positivity"] == {"markers": [], "phenotypes": []}
    assert table["id"].to_pylist() == list(range(1, result.cells + 1))
    assert all(column.null_count == 0 for column in table.columns)


def test_table_without_pixel_size_and_with_odd_names(tmp_path):
    pixels = simulate(120, 150)[0]
    slide = write_tiff(tmp_path / "a.ome.tif", [pixels] * 3, ["a", "a", "id"], 0.5)
    segment(slide, tmp_path / "out", membrane=("0",), workers=0)
    table = pq.read_table(tmp_path / "out" / "cells.parquet")
    means = [name for name in table.column_names if name.startswith("mean_")]
    assert means == ["mean_a", "mean_a_1", "mean_id"]
    unknown = write_zarr(tmp_path / "b.zarr", pixels[None], unit=None)
    segment(unknown, tmp_path / "out-b", workers=0)
    table = pq.read_table(tmp_path / "out-b" / "cells.parquet")
    assert table["y_um"].null_count == table.num_rows > 10


# the label image


def assert_readable(group, n_levels, cells, ngff):
    """Opened by those who will open it: the models, the reader library, and napari's plugin."""
    from napari_ome_zarr import napari_get_reader
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models import open_ome_zarr

    label = group / "labels" / "cells"
    with warnings.catch_warnings():
        # what others' libraries say of themselves is not under test here
        warnings.simplefilter("ignore")
        model = open_ome_zarr(zarr.open_group(label, mode="r"))
        assert type(model).__name__ == "ImageLabel"
        assert len(next(iter(model.ome_attributes.multiscales)).datasets) == n_levels
        nodes = [node for node in Reader(parse_url(str(label)))() if node.data]
        node = next(n for n in nodes if n.data[0].dtype == np.uint32)
        assert len(node.data) == n_levels
        assert int(node.data[0].max().compute()) == cells
        layers = napari_get_reader(str(group))(str(group))
    shown = [layer for layer in layers if layer[2] == "labels"]
    assert len(shown) == 1
    assert len(shown[0][0]) == n_levels
    levels = [zarr.open_array(label / str(k), mode="r") for k in range(n_levels)]
    assert all(level.dtype == np.uint32 for level in levels)
    assert all(np.array_equal(b[:], a[::2, ::2]) for a, b in itertools.pairwise(levels))
    text = (label / "0" / ("zarr.json" if ngff == "0.5" else ".zarray")).read_text()
    assert ("crc32c" in text) == (ngff == "0.5")


def test_label_image_0_5(done):
    result, _, _ = done
    assert_readable(result.out / "segmentation.ome.zarr", 2, result.cells, "0.5")


def test_label_image_0_4(done, slide, tmp_path):
    result = segment(slide, tmp_path, ngff="0.4", **MEMBRANE)
    assert_readable(tmp_path / "segmentation.ome.zarr", 2, result.cells, "0.4")
    assert np.array_equal(read_result(tmp_path)[0], read_result(done[0].out)[0])
    assert (tmp_path / "cells.parquet").read_bytes() == done[0].table.read_bytes()


def test_image_beside_the_labels(done, slide, tmp_path):
    pixels = open_slide(slide)
    whole = Region(0, 0, *SHAPE)
    expected = np.stack([pixels.read(k, whole) for k in (0, 1)])
    assert np.array_equal(read_image(done[0].out), expected)
    assert read_image(done[0].out, 1).shape == (2, 280, 350)
    result = segment(slide, tmp_path, image="none", **MEMBRANE)
    root = tmp_path / "segmentation.ome.zarr"
    assert {p.name for p in root.iterdir()} == {"zarr.json", "labels"}
    assert result.report["view"] == str(root / "labels" / "cells")
    assert np.array_equal(read_result(tmp_path)[0], read_result(done[0].out)[0])


@pytest.mark.parametrize("image", ["auto", "copy"])
def test_image_of_an_ome_zarr_slide(tmp_path, image):
    pixels = simulate(130, 150)
    slide = write_zarr(tmp_path / "a.zarr", pixels, labels=["CD3", "DAPI"])
    segment(slide, tmp_path / "out", image=image, **MEMBRANE)
    copied = (tmp_path / "out" / "segmentation.ome.zarr" / "0").exists()
    assert copied == (image == "copy")
    if copied:
        assert np.array_equal(read_image(tmp_path / "out"), pixels)


def test_labels_of_an_ome_zarr_slide_have_its_levels_and_scales(tmp_path):
    slide = write_zarr(
        tmp_path / "a slide.zarr", simulate(300, 340), n_levels=3, labels=["CD3", "DAPI"]
    )
    code, out, err = run_command(
        "segment", slide, tmp_path / "out", "--membrane", "CD3", "--workers", 0
    )
    assert code == 0, err
    group = tmp_path / "out/segmentation.ome.zarr/labels/cells"
    assert f"napari-ome-zarr '{slide}' {group}" in out
    theirs, ours = (
        json.loads((folder / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
        for folder in (slide, group)
    )
    assert len(ours["datasets"]) == len(theirs["datasets"]) == 3
    for level, (a, b) in enumerate(zip(theirs["datasets"], ours["datasets"], strict=True)):
        shapes = [
            zarr.open_array(str(folder / dataset["path"]), mode="r").shape[-2:]
            for folder, dataset in ((slide, a), (group, b))
        ]
        assert shapes[0] == shapes[1], level
        steps = [dataset["coordinateTransformations"][0]["scale"][-2:] for dataset in (a, b)]
        assert steps[0] == steps[1], level


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_in_place(tmp_path, version, capsys):
    pixels = simulate(300, 340)
    slide = write_zarr(tmp_path / "a.zarr", pixels, version=version, n_levels=3, labels=["M", "N"])
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in slide.rglob("*") if p.is_file()}
    out = tmp_path / "out"
    arguments = ("segment", slide, out, "--membrane", "M", "--in-place", "--workers", 0)
    code, told, _ = call_main(capsys, *arguments, "--tile", 128)
    assert code == 0
    names = {".densebatch.json", "cells.parquet", "run.json"}
    names |= {"digests.sha256", "labels.sha256", ".kept"}
    assert {p.name for p in out.iterdir()} == names
    for path, (data, changed) in before.items():
        assert path.read_bytes() == data
        assert path.stat().st_mtime_ns == changed
    report = read_report(out)
    assert report["labels"] == str(slide / "labels" / "cells")
    assert_readable(slide, 3, report["cells"], version)
    found, table = read_result(out, slide)
    assert np.array_equal(np.unique(found), np.arange(table["id"].size + 1))
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()  # what others' libraries said
    assert call_main(capsys, *arguments)[:2] == (0, told)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == after
    # the same bits as beside it
    segment(slide, tmp_path / "beside", membrane=("M",), workers=0)
    assert np.array_equal(read_result(tmp_path / "beside")[0], found)


# the plan


def test_plan(slide, tmp_path, capsys):
    out = tmp_path / "out"
    code, told, err = call_main(capsys, "plan", slide, out, "--membrane", "CD3", "--tile", 300)
    assert (code, err) == (0, "")
    lines = told.splitlines()
    assert lines[0] == f"slide      {slide}"
    assert any(line.startswith("membrane   CD3: ") for line in lines)
    assert "6 trace" in told
    assert not out.exists()


def test_plan_json(done, slide, tmp_path, capsys):
    out = tmp_path / "out"
    code, told, _ = call_main(capsys, "plan", slide, out, "--membrane", "CD3", "--json")
    assert code == 0
    document = json.loads(told)
    report = done[0].report
    for name in ("slide_px", "network_patches", "network_px", "network_covered_px", "fingerprint"):
        assert document[name] == report[name]
    assert document["plan"] == report["plan"]
    assert {"predict_tasks", "trace_tiles", "workers", "worker_mb", "disk_mb"} <= set(document)
    assert not out.exists()


def test_plan_refuses_what_segment_refuses(done, slide, capsys):
    out = done[0].out
    assert call_main(capsys, "plan", slide, out, "--membrane", "CD3")[0] == 0
    code, _, err = call_main(capsys, "plan", slide, out, "--membrane", "DAPI")
    assert code == 2
    assert "holds another run: membrane[0]." in err
    code, _, err = call_main(capsys, "plan", slide, slide.parent, "--membrane", "CD3")
    assert code == 2
    assert "is no output of densebatch" in err


# tasks and workers


def test_tasks_are_small(slide, tmp_path, monkeypatch):
    """What travels to a worker: a function by its name, and a few words."""
    sizes = {}
    drive = session.Session.drive

    def measure(self, steps, *rest):
        for step in steps:
            sizes[step.job.name] = len(pickle.dumps((step.job.function, step.job.args)))
        return drive(self, steps, *rest)

    monkeypatch.setattr(session.Session, "drive", measure)
    segment(slide, tmp_path, tile=100, **MEMBRANE)
    assert len(sizes) > 42
    assert max(sizes.values()) < 800


def test_settings_as_arguments_or_as_an_object(slide, tmp_path):
    from densebatch import SegmentSettings
    from densebatch.base.errors import InputError

    with pytest.raises(InputError, match=r"setting 'tiles' = 5: .*accepted settings: membrane"):
        segment(slide, tmp_path, tiles=5)
    with pytest.raises(TypeError, match="settings or keyword arguments, not both: tile"):
        segment(slide, tmp_path, SegmentSettings(), tile=500)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def running_scheduler(tmp_path):
    """A Dask scheduler and a worker of two processes, started as one does on a cluster."""
    file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    common = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    started = [
        subprocess.Popen(
            [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--scheduler-file", str(file)], **common
        ),
        subprocess.Popen(
            [*dask, "worker", "--scheduler-file", str(file), "--nworkers", "2", "--nthreads", "1",
             "--no-dashboard", "--local-directory", str(tmp_path / "scratch")], **common
        ),
    ]  # fmt: skip
    yield file
    for process in reversed(started):
        process.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def test_a_running_scheduler(done, slide, tmp_path, running_scheduler):
    result, _, _ = done
    expected = output_bytes(result.out)
    code, out, err = run_command(
        "segment", slide, tmp_path / "out", "--membrane", "CD3", "--tile", 200,
        "--scheduler-file", running_scheduler,
    )  # fmt: skip
    assert code == 0, err
    assert f"{result.cells} cells in 0.39 Mpx" in out
    assert_same_output(tmp_path / "out", expected)
    report = read_report(tmp_path / "out")
    assert 1 <= report["workers"] <= 2
    with Client(scheduler_file=str(running_scheduler), timeout=20) as client:
        loads = client.run(
            lambda: __import__("densebatch.stages.predict").stages.predict.model_loads
        )
    assert set(loads.values()) <= {0, 1}
    assert 1 in loads.values()


def test_what_the_command_line_says(slide, tmp_path):
    start = time.monotonic()
    code, out, err = run_command(
        "segment", slide, tmp_path / "out", "--membrane", "CD3", "--workers", 0, "--tile", 300
    )
    assert code == 0, err
    report = read_report(tmp_path / "out")
    engine = report["engine"]
    assert out.splitlines()[1:] == [
        f"engine  torch on {engine['device']} (default)",
        f"labels  {tmp_path}/out/segmentation.ome.zarr/labels/cells",
        f"cells   {tmp_path}/out/cells.parquet",
        f"record  {tmp_path}/out/run.json",
        f"look    napari --plugin napari-ome-zarr {tmp_path}/out/segmentation.ome.zarr",
        "        (labels open hidden: click their eye)",
    ]
    assert out.startswith(f"{report['cells']} cells in 0.39 Mpx, ")
    assert "predict: " in err
    assert "number: 1/1 task," in err
    assert report["seconds"]["total"] <= time.monotonic() - start


def test_progress_on_a_terminal(slide, tmp_path):
    """Bars with a rate; elsewhere lines, which the test above sees."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with TerminalProgress(console) as progress:
        segment(slide, tmp_path, tile=300, progress=progress, **MEMBRANE)
        segment(slide, tmp_path, tile=300, progress=progress, **MEMBRANE)
    text = screen.getvalue()
    assert "trace" in text
    assert "6/6" in text
    assert "Mpx/s" in text
    assert "this run is already complete" in text


# background


def test_skipped_background_changes_nothing(tmp_path, monkeypatch):
    """Half of the slide is glass: not evaluated, hardly traced, with the bits as if it were."""
    work = count_calls(monkeypatch, trace, "trace_tile")
    tissue = Tissue(900, 1300, seed=1, empty_fraction=0.5)
    slide = tmp_path / "a.ome.zarr"
    write_slide(tissue, slide)
    results, done = {}, {}
    for skip in (True, False):
        out = tmp_path / f"skip-{skip}"
        results[skip] = segment(
            slide, out, membrane=("membrane",), workers=0, skip_background=skip, tile=256
        )
        done[skip] = dict(work)
        work.clear()
    assert done[False]["trace_tile"] == 4 * 6
    assert done[True]["trace_tile"] < done[False]["trace_tile"]
    skipped, full = results[True].report, results[False].report
    assert full["network_covered_px"] == full["slide_px"]
    assert skipped["network_patches"] < 0.8 * full["network_patches"]
    assert skipped["cells"] > 500
    a, b = (read_result(tmp_path / f"skip-{skip}")[0] for skip in (True, False))
    assert np.array_equal(a, b)
    tables = [(tmp_path / f"skip-{skip}" / "cells.parquet").read_bytes() for skip in (True, False)]
    assert tables[0] == tables[1]


def test_leftovers_of_killed_writers_are_not_part_of_the_result(slide, tmp_path, monkeypatch):
    """zarr writes aside and renames; a kill leaves the file aside, also of a group's metadata."""
    finish = segment_module._finish

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(segment_module, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        segment(slide, tmp_path, **MEMBRANE)
    monkeypatch.setattr(segment_module, "_finish", finish)
    root = tmp_path / "segmentation.ome.zarr"
    for folder in (root, root / "labels", root / "labels" / "cells", root / "0"):
        (folder / "zarr.0123456789abcdef.partial").write_text("{")
    segment(slide, tmp_path, **MEMBRANE)
    assert not list(tmp_path.rglob("*.partial"))


def test_progress_counts_every_task(slide, tmp_path):
    watcher = Watcher()
    segment(slide, tmp_path, tile=300, progress=watcher, **MEMBRANE)
    assert watcher.stages == {
        "predict": (watcher.stages["predict"][0], 0),
        "trace": (6, 0),
        "number": (1, 0),
        "pyramid level 1": (1, 0),
    }
    assert watcher.tasks == {name: total for name, (total, _) in watcher.stages.items()}


def test_labels_stay_readable_if_the_slide_is_gone(done, slide, tmp_path):
    """The result does not point back to the slide."""
    copy = tmp_path / "copy"
    shutil.copytree(done[0].out, copy)
    assert labels.read_labels(copy / "segmentation.ome.zarr")[:].max() == done[0].cells
    text = "".join(p.read_text() for p in (copy / "segmentation.ome.zarr").rglob("zarr.json"))
    assert str(slide.parent) not in text
    assert Path(slide).name in text
