"""Worker processes that are ready at once: forked from one that has imported everything.

Importing takes a worker two seconds, and all of them do it while nothing else can begin. A fork
server (of `multiprocessing`; a process without threads) does it once, and workers share its memory
pages. It is itself forked, from this process, when this has imported what both need; the rest, of
which PyTorch is most, it imports beside what this process does meanwhile.

A process has one fork server, and its environment and imports are those of its start. So only the
command line, whose process is ours alone, starts one; called from somebody's program, workers
start as Dask starts them. And only on Linux: elsewhere forking after imports is unsafe or unknown.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import forkserver, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SHARED = "densebatch.workers.shared_modules"
_PRELOADED = "densebatch.workers.worker_modules"
# What Dask sets for workers, but would set too late for libraries that are there already; a pool
# of threads does not survive a fork. (Its fourth variable is heard by a new program only:
# `allocation.return_freed_memory` does the same.)
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_started = False


def start_fork_server() -> None:
    """Import what workers need: here what this process needs too, the rest in one of its own.

    For a program that is ours alone and has no threads yet. Does not wait for the other process.
    It ends with this one and its workers. Where there can be none, workers start as Dask starts
    them.
    """
    global _started
    # before 3.11.1 other users of the machine could connect to it
    if sys.platform != "linux" or sys.version_info < (3, 11, 1) or _started:
        return
    multiprocessing.get_context("forkserver").set_forkserver_preload([_PRELOADED])
    # keeps the current folder off the import path of a server that replaces a killed one
    os.environ["PYTHONSAFEPATH"] = "1"
    with _environment():
        import_module(_SHARED)
        try:
            with _forked():
                forkserver.ensure_running()
        except OSError:  # such as a temporary folder whose name is too long for a socket
            return
    atexit.register(_end_fork_server)
    _started = True


def is_started() -> bool:
    """Whether workers can be forked."""
    return _started


@contextmanager
def _environment() -> Iterator[None]:
    """For libraries that read it when they are imported."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _forked() -> Iterator[None]:
    """Let `multiprocessing` fork its server, which it would start as a new interpreter."""
    start = getattr(util, "spawnv_passfds", None)
    if start is None:  # not a promise of the standard library
        yield
        return

    def fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if "multiprocessing.forkserver" not in args[-1] or _count_threads() > 1:
            # a tracker of resources; or what the threads of some library hold now, nobody would
            # ever let go of in a fork
            return int(start(path, args, passfds))
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as it is where the caller has closed it
                stream.flush()
        # until it is told apart, an interrupt would end two commands
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        pid = os.fork()
        if pid == 0:
            try:
                _serve(args[-1], passfds, before)
            finally:  # whatever happens, it does not go on as the command
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    util.spawnv_passfds = fork
    try:
        yield
    finally:
        util.spawnv_passfds = start


def _count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _serve(program: str, fds: Sequence[int], signals: set[int | signal.Signals]) -> None:
    """Be the new interpreter: run its program with its descriptors only, and end."""
    try:
        # the server's and its workers': the main process tells of interrupts, and ends workers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        for opened in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
            if opened > 2 and opened not in fds:
                with suppress(OSError):  # that of the listing
                    os.close(opened)
        # their state is that of a program that is starting a server, down to the lock
        for name in ("forkserver", "resource_tracker"):
            del sys.modules[f"multiprocessing.{name}"]
            delattr(multiprocessing, name)
        exec(program, {})
    except SystemExit:  # as it ends
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        if sys.stderr is not None:
            sys.stderr.flush()


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
