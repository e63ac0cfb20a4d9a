"""TIFF and OME-TIFF: tiles and strips through tifffile's Zarr store, never a whole image."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.image_files import check_segments
from densebatch.sources.axes import ArraySource, Axes, name_channels, name_colours, tell_stacks
from densebatch.sources.source import (
    Layout,
    Selection,
    Source,
    Stamp,
    check_chunk,
    check_dtype,
    check_size,
    stamp_file,
)
from densebatch.sources.tiff_axes import find_tiff_axes, tell_odd_shape
from densebatch.sources.tiff_metadata import (
    is_colour,
    read_metadata,
    refuse_photometric,
    tell_inverted,
)
from densebatch.sources.tiff_rows import RowReader
from densebatch.tiff.choice import choose_image
from densebatch.tiff.image import TiffImage
from densebatch.tiff.images import open_tiff_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from tifffile import TiffFile, TiffPage, TiffPageSeries
    from zarr.abc.store import Store

    from densebatch.base.geometry import Region
    from densebatch.tiff.choice import ChosenImage
    from densebatch.tiff.images import OpenTiff


class TiffSource(ArraySource):
    """An open TIFF whose tiles or strips are decoded on demand.

    Parameters
    ----------
    path, layout, stamps, array, axes
        As of `ArraySource`.
    part
        Plain data that tell one image of the file from another.
    tif
        The open file, closed when nobody holds the source any more.
    series
        The image in it.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        part: Sequence[object],
        array: zarr.Array[Any],
        axes: Axes,
        tif: TiffFile,
        series: TiffPageSeries,
    ) -> None:
        super().__init__(path, layout, stamps, array, axes)
        self._part, self._series = list(part), series
        weakref.finalize(self, _close, array.store, tif)

    def content(self) -> list[object]:
        """Plain data that changes when the pixels may have changed."""
        return [*super().content(), *self._part]

    def _open_level(self, level: int) -> zarr.Array[Any]:
        size = self.layout.levels[level]
        found = [each for each in self._series.levels if TiffImage(each).size == size]
        if not found:
            return super()._open_level(level)
        keyframe, number = found[0].keyframe, self._series.levels.index(found[0])
        check_chunk(self.path, _segment_name(keyframe), keyframe.chunks, found[0].dtype.itemsize)
        check_segments(self.path, found[0])
        return zarr.open_array(self._series.aszarr(level=number), mode="r", zarr_format=2)


