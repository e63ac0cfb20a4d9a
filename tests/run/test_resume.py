"""A run that is killed continues to the same bytes, and does not repeat what was done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zarr

from densebatch.base.errors import DensebatchError, InputError
from densebatch.run import segment as segment_module
from densebatch.run import start, steps
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import segment
from densebatch.stages.journal import Journal
from tests.helpers.damage import take_records
from tests.helpers.run_files import (
    Watcher,
    assert_same_output,
    call_main,
    list_workers,
    output_bytes,
    read_report,
    run_command,
    simulate,
    start_command,
    tasks_folder,
    write_tiff,
)

LONG = {"membrane": ("CD3",), "tile": 128}
GROUP_PX = 300  # several predict tasks on a small slide


@pytest.fixture(scope="module")
def long_slide(tmp_path_factory):
    """A slide of several predict tasks and 16 tiles, and the bytes of its uninterrupted run."""
    folder = tmp_path_factory.mktemp("long")
    slide = write_tiff(folder / "a.ome.tif", simulate(200, 1000, seed=2), ["CD3", "DAPI"])
    result = segment(slide, folder / "clean", workers=0, **LONG)
    return slide, output_bytes(folder / "clean"), result.report


@pytest.fixture(scope="module")
def small_slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    slide = write_tiff(folder / "a.ome.tif", simulate(200, 260, seed=2), ["CD3", "DAPI"])
    result = segment(slide, folder / "clean", workers=0, membrane=("CD3",), tile=100)
    return slide, output_bytes(folder / "clean"), result.report


def records(out):
    """When each task's record was written."""
    return {p.stem: p.stat().st_mtime_ns for p in (tasks_folder(out) / "journal").glob("*.json")}


def run_until(arguments, out, n_records):
    """Start the command, kill its whole process group once enough tasks are done."""
    process = start_command(*arguments, group_px=GROUP_PX)
    try:
        deadline = time.monotonic() + 120
        while len(records(out)) < n_records:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def command(slide, out, *options):
    return "segment", slide, out, "--membrane", "CD3", *options


@pytest.mark.slow
def test_sigkill_again_and_again(long_slide, tmp_path):
    slide, expected, clean = long_slide
    out = tmp_path / "out"
    arguments = command(slide, out, "--workers", 0, "--tile", 128)
    done = {}
    for n_records in (2, 14):
        run_until(arguments, out, n_records)
        now = records(out)
        assert {name: now[name] for name in done} == done, "finished work was repeated"
        done = now
        assert not (out / "run.json").exists()
    code, _, err = run_command(*arguments, group_px=GROUP_PX)
    assert code == 0, err
    report = read_report(out)
    assert report["tasks_kept"] >= len(done) - 1  # the last record may not have had its name yet
    assert report["tasks"] == clean["tasks"]
    assert_same_output(out, expected)


def test_sigkill_of_a_run_on_workers_and_on_with_other_tiles_and_workers(long_slide, tmp_path):
    slide, expected, clean = long_slide
    out = tmp_path / "out"
    run_until(command(slide, out, "--workers", 2, "--tile", 128), out, 3)
    done = records(out)
    watcher = Watcher()
    result = segment(slide, out, workers=0, tile=150, membrane=("CD3",), progress=watcher)
    predicted = sum(name.startswith("predict") for name in done)
    assert predicted > 0
    assert watcher.stages["predict"][1] == predicted
    assert result.report["network_patches"] == clean["network_patches"]
    assert_same_output(out, expected)


