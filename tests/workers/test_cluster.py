"""Executors are opened and closed, and how worker processes are set up."""

import contextlib
import copy
import functools
import json
import logging
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import version

import dask.config
import distributed  # noqa: F401  it brings Dask's settings for workers
import psutil
import pytest

from densebatch.base.errors import DensebatchError, InputError
from densebatch.workers import local
from densebatch.workers.check import Requirements
from densebatch.workers.cluster import ask_worker, open_executor
from densebatch.workers.executors import DaskExecutor, SerialExecutor
from densebatch.workers.schedule import Job
from densebatch.workers.scheduler import Scheduler
from tests.helpers import executor_jobs
from tests.helpers.job_sets import N_WORKERS, events, results, run, squares
from tests.helpers.run_files import list_workers, simulate, start_command, write_tiff


def test_no_workers_is_this_process():
    with open_executor(0) as executor:
        assert isinstance(executor, SerialExecutor)
        assert executor.workers == 0


@pytest.mark.parametrize("by", ["address", "file"])
def test_running_scheduler_is_used(dask_executor, tmp_path, by):
    address = dask_executor.client.scheduler.address
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": address}))
    scheduler = Scheduler(address) if by == "address" else Scheduler(file=file)
    with open_executor(0, scheduler) as executor:
        assert isinstance(executor, DaskExecutor)
        assert executor.workers == N_WORKERS
        assert executor.client is not dask_executor.client
        assert results(run(executor, squares(tmp_path, 3))) == {"s0": 0, "s1": 1, "s2": 4}
    # it was not ours to close
    assert results(run(dask_executor, squares(tmp_path, 2))) == {"s0": 0, "s1": 1}


def test_scheduler_file_that_is_written_later(dask_executor, tmp_path):
    file = tmp_path / "scheduler.json"
    text = json.dumps({"address": dask_executor.client.scheduler.address})
    writer = threading.Timer(0.4, file.write_text, [text])
    writer.start()
    try:
        with open_executor(0, Scheduler(file=file)) as executor:
            assert executor.workers == N_WORKERS
    finally:
        writer.join()


def test_scheduler_that_does_not_answer():
    with (
        pytest.raises(InputError, match=r"^scheduler tcp://127\.0\.0\.1:1: nobody answers \("),
        open_executor(0, Scheduler("tcp://127.0.0.1:1")),
    ):
        pytest.fail("there is no scheduler")


