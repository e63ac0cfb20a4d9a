"""Fetch one file: it appears under its name when it is whole and accepted, or not at all.

pooch does the transfer, with its and requests' defaults: certificates are verified, proxies and
private certificate authorities are taken from the usual environment variables. What can go wrong
on the way becomes one sentence.
"""

from __future__ import annotations

import http
import logging
import os
import secrets
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from densebatch.base.errors import InputError
from densebatch.base.log import log_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0  # of a server that sends nothing
_CHUNK_BYTES = 2**18


class DownloadError(InputError):
    """A file that could not be fetched.

    Attributes
    ----------
    hopeless : whether other files of the same server, or for the same folder, would fail alike
    """

    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


def download(url: str, path: Path, accept: Callable[[Path], None]) -> None:
    """Fetch a file and put it in place, replacing what is there.

    A process that dies on the way leaves at most `.NAME.*.partial` in the folder.

    Parameters
    ----------
    url
        `https://`, or `doi:PREFIX/RECORD/FILE` of a file in a repository that pooch knows (Zenodo,
        figshare, Dataverse); `http://` of this machine alone.
    path
        Where the file is to be; its folder is made.
    accept
        Called with the path of the whole download before it gets its name; raises to refuse it.

    Raises
    ------
    DownloadError
        If the file cannot be fetched or written.
    """
    # It brings requests with it, which takes longer to import than most commands run.
    import pooch

    transfer = {
        "https": pooch.HTTPDownloader,
        "http": pooch.HTTPDownloader,
        "doi": pooch.DOIDownloader,
    }.get(url.partition(":")[0])
    if transfer is None or (url.startswith("http:") and not _is_private(url)):
        raise DownloadError(f"{url}: accepted are addresses that begin with https://")
    # The name is unique because another process may be fetching the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    start = time.monotonic()
    try:
        with _explain_failure(url, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file, _requesting(url) as options:
                transfer(chunk_size=_CHUNK_BYTES, **options)(url, file, None)
                file.flush()
                os.fsync(file.fileno())
        accept(partial)
        n_bytes = partial.stat().st_size
        with _explain_failure(url, path):
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()
    seconds = round(time.monotonic() - start, 3)
    log_event(log, "file fetched", url=url, file=str(path), n_bytes=n_bytes, seconds=seconds)


def list_record(doi: str) -> dict[str, str]:
    """Files of a published record.

    Parameters
    ----------
    doi
        As in `10.5281/zenodo.10668824`.

    Returns
    -------
    dict
        By name, the digest that the repository states, as `md5:...`.

    Raises
    ------
    DownloadError
        If the record cannot be read.
    """
    import pooch

    record = pooch.Pooch(path="", base_url=f"doi:{doi}/")
    with _explain_failure(f"doi:{doi}", None):
        record.load_registry_from_doi()
    return dict(record.registry)


@contextmanager
def _requesting(url: str) -> Iterator[dict[str, Any]]:
    """Options of every request: a time limit, and no redirect from https to http.

    At the end all responses are closed, because pooch leaves those of failed requests open.
    """
    responses: list[Any] = []
    may_be_plain = url.startswith("http://")

    def watch(response: Any, *_: object, **__: object) -> None:  # noqa: ANN401
        responses.append(response)
        # Where a redirect leads to is looked at before it is followed.
        onwards = response.headers.get("location") if response.is_redirect else None
        for address in (response.url, *([urljoin(response.url, onwards)] if onwards else [])):
            if not (_is_private(address) if may_be_plain else address.startswith("https://")):
                raise DownloadError(f"{url}: leads to {address}, which is not encrypted")

    try:
        yield {"timeout": _TIMEOUT_S, "hooks": {"response": watch}}
    finally:
        for response in responses:
            response.close()


@contextmanager
def _explain_failure(url: str, path: Path | None) -> Iterator[None]:
    """Turn what requests, pooch and the file system raise into a `DownloadError`."""
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import RequestException, Timeout

    try:
        yield
    except DownloadError:
        raise
    except RequestException as error:
        raise DownloadError(
            f"{url}: cannot be fetched ({_find_reason(error, url)})",
            hopeless=isinstance(error, NoConnection | Timeout) or _is_overloaded(error),
        ) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DownloadError(
            f"{path or url}: cannot be written ({reason})", hopeless=True
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        # pooch reads a repository's answer without checking that it is a record.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DownloadError(f"{url}: cannot be fetched ({reason})") from error


def _is_private(url: str) -> bool:
    """Whether nobody between can read or change what comes: by encryption, or on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    )


def _is_overloaded(error: Exception) -> bool:
    code = getattr(getattr(error, "response", None), "status_code", 0)
    return bool(code == http.HTTPStatus.TOO_MANY_REQUESTS or code >= 500)


def _find_reason(error: Exception, url: str) -> str:
    """What a user can do something about, in a few words."""
    from requests import exceptions

    request = getattr(error, "request", None)
    host = urlsplit(getattr(request, "url", None) or url).netloc or "the server"
    response = getattr(error, "response", None)
    if isinstance(error, exceptions.HTTPError) and response is not None:
        code = response.status_code
        known = code in set(http.HTTPStatus)
        phrase = f" {http.HTTPStatus(code).phrase}" if known else ""
        return f"{host} answers {code}{phrase}"
    reasons: list[tuple[type[Exception], str]] = [
        (exceptions.SSLError, f"the certificate of {host} is not accepted"),
        (exceptions.ProxyError, f"no connection to {host} through the proxy"),
        (exceptions.Timeout, f"{host} did not answer within {_TIMEOUT_S:g} s"),
        (exceptions.ConnectionError, f"no connection to {host}, or it was lost: offline?"),
        (exceptions.ChunkedEncodingError, "the connection broke off before the whole file came"),
        (exceptions.ContentDecodingError, "the content is damaged"),
        (exceptions.JSONDecodeError, f"{host} answers with something that is no record"),
    ]
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    return " ".join(str(error).split())[:200] or type(error).__name__