def test_sigkill_between_any_two_files(tmp_path):
    pixels = simulate(130, 170, seed=2)
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"])
    options = json.dumps({"membrane": ["CD3"], "tile": 100, "image": "none"})
    script = Path(__file__).parents[1] / "helpers" / "kill_points.py"
    told = subprocess.run(
        [sys.executable, script, slide, tmp_path, "13", options],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    expected = output_bytes(tmp_path / "clean")
    kept = [point["kept"] for point in report["killed"]]
    assert len(kept) >= 3
    # the last points are behind the report of the run, which then has nothing left to do
    assert kept[0] == 0 < max(kept)
    for point in report["killed"]:
        out = Path(point["out"])
        assert_same_output(out, expected)
        names = {".densebatch.json", "cells.parquet", "run.json", "segmentation.ome.zarr"}
        names |= {"digests.sha256", ".kept"}
        assert {p.name for p in out.iterdir()} == names


class Stop(BaseException):
    """Ends a run in this process at a stage."""


def stop(*_):
    raise Stop


def stop_at(stage, slide, out, **options):
    """Run up to where a stage begins, or to the end but for the last metadata."""
    if stage != "finish":
        with pytest.raises(Stop):
            segment(slide, out, workers=0, progress=Watcher(**{stage: stop}), **options)
        return
    finish = segment_module._finish
    segment_module._finish = stop
    try:
        with pytest.raises(Stop):
            segment(slide, out, workers=0, **options)
    finally:
        segment_module._finish = finish


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


SMALL = {"membrane": ("CD3",), "tile": 100}
LABELS = "segmentation.ome.zarr/labels/cells/0/c/0/0"


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "lost"])
@pytest.mark.parametrize(
    ("file", "until", "stage", "n_redone"),
    [
        ("work/*/flows.zarr/c/0/0/0", "number", "predict", 1),
        ("work/*/trace-100/labels.zarr/c/1/1", "number", "trace", 1),
        ("work/*/trace-100/keys-0-2.npy", "number", "trace", 1),
        ("work/*/trace-100/cells-0-0.npz", "finish", "number", 1),
        (LABELS, "finish", "number", 1),
        ("segmentation.ome.zarr/0/c/0/0/0", "finish", "number", 1),
        ("work/*/journal/trace-100-0-1.json", "number", "trace", 1),
    ],
)
def test_damage_after_a_kill_is_found_and_repaired(
    small_slide, tmp_path, file, until, stage, n_redone, damage
):
    slide, expected, _ = small_slide
    stop_at(until, slide, tmp_path, **SMALL)
    (path,) = tmp_path.glob(file)
    damage(path)
    watcher = Watcher()
    segment(slide, tmp_path, workers=0, progress=watcher, **SMALL)
    total, done = watcher.stages[stage]
    assert total - done == n_redone
    others = [name for name in ("predict", "trace") if name != stage]
    assert all(watcher.stages[name][0] == watcher.stages[name][1] for name in others)
    assert_same_output(tmp_path, expected)


@pytest.mark.parametrize("names", [None, ["predict-0-0"], ["trace-100-0-1"], ["number-100-0-0-0"]])
@pytest.mark.parametrize("until", ["trace", "number", "finish"])
def test_records_of_another_run_are_not_taken_for_those_of_this(
    small_slide, tmp_path, names, until
):
    """All, or any: a slide of the same size has tasks of the same names."""
    slide, expected, _ = small_slide
    other = write_tiff(tmp_path / "b.ome.tif", simulate(200, 260, seed=7), ["CD3", "DAPI"])
    segment(other, tmp_path / "other", workers=0, keep_flows=True, **SMALL)
    out = tmp_path / "out"
    stop_at(until, slide, out, **SMALL)
    take_records(tasks_folder(out), tasks_folder(tmp_path / "other"), names)
    segment(slide, out, workers=0, **SMALL)
    assert_same_output(out, expected)


@pytest.mark.parametrize("what", ["a shard", "a shard that is gone", "sums", "a record"])
def test_a_late_write_of_another_process_ends_the_run(small_slide, tmp_path, monkeypatch, what):
    """A worker of an earlier session may write what was numbered otherwise then."""
    slide, expected, _ = small_slide

    def write_late(*args, **options):
        told = write_table(*args, **options)
        task = tasks_folder(tmp_path)
        if what == "a shard":
            zarr.open_array(tmp_path / Path(LABELS).parents[2], mode="r+")[...] = 7
        elif what == "a shard that is gone":
            (tmp_path / LABELS).unlink()
        elif what == "sums":
            (task / "trace-100" / "cells-0-0.npz").write_bytes(b"of other cells")
        else:
            facts = Journal(task / "journal").done("number-100-0-0-0")
            part = task / "trace-100" / "cells-0-0.npz"
            Journal(task / "journal").record(
                "number-100-0-0-0", [part], {**facts, "inputs": "of other tiles"}
            )
        return told

    write_table = steps.write_table
    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_table", write_late)
        with pytest.raises(DensebatchError, match="was changed by another process") as told:
            segment(slide, tmp_path, workers=0, **SMALL)
    assert "number-100-0-0-0" in str(told.value)
    assert not (tmp_path / "run.json").exists()
    segment(slide, tmp_path, workers=0, **SMALL)
    assert_same_output(tmp_path, expected)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_damage_in_the_pyramid_is_found_and_repaired(tmp_path, ngff, level):
    """Also in 0.4, whose chunks carry no checksum; level 2 is written by the task of level 1."""
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(80, 1100), ["CD3", "DAPI"])
    options = {"membrane": ("CD3",), "ngff": ngff}
    segment(slide, tmp_path / "clean", workers=0, **options)
    expected = output_bytes(tmp_path / "clean")
    out = tmp_path / "out"
    stop_at("finish", slide, out, **options)
    label = out / "segmentation.ome.zarr" / "labels" / "cells" / str(level)
    chunk = next(p for p in label.rglob("*") if p.is_file() and p.name[0] not in ".z")
    chunk.unlink()
    watcher = Watcher()
    segment(slide, out, workers=0, progress=watcher, **options)
    assert watcher.stages["number"] == (1, 1)
    assert watcher.stages["pyramid level 1"] == (1, 0)
    assert_same_output(out, expected)


