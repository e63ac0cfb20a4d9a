"""JPEG XR, decoded by a process of its own, because the codec ends it at some damaged blocks.

    python -m densebatch.readers.jpeg_xr

is that process. It reads a head and a block from standard input, writes a head and pixels or a
reason to standard output, and so on until its input ends.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HEAD = struct.Struct("<Q3I8s")  # bytes of the block, rows, columns, samples, type of values
_REPLY = struct.Struct("<q")  # bytes of pixels that follow; below 0, of a text that says why not
# A process that starts imports its libraries first, perhaps from a slow disk.
_START_PATIENCE_S, _PATIENCE_S = 60.0, 10.0
_PIECE_BYTES = 2**20


class JpegXrDecoder:
    """Starts the process at the first block, and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._patience_s = _START_PATIENCE_S

    def decode(
        self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, int, int]
    ) -> NDArray[Any]:
        """Pixels of a block; one at a time.

        Parameters
        ----------
        data
            Of the block.
        dtype, shape
            What it must decode to: rows, columns, samples.

        Raises
        ------
        ValueError
            If it does not, or ends the process, or takes too long.
        """
        process = self._process = self._process or _start()
        assert process.stdin is not None
        try:
            process.stdin.write(_HEAD.pack(len(data), *shape, dtype.str.encode()) + data)
            process.stdin.flush()
            (n,) = _REPLY.unpack(_receive(process, _REPLY.size, self._patience_s))
            reply = _receive(process, abs(n), self._patience_s)
        except (OSError, EOFError) as error:
            self.close()
            raise ValueError(
                "a JPEG XR block is damaged: it ended the process that decodes, or held it up"
            ) from error
        self._patience_s = _PATIENCE_S
        if n < 0:
            raise ValueError(reply.decode(errors="replace"))
        return np.frombuffer(reply, dtype).reshape(shape)

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._patience_s = _START_PATIENCE_S
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


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip


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


def _serve() -> None:
    from densebatch.readers.codecs import decode_jpeg_xr

    # The codec prints; what it prints must not get among the pixels.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    source = sys.stdin.buffer
    while len(head := source.read(_HEAD.size)) == _HEAD.size:
        n, rows, cols, samples, kind = _HEAD.unpack(head)
        dtype = np.dtype(kind.rstrip(b"\0").decode())
        try:
            pixels = decode_jpeg_xr(source.read(n), dtype, (rows, cols, samples)).tobytes()
            out.write(_REPLY.pack(len(pixels)) + pixels)
        # Whatever is wrong with the block, the next may be right.
        except Exception as error:
            text = f"a JPEG XR block cannot be decoded ({error})".encode()
            out.write(_REPLY.pack(-len(text)) + text)
        out.flush()


if __name__ == "__main__":
    _serve()
