"""Whole runs on other people's schedulers: what is refused, waited for, and not needed at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from distributed import LocalCluster

from densebatch.base.errors import InputError
from densebatch.run.segment import segment
from densebatch.workers import pool as pool_module
from tests.helpers.dask_processes import dask_processes, make_certificates
from tests.helpers.die_at import write_holding_hook
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
    start_command,
    tasks_folder,
    write_tiff,
)

OPTIONS = ("--membrane", "CD3", "--model", "dense-tiny", "--tile", 128)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "a.ome.tif", simulate(300, 280, seed=3), ["CD3", "DAPI"])


@pytest.fixture(scope="module")
def alone(slide, tmp_path_factory):
    """The run in one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    segment(slide, out, membrane=("CD3",), model="dense-tiny", tile=128, workers=0)
    return out


@pytest.fixture
def cluster():
    with LocalCluster(
        n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as running:
        yield running


def test_no_worker_ends_a_run_in_words_and_the_same_command_continues(
    cluster, slide, alone, tmp_path, capsys
):
    out = tmp_path / "out"
    command = ("segment", slide, out, *OPTIONS, "--scheduler-address", cluster.scheduler_address)
    code, _, err = call_main(capsys, *command, "--patience", "1s")
    assert code == 1
    assert "no worker has joined it, for 1 s; the same command continues" in err
    cluster.scale(1)
    assert call_main(capsys, *command)[0] == 0
    assert_same_output(out, output_bytes(alone))
    assert read_report(out)["workers"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("command", ["segment", "plan"])
def test_a_device_that_no_worker_has(cluster, slide, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr(pool_module, "_UNABLE_S", 0.1)
    cluster.scale(1)
    code, _, err = call_main(
        capsys, command, slide, tmp_path / "out", *OPTIONS, "--device", "cuda",
        "--scheduler-address", cluster.scheduler_address,
    )  # fmt: skip
    assert code == 2
    assert "device cuda: this process sees none" in err
    assert not (tmp_path / "out").exists()


def test_workers_that_do_not_see_the_output_leave_nothing_behind(
    cluster, slide, tmp_path, monkeypatch
):
    """The folder is asked for last, after it was made."""
    monkeypatch.setattr(pool_module, "_UNABLE_YET_S", 0.1)
    monkeypatch.setattr("densebatch.workers.cluster.write_probe", lambda folder: folder / "none")
    cluster.scale(1)
    with pytest.raises(InputError, match="does not see the output folder"):
        segment(slide, tmp_path / "out", membrane=("CD3",), model="dense-tiny",
                scheduler_address=cluster.scheduler_address)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_finished_run_needs_no_scheduler(slide, alone, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(alone, out)
    command = ("segment", slide, out, *OPTIONS, "--scheduler-address", "tcp://127.0.0.1:1")
    code, _, err = call_main(capsys, *command)
    assert code == 0, err
    assert "already complete" in err
    assert call_main(capsys, *command, "--restart")[0] == 2  # which needs one


def test_a_run_that_lacks_nothing_but_its_report_starts_no_workers(slide, tmp_path, monkeypatch):
    """Killed as it ended, for one."""
    options = {"membrane": ("CD3",), "model": "dense-tiny", "tile": 128, "keep_flows": True}
    first = segment(slide, tmp_path, workers=0, **options)
    (tmp_path / "run.json").unlink()
    calls = count_calls(monkeypatch, sys.modules["densebatch.workers.cluster"], "start_cluster")
    watcher = Watcher()
    again = segment(slide, tmp_path, workers=2, progress=watcher, **options)
    assert calls["start_cluster"] == 0
    assert again.cells == first.cells
    assert all(done == total for total, done in watcher.stages.values())


@pytest.mark.slow
def test_a_run_over_tls(slide, alone, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    ca, cert, key = make_certificates(tmp_path)
    tls = ("--tls-ca-file", ca, "--tls-cert", cert, "--tls-key", key)
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler(*tls, host="tls://127.0.0.1")
        processes.start_worker("--nthreads", 2, *tls)
        code, _, err = run_command(
            "segment", slide, tmp_path / "out", *OPTIONS, *tls,
            "--scheduler-address", processes.address,
        )  # fmt: skip
    assert code == 0, err
    assert "plain tcp" not in err
    assert_same_output(tmp_path / "out", output_bytes(alone))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "scheduler"])
def test_sigkill_on_a_cluster_and_the_same_command_again(slide, alone, tmp_path, victim):
    out = tmp_path / "out"
    with dask_processes(tmp_path) as processes:
        scheduler = processes.start_scheduler()
        worker = processes.start_worker("--no-nanny")
        command = ("segment", slide, out, *OPTIONS, "--scheduler-address", processes.address)
        running = start_command(*command, "--patience", 2, group_px=10_000)
        while not list(out.glob("work/*/journal/predict-*")):
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        processes.kill(worker if victim == "worker" else scheduler)
        _, err = running.communicate(timeout=120)
        assert running.returncode == 1, err
        assert "the same command continues" in err
        assert "Traceback" not in err
        processes.kill(worker)
        if victim == "scheduler":
            processes.start_scheduler(port=processes.address.rsplit(":", 1)[1])
        processes.start_worker("--no-nanny")
        code, _, err = run_command(*command, group_px=10_000)
        assert code == 0, err
        # the tasks are smaller than there, which the metadata tell
        (labels, table), (expected, cells) = read_result(out), read_result(alone)
        np.testing.assert_array_equal(labels, expected)
        for name, values in cells.items():
            np.testing.assert_array_equal(table[name], values)
        assert read_report(out)["tasks_kept"] > 0


@pytest.mark.slow
def test_a_task_that_outlives_its_killed_driver_does_not_reach_the_next_run(slide, tmp_path):
    """The worker does not know that nobody waits for it, and writes what the killed run meant."""
    out, other = tmp_path / "out", ("--membrane", "DAPI", *OPTIONS[2:])
    code, _, err = run_command("segment", slide, tmp_path / "clean", *other, "--workers", 0,
                               group_px=10_000)  # fmt: skip
    assert code == 0, err
    hook = write_holding_hook(tmp_path / "hook", "/flows.zarr/c/0/*")
    paths = os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        # Its other thread answers while one is held.
        processes.start_worker("--no-nanny", "--nthreads", 2, env={"PYTHONPATH": paths})
        to = ("--scheduler-address", processes.address)
        first = start_command("segment", slide, out, *OPTIONS, *to, group_px=10_000)
        wait_for(hook / "held", first)
        processes.kill(first)
        first.communicate()
        late = tasks_folder(out)
        processes.start_worker("--no-nanny")
        second = start_command("segment", slide, out, *other, *to, "--restart", group_px=10_000)
        deadline = time.monotonic() + 60
        while not list(out.glob("work/*/journal/predict-*")) or late.exists():
            assert second.poll() is None, second.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (hook / "go").touch()
        while not (late / "flows.zarr").exists() and second.poll() is None:
            time.sleep(0.01)
        was_late = second.poll() is None
        _, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert was_late
    assert_same_output(out, output_bytes(tmp_path / "clean"))
    assert not (out / "work").exists()


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to mount")
def test_a_run_of_a_read_only_installation_without_a_home(slide, alone, tmp_path):
    import densebatch

    root = densebatch.__path__[0]
    out = tmp_path / "out"
    script = (
        f"mount --bind {root} {root} && mount -o remount,ro,bind {root} || exit 99; "
        "export HOME=/proc/nowhere; unset XDG_CACHE_HOME NUMBA_CACHE_DIR; "
        f"exec {sys.executable} -m densebatch segment {slide} {out} "
        + " ".join(map(str, OPTIONS))
        + " --workers 1"
    )
    process = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=600
    )
    if process.returncode == 99 or "unshare" in process.stderr:
        pytest.skip("nothing can be mounted here")
    assert process.returncode == 0, process.stderr
    assert_same_output(out, output_bytes(alone))
