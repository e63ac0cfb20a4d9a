"""Addresses of images: `s3://bucket/...`, `gs://bucket/...`, `https://host/...`.

Addresses stand in records, reports and logs, so that one with a secret in it is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    import os

_ADDRESS = re.compile(r"(?P<scheme>s3|gs|https?)://(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"[\w.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
ACCEPTED = "s3://BUCKET/PATH, gs://BUCKET/PATH and https://HOST/PATH"


@dataclass(frozen=True)
class Address:
    """An address, taken apart.

    Attributes
    ----------
    scheme : "s3", "gs", "https" or "http"
    host : bucket, or host and perhaps port
    parts : names of the path, as they are written in the address
    """

    scheme: str
    host: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join((self.host, *self.parts))}"

    @property
    def is_web(self) -> bool:
        """Whether it is of a web server, which lists nothing."""
        return self.scheme in ("http", "https")

    @property
    def key(self) -> str:
        """Name of the object in its bucket or on its host."""
        key = "/".join(self.parts)
        return unquote(key) if self.is_web else key


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether a text is an address of a kind that slides are read from.

    Examples
    --------
    >>> is_address("s3://bucket/slide.zarr"), is_address("slide.zarr"), is_address("ftp://a/b")
    (True, False, False)
    """
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def parse_address(text: str) -> Address:
    """Take an address apart; equal ones become equal.

    Parameters
    ----------
    text
        For which `is_address` is true.

    Raises
    ------
    InputError
        If it has a secret in it, or names no bucket or host. The secret is not repeated.

    Examples
    --------
    >>> str(parse_address("S3://bucket//a/b.zarr/"))
    's3://bucket/a/b.zarr'
    """
    found = _ADDRESS.match(text)
    if found is None:
        raise InputError(f"{text}: is no address of a slide; accepted are {ACCEPTED}")
    scheme = found["scheme"].lower()
    host, _, path = found["rest"].partition("/")
    for mark, what in (("?", "a query, as signed addresses have,"), ("#", "a fragment")):
        if mark in found["rest"]:
            raise InputError(
                f"an address of {scheme}:// has {what} behind {mark!r}; accepted are {ACCEPTED}, "
                "without one: credentials come from the environment alone"
            )
    if "@" in host:
        raise InputError(
            f"an address of {scheme}:// has a user or a password before '@'; accepted are "
            f"{ACCEPTED}, without them: credentials come from the environment alone"
        )
    if not _HOST.fullmatch(host):
        what = "host" if scheme.startswith("http") else "bucket"
        raise InputError(f"an address of {scheme}:// names no {what}; accepted are {ACCEPTED}")
    parts = tuple(part for part in path.split("/") if part)
    address = Address(scheme, host.lower() if scheme.startswith("http") else host, parts)
    if any(part in (".", "..") or min(part, default=" ") < " " for part in address.key.split("/")):
        raise InputError(
            f"{scheme}://{host}: its path has '.', '..' or control characters; accepted are "
            f"{ACCEPTED}"
        )
    return address