def test_sigkill_of_workers_of_the_command(long_slide, tmp_path):
    slide, expected, _ = long_slide
    out = tmp_path / "out"
    process = start_command(*command(slide, out, "--workers", 2, "--tile", 128), group_px=GROUP_PX)
    killed = []
    for n_records in (1, 8):
        deadline = time.monotonic() + 120
        while len(records(out)) < n_records and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        victim = next(w for w in list_workers(process.pid) if w.pid not in killed)
        victim.kill()
        killed.append(victim.pid)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    assert len(set(killed)) == 2
    assert_same_output(out, expected)


def test_ctrl_c_ends_a_command_in_one_sentence(long_slide, tmp_path):
    """A terminal sends it to all processes of the command."""
    slide, expected, _ = long_slide
    out = tmp_path / "out"
    arguments = command(slide, out, "--workers", 2, "--tile", 128)
    process = start_command(*arguments, group_px=GROUP_PX)
    deadline = time.monotonic() + 120
    while not records(out) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted; the same command continues the run"
    code, _, err = run_command(*arguments, group_px=GROUP_PX)
    assert code == 0, err
    assert_same_output(out, expected)


def test_sigkill_of_a_worker_does_not_lose_the_run(long_slide, tmp_path):
    slide, expected, _ = long_slide
    killed = []

    class Killer(Watcher):
        def advance(self, name, pixels):
            super().advance(name, pixels)
            if len(killed) < 2:
                victim = next(w for w in list_workers(os.getpid()) if w.pid not in killed)
                victim.send_signal(signal.SIGKILL)
                killed.append(victim.pid)

    watcher = Killer()
    result = segment(slide, tmp_path, workers=2, progress=watcher, **LONG)
    assert len(killed) == 2
    assert not result.failed_tiles
    assert_same_output(tmp_path, expected)


def test_a_finished_run_is_not_done_again(small_slide, tmp_path, capsys, monkeypatch):
    slide, expected, _ = small_slide
    arguments = command(slide, tmp_path / "out", "--workers", 0, "--tile", 100)
    first = call_main(capsys, *arguments)
    assert first[0] == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    monkeypatch.setattr(start, "start_executor", None)  # nothing is left to execute
    code, out, err = call_main(capsys, *arguments)
    assert (code, out) == first[:2]
    assert "this run is already complete" in err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    # nor with other settings that do not change the labels, nor somewhere else on the disk
    (tmp_path / "out").rename(tmp_path / "moved")
    arguments = command(slide, tmp_path / "moved", "--workers", 3, "--tile", 64)
    code, told, _ = call_main(capsys, *arguments)
    assert code == 0
    assert told == out.replace(str(tmp_path / "out"), str(tmp_path / "moved"))
    assert_same_output(tmp_path / "moved", expected)


def test_a_run_killed_while_it_removes_its_work_folder(small_slide, tmp_path):
    slide, expected, _ = small_slide
    segment(slide, tmp_path, workers=0, keep_flows=True, **SMALL)
    (tasks_folder(tmp_path) / "flows.zarr" / "zarr.json").unlink()
    segment(slide, tmp_path, workers=0, **SMALL)
    assert not (tmp_path / "work").exists()
    assert_same_output(tmp_path, expected)


