"""Workers come from one process that has imported everything, and nothing of the user's is lost."""

import os
import subprocess
import sys
import time
from importlib.metadata import version

import psutil
import pytest

from densebatch.executor import Job, open_executor
from densebatch.fork_server import start_fork_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork servers are for Linux")


def _ask(*expressions, workers=1):
    """Values of expressions in worker processes."""
    with open_executor(workers, None, None) as executor:
        jobs = [Job(str(k), eval, (text,)) for k, text in enumerate(expressions)]
        outcomes = {outcome.job.name: outcome for outcome in executor.run(jobs)}
    assert not any(outcome.error for outcome in outcomes.values())
    return [outcomes[str(k)].result for k in range(len(expressions))]


def test_workers_of_all_runs_are_forked_from_one_process_without_threads():
    parent = "__import__('os').getppid()"
    (first,), (second,) = _ask(parent), _ask(parent)
    server = psutil.Process(first)
    assert first == second
    assert server.ppid() == os.getpid()
    assert server.num_threads() == 1


def test_workers_find_everything_imported():
    (loaded,) = _ask("sorted(__import__('sys').modules)")
    assert {"torch", "numba", "zarr", "densebatch.tracing", "densebatch.numbering"} <= set(loaded)
    assert "densebatch.pipeline" not in loaded  # nor what only the main process needs
    (kernels,) = _ask("len(__import__('densebatch.dynamics').dynamics._check.signatures)")
    assert kernels == 1


_SEGMENT = """
import sys
from pathlib import Path
from densebatch.demo import run_demo
if __name__ == "__main__":
    run_demo(Path("demo"), size_px=256, seed=0, workers=1)
    print("torch" in sys.modules, "pandas" in sys.modules)
"""


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="is there a GPU? torch knows")
def test_the_main_process_leaves_what_takes_long_to_import_to_workers(tmp_path):
    (tmp_path / "script.py").write_text(_SEGMENT)
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "False False"


def test_workers_have_the_environment_of_their_run(monkeypatch):
    start_fork_server()
    monkeypatch.setenv("DENSEBATCH_TEST", "set after the server began")
    (value,) = _ask("__import__('os').environ['DENSEBATCH_TEST']")
    assert value == "set after the server began"


def test_a_killed_server_is_replaced():
    (before,) = _ask("__import__('os').getppid()")
    os.kill(before, 9)
    (after,) = _ask("__import__('os').getppid()")
    assert after != before


_SCRIPT = """
import sys
from densebatch.executor import Job, open_executor
if __name__ == "__main__":
    with open_executor(1, None, None) as executor:
        job = Job("a", eval, ("__import__('sys').modules['zarr'].__file__",))
        print([outcome.result for outcome in executor.run([job])])
"""


def test_nothing_is_imported_from_the_current_folder(tmp_path):
    (tmp_path / "zarr.py").write_text("raise SystemExit('not to be imported')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(_SCRIPT)
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "not to be imported" not in run.stderr
    assert str(tmp_path) not in run.stdout
    assert "zarr" in run.stdout


def test_a_server_without_workers_ends_with_its_program():
    code = (
        "from densebatch.fork_server import start_fork_server; import psutil; "
        "start_fork_server(); print(*(child.pid for child in psutil.Process().children()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    pids = [int(pid) for pid in run.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(map(_lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, pids))


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
