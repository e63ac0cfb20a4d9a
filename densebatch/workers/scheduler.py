"""Where a running Dask scheduler is, and whether it answers: asked before any work is done.

Dask itself repeats a refused connection until its time is up, which is right for a program and
wrong for a typing mistake. This module imports nothing of Dask unless TLS is asked for.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 600.0
"""How long workers are waited for by default, in seconds."""

_FILE_WAIT_S = 15.0  # a batch script starts the scheduler and this program together
_WRITE_WAIT_S = 1.0  # Dask opens the file first and fills it afterwards
_POLL_S = 0.1
_CONNECT_S = 5.0
_ADDRESS = re.compile(
    r"(?:(?P<protocol>[a-z]+)://)?(?P<host>\[[^\]]+\]|[^:/\[\]]+):(?P<port>\d{1,5})/?"
)
_ACCEPTED = "accepted is tcp://HOST:PORT or tls://HOST:PORT"
_OPTIONS = "--tls-ca-file, --tls-cert and --tls-key"
# What OpenSSL calls an answer that is not TLS.
_NOT_TLS = (
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "HTTP_REQUEST",
)


@dataclass(frozen=True)
class Certificates:
    """PEM files for TLS.

    Attributes
    ----------
    ca_file : the authority that has signed the certificates of scheduler and workers
    cert : this program's certificate
    key : its private key; None if `cert` holds that too
    """

    ca_file: Path
    cert: Path
    key: Path | None = None


def read_certificates(
    ca_file: Path | None, cert: Path | None, key: Path | None, *, has_scheduler: bool = True
) -> Certificates | None:
    """Certificates as they were given: an authority's and our own, or none.

    Raises
    ------
    ValueError
        If one is missing, or there is no scheduler that they could be for.
    """
    if ca_file is cert is key is None:
        return None
    if not has_scheduler:
        raise ValueError(f"{_OPTIONS} are for a running scheduler, and none is given")
    if ca_file is None or cert is None:
        missing = "--tls-ca-file" if ca_file is None else "--tls-cert"
        raise ValueError(f"of {_OPTIONS}, {missing} is missing")
    return Certificates(ca_file, cert, key)


@dataclass(frozen=True)
class Scheduler:
    """A running Dask scheduler, as the user names it: by its address or by its file.

    Attributes
    ----------
    address : `tcp://host:port`, also without the protocol, or `tls://`
    file : as `dask scheduler --scheduler-file` writes it; it may be about to be written
    certificates : for `tls://`; None takes those of Dask's configuration
    patience_s : how long its workers are waited for, in seconds

    Raises
    ------
    InputError
        If both names are given.
    """

    address: str | None = None
    file: Path | None = None
    certificates: Certificates | None = None
    patience_s: float = PATIENCE_S

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
        address = str(scheduler)
        if scheduler.certificates is not None and "://" not in address:
            return f"tls://{address}"
        return address
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


def check_scheduler(
    scheduler: Scheduler | None, note: Callable[[str], None] = lambda text: None
) -> None:
    """Refuse a scheduler that does not answer; without one there is nothing to check.

    Parameters
    ----------
    scheduler
        To be asked, if there is one.
    note
        Is told if whoever reaches the scheduler can use it, because it speaks plain tcp beyond
        this machine.

    Raises
    ------
    InputError
        If its file holds no address, the address is none or not a scheduler's, nobody answers
        there, or the certificates do not do for it.
    """
    if scheduler is None:
        return
    address = find_address(scheduler)
    where = f"scheduler {address}" + (f" of {scheduler.file}" if scheduler.file else "")
    protocol = address.split("://", 1)[0] if "://" in address else "tcp"
    if protocol in ("http", "https"):
        raise InputError(
            f"{where}: is the address of a web page, such as Dask's dashboard; accepted is the one "
            "that `dask scheduler` prints after 'Scheduler at', tcp://HOST:PORT or tls://HOST:PORT"
        )
    if protocol not in ("tcp", "tls"):
        raise InputError(f"{where}: {protocol}:// is not supported; {_ACCEPTED}")
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise InputError(f"{where}: is no address; {_ACCEPTED}")
    if protocol == "tcp" and scheduler.certificates is not None:
        raise InputError(f"{where}: {_OPTIONS} are for tls:// and this is tcp")
    place = parts["host"].strip("[]"), int(parts["port"])
    try:
        if protocol == "tls":
            _call_tls(place, read_security(scheduler), where)
        elif not _call(place, where):
            note(
                f"{where}: plain tcp; whoever reaches it over the network can read what is sent "
                f"and run programs as its user, which tls:// with {_OPTIONS} prevents"
            )
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{where}: nobody answers ({reason}); start it with `dask scheduler` or leave the "
            "option out to work on this machine"
        ) from error


def read_security(scheduler: Scheduler) -> Any:  # noqa: ANN401
    """Dask's `Security` for a scheduler at `tls://`.

    Raises
    ------
    InputError
        If there are no certificates, neither given nor in Dask's configuration, or they cannot be
        used.
    """
    from distributed.security import Security

    given: dict[str, Any] = {}
    if (files := scheduler.certificates) is not None:
        for option, file in (("ca-file", files.ca_file), ("cert", files.cert), ("key", files.key)):
            if file is not None:
                _check_pem(f"--tls-{option} {file}", file)
        given = {
            "tls_ca_file": str(files.ca_file),
            "tls_client_cert": str(files.cert),
            "tls_client_key": str(files.key or files.cert),
            "require_encryption": True,
        }
    try:
        security = Security(**given)
        context = security.get_connection_args("client")["ssl_context"]
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InputError(
            f"scheduler {scheduler}: the certificates cannot be used ({_tell(error)}); accepted "
            "are PEM files: an authority's certificate, one that it has signed, and its key"
        ) from error
    if context is None:
        raise InputError(
            f"scheduler {scheduler}: tls:// needs certificates; give {_OPTIONS}, or name them in "
            "Dask's configuration (distributed.comm.tls: ca-file, client.cert and client.key)"
        )
    return security


def _check_pem(what: str, file: Path) -> None:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}; accepted is a PEM file") from error
    if b"-----BEGIN " not in text:
        raise InputError(f"{what}: is no PEM file")
    if b"ENCRYPTED" in text:  # OpenSSL would ask at the terminal for the passphrase
        raise InputError(f"{what}: is encrypted; accepted is a key without a passphrase")


def _tell(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def _call(place: tuple[str, int], where: str) -> bool:
    """Connect once and wait to be greeted; whether who answers is on this machine."""
    with socket.create_connection(place, timeout=_CONNECT_S) as caller:
        # A Dask scheduler greets its caller. If somebody else listens there who waits to be
        # spoken to, Dask's own client would wait for the greeting without end.
        try:
            greeting = caller.recv(1)
        except TimeoutError:
            if _speaks_tls(place):
                raise InputError(
                    f"{where}: speaks TLS; give its address as tls://{place[0]}:{place[1]}, with "
                    f"{_OPTIONS}"
                ) from None
            raise
        if not greeting:
            raise OSError("it hung up")
        return ipaddress.ip_address(caller.getpeername()[0].split("%")[0]).is_loopback


def _speaks_tls(place: tuple[str, int]) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to it
    try:
        with socket.create_connection(place, timeout=_CONNECT_S) as caller:
            context.wrap_socket(caller).close()
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)
    except OSError:
        return False
    return True


def _call_tls(place: tuple[str, int], security: Any, where: str) -> None:  # noqa: ANN401
    """As `_call`, with the certificates that Dask will use."""
    context = security.get_connection_args("client")["ssl_context"]
    try:
        with (
            socket.create_connection(place, timeout=_CONNECT_S) as plain,
            context.wrap_socket(plain) as caller,
        ):
            if not caller.recv(1):
                raise OSError("it hung up")
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"{where}: has a certificate that the authority of --tls-ca-file has not signed "
            f"({error.verify_message})"
        ) from error
    except ssl.SSLError as error:
        if error.reason in _NOT_TLS:
            raise InputError(
                f"{where}: does not speak TLS; give its address as tcp://{place[0]}:{place[1]}"
            ) from error
        raise InputError(
            f"{where}: refuses the certificate of --tls-cert ({error.reason}); accepted is one "
            "that the scheduler's own authority has signed"
        ) from error