def test_nothing_listens_to_the_network(dask_executor):
    """Whoever can reach a scheduler can run code with it."""
    this = psutil.Process()
    listening = [
        connection.laddr.ip
        for process in (this, *this.children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > N_WORKERS
    assert set(listening) == {"127.0.0.1"}


def test_some_workers_have_the_device(tmp_path, monkeypatch):
    """They get all that is for it, and nobody else does; one that is killed has a successor."""
    folder = str(tmp_path)
    jobs = [
        Job(
            f"d{k}",
            executor_jobs.name_worker,
            (folder, f"d{k}", 1 * (k == 5)),
            rank=1,
            on_device=True,
        )
        for k in range(12)
    ]
    jobs += [
        Job(f"o{k}", executor_jobs.name_worker, (folder, f"o{k}", 0, 0.2), (f"d{k}",))
        for k in range(12)
    ]
    monkeypatch.setenv("DENSEBATCH_TEST_FOLDER", folder)
    with open_executor(3, device_workers=1) as executor:
        executor.wake(executor_jobs.wake)
        found = results(run(executor, jobs))
        names = {result[0] for name, result in found.items() if name.startswith("d")}
        assert names == {"0"}
        pids = {result[1] for name, result in found.items() if name.startswith("d")}
        assert len(pids) == 2  # one died
        assert len({result[0] for name, result in found.items() if name.startswith("o")}) > 1
    woken = {name for name in executor_jobs.count_calls(folder) if name.startswith("woken")}
    assert woken == {"woken-0"}


def test_workers_without_the_device_stand_in_when_all_others_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_NO_WORKERS_S", 1.0)
    jobs = [
        Job(f"d{k}", executor_jobs.name_worker, (str(tmp_path), f"d{k}", 0), on_device=True)
        for k in range(6)
    ]
    with open_executor(2, device_workers=1) as executor:
        cluster = executor.client.cluster
        cluster.sync(cluster.workers[0].close)
        found = results(run(executor, jobs))
    assert {name for name, _ in found.values()} == {"1"}


def test_all_workers_of_this_machine_are_lost_for_good(tmp_path, monkeypatch):
    """No job is to blame, so none is given up."""
    monkeypatch.setattr(local, "_NO_WORKERS_S", 1.0)
    with open_executor(1) as executor:
        cluster = executor.client.cluster
        cluster.sync(cluster.workers[0].close)
        with pytest.raises(DensebatchError, match="all workers of this machine are lost and none"):
            list(executor.run(squares(tmp_path, 3)))
    assert executor_jobs.count_calls(tmp_path) == {}


def test_one_worker_of_a_running_scheduler_is_asked(dask_executor, tmp_path):
    scheduler = Scheduler(dask_executor.client.scheduler.address)
    ask = functools.partial(ask_worker, scheduler, Requirements())
    assert ask(os.getpid) in dask_executor.client.run(os.getpid).values()
    with pytest.raises(InputError, match=rf"^scheduler {scheduler}: cannot be used \(.*nowhere"):
        ask(os.stat, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="invalid literal"):
        ask(int, "x")


def test_a_worker_that_is_killed_as_it_starts_is_started_again(caplog):
    caplog.set_level(logging.INFO, logger="densebatch")
    with killed_as_they_start(1), open_executor(1) as executor:
        assert results(run(executor, [Job("pid", os.getpid, ())]))["pid"] != os.getpid()
    told = [record.event for record in events(caplog)]
    assert told[:2] == ["workers started again", "executor opened"]


def test_workers_that_are_killed_whenever_they_start_are_given_up():
    told = (
        "1 workers could not be started in 3 attempts: one was killed each time as it started "
        "(by SIGKILL; "
    )
    with (
        killed_as_they_start(3) as killed,
        pytest.raises(DensebatchError, match=f"^{re.escape(told)}"),
        open_executor(1),
    ):
        pytest.fail("nobody lives")
    assert len(killed) == 3


@contextlib.contextmanager
def killed_as_they_start(times):
    """So many of the next worker processes of this one are killed as soon as they appear."""
    killed = []
    others = {worker.pid for worker in list_workers(os.getpid())}
    ended = threading.Event()

    def kill():
        while not ended.is_set() and len(killed) < times:
            for worker in list_workers(os.getpid()):
                if worker.pid not in others | set(killed):
                    worker.kill()
                    killed.append(worker.pid)
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


def test_a_script_without_its_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from densebatch.workers.cluster import open_executor\n"
        "with open_executor(1) as executor:\n    print('never')\n"
    )
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert process.returncode == 1
    assert process.stdout == ""
    assert 'a script calls segment under `if __name__ == "__main__":`' in process.stderr


def test_a_daemon_may_have_no_workers():
    """As in multiprocessing.Pool, and within a Dask task."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ((may, told),) = pool.map(executor_jobs.ask_daemon, [0])
    assert not may
    assert told.startswith("2 workers: this process is a daemon, as those of multiprocessing.Pool")
    with open_executor(1) as executor:
        (outcome,) = run(executor, [Job("ask", executor_jobs.ask_daemon, (0,))])
    assert outcome.result == (False, told)
    assert executor_jobs.ask_daemon(0) == (True, None)


def test_openings_and_closings_are_told(caplog):
    caplog.set_level(logging.INFO, logger="densebatch")
    with open_executor(1) as executor:
        address = executor.client.cluster.scheduler_address
        with open_executor(0, Scheduler(address)), open_executor(0):
            pass
    told = [
        (record.event, record.fields["scheduler"], record.fields["workers"])
        for record in events(caplog)
    ]
    opened = [(None, 1), (address, 1), (None, 0)]
    assert told[:3] == [("executor opened", *facts) for facts in opened]
    assert told[3:] == [("executor closed", *facts) for facts in reversed(opened)]


def test_workers_have_one_thread_and_the_caller_keeps_its_own_settings(monkeypatch):
    """Of its environment, of multiprocessing, of Dask and of signals."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)

    def look():
        return (
            dict(os.environ),
            multiprocessing.get_start_method(allow_none=True),
            copy.deepcopy([dask.config.get(f"distributed.{part}") for part in ("worker", "nanny")]),
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        )

    before = look()
    with open_executor(1) as executor:
        job = Job("threads", eval, ("__import__('torch').get_num_threads()",))
        assert results(run(executor, [job])) == {"threads": 1}
    assert look() == before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc's malloc")
def test_workers_keep_the_memory_that_they_free(dask_executor):
    """Dask has them return it, and then each of the arrays asks for its pages anew."""
    pages = 50 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    jobs = [Job(f"j{i}", executor_jobs.count_page_faults, (50,)) for i in range(8)]
    counted = results(run(dask_executor, jobs)).values()
    assert max(counted) < 0.1 * pages


# As a user's program: worker processes have this as their main module.
_PROGRAM = """
import json, os, sys
import psutil
from densebatch.workers.cluster import open_executor
from densebatch.workers.schedule import Job

def ask(executor, *expressions):
    jobs = [Job(str(k), eval, (text,)) for k, text in enumerate(expressions)]
    found = {outcome.job.name: outcome for outcome in executor.run(jobs)}
    assert not any(outcome.error for outcome in found.values()), found
    return [found[str(k)].result for k in range(len(expressions))]

if __name__ == "__main__":
"""


def run_program(folder, code, returncode=0):
    """What a program prints as JSON; it lies and runs in a folder of its own."""
    script = folder / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(_PROGRAM + textwrap.indent(code, "    "))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    process = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, cwd=folder, env=env
    )
    assert process.returncode == returncode, process.stderr
    return json.loads(process.stdout)


