"""Workers that come late, pause, die or never come: nothing waits for ever, or silently."""

from __future__ import annotations

import functools
import os
import threading
import time

import pytest
from distributed import LocalCluster

from densebatch.base.errors import DensebatchError, InputError
from densebatch.workers import connect
from densebatch.workers import pool as pool_module
from densebatch.workers.check import Requirements
from densebatch.workers.cluster import ask_worker, check_workers, open_executor
from densebatch.workers.schedule import Job
from densebatch.workers.scheduler import Scheduler
from tests.helpers import executor_jobs
from tests.helpers.dask_processes import dask_processes
from tests.helpers.job_sets import errors, results, run, squares


@pytest.fixture
def cluster():
    """A running cluster of other people's, so far without a worker."""
    with LocalCluster(
        n_workers=0, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as running:
        yield running


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(pool_module, "_TELL_S", 0.1)
    return []


def patient(address, seconds):
    return Scheduler(address, patience_s=seconds)


def test_no_worker_has_joined(cluster, told):
    scheduler = patient(cluster.scheduler_address, 1.0)
    check_workers(scheduler, Requirements(), told.append)  # some may yet come
    with (
        pytest.raises(DensebatchError, match=r"no worker has joined it, for 1 s; the same command"),
        open_executor(0, scheduler, note=told.append),
    ):
        pytest.fail("there is no worker")
    assert told == [f"scheduler {scheduler}: no worker has joined it; waiting for up to 1 s"]
    with pytest.raises(DensebatchError) as error:
        ask_worker(scheduler, Requirements(), os.getpid)
    assert error.value.exit_code == 1


def test_a_worker_that_joins_late_is_waited_for(cluster, told, tmp_path):
    joining = threading.Timer(1.0, cluster.scale, [1])
    joining.start()
    scheduler = patient(cluster.scheduler_address, 60)
    with open_executor(0, scheduler, note=told.append) as executor:
        assert results(run(executor, squares(tmp_path, 3))) == {"s0": 0, "s1": 1, "s2": 4}
    joining.join()


def test_a_worker_that_hangs_is_asked_once(cluster, told, tmp_path, monkeypatch):
    """The other works meanwhile, and no threads pile up that wait for an answer."""
    monkeypatch.setattr(pool_module, "_CHECK_S", 0.5)
    monkeypatch.setattr(pool_module, "_AGAIN_S", 0.1)
    cluster.scale(2)
    cluster.wait_for_workers(2)
    released, asked, ask = threading.Event(), [], pool_module.ask

    def ask_or_hang(client, address, *needs):
        asked.append(address)
        if address == asked[0]:
            released.wait(60)
        return ask(client, address, *needs)

    monkeypatch.setattr(pool_module, "ask", ask_or_hang)
    scheduler = patient(cluster.scheduler_address, 60)
    needs = Requirements()
    try:
        with open_executor(0, scheduler, note=told.append, requirements=needs) as executor:
            assert len(results(run(executor, squares(tmp_path, 40, 0.1)))) == 40
            assert asked.count(asked[0]) == 1
    finally:
        released.set()
    assert any("did not answer" in note for note in told)


def test_a_cluster_that_starts_workers_when_there_are_tasks(cluster, tmp_path):
    cluster.adapt(minimum=0, maximum=1, interval="500ms")
    scheduler = patient(cluster.scheduler_address, 60)
    assert ask_worker(scheduler, Requirements(), os.getpid) != os.getpid()
    with open_executor(0, scheduler) as executor:
        assert results(run(executor, squares(tmp_path, 3))) == {"s0": 0, "s1": 1, "s2": 4}


def test_all_workers_are_lost_and_one_comes_back(cluster, told, tmp_path):
    cluster.scale(1)
    scheduler = patient(cluster.scheduler_address, 60)
    with open_executor(0, scheduler, note=told.append) as executor:
        outcomes = executor.run(squares(tmp_path, 8, 0.2))
        first = next(outcomes)
        cluster.scale(0)
        threading.Timer(3.0, cluster.scale, [1]).start()
        found = results([first, *outcomes])
    assert found == {f"s{k}": k**2 for k in range(8)}
    assert f"scheduler {scheduler}: all its workers are lost; waiting for up to 60 s" in told


def test_all_workers_are_lost_for_good(cluster, tmp_path):
    cluster.scale(1)
    with open_executor(0, patient(cluster.scheduler_address, 1.5)) as executor:
        outcomes = executor.run(squares(tmp_path, 8, 0.2))
        next(outcomes)
        cluster.scale(0)
        with pytest.raises(DensebatchError, match="all its workers are lost, for 2 s; the same"):
            list(outcomes)


@pytest.mark.slow
def test_a_job_that_takes_its_workers_along_ends_the_run_in_words(tmp_path):
    """Of workers that nobody starts again; what else there was to do is done."""
    calls = tmp_path / "calls"
    calls.mkdir()
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        for _ in range(2):
            processes.start_worker("--no-nanny")
        others = squares(calls, 4)
        needs = tuple(job.name for job in others)
        jobs = [*others, Job("kills", executor_jobs.die, (str(calls), "kills", 99), needs)]
        with open_executor(0, patient(processes.address, 1.0)) as executor:
            while len(executor.pool.able) < 2:
                time.sleep(0.05)
                executor.pool.look()
            found = []
            with pytest.raises(DensebatchError, match="all its workers are lost"):
                found.extend(executor.run(jobs))
    assert executor_jobs.count_calls(calls) == {"kills": 2} | {f"s{k}": 1 for k in range(4)}


@pytest.mark.slow
def test_a_job_that_always_takes_its_worker_along_is_given_up(cluster, tmp_path):
    """Where a lost worker has a successor, at another address."""
    cluster.scale(1)
    jobs = [
        Job("kills", executor_jobs.die, (str(tmp_path), "kills", 99)),
        *squares(tmp_path, 6),
    ]
    with open_executor(0, patient(cluster.scheduler_address, 60)) as executor:
        outcomes = run(executor, jobs)
    assert errors(outcomes) == {"kills": "its worker was lost while it did nothing else"}
    calls = executor_jobs.count_calls(tmp_path)
    assert calls.pop("kills") == 5
    assert set(calls) == {f"s{k}" for k in range(6)}


def test_workers_that_are_paused_for_their_memory(tmp_path, told):
    """Their memory is beyond the limit before the first task; no estimate is known here."""
    calls = tmp_path / "calls"
    calls.mkdir()
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        processes.start_worker("--no-nanny", "--memory-limit", "40MB")
        scheduler = patient(processes.address, 6.0)
        with (
            pytest.raises(DensebatchError, match=r"paused, because they hold more memory than"),
            open_executor(0, scheduler, note=told.append) as executor,
        ):
            list(executor.run(squares(calls, 100, 0.2)))
    assert any("limit of 40 MB lets them; waiting for up to 6 s" in text for text in told)


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [True, False])
def test_the_scheduler_is_gone(tmp_path, told, monkeypatch, comes_back):
    if not comes_back:
        for module in (connect, pool_module):
            monkeypatch.setattr(module, "GONE_S", 2.0)
    calls = tmp_path / "calls"
    calls.mkdir()
    with dask_processes(tmp_path) as processes:
        first = processes.start_scheduler()
        processes.start_worker()
        gone = f"scheduler {processes.address}: is gone; waiting "
        port = processes.address.rsplit(":", 1)[1]

        def note(text):
            told.append(text)
            if comes_back and text.startswith(gone):
                processes.start_scheduler(port=port)
                processes.start_worker()

        with open_executor(0, patient(processes.address, 60), note=note) as executor:
            outcomes = executor.run(squares(calls, 30, 0.1))
            found = [next(outcomes)]
            processes.kill(first)
            if comes_back:
                assert results([*found, *outcomes]) == {f"s{k}": k**2 for k in range(30)}
            else:
                with pytest.raises(DensebatchError, match="the same command continues when it"):
                    list(outcomes)
    assert any(text.startswith(gone) for text in told)


