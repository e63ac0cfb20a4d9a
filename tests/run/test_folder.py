"""The output folder: whose it is, what is refused, and that nothing is left or lost."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.planning.planner import draft_plan
from densebatch.planning.settings import SegmentSettings
from densebatch.run.folder import OutputFolder
from densebatch.stages.work import Work
from tests.helpers.run_files import write_tiff


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.ome.tif"
    write_tiff(path, np.zeros((2, 80, 90), np.uint16), ["CD3", "DAPI"])
    return draft_plan(path, SegmentSettings(membrane=("CD3",)))


@pytest.fixture
def other(plan):
    return replace(plan, trace=replace(plan.trace, min_size_px=99))


def files_in(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def test_a_claimed_folder_tells_whose_it_is(plan, tmp_path):
    folder = OutputFolder(tmp_path / "new" / "out")
    assert folder.read_marker() is None
    folder.check()
    folder.compare(plan)
    folder.claim(plan, restart=False)
    assert folder.read_marker() == plan
    assert json.loads(folder.plan_path(plan).read_text()) == json.loads(plan.to_json())
    name = folder.tasks(plan).name
    assert files_in(folder.path) == [".densebatch.json", f"work/{name}/plan-{plan.edition}.json"]
    folder.claim(plan, restart=False)  # a run that continues
    assert folder.read_marker() == plan


def test_a_folder_of_another_run_is_refused_with_the_first_difference(plan, other, tmp_path):
    folder = OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)
    expected = (
        f"{folder.path}: holds another run: trace.min_size_px was 15 and is now 99; "
        "choose another folder or give --restart"
    )
    for refuse in (lambda: folder.compare(other), lambda: folder.claim(other, restart=False)):
        with pytest.raises(InputError) as refused:
            refuse()
        assert str(refused.value) == expected
    assert folder.read_marker() == plan


def test_restart_removes_what_a_run_wrote_and_nothing_else(plan, other, tmp_path):
    folder = OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)
    results = [folder.report, folder.table, folder.tasks(plan) / "flows.zarr" / "c" / "0"]
    results.append(folder.root(plan) / "labels" / "cells" / "zarr.json")
    mine = folder.path / "notes.txt"
    for path in (*results, mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    folder.claim(other, restart=True)
    assert folder.read_marker() == other
    name = folder.tasks(other).name
    kept = [".densebatch.json", "notes.txt", f"work/{name}/plan-{other.edition}.json"]
    assert files_in(folder.path) == kept


def test_what_tasks_of_an_earlier_run_write_late_lies_apart(plan, other, tmp_path):
    """Their workers may not have heard that the driver was killed."""
    folder = OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)
    earlier = Work(str(folder.plan_path(plan)), 512)
    folder.claim(other, restart=True)
    now = Work(str(folder.plan_path(other)), 512)
    earlier.record("predict-0-0", [], {"of": "the earlier run"})
    assert now.journal.done("predict-0-0") is None
    now.record("predict-0-0", [], {"of": "this run"})
    folder.claim(other, restart=False)
    assert not earlier.folder.exists()
    assert now.journal.done("predict-0-0") == {"of": "this run"}


def test_what_a_killed_removal_left_is_removed(plan, tmp_path):
    folder = OutputFolder(tmp_path / "out")
    folder.claim(plan, restart=False)
    (folder.path / ".work.deleted" / "a").mkdir(parents=True)
    folder.claim(plan, restart=False)
    assert not (folder.path / ".work.deleted").exists()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_release_leaves_nothing_of_a_run_that_did_not_begin(plan, tmp_path, depth):
    (tmp_path / "there").mkdir()
    path = (tmp_path / "there").joinpath(*"abc"[:depth])
    folder = OutputFolder(path)
    folder.claim(plan, restart=False)
    folder.release()
    assert list((tmp_path / "there").rglob("*")) == []
    assert (tmp_path / "there").is_dir()


def test_release_keeps_what_an_earlier_session_left(plan, tmp_path):
    first = OutputFolder(tmp_path / "out")
    first.claim(plan, restart=False)
    (first.work / "flows").write_text("hours of work")
    second = OutputFolder(tmp_path / "out")
    second.claim(plan, restart=False)
    second.release()
    assert (second.work / "flows").read_text() == "hours of work"
    assert second.read_marker() == plan


def test_what_is_no_output_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").write_text("x")
    refused = {
        "file": f"{tmp_path}/file: cannot be used as output folder, {tmp_path}/file is a file; "
        "accepted is a folder that can be created or written",
        "file/out": f"{tmp_path}/file/out: cannot be used as output folder, {tmp_path}/file is a "
        "file; accepted is a folder that can be created or written",
        "full": f"{tmp_path}/full: holds 'thesis.docx' and is no output of densebatch; accepted is "
        "a new or empty folder, or one of the same run",
    }
    for name, expected in refused.items():
        with pytest.raises(InputError) as error:
            OutputFolder(tmp_path / name).check()
        assert str(error.value) == expected


def test_leavings_of_killed_writers_are_nobodys(plan, tmp_path):
    (tmp_path / "..densebatch.json.12-ab.partial").write_text("{")
    folder = OutputFolder(tmp_path)
    folder.check()
    folder.claim(plan, restart=False)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_marker_that_cannot_be_read_is_told(plan, tmp_path):
    folder = OutputFolder(tmp_path)
    folder.marker.write_text('{"slide": 1}')
    assert folder.read_marker() is None
    with pytest.raises(InputError, match="holds a run of another version of densebatch"):
        folder.compare(plan)


@pytest.mark.parametrize(
    "report",
    [
        None,
        "{",
        '{"complete": false}',
        '{"complete": true, "failed_tiles": [{}], "unread": []}',
        '{"complete": true, "failed_tiles": [], "unread": [{}]}',
        '{"complete": true, "failed_tiles": [], "unread": []}',  # but there are no labels
    ],
)
def test_no_report_makes_a_run_complete_that_is_not(plan, tmp_path, report):
    folder = OutputFolder(tmp_path)
    folder.claim(plan, restart=False)
    if report is not None:
        folder.report.write_text(report)
    assert folder.read_complete(plan) is None


def test_labels_go_into_the_slide_if_asked(plan, tmp_path):
    folder = OutputFolder(tmp_path)
    assert folder.root(plan) == tmp_path / "segmentation.ome.zarr"
    assert str(folder.root(replace(plan, in_place=True))) == plan.slide.path
