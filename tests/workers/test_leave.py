"""Workers that are told to go, as by a batch system: tasks are finished or given back, unblamed."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from densebatch.workers.cluster import open_executor
from densebatch.workers.schedule import Job
from densebatch.workers.scheduler import Scheduler
from tests.helpers import executor_jobs
from tests.helpers.dask_processes import dask_processes
from tests.helpers.job_sets import results, run, squares

LEAVE = ("--preload", "densebatch.workers.leave", "--preload-nanny", "densebatch.workers.leave")


def await_calls(folder, name, number):
    deadline = time.monotonic() + 60
    while not (folder / name).exists() or len(list((folder / name).iterdir())) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_sigterm_lets_a_worker_finish_and_give_back(tmp_path, nanny):
    """What it does is done once; what waits at it goes to the next worker; it ends by itself."""
    calls = tmp_path / "calls"
    calls.mkdir()
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        told = processes.start_worker(nanny, *LEAVE)
        with open_executor(0, Scheduler(processes.address, patience_s=60)) as executor:
            threading.Thread(
                target=lambda: (
                    await_calls(calls, "s0", 1),
                    told.send_signal(signal.SIGTERM),
                    processes.start_worker(),
                )
            ).start()
            assert results(run(executor, squares(calls, 3, 3.0))) == {"s0": 0, "s1": 1, "s2": 4}
            retired = executor.pool.retired
        assert told.wait(30) == 0
    assert executor_jobs.count_calls(calls) == {"s0": 1, "s1": 1, "s2": 1}
    assert len(retired) == 1


@pytest.mark.slow
def test_a_task_is_not_blamed_for_workers_that_were_told_to_go(tmp_path):
    """It outlasts five of them, where it would be given up had it killed them."""
    calls = tmp_path / "calls"
    calls.mkdir()
    job = Job("long", executor_jobs.wait_for_call, (str(calls), "long", 6))
    with dask_processes(tmp_path) as processes:
        processes.start_scheduler()
        running = [processes.start_worker("--no-nanny")]

        def replace(executor):
            for number in range(1, 6):
                await_calls(calls, "long", number)
                # Not while the only worker has a result that nobody has fetched.
                while not executor.client.retire_workers(executor.pool.able, close_workers=False):
                    time.sleep(0.1)
                processes.kill(running.pop())
                running.append(processes.start_worker("--no-nanny"))

        with open_executor(0, Scheduler(processes.address, patience_s=60)) as executor:
            threading.Thread(target=replace, args=(executor,)).start()
            assert results(run(executor, [job])) == {"long": 6}
