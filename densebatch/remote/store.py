"""Objects of a store, read with retries; what fails is told in a sentence without secrets.

The text of an error may hold an account's name or a signature, so that no part of it is repeated:
what happened is told by its kind and its HTTP status.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import ObjectStore

from densebatch.base.errors import InputError, StoreError
from densebatch.base.process import traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from densebatch.remote.address import Address

# A request that fails by the server or on the way is tried again for a minute or so.
MAX_RETRIES = 10
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 15
_WAIT_FACTOR = 3  # each wait is a random one up to so many times the last
RETRY_S = 180  # after which none is tried again
REQUEST_S = 120  # that one may take, with its answer
CONNECT_S = 10
TRIAL_S = 5  # instead of these where an answer is wanted at once, or after one more try
MISSING = -1  # instead of the time of an object that is not there
_N_REMEMBERED = 2**16  # objects of an image whose times are known
_FLAGS = ("1", "true", "on", "yes", "y")  # that the variables of stores know
_DENIED = (401, 403)
# Beside those that an image was found by; who may not list is refused what is missing too.
_OPTIONAL = (".zattrs", ".zgroup", ".zmetadata")
# Names in the addresses that the library repeats are not what happened.
_NAMES = re.compile(r"https?://(?!169\.254\.|metadata\.google)\S+")
_STATUS = re.compile(r"status code: (\d{3})")
# What S3 says why, of which these alone are repeated.
_CODES = re.compile(
    r"<Code>(AccessDenied|AuthorizationHeaderMalformed|ExpiredToken|InvalidAccessKeyId|"
    r"InvalidToken|NoSuchBucket|RequestTimeTooSkewed|SignatureDoesNotMatch|SlowDown)</Code>"
)
_RETRIES = re.compile(r"after (\d+) retries")
_NO_CREDENTIALS = (
    "no credentials are found in the environment; a public bucket is read with "
    "AWS_SKIP_SIGNATURE=true or GOOGLE_SKIP_SIGNATURE=true"
)
_GIVES_CREDENTIALS = re.compile(r"//169\.254\.|//metadata\.google")  # to machines of a cloud
# What the library calls what happened, where no answer came; the first that is found counts.
_CAUSES = (
    (r"BadScheme", "http:// to a store is refused, unless AWS_ALLOW_HTTP=true"),
    (r"Timeout|timed out", "it does not answer in time"),
    (r"kind: Connect|error sending request", "no connection"),
    (r"Body|Decode|Incomplete|Interrupted|decoding|body", "its answer breaks off"),
    (r"[Cc]redential", _NO_CREDENTIALS),
)


def open_store(address: Address, *, is_trial: bool = False) -> Any:  # noqa: ANN401
    """A store whose root is an address; credentials come from the environment alone.

    Parameters
    ----------
    address
        Of a bucket, a host, or a folder there.
    is_trial
        Whether it is to answer at once, or to be given up after one more try.

    Raises
    ------
    InputError
        If the library is missing, or the environment is none that it can use.
    """
    try:
        import obstore.store as stores
    except ImportError as error:
        raise InputError(
            f"{address} is read by obstore, which cannot be imported ({error}); install it with: "
            "pip install 'densebatch[remote]'"
        ) from error
    allows_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in _FLAGS
    options: dict[str, Any] = {
        "client_options": {
            "allow_http": address.scheme == "http" or allows_http,
            "timeout": timedelta(seconds=TRIAL_S if is_trial else REQUEST_S),
            "connect_timeout": timedelta(seconds=TRIAL_S if is_trial else CONNECT_S),
        },
        "retry_config": {
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_WAIT_S),
                "max_backoff": timedelta(seconds=LONGEST_WAIT_S),
                "base": _WAIT_FACTOR,
            },
            "max_retries": 1 if is_trial else MAX_RETRIES,
            "retry_timeout": timedelta(seconds=TRIAL_S if is_trial else RETRY_S),
        },
    }
    try:
        if address.scheme == "s3":
            return stores.S3Store(address.host, prefix=address.key or None, **options)
        if address.scheme == "gs":
            options["client_options"]["allow_http"] = True  # which a service account's file decides
            return stores.GCSStore(address.host, prefix=address.key or None, **options)
        return stores.HTTPStore.from_url(str(address), **options)
    except Exception as error:  # whose text may hold what the environment does
        raise InputError(
            f"{address}: the settings of the store in the environment cannot be used "
            f"({type(error).__name__})"
        ) from None


@contextmanager
def errors_told(where: object) -> Iterator[None]:
    """Within this context, an error of a store becomes a sentence.

    Parameters
    ----------
    where
        The address that is read.

    Raises
    ------
    FileNotFoundError
        If there is no such object.
    StoreError
        For all else, which says nothing of whether there is one.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: is not there") from None
    except MemoryError:
        raise
    except Exception as error:
        status = _STATUS.search(str(error))
        is_denied = status is not None and int(status[1]) in _DENIED
        raise StoreError(f"{where}: cannot be read ({_describe(error)})", is_denied) from None


