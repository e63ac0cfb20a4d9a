"""Is there a Dask scheduler where the user says? Asked before any work, answered at once.

Dask itself repeats a refused connection until its time is up, which is right for a program and
wrong for a typing mistake. Imports nothing of Dask.
"""

from __future__ import annotations

import json
import re
import socket
import time
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError

if TYPE_CHECKING:
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
