"""Where a running Dask scheduler is, and whether it answers: asked before any work is done.

Dask itself repeats a refused connection until its time is up, which is right for a program and
wrong for a typing mistake. This module imports nothing of Dask.
"""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

_FILE_WAIT_S = 15.0  # a batch script starts the scheduler and this program together
_WRITE_WAIT_S = 1.0  # Dask opens the file first and fills it afterwards
_POLL_S = 0.1
_CONNECT_S = 5.0
_ADDRESS = re.compile(
    r"(?:(?P<protocol>[a-z]+)://)?(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>\d{1,5})/?"
)


@dataclass(frozen=True)
class Scheduler:
    """A running Dask scheduler, as the user names it: by its address or by its file.

    Attributes
    ----------
    address : `tcp://host:port`, also without the protocol, or `tls://`; other protocols are Dask's
        to check
    file : as `dask scheduler --scheduler-file` writes it; it may be about to be written

    Raises
    ------
    InputError
        If both are given.
    """

    address: str | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.file is not None:
            raise InputError(
                f"scheduler address {self.address} and scheduler file {self.file} are both given; "
                "accepted is one"
            )

    def __str__(self) -> str:
        return self.address or str(self.file)


def find_address(scheduler: Scheduler) -> str:
    """Address of a scheduler, if need be from its file, which is waited for a little.

    Raises
    ------
    InputError
        If the file does not appear, cannot be read or holds no address.
    """
    if scheduler.file is None:
        return str(scheduler)
    file = scheduler.file
    accepted = "accepted is the file that `dask scheduler --scheduler-file` writes"
    start = time.monotonic()
    while True:
        waited = time.monotonic() - start
        try:
            return str(json.loads(file.read_text())["address"])
        except FileNotFoundError as error:
            if waited > _FILE_WAIT_S or not file.parent.is_dir():
                raise InputError(f"scheduler file {file}: does not exist; {accepted}") from error
        except OSError as error:
            raise InputError(f"scheduler file {file}: {error.strerror}; {accepted}") from error
        except (ValueError, KeyError, TypeError) as error:
            if waited > _WRITE_WAIT_S:
                raise InputError(f"scheduler file {file}: holds no address; {accepted}") from error
        time.sleep(_POLL_S)


def check_scheduler(scheduler: Scheduler | None) -> None:
    """Refuse a scheduler that does not answer; without one there is nothing to check.

    Raises
    ------
    InputError
        If its file holds no address, the address is none, or nobody answers there.
    """
    if scheduler is None:
        return
    address = find_address(scheduler)
    where = f"scheduler {address}" + (f" of {scheduler.file}" if scheduler.file else "")
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        if "://" in address and not address.startswith(("tcp:", "tls:")):
            return
        raise InputError(f"{where}: is no address; accepted is tcp://HOST:PORT or tls://HOST:PORT")
    if parts["protocol"] not in (None, "tcp", "tls"):
        return
    try:
        _call(parts["host"].strip("[]"), int(parts["port"]), greeted=parts["protocol"] != "tls")
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{where}: nobody answers ({reason}); start it with `dask scheduler` or leave the "
            "option out to work on this machine"
        ) from error


def _call(host: str, port: int, *, greeted: bool) -> None:
    """Connect once, and wait for the first byte if whoever listens has to speak first."""
    with socket.create_connection((host, port), timeout=_CONNECT_S) as caller:
        # A Dask scheduler greets its caller. If somebody else listens there who waits to be
        # spoken to, Dask's own client would wait for the greeting without end.
        if greeted and not caller.recv(1):
            raise OSError("it hung up")
