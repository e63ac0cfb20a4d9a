"""Is there a Dask scheduler where the user says? Asked before any work, answered at once.

Dask itself repeats a refused connection until its time is up, which is right for a program and
wrong for a typing mistake. Imports nothing of Dask.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import tempfile
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, cast

from densebatch.base.errors import InputError
from densebatch.workers.executors import DEVICE, DaskExecutor, SerialExecutor
from densebatch.workers.fork_server import is_started

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FILE_WAIT_S = 15.0  # a batch script starts the scheduler and us in one go
_WRITE_WAIT_S = 1.0  # Dask does not write it in one step
_CONNECT_S = 5.0
_ADDRESS = re.compile(
    r"(?:(?P<protocol>[a-z]+)://)?(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>\d{1,5})/?"
)


def check_scheduler(address: str | None, file: Path | None) -> None:
    """Refuse a scheduler that does not answer.

    Parameters
    ----------
    address
        `tcp://host:port`, also without the protocol, or `tls://`; other protocols are Dask's to
        check.
    file
        As written by `dask scheduler --scheduler-file`; waited for a little.

    Raises
    ------
    InputError
        If both are given, the file is none, or nobody answers at the address.
    """
    if address is not None and file is not None:
        raise InputError(
            f"scheduler address {address} and scheduler file {file} are both given; accepted is one"
        )
    if file is not None:
        address = _read_address(file)
    if address is None:
        return
    where = f"scheduler {address}" + (f" of {file}" if file is not None else "")
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        if "://" in address and not address.startswith(("tcp:", "tls:")):
            return
        raise InputError(f"{where}: is no address; accepted is tcp://HOST:PORT or tls://HOST:PORT")
    if parts["protocol"] not in (None, "tcp", "tls"):
        return
    try:
        host = parts["host"].strip("[]")
        with socket.create_connection((host, int(parts["port"])), timeout=_CONNECT_S) as caller:
            # Dask speaks first; its own client waits without end for somebody else to do so
            if parts["protocol"] != "tls" and not caller.recv(1):
                raise OSError("it hung up")  # noqa: TRY301  told with the other reasons
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{where}: nobody answers ({reason}); start it with `dask scheduler` or leave the "
            "option out to work on this machine"
        ) from error


def _read_address(file: Path) -> str:
    accepted = "accepted is the file that `dask scheduler --scheduler-file` writes"
    start = time.monotonic()
    while True:
        waited = time.monotonic() - start
        try:
            address = json.loads(file.read_text())["address"]
        except FileNotFoundError as error:
            if waited > _FILE_WAIT_S or not file.parent.is_dir():
                raise InputError(f"scheduler file {file}: does not exist; {accepted}") from error
        except OSError as error:
            raise InputError(f"scheduler file {file}: {error.strerror}; {accepted}") from error
        except (ValueError, KeyError, TypeError) as error:
            if waited > _WRITE_WAIT_S:
                raise InputError(f"scheduler file {file}: holds no address; {accepted}") from error
        else:
            return str(address)
        time.sleep(0.1)


_PATIENCE_S = 30.0  # for a scheduler and its first worker to appear
_NO_WORKERS_S = 60.0
_LOST_WORKER_S = 120.0


def _await_scheduler_file(path: Path) -> str:
    """Address in a scheduler file, which may be about to be written."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return str(json.loads(path.read_text())["address"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            if time.monotonic() > deadline:
                reason = "is missing" if isinstance(error, FileNotFoundError) else "has no address"
                raise OSError(f"{path}: {reason}; is the scheduler running?") from error
        time.sleep(0.1)


def ask_worker(
    scheduler_address: str | None,
    scheduler_file: Path | None,
    function: Callable[..., Any],
    *args: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Call a function on one worker of a running scheduler.

    Raises
    ------
    OSError
        As `open_executor`; else what the function raises.
    """
    with open_executor(0, scheduler_address, scheduler_file) as executor:
        client = cast("DaskExecutor", executor).client
        return client.submit(function, *args, pure=False).result()


@contextmanager
def open_executor(
    workers: int,
    scheduler_address: str | None,
    scheduler_file: Path | None,
    device_workers: int = 0,
) -> Iterator[SerialExecutor | DaskExecutor]:
    """The executor that the settings ask for, closed at the end.

    Parameters
    ----------
    workers
        Processes of a local cluster; 0 works in this process.
    scheduler_address, scheduler_file
        A running scheduler, which decides instead.
    device_workers
        Of a local cluster, how many get the jobs that are for a device; 0 for all.

    Raises
    ------
    OSError
        If the scheduler or its file cannot be reached within half a minute, or has no workers
        then.
    """
    if scheduler_address is None and scheduler_file is None and workers == 0:
        yield SerialExecutor()
        return
    import dask.config
    import distributed.utils
    from distributed import Client, LocalCluster, Nanny

    if scheduler_address is not None or scheduler_file is not None:
        # Client's own wait for the file has no end
        where = scheduler_address or _await_scheduler_file(cast("Path", scheduler_file))
        with Client(address=where, timeout=_PATIENCE_S) as client:
            try:
                client.wait_for_workers(1, timeout=_PATIENCE_S)
            except TimeoutError as error:
                raise OSError("the scheduler has no workers; start some and try again") from error
            yield DaskExecutor(client, len(client.nthreads()))
        return

    def nanny(*args: Any, name: int, **options: Any) -> Nanny:  # noqa: ANN401
        # a process that replaces a killed one gets them too
        resources = {DEVICE: 1.0} if name < device_workers else None
        return Nanny(*args, name=name, resources=resources, **options)

    how: dict[str, Any] = {
        # rather than to wait for ever for a worker that may do a task, once the last is lost
        "distributed.scheduler.no-workers-timeout": _NO_WORKERS_S,
        # on a busy machine, a process that replaces a killed one can take longer than Dask allows
        "distributed.deploy.lost-worker-timeout": _LOST_WORKER_S,
        # looking at stacks and event loops each few hundredths of a second is for a dashboard,
        # which nobody sees here, and takes a fiftieth of two cores
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
    }
    if is_started():
        how["distributed.worker.multiprocessing-method"] = "forkserver"
        # or it imports pandas now, for a fork server that it would start
        distributed.utils._forkserver_preload_set = True
    with (
        # workers' scratch must not land in the user's current folder
        tempfile.TemporaryDirectory(prefix="densebatch-") as scratch,
        dask.config.set(how),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # None means port 8787 on all interfaces
            dashboard_address="127.0.0.1:0",
            local_directory=scratch,
            silence_logs=logging.CRITICAL,
            # Dask would pause a worker at four fifths of its share and wait, silently, for memory
            # that is not given back; what tasks take is estimated before the run
            memory_limit=0,
            worker_class=nanny,
        ) as cluster,
        # not as its own context, which can be left only in the thread that entered it
        closing(Client(cluster)) as client,
    ):
        yield DaskExecutor(client, workers, device_workers)