def _describe(error: Exception) -> str:
    """What happened, by words of this module."""
    text = _NAMES.sub("", str(error))
    retries = _RETRIES.search(text)
    more = f", after {retries[1]} retries" if retries is not None else ""
    if _GIVES_CREDENTIALS.search(text.partition("Debug source")[0]):
        return _NO_CREDENTIALS + more
    status = _STATUS.search(text)
    if type(error).__name__ == "NotSupportedError":
        return "it gives no parts of an object (Range), which shards are read by"
    if status is None:
        found = next((cause for pattern, cause in _CAUSES if re.search(pattern, text)), None)
        return (found or f"the store's library tells {type(error).__name__}") + more
    code = int(status[1])
    try:
        told = f"it answers {code} {HTTPStatus(code).phrase}"
    except ValueError:
        told = f"it answers {code}"
    reason = _CODES.search(text)
    told += f", {reason[1]}" if reason is not None else ""
    if code in _DENIED:
        told += (
            ": what the environment has of credentials does not allow it; a store says so also of "
            "objects that are missing, to who may not list"
        )
    elif 300 <= code < 400:
        told += ": the bucket is of another region, which AWS_REGION has to name"
    return told + more


def seconds_as_ns(time: datetime) -> int:
    """Whole seconds in ns: lists and answers of one store differ in what is below."""
    return int(time.timestamp()) * 10**9


class ChunkStore(ObjectStore[Any]):
    """The chunks of an array in a store, which remembers when each that was read had changed.

    Parameters
    ----------
    level
        Of the array.
    check
        Is called with the key and the bytes of each whole chunk.
    """

    def __init__(self, level: Address, check: Callable[[str, Buffer], None] | None = None) -> None:
        super().__init__(open_store(level), read_only=True)
        self._level, self._check = level, check
        self._times: OrderedDict[str, int] = OrderedDict()
        self._noting = threading.Lock()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a chunk or a document; None only where the store says that there is none.

        Raises
        ------
        StoreError
            For every other answer, and for none.
        ValueError
            If the object has not as many bytes as it should have.
        """
        import obstore

        match byte_range:
            case None:
                options: dict[str, Any] = {}
            case RangeByteRequest(start, end):
                options = {"range": (start, end)}
            case OffsetByteRequest(offset):
                options = {"range": {"offset": offset}}
            case SuffixByteRequest(suffix):
                options = {"range": {"suffix": suffix}}
        try:
            with errors_told(f"{self._level}/{key}"):
                traffic.add(requests=1)
                answer = await obstore.get_async(self.store, key, options=options)
                data = prototype.buffer.from_bytes(await answer.bytes_async())
        except FileNotFoundError:
            self._note(key, MISSING)
            return None
        except StoreError as error:
            if error.is_denied and key in _OPTIONAL:
                return None
            if byte_range is not None and not (error.is_denied or _RETRIES.search(str(error))):
                await self._refuse_short(key, byte_range)
            raise
        traffic.add(n_bytes=len(data))
        self._note(key, seconds_as_ns(answer.meta["last_modified"]))
        if byte_range is None and not len(data):  # which zarr would take for an absent chunk
            raise ValueError(f"{self._level}/{key} is an empty object, where a chunk is to be")
        if byte_range is None and self._check is not None:
            self._check(key, data)
        return data

    async def _refuse_short(self, key: str, byte_range: ByteRequest) -> None:
        """Refuse a shard without the bytes that were asked for, which stores tell in many ways."""
        import obstore

        match byte_range:
            case RangeByteRequest(_, needed) | SuffixByteRequest(needed):
                pass
            case _:
                return
        try:
            with errors_told(f"{self._level}/{key}"):
                traffic.add(requests=1)
                size = (await obstore.head_async(self.store, key))["size"]
        except (FileNotFoundError, StoreError):
            return
        if size < needed:
            raise ValueError(f"{self._level}/{key} has {size} bytes and should have more")

    def _note(self, key: str, time_ns: int) -> None:
        with self._noting:
            # An answer may come after that to a later question.
            last = self._times.get(key, MISSING)
            self._times[key] = time_ns if time_ns == MISSING else max(time_ns, last)
            self._times.move_to_end(key)
            while len(self._times) > _N_REMEMBERED:
                self._times.popitem(last=False)

    def find_time(self, key: str) -> int:
        """When an object that was read had changed, ns, 0 if the server does not tell; or MISSING.

        Raises
        ------
        StoreError
            If the object is not remembered, and the store does not tell it again.
        """
        import obstore

        with self._noting:
            known = self._times.get(key)
        if known is not None:
            return known
        try:
            with errors_told(f"{self._level}/{key}"):
                traffic.add(requests=1)
                found = obstore.head(self.store, key)
        except FileNotFoundError:
            return MISSING
        return seconds_as_ns(found["last_modified"])
