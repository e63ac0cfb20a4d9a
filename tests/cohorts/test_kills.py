"""Twelve slides, two of them no good, on two workers; killed and interrupted, and continued."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time

import psutil
import pytest

from densebatch.planning import flow_planner
from densebatch.planning.settings import load_settings
from densebatch.run.segment import segment
from tests.helpers.cohort_slides import (
    OPTIONS,
    read_samples,
    states,
    write_broken,
    write_other,
    write_sheet,
    write_slides,
)
from tests.helpers.dask_processes import dask_processes
from tests.helpers.run_files import (
    assert_same_output,
    list_workers,
    output_bytes,
    read_report,
    run_command,
    start_command,
)

pytestmark = pytest.mark.slow

GROUP_PX = 150
GOOD = [f"p{k}" for k in range(10)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The sheet, and the bytes of each good slide's single run."""
    folder = tmp_path_factory.mktemp("slides")
    slides = write_slides(folder, 10, (160, 240))
    settings = load_settings(None, membrane=("CD3",), model="dense-tiny", workers=0)
    expected = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_planner, "_GROUP_PX", GROUP_PX)  # it is part of a run's identity
        for name, slide in zip(GOOD, slides, strict=True):
            segment(slide, folder / "single" / name, settings)
            expected[name] = output_bytes(folder / "single" / name)
    paths = dict(zip(GOOD, slides, strict=True))
    paths |= {"broken": write_broken(folder, slides[0]), "other": write_other(folder)}
    order = sorted(paths, key=lambda name: sum(map(ord, name)) % 5)  # the bad ones in between
    rows = [{"sample": name, "slide": paths[name].name} for name in order]
    return write_sheet(folder / "sheet.csv", *rows), expected


def command(sheet, out, *options):
    return "segment", "--sheet", sheet, out, *OPTIONS, "--workers", 2, "--tile", 96, *options


def finish(sheet, out, expected, *options):
    code, printed, err = run_command(*command(sheet, out, *options), group_px=GROUP_PX)
    assert code == 3, err
    assert "partial: of 12 slides 2 failed" in err
    assert "12 slides: " in printed
    check(out, expected)
    return err


def check(out, expected):
    found = read_samples(out)
    assert states(out) == {
        **dict.fromkeys(GOOD, "done"), "broken": "failed", "other": "failed",
    }  # fmt: skip
    assert "is truncated" in found["broken"]["reason"]
    assert "has no channel 'CD3'" in found["other"]["reason"]
    for name, bytes_ in expected.items():
        assert_same_output(out / name, bytes_)
        assert found[name]["cells"] == read_report(out / name)["cells"]
        assert not (out / name / "work").exists()
    assert sorted(path.name for path in out.iterdir()) == sorted(["cohort.json", *GOOD])


def test_twelve_slides_of_which_two_are_no_good(cohort, tmp_path):
    sheet, expected = cohort
    out = tmp_path / "out"
    finish(sheet, out, expected)
    reports = {name: read_report(out / name) for name in GOOD}
    assert all(report["tasks_kept"] == 0 for report in reports.values())
    assert {report["workers"] for report in reports.values()} == {2}
    code, printed, _ = run_command("status", out)
    assert code == 0
    assert "10 done, 2 failed" in printed
    assert run_command("verify", out)[0] == 0
    # again: nothing is done, but for what failed
    written = {name: (out / name / "run.json").stat().st_mtime_ns for name in GOOD}
    err = finish(sheet, out, expected)
    assert err.count("this run is already complete") == 10
    assert written == {name: (out / name / "run.json").stat().st_mtime_ns for name in GOOD}
    finish(sheet, out, expected, "--restart")
    assert all((out / name / "run.json").stat().st_mtime_ns > written[name] for name in GOOD)


def test_kills_at_random_moments(cohort, tmp_path):
    """Of the driver, of all processes of the command, and of a worker; twice each."""
    sheet, expected = cohort
    chosen = random.Random(5)
    for k in range(6):
        out = tmp_path / str(k)
        for _ in range(2):
            process = start_command(*command(sheet, out), group_px=GROUP_PX)
            wait_for_work(process, out)
            time.sleep(chosen.uniform(0, 4))
            victim = chosen.choice(["driver", "all", "worker"])
            if victim == "worker":
                with contextlib.suppress(psutil.Error, IndexError):
                    chosen.choice(list_workers(process.pid)).kill()
                _, err = process.communicate(timeout=180)
                assert process.returncode == 3, err
                check(out, expected)
                break
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if victim == "all" else os.kill)(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
        else:
            finish(sheet, out, expected)


def wait_for_work(process, out):
    while not (out / "cohort.json").exists() and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts(cohort, tmp_path, times):
    """The first lets the tasks of all slides end, the second does not; no owner file stays."""
    sheet, expected = cohort
    chosen = random.Random(times)
    for k in range(2):
        out = tmp_path / str(k)
        process = start_command(*command(sheet, out), group_px=GROUP_PX)
        wait_for_work(process, out)
        while process.poll() is None and not list(out.glob("*/work/*/journal/*.json")):
            time.sleep(0.01)
        code, printed, _ = run_command("status", out, "--json", "-")
        found = json.loads(printed)
        assert code == 0
        if process.poll() is None:
            assert found["state"] == "running"
            assert set(found["running"]) <= set(GOOD)
        time.sleep(chosen.uniform(0, 1))
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            time.sleep(0.05)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (130, 3), err
        assert "Traceback" not in err
        if process.returncode == 130:
            assert "interrupted; the same command continues the run" in err
            assert "waiting" in states(out).values()
            done = [name for name, state in states(out).items() if state == "done"]
            for name in done:
                assert_same_output(out / name, expected[name])
        assert not (out / ".densebatch-owner.json").exists()
        finish(sheet, out, expected)


def test_on_a_scheduler_of_other_people(cohort, tmp_path):
    """Its workers are shared as those of this machine; one is killed on the way."""
    sheet, expected = cohort
    out = tmp_path / "out"
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        workers = [processes.start_worker() for _ in range(2)]
        options = ("--scheduler-address", processes.address, "--tile", 96, *OPTIONS)
        process = start_command("segment", "--sheet", sheet, out, *options, group_px=GROUP_PX)
        while process.poll() is None and len(list(out.glob("*/run.json"))) < 3:
            time.sleep(0.01)
        workers[0].kill()
        _, err = process.communicate(timeout=240)
    assert process.returncode == 3, err
    check(out, expected)
