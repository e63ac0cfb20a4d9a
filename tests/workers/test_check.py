"""What each worker of a running scheduler must have, asked of real workers."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from dataclasses import replace

import pytest

from densebatch.base.errors import InputError
from densebatch.workers import pool as pool_module
from densebatch.workers.check import Requirements, SharedFile, write_probe
from densebatch.workers.cluster import ask_worker, check_workers, open_executor
from densebatch.workers.schedule import Job
from densebatch.workers.scheduler import Scheduler
from tests.helpers import executor_jobs
from tests.helpers.dask_processes import copy_package, dask_processes, without_densebatch
from tests.helpers.job_sets import results, run


@pytest.fixture
def scheduler(dask_executor):
    return Scheduler(dask_executor.client.scheduler.address)


@pytest.fixture
def hurried(monkeypatch):
    """Workers that lack something are not given time to see it after all."""
    monkeypatch.setattr(pool_module, "_UNABLE_S", 0.1)
    monkeypatch.setattr(pool_module, "_UNABLE_YET_S", 0.1)


def shared(path, **changed):
    file = SharedFile.look(path, "the slide")
    return replace(file, **changed)


CASES = {
    "version": (
        lambda path: Requirements({"numpy": "0.1"}),
        f"has numpy {importlib.metadata.version('numpy')} and this process 0.1",
    ),
    "package": (lambda path: Requirements({"no-such": "1"}), "lacks the package no-such"),
    "file": (
        lambda path: Requirements(files=(replace(shared(path), path="/nowhere/a.tif"),)),
        "does not see the slide /nowhere/a.tif (No such file or directory)",
    ),
    "size": (
        lambda path: Requirements(files=(shared(path, size=4),)),
        "a.tif (size 3, here 4)",
    ),
    "time": (
        lambda path: Requirements(files=(shared(path, mtime_s=path.stat().st_mtime - 60),)),
        "a.tif (changed 60 s apart from the one here; a copy has to keep the time, as by cp -p)",
    ),
    "folder": (
        lambda path: Requirements(probe="/nowhere/.probe"),
        "does not see the output folder /nowhere as this process does",
    ),
    "device": (
        lambda path: Requirements(questions=((executor_jobs.refuse, ()),)),
        "device cuda: this process sees none",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("hurried")
def test_workers_that_lack_something_are_refused(scheduler, tmp_path, case):
    path = tmp_path / "a.tif"
    path.write_bytes(b"abc")
    make, words = CASES[case]
    needs = make(path)
    with pytest.raises(InputError) as told:
        check_workers(scheduler, needs)
    assert str(told.value).startswith(f"scheduler {scheduler}: worker ")
    assert words in str(told.value)
    assert str(told.value).endswith("(none of 2 workers can work)")
    with pytest.raises(InputError), open_executor(0, scheduler, needs):
        pytest.fail("no worker can work")
    with pytest.raises(InputError):
        ask_worker(scheduler, needs, os.getpid)


def test_workers_that_have_all_of_it_are_taken(scheduler, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"abc")
    needs = Requirements(
        {"numpy": importlib.metadata.version("numpy")}, (shared(path), shared(tmp_path)),
        ((int, ("3",)),), 400, 100, "to trace",
    )  # fmt: skip
    check_workers(scheduler, needs)
    with open_executor(0, scheduler, needs, folder=tmp_path / "work") as executor:
        assert executor.workers == 2
        assert list((tmp_path / "work").glob(".probe-*")) != []
    assert list((tmp_path / "work").iterdir()) == []


def test_a_worker_may_see_late_what_another_machine_wrote(scheduler, tmp_path, monkeypatch):
    """As on a network file system; it is asked again."""
    monkeypatch.setattr(pool_module, "_AGAIN_S", 0.1)
    path = tmp_path / "a.tif"
    path.write_bytes(b"abc")
    needs = Requirements(files=(shared(path),))
    path.rename(tmp_path / "hidden")

    showing = threading.Timer(0.5, (tmp_path / "hidden").rename, [path])
    showing.start()
    check_workers(scheduler, needs)
    assert path.exists()
    showing.join()


@pytest.mark.usefixtures("hurried")
def test_those_that_can_work_do_it_all_and_the_others_are_told_of(scheduler, tmp_path):
    told = []
    needs = Requirements(questions=((executor_jobs.refuse_first, (str(tmp_path),)),))
    with open_executor(0, scheduler, needs, note=told.append) as executor:
        assert executor.workers == 1
        pids = set(
            results(run(executor, [Job(f"p{k}", os.getpid, ()) for k in range(12)])).values()
        )
    assert len(pids) == 1
    assert str(pids.pop()) != (tmp_path / "first").read_text()
    assert len(told) == 1
    assert told[0].startswith("worker ")
    assert told[0].endswith(" takes no part: device cuda: this process sees none")


def test_a_probe_is_a_file_that_holds_its_name(tmp_path):
    probe = write_probe(tmp_path)
    assert probe.read_text() == probe.name


@pytest.mark.usefixtures("hurried")
def test_a_worker_without_densebatch_or_with_another_release(tmp_path):
    """One is told as such, not taken down by its first task; the other gets none."""
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        scheduler = Scheduler(processes.address)
        bare = processes.start_worker(before=without_densebatch(tmp_path / "packages"))
        with pytest.raises(InputError, match=r"cannot import densebatch, which is not installed"):
            ask_worker(scheduler, Requirements(), os.getpid)
        assert bare.poll() is None
        processes.kill(bare)
        here = importlib.metadata.version("densebatch")
        other = tmp_path / "other"
        other.mkdir()
        old = processes.start_worker(env=copy_package(other, "0.0.9"))
        with pytest.raises(InputError, match=rf"has densebatch 0\.0\.9 and this process {here}$"):
            ask_worker(scheduler, Requirements(), os.getpid)
        processes.kill(old)
        same = tmp_path / "same"
        same.mkdir()
        changed = copy_package(same, here)
        (same / "densebatch/new.py").touch()
        processes.start_worker(env=changed)
        with pytest.raises(InputError, match=rf"other code .* both are densebatch {here}$"):
            ask_worker(scheduler, Requirements(), os.getpid)


@pytest.mark.usefixtures("hurried")
def test_a_scheduler_without_densebatch(tmp_path):
    """It has to read what it hands on, or every task would fail."""
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler(before=without_densebatch(tmp_path / "packages"))
        processes.start_worker()
        with pytest.raises(InputError, match=(
            r"has a scheduler that cannot import densebatch \(.*No module named 'densebatch'.*\); "
            "install it where the scheduler runs too"
        )):  # fmt: skip
            ask_worker(Scheduler(processes.address), Requirements(), os.getpid)


@pytest.mark.usefixtures("hurried")
def test_a_memory_limit_below_what_a_task_takes(tmp_path):
    needs = Requirements(process_mb=400, task_mb=300, task="trace a window")
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        scheduler = Scheduler(processes.address)
        worker = processes.start_worker("--memory-limit", "800MB")
        with pytest.raises(InputError, match=(
            r"may use 80% of its memory limit of 800 MB, and a task may need 700 MB \(to trace a "
            r"window\); start it with a larger --memory-limit or fewer --nthreads"
        )):  # fmt: skip
            ask_worker(scheduler, needs, os.getpid)
        processes.kill(worker)
        # two tasks at once take twice as much, of which the interpreter is no part
        worker = processes.start_worker("--memory-limit", "1200MB", "--nthreads", 2)
        with pytest.raises(InputError, match=r"of 1200 MB, and 2 threads may need 1000 MB"):
            ask_worker(scheduler, needs, os.getpid)
        processes.kill(worker)
        processes.start_worker("--memory-limit", "1300MB", "--nthreads", 2)
        assert ask_worker(scheduler, needs, os.getpid) > 0
