"""TIFF and OME-TIFF: tiles and strips through tifffile's Zarr store, never a whole image."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.image_files import check_segments, open_tiff_file
from densebatch.slides.source import (
    ArraySource,
    Axes,
    Layout,
    Selection,
    Source,
    Stamp,
    check_chunk,
    check_dtype,
    check_size,
    find_axes,
    name_channels,
    name_colours,
    stamp_file,
)
from densebatch.slides.tiff_metadata import (
    is_colour,
    read_channel_names,
    read_pixel_size,
    refuse_lost_metadata,
    refuse_photometric,
)
from densebatch.slides.tiff_rows import RowReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from tifffile import TiffFile, TiffPage
    from zarr.abc.store import Store

    from densebatch.base.geometry import Region

# C is named by a format, S is a sample, and Q and I count pages that no metadata explain.
_CHANNEL_AXES = "CSQI"
_OTHER_AXES = "TZRHEPAVMKL"


class TiffSource(ArraySource):
    """An open TIFF whose tiles or strips are decoded on demand.

    Parameters
    ----------
    path, layout, stamps, array, axes
        As of `ArraySource`.
    tif
        The open file, closed when nobody holds the source any more.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        array: zarr.Array[Any],
        axes: Axes,
        tif: TiffFile,
    ) -> None:
        super().__init__(path, layout, stamps, array, axes)
        weakref.finalize(self, _close, array.store, tif)


class RowSource(Source):
    """An uncompressed TIFF, of which any piece can be read without the rest of its strip.

    Parameters
    ----------
    path, layout, stamps
        As of `Source`.
    rows
        Reads the pieces.
    """

    def __init__(
        self, path: Path, layout: Layout, stamps: Mapping[Path, Stamp], rows: RowReader
    ) -> None:
        super().__init__(path, layout, stamps)
        self._rows = rows

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        return self._rows.read(first, stop, region)


def _close(store: Store, tif: TiffFile) -> None:
    store.close()
    tif.close()


def open_tiff(path: Path, selection: Selection) -> Source:
    """Open the first image series of a TIFF file at its highest resolution.

    Raises
    ------
    InputError
        If the file is damaged or truncated, or its axes, type, photometric interpretation or
        sizes are not accepted.
    """
    stamps = {path: stamp_file(path)}
    tif = open_tiff_file(path)
    keep = False
    try:
        source = _open_series(path, tif, stamps)
        keep = isinstance(source, TiffSource)
    except InputError:
        raise
    # A damaged file makes tifffile fail in any way.
    except Exception as exc:
        raise InputError(f"{path} cannot be read as a TIFF file ({describe_cause(exc)})") from exc
    finally:
        if not keep:
            tif.close()
    return source


def _open_series(path: Path, tif: TiffFile, stamps: dict[Path, Stamp]) -> Source:
    if not tif.series or not tif.series[0].shape:
        raise InputError(f"{path} is a TIFF file without an image; accepted is one with pixels")
    series = tif.series[0]
    keyframe = series.keyframe
    refuse_lost_metadata(path, tif, series)
    refuse_photometric(path, keyframe)
    shape = tuple(int(n) for n in series.shape)
    if 0 in keyframe.shape or 0 in shape:
        raise InputError(
            f"{path} has an image of {' x '.join(map(str, shape))} values; "
            "an image has at least one pixel and one channel"
        )
    axes = find_axes(path, list(series.axes), shape, _CHANNEL_AXES, _OTHER_AXES)
    height, width = shape[axes.y], shape[axes.x]
    n = 1 if axes.channel is None else shape[axes.channel]
    check_size(path, height, width, n)
    if keyframe.dtype is None:
        raise InputError(
            f"{path} has values of {keyframe.bitspersample} bits in TIFF sample format "
            f"{int(keyframe.sampleformat)}; accepted are integers and floats"
        )
    check_dtype(path, series.dtype.name)
    check_segments(path, series)
    for page in series:
        file = Path(page.parent.filehandle.path)
        if file not in stamps and file != path:
            stamps[file] = stamp_file(file)

    colour = n >= 3 and is_colour(keyframe)
    alpha = any(kind in (1, 2) for kind in keyframe.extrasamples[-1:])
    samples = axes.channel is not None and series.axes[axes.channel] == "S"
    if colour:
        channels = name_colours(n, alpha=alpha)
    elif samples and alpha and n == 2:
        colour, channels = True, name_colours(n, alpha=True)
    else:
        channels = name_channels(read_channel_names(path, tif, series), n)

    rows = RowReader.of(series, axes)
    if rows is None:
        check_chunk(path, _segment_name(keyframe), keyframe.chunks, series.dtype.itemsize)
        chunk = tuple(keyframe.tile[-2:]) if keyframe.is_tiled else (keyframe.rowsperstrip, width)
        planes = max(1, math.prod(keyframe.chunks) // math.prod(chunk))
    else:
        chunk = rows.chunk_px
        planes = rows.strides[1]
    layout = Layout(
        kind="tiff",
        height=height,
        width=width,
        channels=channels,
        colour=colour,
        dtype=np.dtype(series.dtype).newbyteorder("="),
        um_per_px=read_pixel_size(path, tif, series),
        chunk_px=(min(chunk[0], height), min(chunk[1], width)),
        chunk_planes=planes,
        n_levels=len(series.levels),
    )
    if rows is not None:
        return RowSource(path, layout, stamps, rows)
    array = zarr.open_array(series.aszarr(level=0), mode="r", zarr_format=2)
    if array.shape != shape or math.prod(array.chunks) != math.prod(keyframe.chunks):
        raise InputError(f"{path} has image metadata that contradict the sizes of its pages")
    return TiffSource(path, layout, stamps, array, axes, tif)


def _segment_name(keyframe: TiffPage) -> str:
    return "tiles" if keyframe.is_tiled else "strips"
