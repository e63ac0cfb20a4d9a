"""Whole runs on slides in a store: the bytes of runs from disk, whatever the store does."""

from __future__ import annotations

import json
import os
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from densebatch.base.errors import SlideChangedError, UnreachableError
from densebatch.cells.labels import read_labels
from densebatch.converting.convert import convert
from densebatch.planning import flow_planner
from densebatch.run.report import Progress
from densebatch.run.segment import segment
from tests.helpers.object_store import fails, faulty, find_secrets
from tests.helpers.run_files import (
    call_main,
    output_bytes,
    read_report,
    simulate,
    start_command,
)
from tests.helpers.slide_files import write_zarr

pytestmark = pytest.mark.extra

PIXELS = simulate(130, 700, seed=3)
OPTIONS = {"membrane": ("CD3",), "tile": 128, "workers": 0, "model": "dense-tiny"}
COMMAND = ("--membrane", "CD3", "--tile", 128, "--workers", 0, "--model", "dense-tiny")
NAME = "run.ome.zarr"
CHUNK = f"/slides/{NAME}/0/c/0/0/5"
OTHER_CHANNEL = f"/slides/{NAME}/0/c/1/0/5"


def read_result(out):
    """Every file of a run's result, without the fingerprint, which is of where the slide is too."""
    fingerprint = read_report(out)["fingerprint"].encode()
    return {name: data.replace(fingerprint, b"") for name, data in output_bytes(out).items()}


def assert_same_result(out, expected):
    found = read_result(out)
    assert sorted(found) == sorted(expected)
    assert not [name for name in expected if found[name] != expected[name]]


@pytest.fixture(scope="module", autouse=True)
def small_groups():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_planner, "_GROUP_PX", 100)
        yield


@pytest.fixture(scope="module")
def local(small_groups, tmp_path_factory):
    """The slide in a folder, and what becomes of it."""
    folder = tmp_path_factory.mktemp("local")
    path = write_zarr(
        folder / NAME, PIXELS, n_levels=2, labels=["CD3", "DAPI"], chunks=(1, 128, 128)
    )
    segment(path, folder / "out", **OPTIONS)
    return path, read_result(folder / "out")


@pytest.fixture
def slide(store, local):
    return store.upload(local[0], NAME)


class Act(Progress):
    """Does something when a stage begins."""

    def __init__(self, stage, act):
        self.awaited, self.act = stage, act

    def stage(self, name, total, done):
        if name == self.awaited:
            self.act()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_and_table_are_those_of_the_folder(store, tmp_path, local, slide, version):
    if version == "0.4":
        path = write_zarr(
            tmp_path / NAME, PIXELS, version="0.4", n_levels=2, labels=["CD3", "DAPI"],
            chunks=(2, 130, 128),
        )  # fmt: skip
        store.upload(path, f"old/{NAME}")
        slide = f"s3://slides/old/{NAME}"
    faults = fails(r"/0/.*\d$", 500, times=1), fails("/0/.*0$", "slow", times=2)
    with faulty(store, *faults):
        result = segment(slide, tmp_path / "out", **OPTIONS)
    assert not result.is_partial
    assert_same_result(tmp_path / "out", local[1])
    report = result.report
    assert report["plan"]["slide"]["path"] == slide
    assert report["remote_bytes_read"] > report["stages"]["predict"]["remote_bytes_read"] > 10_000
    assert report["remote_requests"] > report["stages"]["number"]["remote_requests"] > 0
    # What is there is not made again.
    assert segment(slide, tmp_path / "out", **OPTIONS).report == report


def test_a_chunk_that_fails_for_good_is_a_gap_until_it_does_not(
    store, tmp_path, capsys, local, slide
):
    out = tmp_path / "out"
    # While the slide is surveyed there can be no plan: nothing of it is left out.
    with faulty(store, fails(CHUNK, 500)):
        code, _, err = call_main(capsys, "segment", slide, out, *COMMAND)
    assert code == 1
    assert "c/0/0/5: cannot be read (it answers 500" in err
    assert not out.exists()

    def fail():
        store.faults = [fails(CHUNK, 500)]

    result = segment(slide, out, progress=Act("predict", fail), **OPTIONS)
    assert result.is_partial
    assert {hole["channel"] for hole in result.unread} == {"CD3"}
    assert all("it answers 500" in hole["reason"] for hole in result.unread)
    assert 0 < result.missing_px < PIXELS[0].size
    # No cell is taken for one of pixels that are 0: those that are there are those of the slide.
    labels, expected = (
        read_labels(o / "segmentation.ome.zarr")[:] for o in (out, local[0].parent / "out")
    )
    assert not labels[:, 640:].any()
    np.testing.assert_array_equal(labels[:, :300] > 0, expected[:, :300] > 0)
    code, _, err = call_main(capsys, "segment", slide, out, *COMMAND)
    assert code == 1  # it is surveyed again
    store.faults = []
    assert call_main(capsys, "segment", slide, out, *COMMAND)[0] == 0
    assert_same_result(out, local[1])


