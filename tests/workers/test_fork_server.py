"""Commands fork their workers from a process that has imported everything, itself forked."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork servers are for Linux")

# As the command line does it, in a process of its own: a fork server belongs to its process.
_PROGRAM = """
import json, os, sys
from densebatch.workers.fork_server import start_fork_server
start_fork_server()
from densebatch.workers.cluster import open_executor
from densebatch.workers.schedule import Job

def ask(*expressions):
    with open_executor(1, None, None) as executor:
        jobs = [Job(str(k), eval, (text,)) for k, text in enumerate(expressions)]
        found = {outcome.job.name: outcome for outcome in executor.run(jobs)}
    assert not any(outcome.error for outcome in found.values()), found
    return [found[str(k)].result for k in range(len(expressions))]

"""
_PARENT = "__import__('os').getppid()"


def run_code(code, **options):
    # -P: as for the command, the current folder is no place to import from
    return subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, **options
    )


def run_program(code, before="", **options):
    """What a program that has started a fork server prints as JSON."""
    run = run_code(f"{before}\n{_PROGRAM}{code}", **options)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_workers_of_all_runs_are_forked_from_one_process_without_threads():
    told = run_program(f"""
import psutil
(first,), (second,) = ask("{_PARENT}"), ask("{_PARENT}")
server = psutil.Process(first)
print(json.dumps([first == second, server.ppid() == os.getpid(), server.num_threads()]))
""")
    assert told == [True, True, 1]


def test_the_server_shares_what_this_process_has_imported():
    """It has no pool of threads, whatever this process is told to have."""
    told = run_program(f"""
import psutil
server, threads = ask("{_PARENT}", "__import__('torch').get_num_threads()")
is_forked = psutil.Process(server).cmdline() == psutil.Process().cmdline()
print(json.dumps([is_forked, threads, os.environ.get("OMP_NUM_THREADS")]))
""", env={**os.environ, "OMP_NUM_THREADS": "3"})  # fmt: skip
    assert told == [True, 1, "3"]


def test_a_process_with_threads_is_not_forked():
    """What they hold would be held for ever; a new interpreter is the server then."""
    told = run_program(
        f"""
import psutil
(server,) = ask("{_PARENT}")
print(json.dumps(psutil.Process(server).cmdline() == psutil.Process().cmdline()))
""",
        before="import threading as t; t.Thread(target=t.Event().wait, daemon=True).start()",
    )
    assert told is False


def test_what_was_not_yet_written_is_written_once():
    run = run_code(f"print('once')\n{_PROGRAM}ask({_PARENT!r})")
    assert run.stdout == "once\n", run.stderr


def test_a_server_ends_with_a_program_that_was_killed():
    code = """
import psutil
for child in psutil.Process().children():
    print(child.pid)
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""
    run = run_code(_PROGRAM + code)
    assert run.returncode == -signal.SIGKILL
    await_end(list(map(int, run.stdout.split())))


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "raise OSError", "1 / 0"])
def test_a_server_that_ends_does_not_go_on_as_the_command(program):
    """Nor if it cannot say why."""
    run = run_code(f"""
import os, sys
from densebatch.workers import fork_server
class Closed:
    def write(self, text): pass
    def flush(self): raise BrokenPipeError
def serve(program, fds, signals):
    sys.stderr = Closed()
    real({program!r}, fds, signals)
real, fork_server._serve = fork_server._serve, serve
fork_server.start_fork_server()
os.write(2, b"once ")
""")
    assert run.stderr == "once "


def test_workers_find_everything_imported():
    loaded, kernels = run_program("""
print(json.dumps(ask(
    "sorted(__import__('sys').modules)",
    "{name: len(f.signatures) for name, f in "
    "vars(__import__('densebatch.tracing.tile').dynamics).items() if hasattr(f, 'signatures')}",
)))
""")
    assert {"torch", "numba", "zarr", "densebatch.stages.trace", "densebatch.stages.number"} <= set(
        loaded
    )
    # nor what takes long and nobody needs
    assert not {"densebatch.run.segment", "pandas", "pyarrow", "sympy"} & set(loaded)
    assert kernels.pop("_rename") == 1  # for a tile with a halo
    assert {name for name, n in kernels.items() if n == 0} == {"count_rounds", "average_errors"}


def test_workers_can_import_what_was_kept_from_numba():
    loaded, found = run_program("""
print(json.dumps(ask(
    "'scipy.linalg' in __import__('sys').modules",
    "__import__('scipy.linalg.cython_blas').linalg.cython_blas.__name__",
)))
""")
    assert not loaded
    assert found == "scipy.linalg.cython_blas"


@pytest.mark.skipif(not version("torch").endswith("+cpu"), reason="is there a GPU? torch knows")
def test_the_main_process_leaves_what_takes_long_to_import_to_workers(tmp_path):
    loaded = run_program("""
from pathlib import Path
from densebatch.studies.demo import run_demo
run_demo(Path("demo"), size_px=256, seed=0, workers=1)
print(json.dumps(sorted(sys.modules)))
""", cwd=tmp_path)  # fmt: skip
    assert "densebatch.run.segment" in loaded
    assert not {"torch", "pandas", "sympy"} & set(loaded)


def test_a_killed_server_is_replaced(tmp_path):
    """And nothing is imported from the current folder, by the one or the other."""
    (tmp_path / "zarr.py").write_text("raise SystemExit('not to be imported')")
    script = tmp_path / "elsewhere" / "script.py"  # as the installed command, and without -P
    script.parent.mkdir()
    program = f"""{_PROGRAM}
import signal, time
import psutil
where = "__import__('sys').modules['zarr'].__file__"
before, first = ask("{_PARENT}", where)
os.kill(before, signal.SIGKILL)
while psutil.Process(before).status() != psutil.STATUS_ZOMBIE:
    time.sleep(0.01)
after, second = ask("{_PARENT}", where)
print(json.dumps([before != after, first, second]))
"""
    script.write_text(f"if __name__ == '__main__':{textwrap.indent(program, '    ')}")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=env
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told[0]
    assert not any(path.startswith(str(tmp_path)) for path in told[1:])


def test_where_there_can_be_no_socket_workers_start_as_ever(tmp_path):
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    told = run_program(f"""
(parent,) = ask("{_PARENT}")
print(json.dumps(parent == os.getpid()))
""", env={**os.environ, "TMPDIR": str(folder)})  # fmt: skip
    assert told is True


def test_a_caller_of_the_library_keeps_its_own_fork_server():
    """Without the command line's call, workers start as Dask starts them."""
    code = """
import os
from densebatch.workers.cluster import open_executor
from densebatch.workers.schedule import Job
from densebatch.workers.fork_server import is_started
with open_executor(1, None, None) as executor:
    (outcome,) = executor.run([Job("a", os.getppid, ())])
print(outcome.result == os.getpid(), is_started())
"""
    run = run_code(code)
    assert run.stdout.split() == ["True", "False"], run.stderr


def test_a_server_without_workers_ends_with_its_program():
    pids = run_program("""
import psutil
print(json.dumps([child.pid for child in psutil.Process().children()]))
""")
    await_end(pids)


def await_end(pids):
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