class RowSource(Source):
    """An uncompressed TIFF, of which any piece can be read without the rest of its strip.

    Parameters
    ----------
    path, layout, stamps
        As of `Source`.
    part
        Plain data that tell one image of the file from another.
    rows
        Reads the pieces.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        stamps: Mapping[Path, Stamp],
        part: Sequence[object],
        rows: RowReader,
    ) -> None:
        super().__init__(path, layout, stamps)
        self._part = list(part)
        self._rows = rows

    def content(self) -> list[object]:
        """Plain data that changes when the pixels may have changed."""
        return [*super().content(), *self._part]

    def read(self, first: int, stop: int, region: Region) -> NDArray[Any]:
        """Planes `first..stop` of a region inside the slide, (planes, height, width)."""
        return self._rows.read(first, stop, region)


def _close(store: Store, tif: TiffFile) -> None:
    store.close()
    tif.close()


def open_tiff(path: Path, selection: Selection) -> Source:
    """Open an image of a TIFF file at its highest resolution.

    Parameters
    ----------
    path
        Of the file.
    selection
        Which image it is if the file holds several, and a letter for each of its dimensions.

    Raises
    ------
    InputError
        If the file is damaged or truncated, holds several images of which none was chosen, or its
        axes, type, photometric interpretation or sizes are not accepted.
    """
    stamps = {path: stamp_file(path)}
    opened = open_tiff_images(path)
    keep = False
    try:
        source = _open_image(opened, selection, stamps)
        keep = isinstance(source, TiffSource)
    except InputError:
        raise
    # A damaged file makes tifffile fail in any way.
    except Exception as exc:
        raise InputError(f"{path} cannot be read as a TIFF file ({describe_cause(exc)})") from exc
    finally:
        if not keep:
            opened.tif.close()
    return source


def _open_image(opened: OpenTiff, selection: Selection, stamps: dict[Path, Stamp]) -> Source:
    path = opened.path
    is_stack = selection.scene is None and selection.axes is not None
    chosen = choose_image(opened, selection.scene, is_stack=is_stack)
    series = chosen.series
    keyframe = series.keyframe
    refuse_photometric(path, keyframe)
    shape = tuple(int(n) for n in series.shape)
    if 0 in keyframe.shape or 0 in shape:
        raise InputError(
            f"{path} has an image of {' x '.join(map(str, shape))} values; "
            "an image has at least one pixel and one channel"
        )
    axes, letters = find_tiff_axes(path, series, selection)
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
    others = [Path(page.parent.filehandle.path) for page in series]
    if opened.ome is not None and opened.ome.companion is not None:
        others.append(opened.ome.companion)
    for file in others:
        if file not in stamps and file != path:
            stamps[file] = stamp_file(file)

    metadata = read_metadata(opened, chosen, n)
    samples = axes.channel is not None and letters[axes.channel] == "S"
    colour = n >= 3 and is_colour(keyframe) and letters[axes.channel or 0] != "C"
    alpha = any(kind in (1, 2) for kind in keyframe.extrasamples[-1:])
    if colour:
        channels = name_colours(n, alpha=alpha)
    elif samples and alpha and n == 2:
        colour, channels = True, name_colours(n, alpha=True)
    else:
        channels = name_channels(metadata.names, n)

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
        um_per_px=metadata.um_per_px,
        chunk_px=(min(chunk[0], height), min(chunk[1], width)),
        chunk_planes=planes,
        levels=((height, width), *chosen.image.levels[1:]),
        um_from=metadata.um_from,
        origin_um=metadata.origin_um,
        origin_from=metadata.origin_from,
        compression=_name_compression(keyframe),
        selection=_canonical(opened, chosen, selection, letters, axes),
        notes=(
            *chosen.notes,
            *tell_odd_shape(series, axes, letters),
            *metadata.notes,
            *tell_inverted(keyframe),
        ),
    )
    # Two images of a file may agree in all that their layouts tell.
    is_only = len(opened.real) == 1 and chosen.image is opened.real[0]
    part: list[object] = [] if is_only else [chosen.number]
    part += [] if selection.axes is None else [letters]
    if rows is not None:
        return RowSource(path, layout, stamps, part, rows)
    array = zarr.open_array(series.aszarr(level=0), mode="r", zarr_format=2)
    if array.shape != shape or math.prod(array.chunks) != math.prod(keyframe.chunks):
        raise InputError(f"{path} has image metadata that contradict the sizes of its pages")
    if selection.axes is not None:
        # Rows and columns may be others than those of a page.
        chunk = array.chunks[axes.y], array.chunks[axes.x]
        layout = replace(
            layout,
            chunk_px=(min(chunk[0], height), min(chunk[1], width)),
            chunk_planes=1 if axes.channel is None else array.chunks[axes.channel],
        )
    return TiffSource(path, layout, stamps, part, array, axes, opened.tif, series)


def _canonical(
    opened: OpenTiff, chosen: ChosenImage, selection: Selection, letters: str, axes: Axes
) -> Selection:
    """One way to say what was chosen, whichever way it was said."""
    scene, real = selection.scene, opened.real
    if chosen.image in real:
        scene = f"#{real.index(chosen.image)}" if len(real) > 1 else None
    told = tell_stacks(axes, letters, chosen.series.shape)
    return Selection(scene, None if selection.axes is None else letters, *told)


def _segment_name(keyframe: TiffPage) -> str:
    return "tiles" if keyframe.is_tiled else "strips"


def _name_compression(keyframe: TiffPage) -> str:
    name = getattr(keyframe.compression, "name", str(keyframe.compression))
    return name.lower().replace("_", " ")
