"""JPEG XR, decoded by a process of its own, because the codec ends it at some damaged blocks.

    python -m densebatch.readers.jpeg_xr

is that process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.readers.own_process import OwnProcess, serve

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PATIENCE_S = 10.0


class JpegXrDecoder:
    """Starts the process at the first block, and again after it has ended."""

    def __init__(self) -> None:
        self.process = OwnProcess(
            [__name__],
            "a JPEG XR block is damaged: it ended the process that decodes, or held it up",
        )

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
        request = {"dtype": dtype.str, "shape": shape}
        _, pixels = self.process.ask(request, data, patience_s=_PATIENCE_S)
        return np.frombuffer(pixels, dtype).reshape(shape)

    def close(self) -> None:
        """End the process."""
        self.process.close()


def _serve() -> None:
    from densebatch.readers.codecs import decode_jpeg_xr

    def answer(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        rows, cols, samples = head["shape"]
        try:
            pixels = decode_jpeg_xr(data, np.dtype(head["dtype"]), (rows, cols, samples))
        except Exception as error:
            raise ValueError(f"a JPEG XR block cannot be decoded ({error})") from error
        return {}, pixels.tobytes()

    serve(answer)


if __name__ == "__main__":
    _serve()
