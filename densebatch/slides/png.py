"""PNG: decoded whole, the last ones kept per process."""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

from densebatch.base.errors import InputError
from densebatch.slides.source import (
    Layout,
    Source,
    Stamp,
    check_chunk,
    check_size,
    name_colours,
    stamp_file,
    tell,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_PLANES_OF_TYPE = {0: 1, 2: 3, 4: 2, 6: 4}
_PALETTE = 3
_KEEP = 2

_decoded: OrderedDict[tuple[Path, Stamp], NDArray[Any]] = OrderedDict()
_lock = threading.Lock()


class PngSource(Source):
    """An open PNG; decoded at the first read."""

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        rows, cols = region.slices
        return np.moveaxis(self._pixels()[rows, cols, first:stop], -1, 0).copy()

    def _pixels(self) -> NDArray[Any]:
        """(height, width, planes); of at most two files, since each may take a gigabyte."""
        key = self.path, self.stamps[self.path]
        with _lock:
            if key not in _decoded:
                _decoded[key] = _decode(self.path, self.layout)
            _decoded.move_to_end(key)
            while len(_decoded) > _KEEP:
                _decoded.popitem(last=False)
            return _decoded[key]


def open_png(path: Path) -> PngSource:
    """Read a PNG's header.

    Raises
    ------
    InputError
        If the header is damaged, the image has a palette, single bits or no pixels, or decodes
        to more than a gigabyte.
    """
    stamps = {path: stamp_file(path)}
    with path.open("rb") as file:
        header = file.read(33)
    if len(header) < 33 or header[12:16] != b"IHDR":
        raise InputError(f"{path} is truncated: a PNG begins with 33 bytes of header")
    width, height, bits, colour_type = struct.unpack(">IIBB", header[16:26])
    if colour_type == _PALETTE:
        raise InputError(
            f"{path} is a PNG with a palette, whose values are no intensities; "
            "accepted are PNGs of grey values or of red, green and blue"
        )
    if colour_type not in _PLANES_OF_TYPE or bits not in (2, 4, 8, 16):
        raise InputError(
            f"{path} is a PNG of colour type {colour_type} with {bits} bits per value; accepted "
            "are grey values of 2, 4, 8 or 16 bits and colours of 8 or 16 bits"
        )
    n = _PLANES_OF_TYPE[colour_type]
    dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
    check_size(path, height, width, n)
    check_chunk(path, "one piece", (height, width, n), dtype.itemsize)
    layout = Layout(
        kind="png",
        height=height,
        width=width,
        channels=name_colours(n, alpha=colour_type in (4, 6)),
        colour=n > 1,
        dtype=dtype,
        um_per_px=None,  # a PNG's resolution is that of a screen or a printer
        chunk_px=(height, width),
        chunk_planes=n,
    )
    return PngSource(path, layout, stamps)


def _decode(path: Path, layout: Layout) -> NDArray[Any]:
    try:
        # not pillow: it brings 16-bit colours down to 8 bits
        pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    except MemoryError:
        raise
    except Exception as exc:
        raise InputError(f"{path} cannot be decoded as PNG ({tell(exc)})") from exc
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    # a transparent colour (tRNS) decodes to one plane more than the header tells
    pixels = pixels[:, :, : len(layout.channels)]
    expected = layout.height, layout.width, len(layout.channels)
    if pixels.shape != expected or pixels.dtype != layout.dtype:
        raise InputError(
            f"{path} decodes to {pixels.shape} values of type {pixels.dtype}, "
            f"not to {expected} of type {layout.dtype} as its header tells"
        )
    return pixels
