"""SIGKILL of the driver or a worker of a LocalCluster, at named points and at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from densebatch.run.segment import segment
from tests.helpers.die_at import POINTS, write_hook
from tests.helpers.run_files import (
    assert_same_output,
    list_workers,
    output_bytes,
    read_report,
    run_command,
    simulate,
    start_command,
    tasks_folder,
    write_tiff,
)

GROUP_PX = 300
QUICK = [("driver", "keys.npy"), ("worker", "journal/trace-*")]
ALL = [(role, point) for role, points in POINTS.items() for point in points]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    path = write_tiff(folder / "a.ome.tif", simulate(200, 600, seed=2), ["CD3", "DAPI"])
    result = segment(path, folder / "clean", workers=0, membrane=("CD3",), tile=128)
    return path, output_bytes(folder / "clean"), result.report


def command(slide, out):
    return "segment", slide, out, "--membrane", "CD3", "--workers", 2, "--tile", 128


def environment(hook=None):
    paths = [str(hook)] if hook else []
    return {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}


def predicted(out):
    """When each record of the network's work was written."""
    folder = tasks_folder(out) / "journal"
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("predict-*.json")}


def finish(slide, out, expected, clean):
    """Continue a killed run; the network is not asked again for what it has answered."""
    before = predicted(out)
    code, _, err = run_command(*command(slide, out), group_px=GROUP_PX, env=environment())
    assert code == 0, err
    report = read_report(out)
    assert report["tasks"] == clean["tasks"]
    assert report["network_patches"] == clean["network_patches"]
    if before and "already complete" not in err:
        assert report["tasks_kept"] >= len(before)
    assert_same_output(out, expected)
    assert not list(out.glob(".*.partial"))
    assert not (out / "work").exists()


def check_point(slide, tmp_path, role, point):
    path, expected, clean = slide
    out = tmp_path / "out"
    hook = write_hook(tmp_path / "hook", role, point)
    code, _, err = run_command(*command(path, out), group_px=GROUP_PX, env=environment(hook))
    assert (hook / "died").exists()
    assert code == (-signal.SIGKILL if role == "driver" else 0), err
    if role == "driver":
        finish(path, out, expected, clean)
    else:
        assert read_report(out)["tasks"] == clean["tasks"]
    assert_same_output(out, expected)


@pytest.mark.parametrize(("role", "point"), QUICK)
def test_a_kill_at_a_named_point(slide, tmp_path, role, point):
    check_point(slide, tmp_path, role, point)


@pytest.mark.slow
@pytest.mark.parametrize(("role", "point"), [pair for pair in ALL if pair not in QUICK])
def test_a_kill_at_every_named_point(slide, tmp_path, role, point):
    check_point(slide, tmp_path, role, point)


@pytest.mark.slow
def test_kills_at_random_moments(slide, tmp_path):
    """Thirty of them: of the driver, of all processes of the command, and of a worker."""
    path, expected, clean = slide
    chosen = random.Random(22)
    for k in range(30):
        out = tmp_path / str(k)
        process = start_command(*command(path, out), group_px=GROUP_PX, env=environment())
        deadline = time.monotonic() + 60
        while not out.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chosen.uniform(0, 3))
        victim = chosen.choice(["driver", "all", "worker"])
        if victim == "worker":
            with contextlib.suppress(psutil.Error, IndexError):
                chosen.choice(list_workers(process.pid)).kill()
            _, err = process.communicate(timeout=180)
            assert process.returncode == 0, err
            assert_same_output(out, expected)
            continue
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if victim == "all" else os.kill)(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        finish(path, out, expected, clean)