def test_a_channel_that_is_measured_only(store, tmp_path, capsys, local, slide):
    """Its chunk fails for a while, in the stage that reads it, and then no more."""

    def fail():
        store.faults = [fails(OTHER_CHANNEL, 503)]

    out = tmp_path / "out"
    result = segment(slide, out, progress=Act("number", fail), **OPTIONS)
    assert [hole["region"] for hole in result.unread] == [[0, 640, 128, 700]]
    intensity = pq.read_table(out / "cells.parquet")["mean_DAPI"].to_numpy()
    assert 0 < np.isnan(intensity).sum() < len(intensity)
    store.faults = []
    code, _, err = call_main(capsys, "segment", slide, out, *COMMAND)
    assert code == 0, err
    assert read_report(out)["tasks_kept"] > 0
    assert_same_result(out, local[1])


def test_a_store_that_is_gone_ends_the_session_and_spoils_nothing(
    store, tmp_path, capsys, local, slide
):

    out = tmp_path / "out"

    def fail():
        store.faults = [lambda method, _, __: 503]

    with pytest.raises(UnreachableError, match="it answers 503"):
        segment(slide, out, progress=Act("predict", fail), **OPTIONS)
    code, _, err = call_main(capsys, "segment", slide, out, *COMMAND)
    assert code == 1
    assert "Traceback" not in err
    store.faults = []
    assert not segment(slide, out, **OPTIONS).is_partial
    assert_same_result(out, local[1])


def test_a_slide_that_changes_under_the_run(store, tmp_path, local, slide):
    path = local[0]
    chunk = (path / "0/c/0/0/5").read_bytes()

    def change():
        time.sleep(1.1)  # stores tell whole seconds
        store.put(f"{NAME}/0/c/0/0/5", chunk)

    def remove():
        store.remove(f"{NAME}/0/c/0/0/5")

    for act in (change, remove):
        with pytest.raises(SlideChangedError, match=r"has changed under the run \(s3://"):
            segment(slide, tmp_path / "out", progress=Act("predict", act), **OPTIONS)
        store.put(f"{NAME}/0/c/0/0/5", chunk)
        segment(slide, tmp_path / "out", **OPTIONS)
        assert_same_result(tmp_path / "out", local[1])
        (tmp_path / "out").rename(tmp_path / act.__name__)


def test_no_secret_is_anywhere(store, tmp_path, capsys, slide, monkeypatch):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    out, log = tmp_path / "out", tmp_path / "log.json"
    seen = []
    with faulty(store, fails(CHUNK, 403)):
        seen += call_main(capsys, "segment", slide, out, *COMMAND, "--log-json", log, "--verbose")

    def fail():
        store.faults = [fails(CHUNK, 403)]

    segment(slide, out, progress=Act("predict", fail), **OPTIONS)
    assert not find_secrets(out)
    store.faults = []
    for command in (
        ("segment", slide, out, *COMMAND),
        ("plan", slide, tmp_path / "new", *COMMAND, "--json"),
        ("info", slide, "--json", tmp_path / "info.json"),
        ("status", out, "--json", tmp_path / "status.json"),
        ("verify", out),
    ):
        code, *told = call_main(capsys, *command, "--log-json", log, "--verbose")
        assert code == 0, told
        seen += told
    for url in ("s3://AKIDNOBODYMAYSEE:secret-that-nobody-may-see@slides/run.zarr",
                "https://host/run.zarr?X-Amz-Signature=secret-that-nobody-may-see",
                "https://user:secret-that-nobody-may-see@host/run.zarr"):  # fmt: skip
        code, *told = call_main(capsys, "segment", url, out, "--log-json", log)
        assert code == 2
        assert "credentials come from the environment alone" in told[1]
        seen += told
        code, *told = call_main(capsys, "segment", slide, url, "--log-json", log)
        assert code == 2
        assert "is an address" in told[1]
        seen += told
    assert "command started" in log.read_text()
    assert not find_secrets(tmp_path, text="\n".join(map(str, seen)))