@pytest.mark.parametrize("lost", ["segmentation.ome.zarr", "cells.parquet"])
def test_a_finished_run_whose_result_is_gone(small_slide, tmp_path, lost):
    slide, expected, _ = small_slide
    segment(slide, tmp_path, workers=0, **SMALL)
    path = tmp_path / lost
    path.rename(tmp_path.with_name(f"gone-{lost}"))
    result = segment(slide, tmp_path, workers=0, **SMALL)
    assert result.report["tasks_kept"] == 0
    assert_same_output(tmp_path, expected)


def test_restart(small_slide, tmp_path, capsys):
    slide, expected, _ = small_slide
    other = command(slide, tmp_path, "--workers", 0, "--cellprob-threshold", 1)
    assert call_main(capsys, *other)[0] == 0
    first = output_bytes(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    arguments = command(slide, tmp_path, "--workers", 0, "--tile", 100)
    code, _, err = call_main(capsys, *arguments)
    assert code == 2
    assert err == (
        f"error: {tmp_path}: holds another run: trace.cellprob_threshold was 1.0 and is now 0.0; "
        "choose another folder or give --restart\n"
    )
    assert_same_output(tmp_path, first)
    assert call_main(capsys, *arguments, "--restart")[0] == 0
    assert_same_output(tmp_path, expected)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_restart_repeats_a_finished_run(small_slide, tmp_path):
    slide, expected, _ = small_slide
    segment(slide, tmp_path, workers=0, **SMALL)
    result = segment(slide, tmp_path, workers=0, restart=True, **SMALL)
    assert result.report["tasks_kept"] == 0
    assert_same_output(tmp_path, expected)


def test_a_restart_that_cannot_work_removes_nothing(small_slide, tmp_path):
    slide, expected, _ = small_slide
    segment(slide, tmp_path, workers=0, **SMALL)
    with pytest.raises(InputError, match="no channel 'CD4'"):
        segment(slide, tmp_path, workers=0, restart=True, membrane=("CD4",))
    assert_same_output(tmp_path, expected)


def test_a_changed_slide_is_another_run(tmp_path):
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(100, 120), ["CD3", "DAPI"])
    segment(slide, tmp_path / "out", workers=0, membrane=("CD3",))
    write_tiff(slide, simulate(100, 120, seed=1), ["CD3", "DAPI"])
    changed = rf"holds another run: the slide {slide} has changed since, or was replaced"
    with pytest.raises(InputError, match=changed):
        segment(slide, tmp_path / "out", workers=0, membrane=("CD3",))


@pytest.mark.parametrize("until", ["number", "finish", None])
@pytest.mark.parametrize("how", ["touched", "copied"])
def test_a_touched_slide_of_equal_content_continues(small_slide, tmp_path, until, how):
    """Its times are others, its pixels are not; the table is of channels that no survey reads."""
    clean_slide, expected, _ = small_slide
    slide, out = tmp_path / clean_slide.name, tmp_path / "out"
    slide.write_bytes(clean_slide.read_bytes())
    if until is None:
        segment(slide, out, workers=0, **SMALL)
    else:
        stop_at(until, slide, out, **SMALL)
    if how == "touched":
        os.utime(slide, (1, 1))
    else:
        content = slide.read_bytes()
        slide.unlink()
        slide.write_bytes(content)
    watcher = Watcher()
    result = segment(slide, out, workers=0, progress=watcher, **SMALL)
    if until is None:
        assert "this run is already complete" in watcher.notes[-1]
    else:
        assert watcher.stages["predict"] == (1, 1)
        assert watcher.stages["trace"] == (6, 6)
        assert watcher.stages["number"] == (1, 0)  # it reads channels that no survey has read
    assert result.report["cells"] == small_slide[2]["cells"]
    found = output_bytes(out)
    assert found["cells.parquet"] == expected["cells.parquet"]
    assert found[LABELS] == expected[LABELS]


