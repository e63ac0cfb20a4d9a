"""SIGKILL of the driver, a worker or the scheduler, at named points and at random moments.

On workers of this machine and on a scheduler of other people's.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from densebatch.run.segment import segment
from tests.helpers.dask_processes import dask_processes
from tests.helpers.die_at import POINTS, hooked, list_predicted, write_hook
from tests.helpers.run_files import (
    assert_same_output,
    list_workers,
    output_bytes,
    read_report,
    run_command,
    simulate,
    start_command,
    write_tiff,
)

GROUP_PX = 300
QUICK = [("driver", "keys.npy"), ("worker", "journal/trace-*")]
NOWHERE = "nothing is called so"
ALL = [(role, point) for role, points in POINTS.items() for point in points]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slide")
    path = write_tiff(folder / "a.ome.tif", simulate(200, 600, seed=2), ["CD3", "DAPI"])
    result = segment(path, folder / "clean", workers=0, membrane=("CD3",), tile=128)
    return path, output_bytes(folder / "clean"), result.report


def command(slide, out):
    return "segment", slide, out, "--membrane", "CD3", "--workers", 2, "--tile", 128


def wait_until(is_so):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(run, out, expected, clean, hook):
    """Continue a killed run; the network is not asked again for what it has answered."""
    n_before = len(list_predicted(hook))
    code, _, err = run_command(*run, group_px=GROUP_PX, env=hooked(hook))
    assert code == 0, err
    check_whole(out, expected, clean)
    check_predicted_once(hook, n_before)


def check_predicted_once(hook, n_before):
    names = list_predicted(hook)
    assert set(names[:n_before]).isdisjoint(names[n_before:])


def check_whole(out, expected, clean):
    report = read_report(out)
    assert report["tasks"] == clean["tasks"]
    assert report["network_patches"] == clean["network_patches"]
    assert_same_output(out, expected)
    assert not list(out.glob(".*.partial"))
    assert not (out / "work").exists()


def check_point(slide, tmp_path, role, point):
    path, expected, clean = slide
    out = tmp_path / "out"
    run = command(path, out)
    hook = write_hook(tmp_path / "hook", role, point)
    code, _, err = run_command(*run, group_px=GROUP_PX, env=hooked(hook))
    assert (hook / "there").exists()
    assert code == (-signal.SIGKILL if role == "driver" else 0), err
    if role == "driver":
        finish(run, out, expected, clean, hook)
    else:
        check_whole(out, expected, clean)
        assert len(set(list_predicted(hook))) == len(list_predicted(hook))


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
        run = command(path, out)
        hook = write_hook(tmp_path / f"hook-{k}", "driver", NOWHERE)
        process = start_command(*run, group_px=GROUP_PX, env=hooked(hook))
        wait_until(lambda out=out, process=process: out.exists() or process.poll() is not None)
        time.sleep(chosen.uniform(0, 3))
        victim = chosen.choice(["driver", "all", "worker"])
        if victim == "worker":
            with contextlib.suppress(psutil.Error, IndexError):
                chosen.choice(list_workers(process.pid)).kill()
            _, err = process.communicate(timeout=180)
            assert process.returncode == 0, err
            check_whole(out, expected, clean)
            continue
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if victim == "all" else os.kill)(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        finish(run, out, expected, clean, hook)


class Cluster:
    """A scheduler and two workers on loopback, which are replaced when the scheduler is lost.

    The hook kills the scheduler if it is to kill one.
    """

    def __init__(self, processes, hook, kills_scheduler):
        self.processes = processes
        self.hook = hook
        self.victim = hook / "victim" if kills_scheduler else None
        self.start()

    def start(self, port=0):
        self.scheduler = self.processes.start_scheduler(port=port, env=hooked(self.hook))
        if self.victim is not None:
            self.victim.write_text(str(self.scheduler.pid))
        self.workers = [self.processes.start_worker(env=hooked(self.hook)) for _ in range(2)]

    def wait_for(self, process):
        """Wait for a command; its exit code and what it said."""
        n_before = None
        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(process.communicate, timeout=240)
            while not ended.done():
                if self.scheduler.poll() is not None:
                    n_before = len(list_predicted(self.hook))
                    self.start(self.processes.address.rsplit(":", 1)[1])
                time.sleep(0.05)
            _, err = ended.result()
        if n_before is not None:
            check_predicted_once(self.hook, n_before)
        assert "Traceback" not in err
        return process.returncode, err


ON_A_SCHEDULER = [
    *[(role, role, point) for role, point in ALL],
    *[("scheduler", role, point) for role, point in ALL],
]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "role", "point"), ON_A_SCHEDULER)
def test_a_kill_at_every_named_point_on_a_scheduler(slide, tmp_path, victim, role, point):
    path, expected, clean = slide
    out = tmp_path / "out"
    hook = write_hook(tmp_path / "hook", role, point)
    with dask_processes(tmp_path) as processes:
        cluster = Cluster(processes, hook, victim == "scheduler")
        run = (*command(path, out), "--scheduler-address", processes.address)
        process = start_command(*run, group_px=GROUP_PX, env=hooked(hook))
        code, err = cluster.wait_for(process)
        assert (hook / "there").exists()
        assert code == (-signal.SIGKILL if victim == "driver" else 0), err
        if victim == "driver":
            finish(run, out, expected, clean, hook)
        else:
            check_whole(out, expected, clean)
        if victim == "worker":
            assert len(set(list_predicted(hook))) == len(list_predicted(hook))


@pytest.mark.slow
def test_kills_at_random_moments_on_a_scheduler(slide, tmp_path):
    """Thirty of them: of the driver, of the scheduler, and of a worker."""
    path, expected, clean = slide
    chosen = random.Random(23)
    hook = write_hook(tmp_path / "hook", "driver", NOWHERE)
    with dask_processes(tmp_path) as processes:
        cluster = Cluster(processes, hook, kills_scheduler=False)
        for k in range(30):
            out = tmp_path / str(k)
            (hook / "predicted").unlink(missing_ok=True)
            run = (*command(path, out), "--scheduler-address", processes.address)
            process = start_command(*run, group_px=GROUP_PX, env=hooked(hook))
            wait_until(lambda out=out, process=process: out.exists() or process.poll() is not None)
            time.sleep(chosen.uniform(0, 3))
            victim = chosen.choice(["driver", "scheduler", "worker"])
            if victim == "driver":
                process.kill()
            elif victim == "scheduler":
                processes.kill(cluster.scheduler)
            else:
                for child in psutil.Process(chosen.choice(cluster.workers).pid).children():
                    child.kill()  # which its nanny replaces
            code, err = cluster.wait_for(process)
            if code == -signal.SIGKILL:
                finish(run, out, expected, clean, hook)
            else:
                assert code == 0, err
                check_whole(out, expected, clean)