def await_end(pids):
    """Wait until none of the processes lives."""
    assert pids
    deadline = time.monotonic() + 60
    while any(map(_lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, pids))


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_runs_on_after_a_program(tmp_path):
    pids = run_program(tmp_path, """
with open_executor(2) as executor:
    ask(executor, "0")
    print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]))
""")  # fmt: skip
    assert len(pids) >= 2
    await_end(pids)


def test_workers_end_with_a_program_that_was_killed(tmp_path):
    pids = run_program(tmp_path, """
with open_executor(2) as executor:
    ask(executor, "0")
    print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]))
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
""", -signal.SIGKILL)  # fmt: skip
    assert len(pids) >= 2
    await_end(pids)


def test_a_killed_worker_is_replaced_and_none_imports_from_the_current_folder(tmp_path):
    (tmp_path / "zarr.py").write_text("raise SystemExit('not to be imported')")
    first, second, before, after = run_program(tmp_path, """
import signal, time
asked = ("__import__('os').getpid()", "__import__('zarr').__file__")
with open_executor(1) as executor:
    before, first = ask(executor, *asked)
    os.kill(before, signal.SIGKILL)
    while psutil.pid_exists(before):
        time.sleep(0.01)
    after, second = ask(executor, *asked)
print(json.dumps([first, second, before, after]))
""")  # fmt: skip
    assert before != after
    assert not any(path.startswith(str(tmp_path)) for path in (first, second))


def test_workers_import_nothing_that_takes_long_and_is_not_needed(tmp_path):
    (loaded,) = run_program(tmp_path, """
modules = ("stages.predict", "stages.trace", "stages.number", "engines.pytorch")
with open_executor(1) as executor:
    ask(executor, *(f"__import__('densebatch.{module}') and 0" for module in modules))
    print(json.dumps(ask(executor, "sorted(__import__('sys').modules)")))
""")  # fmt: skip
    assert {"torch", "numba", "zarr", "densebatch.stages.trace"} <= set(loaded)
    assert not {"densebatch.run.segment", "pandas", "pyarrow", "sympy"} & set(loaded)


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="is there a GPU? torch knows")
def test_the_main_process_leaves_what_takes_long_to_import_to_workers(tmp_path):
    loaded = run_program(tmp_path, """
from pathlib import Path
from densebatch.studies.demo import run_demo
run_demo(Path("demo"), size_px=256, seed=0, workers=1)
print(json.dumps(sorted(sys.modules)))
""")  # fmt: skip
    assert "densebatch.run.segment" in loaded
    assert not {"torch", "pandas", "sympy"} & set(loaded)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked")
def test_ctrl_c_while_workers_start_ends_a_command_in_one_sentence(tmp_path):
    """A terminal sends it to all processes of the command, and these have just been started."""
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(200, 260), ["CD3", "DAPI"])
    arguments = ("segment", slide, tmp_path / "out", "--membrane", "CD3", "--workers", 2)
    process = start_command(*arguments, group_px=300)
    deadline = time.monotonic() + 120
    workers = []
    while len(workers) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        workers = list_workers(process.pid)
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130, err
    assert err.split("\n", 1)[1] == "interrupted; the same command continues the run\n"
    await_end([worker.pid for worker in workers])
