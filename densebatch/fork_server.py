"""Worker processes that are ready at once: forked from one that has imported everything.

Importing takes a worker two seconds, and all of them do it while nothing else can begin. A fork
server (of `multiprocessing`; a clean process without threads) does it once, beside what the main
process does meanwhile, and workers share its memory pages.

A process has one fork server, and its environment and imports are those of its start. So only the
command line, whose process is ours alone, starts one; called from somebody's program, workers
start as Dask starts them. And only on Linux: elsewhere forking after imports is unsafe or unknown.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from contextlib import suppress
from multiprocessing import forkserver

import psutil

_PRELOADED = "densebatch.worker_modules"
# What Dask sets for workers, but would set too late for libraries that are there already; a pool
# of threads does not survive a fork.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
_started = False


def start_fork_server() -> None:
    """Start importing what workers need, in a process of its own; do not wait for it.

    For a program that is ours alone and has no threads yet. The server ends with this process and
    its workers. Where there can be none, nothing happens.
    """
    global _started
    # before 3.11.1 other users of the machine could connect to it
    if sys.platform != "linux" or sys.version_info < (3, 11, 1) or _started:
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload([_PRELOADED])
    # keeps the current folder off the import path, also of a server that replaces a killed one
    os.environ["PYTHONSAFEPATH"] = "1"
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        forkserver.ensure_running()  # it takes the variables over
    except OSError:  # a temporary folder whose name is too long for a socket
        return
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    atexit.register(_end_fork_server)
    _started = True


def is_started() -> bool:
    """Whether workers can be forked."""
    return _started


def _end_fork_server() -> None:
    """End a server that has no workers at once.

    It would end by itself, but only when it has finished importing, and until then whoever reads
    this program's output waits for more.
    """
    # the standard library keeps the number to itself; without it the server ends by itself
    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        with suppress(psutil.Error):
            server = psutil.Process(pid)
            if server.ppid() == os.getpid() and not server.children():
                server.kill()
