"""How a run stands, from its files: in every state, from anywhere, without writing."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.planning import flow_planner
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run import owner as owner_module
from densebatch.run import segment as segment_module
from densebatch.run.folder import OutputFolder
from densebatch.run.owner import read_holder
from densebatch.run.segment import segment
from densebatch.run.status import read_status
from densebatch.stages.journal import Journal
from densebatch.stages.predict import PredictGroup
from densebatch.stages.trace import TraceTile
from tests.helpers.run_files import (
    Watcher,
    call_main,
    simulate,
    slow_traces,
    start_command,
    write_tiff,
)

OPTIONS = {"membrane": ("CD3",), "tile": 100, "workers": 0}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(200, 260, seed=2), ["CD3", "DAPI"])


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in [folder, *folder.rglob("*")]}


def look(out):
    """The status, which must not change a file."""
    before = snapshot(out)
    found = read_status(OutputFolder(out))
    assert snapshot(out) == before
    json.dumps(found.to_dict())
    return found


def stages_of(found):
    return {stage.stage: (stage.done, stage.tasks) for stage in found.stages}


def test_a_finished_run(slide, tmp_path):
    result = segment(slide, tmp_path, **OPTIONS)
    found = look(tmp_path)
    assert found.state == "complete"
    assert (found.driver, found.driver_state, found.reason) == (None, None, "")
    assert found.cells == result.cells
    assert found.slide == str(slide)
    assert stages_of(found) == {"predict": (1, 1), "trace": (6, 6), "number": (1, 1)}


def test_an_interrupted_run(slide, tmp_path):
    def stop():
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt):
        segment(slide, tmp_path, progress=Watcher(number=stop), **OPTIONS)
    found = look(tmp_path)
    assert (found.state, found.reason, found.driver) == ("interrupted", "enough", None)
    assert stages_of(found) == {"predict": (1, 1), "trace": (6, 6), "number": (0, 1)}
    # also where the driver was killed before it told anything
    (tmp_path / "work" / "state.json").unlink()
    found = look(tmp_path)
    assert found.state == "interrupted"
    assert stages_of(found) == {"predict": (1, 1), "trace": (6, None), "number": (0, None)}
    segment(slide, tmp_path, **OPTIONS)
    assert look(tmp_path).state == "complete"


def test_a_partial_run(slide, tmp_path, monkeypatch):
    run = TraceTile.run

    def fail(task):
        if (task.row, task.col) == (1, 0):
            raise ValueError("no")
        return run(task)

    monkeypatch.setattr(TraceTile, "run", fail)
    segment(slide, tmp_path, **OPTIONS)
    found = look(tmp_path)
    assert (found.state, found.failed_tiles, found.unread) == ("partial", 1, 0)


def test_a_run_with_a_lost_group_is_partial(tmp_path, monkeypatch, capsys):
    """Nothing failed and nothing was unreadable but the network in one place."""
    monkeypatch.setattr(flow_planner, "_GROUP_PX", 300)
    wide = write_tiff(tmp_path / "w.ome.tif", simulate(200, 1000, seed=2), ["CD3", "DAPI"])
    run = PredictGroup.run

    def fail(task):
        if (task.row, task.col) == (0, 0):
            raise ValueError("no")
        return run(task)

    monkeypatch.setattr(PredictGroup, "run", fail)
    out = tmp_path / "out"
    result = segment(wide, out, **OPTIONS)
    assert result.is_partial
    assert (result.failed_tiles, result.unread) == ([], [])
    found = look(out)
    assert (found.state, found.failed_groups) == ("partial", 1)
    assert found.missing_px == result.missing_px > 0
    code, told, _ = call_main(capsys, "status", out)
    assert code == 0
    assert f"missing    1 group of patches, {result.missing_px} pixels without a result\n" in told


def flip(path, text):
    """Change a bit of the first byte of a piece of a file."""
    data = bytearray(path.read_bytes())
    data[data.index(text)] ^= 1
    path.write_bytes(data)


def test_a_damaged_run_is_told_from_its_copies(slide, tmp_path, capsys):
    """As long as one copy is whole; else it is called damaged, and never something else."""
    segment(slide, tmp_path, **OPTIONS)
    whole = look(tmp_path)
    flip(tmp_path / "run.json", b'tasks"')
    (tmp_path / ".densebatch.json").unlink()
    assert look(tmp_path) == whole
    flip(tmp_path / ".kept" / "digests" / "run.json.copy", b'tasks"')
    assert look(tmp_path).state == "damaged"
    for path in (tmp_path / "digests.sha256", tmp_path / ".kept" / "digests.sha256"):
        path.unlink()
    assert look(tmp_path).state == "damaged"
    code, told, _ = call_main(capsys, "status", tmp_path)
    assert code == 0
    assert "run        done, but run.json is damaged" in told
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").mkdir()
    assert look(tmp_path).state == "damaged"


def test_a_file_that_cannot_be_written(slide, tmp_path, capsys):
    out = tmp_path / "out"
    segment(slide, out, **OPTIONS)
    (tmp_path / "taken").mkdir()
    for command in ("status", "verify"):
        for file, reason in (("none/x.json", "there is no folder"), ("taken", "directory")):
            code, _, err = call_main(capsys, command, out, "--json", tmp_path / file)
            assert code == 2, (command, file)
            assert f"{tmp_path / file} cannot be written" in err
            assert reason in err
    assert not (tmp_path / "none").exists()


def test_flows_that_were_all_that_was_asked_for(slide, tmp_path):
    from densebatch.studies.flows import store_flows

    store_flows({tmp_path: slide}, SegmentSettings(membrane=("CD3",), workers=0))
    found = look(tmp_path)
    assert found.state == "flows"
    assert stages_of(found)["predict"] == (1, 1)


def test_folders_without_a_run(tmp_path):
    assert look(tmp_path).state == "empty"
    with pytest.raises(InputError, match="does not exist; accepted is the output folder of a run"):
        read_status(OutputFolder(tmp_path / "none"))
    (tmp_path / "thesis.docx").write_text("x")
    with pytest.raises(InputError, match=r"holds 'thesis\.docx' and is no output of densebatch"):
        look(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        read_status(OutputFolder(tmp_path / "thesis.docx"))


def test_a_running_run(slide, tmp_path, capsys, monkeypatch):
    """Told by the driver itself; here, and on a host where its process id means nothing."""
    out = tmp_path / "out"
    process = start_command(
        "segment", slide, out, "--membrane", "CD3", "--tile", 64, "--workers", 0,
        before=f"{slow_traces(0.6)}\nimport densebatch.run.driver as d; d.BEAT_S = 0.2",
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        state = {}
        while state.get("stages", {}).get("trace", {}).get("done", 0) < 2:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
            if (out / "work" / "state.json").exists():
                state = json.loads((out / "work" / "state.json").read_text())
        code, told, _ = call_main(capsys, "status", out, "--json", "-")
        found = json.loads(told)
        assert (code, found["state"], found["driver_state"]) == (0, "running", "alive")
        assert found["driver"]["pid"] == process.pid
        trace = found["stages"][1]
        assert trace["stage"] == "trace"
        assert 2 <= trace["done"] < trace["tasks"] == 20
        assert trace["running"] == 1
        assert 0 < trace["tasks_per_s"] < 2
        assert trace["seconds_left"] > 0
        code, told, _ = call_main(capsys, "status", out)
        assert f"driver     alive: process {process.pid} of" in told
        monkeypatch.setattr(owner_module, "name_machine", lambda: "elsewhere")
        assert read_status(OutputFolder(out)).driver_state == "alive"
        process.kill()
        process.communicate()
        assert look(out).driver_state == "silent"
        monkeypatch.undo()
        found = look(out)
        assert (found.state, found.driver_state) == ("interrupted", "dead")
        assert stages_of(found)["trace"][0] >= 2
    finally:
        process.kill()
        process.communicate()


def test_watch_ends_with_the_run(slide, tmp_path, capsys):
    out = tmp_path / "out"
    process = start_command(
        "segment", slide, out, "--membrane", "CD3", "--workers", 0, before=slow_traces(1.0)
    )
    deadline = time.monotonic() + 60
    while not (out / ".densebatch.json").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    code, told, _ = call_main(capsys, "status", out, "--watch", "--json", "-")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, code) == (0, 0), err
    states = [json.loads(line)["state"] for line in told.splitlines()]
    assert states[0] == "running"
    assert states[-1] == "complete"
    file = tmp_path / "status.json"
    assert call_main(capsys, "status", out, "--watch", "--json", file)[:2] == (0, "")
    assert json.loads(file.read_text())["state"] == "complete"


def test_what_the_command_says(slide, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        segment(slide, out, progress=Watcher(number=stop), **OPTIONS)
    assert call_main(capsys, "status", out) == (
        0,
        f"out        {out}\n"
        f"slide      {slide}\n"
        "run        interrupted; the same command continues the run\n"
        "           ended by: KeyboardInterrupt\n"
        "predict    1/1 task\n"
        "trace      6/6 tasks\n"
        "number     0/1 task\n",
        "",
    )
    code, told, err = call_main(capsys, "status", tmp_path / "none")
    assert (code, told) == (2, "")
    assert err.startswith(f"error: {tmp_path / 'none'}: does not exist")


def test_records_are_listed_and_not_read(tmp_path, monkeypatch):
    """Those of other sizes of tiles, and leavings of killed writers, do not count."""
    slide = write_tiff(tmp_path / "a.ome.tif", np.zeros((2, 400, 500), np.uint16), ["CD3", "DAPI"])
    plan = draft_plan(slide, SegmentSettings(membrane=("CD3",)))
    folder = OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)
    names = ["predict-0-0", "trace-64-0-0", "trace-64-0-1", "trace-128-0-0", "number-64-0-0-0"]
    journal = folder.tasks(plan) / "journal"
    journal.mkdir()
    for name in [*names, "number-64-1-0-0", ".trace-64-5-5.json.1-ab.partial"]:
        (journal / (name if name[0] == "." else f"{name}.json")).write_text("")
    folder.state.write_text(json.dumps({"tile_px": 64, "state": "running", "stages": {}}))
    monkeypatch.setattr(Journal, "done", None)
    assert stages_of(look(folder.path)) == {
        "predict": (1, len(plan.groups)),
        "trace": (2, 56),
        "number": (1, None),
        "pyramid level 1": (1, None),
    }


def test_an_owner_that_has_only_begun(tmp_path):
    mine = owner_module.Ownership(tmp_path)
    mine.acquire([tmp_path / ".densebatch-owner.json"], print)
    found = look(tmp_path)
    assert (found.state, found.driver.pid) == ("running", os.getpid())
    holder = read_holder(tmp_path / ".densebatch-owner.json")
    other = replace(holder, started="1")
    (tmp_path / ".densebatch-owner.json").write_text(json.dumps(asdict(other)))
    assert (look(tmp_path).state, look(tmp_path).driver_state) == ("empty", "dead")


def test_a_state_that_is_damaged_or_cannot_be_written_hurts_nothing(slide, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("densebatch.run.driver.write_state", fail)
    finish = segment_module._finish
    monkeypatch.setattr(segment_module, "_finish", fail)
    with pytest.raises(Exception, match="the same command continues"):
        segment(slide, tmp_path, **OPTIONS)
    monkeypatch.setattr(segment_module, "_finish", finish)
    (tmp_path / "work" / "state.json").write_text("{")
    assert look(tmp_path).state == "interrupted"
    segment(slide, tmp_path, **OPTIONS)
    assert look(tmp_path).state == "complete"
