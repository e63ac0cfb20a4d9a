"""A process of its own for a library that may end the process which reads a damaged file.

It is a module of this package that ends with `serve`: it reads requests from standard input, and
writes replies to standard output, until its input ends. Both are a head, plain data, and bytes.
`serve_reader` offers a reader so, and `ProcessReader` is that reader for everybody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import describe_cause
from densebatch.base.geometry import Region
from densebatch.base.names import Scene
from densebatch.readers.reader import ImageFacts, Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Head = dict[str, Any]

_SIZES = struct.Struct("<IQ")  # bytes of the head and of what follows it
# A process that starts imports its libraries first, perhaps from a slow disk.
_START_PATIENCE_S = 60.0
_PIECE_BYTES = 2**20
# How long a reader may take: for a small file, for each byte of a large one, and for what it reads.
_PATIENCE_S, _SLOWEST_BYTES_PER_S, _SLOWEST_VALUES_PER_S = 5.0, 1e8, 5e5
# Memory that a reader may take: to open a file, and for each value that it reads. Damaged files
# make libraries take all that there is.
_SPARE_BYTES, _BYTES_PER_VALUE = 1_500_000_000, 64
# Of a cohort several slides stay open, whose processes take memory that nobody counts.
_IDLE_S = 30.0
_END_PATIENCE_S = 1.0  # from the end of what it writes to the end of a process
_KILLED = "the process that reads it was killed twice, as a system does that is short of memory"


class _EndedError(Exception):
    """A process was killed from outside, or had nothing to do."""


class OwnProcess:
    """Starts the process at the first request, and again after it has ended, as it does when idle.

    Parameters
    ----------
    arguments
        A module, and its arguments.
    broken
        What to say if the process ends, a sentence.
    """

    def __init__(self, arguments: Sequence[str], broken: str) -> None:
        self._arguments, self._broken = list(arguments), broken
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, head: Head, data: bytes = b"", *, patience_s: float) -> tuple[Head, bytearray]:
        """The reply to a request; one at a time.

        Parameters
        ----------
        head, data
            The request.
        patience_s
            How long the answer may take.

        Raises
        ------
        ValueError
            If the process cannot do it, or ends, or takes too long.
        """
        try:
            reply, found = self._exchange(head, data, patience_s)
        except _EndedError:
            # It says nothing of the file: where memory is short the system ends who has much.
            try:
                reply, found = self._exchange(head, data, patience_s)
            except _EndedError as error:
                raise ValueError(_KILLED) from error
        if "error" in reply:
            raise ValueError(reply["error"])
        return reply, found

    def _exchange(self, head: Head, data: bytes, patience_s: float) -> tuple[Head, bytearray]:
        """Send a request and receive the reply."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        try:
            process = self._process or self._start()
        except (OSError, EOFError) as error:
            self.close()
            raise ValueError(
                f"the process that is to read it ({self._arguments[0]}) cannot be "
                f"started ({describe_cause(error)})"
            ) from error
        try:
            assert process.stdin is not None
            process.stdin.write(_pack({"request": head, "patience_s": patience_s}, data))
            process.stdin.flush()
            return _receive_reply(process, patience_s)
        except TimeoutError as error:
            self.close()
            raise ValueError(
                f"no answer came within {patience_s:.0f} s: it is damaged, or its disk is too slow"
            ) from error
        except (OSError, EOFError) as error:
            status = self._find_status()
            self.close()
            if status in (0, -signal.SIGKILL):
                raise _EndedError from error
            raise ValueError(self._broken) from error

    def _find_status(self) -> int | None:
        """How the process has ended, as `Popen.returncode`; None if it has not."""
        if self._process is None:
            return None
        try:
            return self._process.wait(_END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return None

    def _start(self) -> subprocess.Popen[bytes]:
        # It imports what this process does, and no file of such a name in the folder where it runs.
        places = os.pathsep.join(place for place in sys.path if place)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", *self._arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": places},
        )  # fmt: skip
        _receive_reply(self._process, _START_PATIENCE_S)
        return self._process

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not written yet cannot be written any more
                    continue


def serve(answer: Callable[[Head, bytes], tuple[Head, bytes]]) -> None:
    """Answer requests until there are no more, or none for a while.

    What `answer` raises is told, and the next is read.

    Parameters
    ----------
    answer
        Gives the head and the bytes of the reply.
    """
    # Ctrl-C goes to all processes of a terminal; whoever asks decides what becomes of a request.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries print; what they print must not get among the replies.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    source = sys.stdin.buffer
    reply = _pack({}, b"")  # says that imports are done
    while True:
        out.write(reply)
        out.flush()
        if not select.select([source], [], [], _IDLE_S)[0]:
            return
        sizes = source.read(_SIZES.size)
        if len(sizes) < _SIZES.size:
            return
        n_head, n = _SIZES.unpack(sizes)
        head, data = json.loads(source.read(n_head)), source.read(n)
        # Whoever asked may be gone, and a library that never returns would run for ever.
        signal.alarm(1 + int(2 * head["patience_s"]))
        try:
            reply = _pack(*answer(head["request"], data))
        # Whatever is wrong with this, the next may be right.
        except Exception as error:
            reply = _pack({"error": str(error) or type(error).__name__}, b"")
        signal.alarm(0)


