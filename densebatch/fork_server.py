"""Worker processes that are ready at once: forked from one that has imported everything.

Importing takes a worker two seconds, and all of them do it while nothing else can begin. A fork
server (of `multiprocessing`; a clean process without threads) does it once, beside what the main
process does meanwhile, and workers share its memory pages. Only on Linux: elsewhere forking after
imports is unsafe or unknown, and workers start as Dask starts them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from contextlib import suppress
from multiprocessing import forkserver
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping

_PRELOADED = "densebatch.worker_modules"
# What Dask sets for workers, but would set too late for libraries that are there already; a pool
# of threads does not survive a fork. The last keeps the current folder off the import path.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "PYTHONSAFEPATH": "1",
}


def start_fork_server() -> Mapping[str, str] | None:
    """Start importing what workers need, in a process of its own; do not wait for it.

    Called again it does nothing. The server ends with this process and its workers.

    Returns
    -------
    mapping, or None where there is no fork server
        Dask configuration under which workers are forked.
    """
    if sys.platform != "linux":
        return None
    multiprocessing.get_context("forkserver").set_forkserver_preload([_PRELOADED])
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        forkserver.ensure_running()  # it takes the variables over
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    atexit.unregister(_end_fork_server)
    atexit.register(_end_fork_server)
    return {"distributed.worker.multiprocessing-method": "forkserver"}


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