@pytest.mark.parametrize("channel", [0, 1], ids=["seen by the network", "only measured"])
@pytest.mark.parametrize("until", ["number", None])
def test_one_changed_pixel_of_a_slide_is_found(tmp_path, channel, until):
    pixels = simulate(130, 170, seed=2)
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"])
    out = tmp_path / "out"
    if until is None:
        segment(slide, out, workers=0, **SMALL)
    else:
        stop_at(until, slide, out, **SMALL)
    pixels[channel, 70, 80] ^= 1
    write_tiff(slide, pixels, ["CD3", "DAPI"])
    if channel == 1 and until is not None:  # nothing of the run has read it yet
        segment(slide, out, workers=0, **SMALL)
        segment(slide, tmp_path / "clean", workers=0, **SMALL)
        assert_same_output(out, output_bytes(tmp_path / "clean"))
        return
    with pytest.raises(InputError, match=f"holds another run: the slide {slide} has changed since"):
        segment(slide, out, workers=0, **SMALL)


def test_a_marker_of_another_version(small_slide, tmp_path):
    slide, expected, _ = small_slide
    segment(slide, tmp_path, workers=0, **SMALL)
    marker = tmp_path / ".densebatch.json"
    marker.write_text('{"version": 0}')
    (tmp_path / "run.json").unlink()
    with pytest.raises(InputError, match="holds a run of another version of densebatch"):
        segment(slide, tmp_path, workers=0, **SMALL)
    segment(slide, tmp_path, workers=0, restart=True, **SMALL)
    assert_same_output(tmp_path, expected)


@pytest.mark.parametrize("until", ["number", None], ids=["unfinished", "complete"])
def test_a_damaged_marker_is_told_by_what_else_there_is(small_slide, tmp_path, until):
    slide, expected, _ = small_slide
    if until is None:
        segment(slide, tmp_path, workers=0, **SMALL)
    else:
        stop_at(until, slide, tmp_path, **SMALL)
    flip(tmp_path / ".densebatch.json")
    watcher = Watcher()
    segment(slide, tmp_path, workers=0, progress=watcher, **SMALL)
    if until is not None:
        assert watcher.stages["predict"][0] == watcher.stages["predict"][1]
    assert OutputFolder(tmp_path).read_marker() is not None
    assert_same_output(tmp_path, expected)


def test_a_damaged_marker_of_which_nothing_tells_is_refused(small_slide, tmp_path):
    slide, _, _ = small_slide
    segment(slide, tmp_path, workers=0, **SMALL)
    marker = tmp_path / ".densebatch.json"
    flip(marker)
    shutil.rmtree(tmp_path / ".kept")
    with pytest.raises(InputError) as refused:
        segment(slide, tmp_path, workers=0, **SMALL)
    assert str(refused.value) == (
        f"{marker}: is damaged (its content does not fit its digest), so that nobody knows which "
        "run the folder holds; choose another folder or give --restart"
    )


def test_a_slide_that_changes_under_a_run_stops_it(tmp_path):
    """A result of two slides is none; brought back, the slide is gone on with."""
    pixels = simulate(130, 170, seed=2)
    slide = write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"])
    stat = slide.stat()
    segment(slide, tmp_path / "clean", workers=0, **SMALL)
    out, kept = tmp_path / "out", tmp_path / "kept"

    class Changer(Watcher):
        def advance(self, name, pixels):
            super().advance(name, pixels)
            if name == "number":  # all that reads the slide has read it
                slide.rename(kept)
                write_tiff(slide, simulate(130, 170, seed=3), ["CD3", "DAPI"])

    with pytest.raises(DensebatchError) as stopped:
        segment(slide, out, workers=0, progress=Changer(), **SMALL)
    assert f"{slide}: has changed since the run began" in str(stopped.value)
    assert "the same command continues" in str(stopped.value)
    assert not (out / "run.json").exists()
    kept.replace(slide)
    assert slide.stat().st_mtime_ns == stat.st_mtime_ns
    segment(slide, out, workers=0, **SMALL)
    assert_same_output(out, output_bytes(tmp_path / "clean"))


def test_a_run_whose_tasks_are_all_done_needs_no_worker(small_slide, tmp_path, monkeypatch):
    slide, expected, _ = small_slide
    stop_at("finish", slide, tmp_path, **SMALL)
    monkeypatch.setattr(start, "start_executor", None)
    segment(slide, tmp_path, workers=2, **SMALL)
    assert_same_output(tmp_path, expected)


def test_a_kill_before_the_marker_has_its_name(small_slide, tmp_path):
    slide, expected, _ = small_slide
    (tmp_path / "..densebatch.json.123-abc.partial").write_text("{")
    segment(slide, tmp_path, workers=0, **SMALL)
    assert not list(tmp_path.glob(".*.partial"))
    assert_same_output(tmp_path, expected)