def test_other_commands(store, tmp_path, capsys, local, slide):
    code, told, err = call_main(capsys, "plan", slide, tmp_path / "none", *COMMAND)
    assert code == 0, err
    assert slide in told
    assert not (tmp_path / "none").exists()
    code, told, err = call_main(capsys, "info", slide, "--json", "-")
    assert (code, json.loads(told)["path"]) == (0, slide)
    made = [
        convert(s, tmp_path / f"{n}.ome.zarr", workers=0) for n, s in enumerate((local[0], slide))
    ]
    assert made[0].pixels == made[1].pixels
    # An output is a path, and so is a slide that labels are written into.
    code, _, err = call_main(capsys, "segment", slide, "s3://slides/out", *COMMAND)
    assert (code, "is an address (s3://) and no path" in err) == (2, True)
    code, _, err = call_main(capsys, "segment", slide, tmp_path / "out", *COMMAND, "--in-place")
    assert (code, "labels cannot be written into what an address names" in err) == (2, True)
    web = store.address("http", NAME)
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(f"sample,slide\na,{slide}\nb,{web}\nc,s3://slides/nothing.zarr\n")
    code, told, err = call_main(capsys, "segment", "--sheet", sheet, tmp_path / "many", *COMMAND)
    assert code == 3, err
    rows = json.loads((tmp_path / "many/cohort.json").read_text())["samples"]
    assert [(row["slide"], row["state"]) for row in rows] == [
        (slide, "done"), (web, "done"), ("s3://slides/nothing.zarr", "failed"),
    ]  # fmt: skip
    for sample in "ab":
        assert_same_result(tmp_path / "many" / sample, local[1])
    code, told, err = call_main(
        capsys, "measure", tmp_path / "many/a", "--from", web, "--channels", "DAPI"
    )
    assert code == 0, err
    assert read_report(tmp_path / "many/a")["measured"]["from"]["path"] == web
    # What is not run again does not take a piece for damaged.
    before = (tmp_path / "many/b/run.json").read_bytes()
    store.faults = [fails("/0/c/1/0/5", 503)]
    for command in (("measure", tmp_path / "many/b"), ("verify", tmp_path / "many/b")):
        code, told, err = call_main(capsys, *command)
        assert (code, "it answers 503" in err) == (1, True), (told, err)
    assert (tmp_path / "many/b/run.json").read_bytes() == before
    store.faults = []
    sheet.write_text("sample,slide\na,s3://k:s@slides/a.zarr\nb,gs://slides/b.zarr?x\n")
    code, _, err = call_main(capsys, "segment", "--sheet", sheet, tmp_path / "more", *COMMAND)
    assert code == 2
    assert "line 2: an address of s3:// has a user or a password" in err
    assert "line 3: an address of gs:// has a query" in err
    assert "k:s" not in err


def test_bounds_of_several_slides_are_of_all_of_them(store, tmp_path, capsys, slide):
    """A store that fails leaves none out, for the bounds would be kept."""
    sheet, out = tmp_path / "sheet.csv", tmp_path / "out"
    sheet.write_text(f"sample,slide\na,{slide}\nb,s3://slides/second/{NAME}\n")
    local = write_zarr(tmp_path / NAME, PIXELS * 2, labels=["CD3", "DAPI"], chunks=(1, 128, 128))
    store.upload(local, f"second/{NAME}")
    command = ("segment", "--sheet", sheet, out, *COMMAND, "--normalise", "together")
    for pattern in (f"/second/{NAME}/zarr.json", f"/second/{NAME}/0/c/0/0/5"):
        with faulty(store, fails(pattern, 503)):
            code, _, err = call_main(capsys, *command)
        assert (code, "it answers 503" in err) == (1, True), err
        assert not out.exists()
    assert call_main(capsys, *command)[0] == 0
    record = json.loads((out / "cohort.json").read_text())
    assert (record["normalise"]["slides"], [r["state"] for r in record["samples"]]) == (
        2, ["done", "done"],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_workers_read_by_their_own_environment(store, tmp_path, local, slide, scheme):
    """The store fails now and then, also while a command that was killed is continued."""
    out, log = tmp_path / "out", tmp_path / "log.json"
    command = ["segment", store.address(scheme, NAME), out, "--membrane", "CD3", "--tile", 128,
               "--model", "dense-tiny", "--workers", 2, "--log-json", log, "--verbose"]  # fmt: skip
    environment = {"DENSEBATCH_CACHE": str(tmp_path / "cache")}
    said = []
    faults = fails(r"/0/.*\d$", 503, times=2), fails(r"/0/.*\d$", "slow", times=4)
    with faulty(store, *faults):
        killed = start_command(*command, group_px=100, env=environment)
        while not any(out.glob("work/*/journal/*.json")):
            assert killed.poll() is None
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
        said += killed.communicate()
        store.asked.clear()
        ended = start_command(*command, group_px=100, env=environment)
        said += ended.communicate()
    assert ended.returncode == 0, said
    assert_same_result(out, local[1])
    report = read_report(out)
    assert report["remote_bytes_read"] > report["stages"]["number"]["remote_bytes_read"] > 0
    assert not find_secrets(tmp_path, text="\n".join(said))