class ProcessReader(Reader):
    """A file that a reader in a process of its own has open.

    Parameters
    ----------
    path
        Of the file.
    files
        All files that the pixels or what is known of them come from.
    module
        That ends with `serve_reader`.
    library
        Named where the process ends.

    Raises
    ------
    ValueError
        If the file cannot be opened.
    """

    def __init__(self, path: Path, files: Sequence[Path], module: str, library: str) -> None:
        self.files = files
        self._process = OwnProcess(
            [module, str(path)],
            f"it is damaged: {library} ends the process that reads it",
        )
        n_bytes = sum(file.stat().st_size for file in files)
        self._patience_s = _PATIENCE_S + n_bytes / _SLOWEST_BYTES_PER_S
        try:
            told, _ = self._process.ask({}, patience_s=self._patience_s)
        except Exception:
            self.close()
            raise
        self.scenes = [Scene(**scene) for scene in told["scenes"]]
        self._facts = [_to_facts(facts) for facts in told["facts"]]

    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""
        return self._facts[scene]

    def read(
        self,
        scene: int,
        channels: Sequence[int],
        region: Region,
        *,
        level: int = 0,
        z: int = 0,
        t: int = 0,
    ) -> NDArray[Any]:
        """Read a region of some channels."""
        box = (region.y0, region.x0, region.y1, region.x1)
        request = {"scene": scene, "channels": list(channels), "region": box, "level": level}
        told, planes = self._process.ask(
            request | {"z": z, "t": t},
            patience_s=self._patience_s + region.area * len(channels) / _SLOWEST_VALUES_PER_S,
        )
        return np.frombuffer(planes, told["dtype"]).reshape(told["shape"])

    def close(self) -> None:
        """Let go of the file."""
        self._process.close()


def serve_reader(open_reader: Callable[[], Reader]) -> None:
    """Offer a reader to a `ProcessReader`.

    Parameters
    ----------
    open_reader
        Opens the file, at the first request.
    """
    readers: list[Reader] = []

    def answer(head: Head, _: bytes) -> tuple[Head, bytes]:
        region = Region(*head["region"]) if head else Region(0, 0, 0, 0)
        n_values = region.area * len(head.get("channels", ()))
        _limit_memory(_SPARE_BYTES + _BYTES_PER_VALUE * n_values)
        if not readers:
            readers.append(open_reader())
        reader = readers[0]
        if not head:
            facts = [asdict(reader.describe(k)) for k in range(len(reader.scenes))]
            return {"scenes": [asdict(scene) for scene in reader.scenes], "facts": facts}, b""
        chosen = {name: head[name] for name in ("level", "z", "t")}
        planes = reader.read(head["scene"], head["channels"], region, **chosen)
        return {"dtype": planes.dtype.str, "shape": planes.shape}, planes.tobytes()

    serve(answer)


def _to_facts(told: Head) -> ImageFacts:
    """Facts of an image, of which JSON has made lists."""
    tuples = {key: tuple(value) for key, value in told.items() if isinstance(value, list)}
    levels = tuple((rows, cols) for rows, cols in told["levels"])
    return ImageFacts(**(told | tuples | {"levels": levels}))


def _limit_memory(n_bytes: int) -> None:
    """Let this process take so much more than it has; only Linux can."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        told = Path("/proc/self/status").read_text().split("VmData:")[1]
        used = 1024 * int(told.split()[0])
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (used + n_bytes, hard))


def _pack(head: Head, data: bytes) -> bytes:
    text = json.dumps(head).encode()
    return _SIZES.pack(len(text), len(data)) + text + data


def _receive_reply(process: subprocess.Popen[bytes], patience_s: float) -> tuple[Head, bytearray]:
    n_head, n = _SIZES.unpack(_receive(process, _SIZES.size, patience_s))
    head: Head = json.loads(_receive(process, n_head, patience_s))
    return head, _receive(process, n, patience_s)


def _receive(process: subprocess.Popen[bytes], n: int, patience_s: float) -> bytearray:
    """Bytes from a process, as they come.

    Raises
    ------
    EOFError
        If it ends before.
    TimeoutError
        If they do not come.
    """
    assert process.stdout is not None
    received, end = bytearray(), time.monotonic() + patience_s
    while len(received) < n:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError
        piece = os.read(process.stdout.fileno(), min(_PIECE_BYTES, n - len(received)))
        if not piece:
            raise EOFError
        received += piece
    return received