@pytest.mark.slow
def test_the_scheduler_is_gone_while_every_job_is_under_way(tmp_path, told, monkeypatch):
    """Several times, more often than a job that fails is tried: it is to blame for none."""
    calls = tmp_path / "calls"
    calls.mkdir()
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.1)
    with dask_processes(tmp_path) as processes:
        schedulers = [processes.start_scheduler()]
        processes.start_worker()
        port = processes.address.rsplit(":", 1)[1]

        def note(text):
            told.append(text)
            if "is gone; waiting" in text:
                schedulers.append(processes.start_scheduler(port=port))
                processes.start_worker()

        def kill_when_called():
            for times in range(1, 6):
                while executor_jobs.count_calls(calls).get("waits", 0) < times:
                    time.sleep(0.02)
                processes.kill(schedulers[-1])

        with open_executor(0, patient(processes.address, 60), note=note) as executor:
            killer = threading.Thread(target=kill_when_called, daemon=True)
            killer.start()
            job = Job("waits", executor_jobs.wait_for_call, (str(calls), "waits", 6))
            assert results(run(executor, [job])) == {"waits": 6}
            killer.join()


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_scheduler_that_is_gone_before_its_first_job(tmp_path, monkeypatch, comes_back):
    """But has answered, so it is waited for."""
    monkeypatch.setattr(connect, "GONE_S", 60.0 if comes_back else 1.0)
    told = []
    with dask_processes(tmp_path) as processes:
        processes.kill(processes.start_scheduler())
        scheduler = patient(processes.address, 60)

        def note(text):
            told.append(text)
            if comes_back and "is gone" in text:
                processes.start_scheduler(port=processes.address.rsplit(":", 1)[1])
                processes.start_worker()

        with pytest.raises(InputError, match="nobody answers"):
            ask_worker(scheduler, Requirements(), os.getpid, note=note)
        assert told == []
        asking = functools.partial(
            ask_worker, scheduler, Requirements(), os.getpid, note=note, returning=True
        )
        if comes_back:
            assert asking() != os.getpid()
        else:
            with pytest.raises(DensebatchError, match="is gone and did not come back within 1 s"):
                asking()
    assert told[0].startswith(f"scheduler {scheduler}: is gone; waiting ")
