"""PNG: decoded whole, the last ones kept per process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.image_files import (
    PALETTE,
    PNG_PLANES,
    PngHeader,
    decode_png,
    read_png_header,
)
from densebatch.base.names import Scene, choose_scene
from densebatch.sources.axes import choose_plane, name_colours
from densebatch.sources.source import (
    Layout,
    Selection,
    Source,
    Stamp,
    check_chunk,
    check_size,
    stamp_file,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region

_N_KEPT = 2

_decoded: OrderedDict[tuple[Path, Stamp], NDArray[Any]] = OrderedDict()
_lock = threading.Lock()


class PngSource(Source):
    """An open PNG; decoded at the first read.

    Parameters
    ----------
    path, layout, stamps
        As of `Source`.
    header
        Of the file.
    """

    def __init__(
        self, path: Path, layout: Layout, stamps: Mapping[Path, Stamp], header: PngHeader
    ) -> None:
        super().__init__(path, layout, stamps)
        self._header = header

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        rows, cols = region.slices
        return np.moveaxis(self._pixels()[rows, cols, first:stop], -1, 0).copy()

    def _pixels(self) -> NDArray[Any]:
        """(height, width, planes); of at most two files, since each may take a gigabyte."""
        [key] = self.stamps.items()
        with _lock:
            if key not in _decoded:
                _decoded[key] = _decode(key[0], self._header)
            _decoded.move_to_end(key)
            while len(_decoded) > _N_KEPT:
                _decoded.popitem(last=False)
            return _decoded[key]


def open_png(path: Path, selection: Selection) -> PngSource:
    """Read a PNG's header.

    Raises
    ------
    InputError
        If the header is damaged, the image has a palette, single bits or no pixels, or decodes
        to more than a gigabyte.
    """
    choose_scene(path, [Scene("", "the only one")], selection.scene)
    if selection.axes is not None:
        raise InputError(
            f"{path} is a PNG, whose dimensions are always rows, columns and colours; --axes "
            f"{selection.axes} is not accepted"
        )
    for axis, wanted in (("Z", selection.z), ("T", selection.t)):
        choose_plane(path, axis, 1, wanted)
    stamps = {path: stamp_file(path)}
    header = read_png_header(path)
    height, width = header.height, header.width
    if header.colour_type == PALETTE:
        raise InputError(
            f"{path} is a PNG with a palette, whose values are no intensities; "
            "accepted are PNGs of grey values or of red, green and blue"
        )
    if header.colour_type not in PNG_PLANES or header.bits not in (2, 4, 8, 16):
        raise InputError(
            f"{path} is a PNG of colour type {header.colour_type} with {header.bits} bits per "
            "value; accepted are grey values of 2, 4, 8 or 16 bits and colours of 8 or 16 bits"
        )
    n = PNG_PLANES[header.colour_type]
    check_size(path, height, width, n)
    check_chunk(path, "one piece", (height, width, n), header.dtype.itemsize)
    layout = Layout(
        kind="png",
        height=height,
        width=width,
        channels=name_colours(n, alpha=header.has_alpha),
        colour=n > 1,
        dtype=header.dtype,
        um_per_px=None,  # a PNG's resolution is that of a screen or a printer
        chunk_px=(height, width),
        chunk_planes=n,
        levels=((height, width),),
        compression="deflate",
    )
    return PngSource(path, layout, stamps, header)


def _decode(path: Path, header: PngHeader) -> NDArray[Any]:
    """All planes that the header tells of, (height, width, planes)."""
    pixels = decode_png(path, header).reshape(header.height, header.width, -1)
    return pixels[:, :, : PNG_PLANES[header.colour_type]]
