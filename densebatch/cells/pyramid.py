"""Pixels of the output pyramid: whole units in, coarser levels out, digests of what is stored.

Every function is one idempotent task on one unit of `pyramid_spec.shard_grid`. Two writers inside
one shard lose data without an error, so anything but a whole unit is refused, and a repeated task
replaces exactly its own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import xxhash
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from densebatch.base.checksums import ABSENT, checksum_file
from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.resampling import mean_of_four
from densebatch.cells.groups import open_array
from densebatch.cells.pyramid_spec import PyramidSpec, shard_grid

if TYPE_CHECKING:
    import numpy.typing as npt

LABEL_DTYPE = np.dtype("<u4")


def array_settings(spec: PyramidSpec, level: int, *, image: bool = False) -> dict[str, Any]:
    """How an array of the label image, or of the image, is created: arguments of `zarr`."""
    lead: tuple[int, ...] = (len(spec.channels),) if image else ()
    ones = (1,) * len(lead)
    settings: dict[str, Any] = {
        "shape": lead + spec.level_shape(level),
        "chunks": ones + spec.chunk_shape(level),
        "dtype": np.dtype(spec.image_dtype).newbyteorder("<") if image else LABEL_DTYPE,
        "fill_value": 0,
        "zarr_format": spec.zarr_format,
        "filters": None,
    }
    if spec.ngff == "0.5":
        return settings | {
            "shards": ones + spec.unit_shape(level),
            "compressors": [ZstdCodec(level=3, checksum=False), Crc32cCodec()],
            "dimension_names": ("c", "y", "x") if image else ("y", "x"),
        }
    # The bytes of a label compress best in place, those of image pixels after a shuffle.
    blosc = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": int(image), "blocksize": 0}
    separator = {"name": "v2", "separator": "/"}
    return settings | {"compressors": blosc, "chunk_key_encoding": separator}


def write_label_shard(
    spec: PyramidSpec, level: int, region: Region, labels: npt.NDArray[np.uint32]
) -> None:
    """Write one whole unit of the labels.

    Parameters
    ----------
    spec, level, region
        Which unit.
    labels
        Its pixels, uint32.

    Raises
    ------
    ValueError
        If `region` is not a unit, or `labels` is not uint32 of its shape.
    """
    check_unit(spec, level, region)
    if labels.dtype != LABEL_DTYPE or labels.shape != region.shape:
        raise ValueError(f"{region} takes uint32 labels, not {labels.dtype} of {labels.shape}")
    _write(level_path(spec, level), region.slices, labels)


def write_image_shard(
    spec: PyramidSpec, channel: int, level: int, region: Region, pixels: npt.NDArray[Any]
) -> None:
    """Write one whole unit of one channel of the image beside the labels.

    Parameters
    ----------
    spec, channel, level, region
        Which unit.
    pixels
        Its pixels, of the image's type.

    Raises
    ------
    ValueError
        If `region` is not a unit, or `pixels` is not of the image's type and the unit's shape.
    """
    check_unit(spec, level, region, channel)
    if pixels.dtype != np.dtype(spec.image_dtype) or pixels.shape != region.shape:
        raise ValueError(
            f"{region} takes {spec.image_dtype} pixels, not {pixels.dtype} of {pixels.shape}"
        )
    _write(level_path(spec, level, image=True), (channel, *region.slices), pixels)


def source_region(spec: PyramidSpec, level: int, region: Region) -> Region:
    """The pixels of level - 1 that a region of `level` is made from."""
    above, here = spec.level_shape(level - 1), spec.level_shape(level)
    y0, x0 = nearest(region.y0, above[0], here[0]), nearest(region.x0, above[1], here[1])
    y1 = nearest(region.y1 - 1, above[0], here[0]) + 1
    x1 = nearest(region.x1 - 1, above[1], here[1]) + 1
    if spec.slide is not None:
        return Region(y0, x0, y1, x1)
    # The region ends with a whole pair, because a mean needs both pixels where there are two.
    return Region(y0, x0, y1 + 1, x1 + 1).clip(*above)


def downsample_labels(
    spec: PyramidSpec, level: int, region: Region, below: npt.NDArray[np.uint32] | None = None
) -> npt.NDArray[np.uint32]:
    """Build and write one unit of a level from the level before by taking the nearest pixel.

    Ids are never averaged. For the plain pyramid this is every second row and column, `[::2, ::2]`;
    for a slide's own levels it is the pixel that holds the centre of the coarse one (the upper left
    one if that centre lies on an edge).

    Parameters
    ----------
    spec, level, region
        Which unit.
    below
        All of the level before, if it is at hand; else it is read.

    Returns
    -------
    ndarray
        What was written.

    Raises
    ------
    ValueError
        If `level` is 0 or `region` is not a unit.
    """
    labels = reduce_labels(spec, level, region, below)
    write_label_shard(spec, level, region, labels)
    return labels


def reduce_labels(
    spec: PyramidSpec, level: int, region: Region, below: npt.NDArray[np.uint32] | None = None
) -> npt.NDArray[np.uint32]:
    """One unit of a level from the level before, as `downsample_labels` writes it."""
    check_unit(spec, level, region, lowest=1)
    above, here = spec.level_shape(level - 1), spec.level_shape(level)
    source = open_array(level_path(spec, level - 1)) if below is None else below
    cols = nearest(np.arange(region.x0, region.x1), above[1], here[1])
    labels = np.empty(region.shape, LABEL_DTYPE)
    for strip in _strips(spec, level, region):
        rows = nearest(np.arange(strip.y0, strip.y1), above[0], here[0])
        block = _read(source, slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        into = strip.shift(-region.y0, -region.x0).slices
        labels[into] = block[rows - rows[0]][:, cols - cols[0]]
    return labels


def downsample_image(
    spec: PyramidSpec,
    channel: int,
    level: int,
    region: Region,
    below: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Build and write one unit of one channel from the level before by the mean of 2×2 pixels.

    Integers are averaged exactly and rounded half up. Where a level has an odd size its last row or
    column stands for its missing neighbour.

    Parameters
    ----------
    spec, channel, level, region
        Which unit.
    below
        All of the channel's level before, if it is at hand; else it is read.

    Returns
    -------
    ndarray
        What was written.

    Raises
    ------
    ValueError
        If `level` is 0 or `region` is not a unit.
    """
    pixels = reduce_image(spec, channel, level, region, below)
    write_image_shard(spec, channel, level, region, pixels)
    return pixels


def reduce_image(
    spec: PyramidSpec,
    channel: int,
    level: int,
    region: Region,
    below: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """One unit of a channel's level from the level before, as `downsample_image` writes it."""
    check_unit(spec, level, region, channel, lowest=1)
    source: zarr.Array[Any] | npt.NDArray[Any]
    if below is None:
        source = open_array(level_path(spec, level - 1, image=True))
    else:
        source = below[np.newaxis]
    pixels = np.empty(region.shape, np.dtype(spec.image_dtype))
    for strip in _strips(spec, level, region):
        plane = channel if below is None else 0
        block = _read(source, plane, *source_region(spec, level, strip).slices)
        pixels[strip.shift(-region.y0, -region.x0).slices] = mean_of_four(block)
    return pixels


def digest_pixels(pixels: npt.NDArray[Any]) -> str:
    """Hex digest (XXH3, 128 bits) of pixels as they are stored: little-endian, row by row.

    Examples
    --------
    >>> digest_pixels(np.zeros((2, 3), np.uint32)) == digest_pixels(np.zeros((3, 2), ">u4").T)
    True
    """
    stored = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))
    return xxhash.xxh3_128(stored.data).hexdigest()


def digest_unit(spec: PyramidSpec, level: int, region: Region, channel: int | None = None) -> str:
    """Read one unit back, of the labels or of a channel of the image, and digest what was read.

    Equal to `digest_pixels` of what was written; so a lost file, which reads as zeros, shows.

    Parameters
    ----------
    spec, level, region
        Which unit.
    channel
        Of the image; None for the labels.

    Raises
    ------
    ValueError
        If `region` is not a unit.
    InputError
        If what is stored cannot be read or fails its checksum.
    """
    return digest_pixels(read_unit(spec, level, region, channel))


def read_unit(
    spec: PyramidSpec, level: int, region: Region, channel: int | None = None
) -> npt.NDArray[Any]:
    """Read one unit back, of the labels or of a channel of the image; see `digest_unit`."""
    check_unit(spec, level, region, channel)
    folder = level_path(spec, level, image=channel is not None)
    selection = region.slices if channel is None else (channel, *region.slices)
    try:
        return _read(open_array(folder), *selection)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{folder} is damaged at {region}: {error}.") from error


def unit_files(
    spec: PyramidSpec, level: int, region: Region, channel: int | None = None
) -> list[str]:
    """Files that one unit may have, relative to the root; those of background are not there.

    Parameters
    ----------
    spec, level, region
        Which unit.
    channel
        Of the image; None for the labels.

    Examples
    --------
    >>> spec = PyramidSpec("out", "0.5", height=3000, width=3000, n_levels=1)
    >>> unit_files(spec, 0, Region(0, 2048, 2048, 3000))
    ['labels/cells/0/c/0/1']
    """
    folder = str(level) if channel is not None else f"labels/{spec.label_name}/{level}"
    lead = "c/" if spec.ngff == "0.5" else ""
    plane = "" if channel is None else f"{channel}/"
    height, width = spec.unit_shape(level) if spec.ngff == "0.5" else spec.chunk_shape(level)
    return [
        f"{folder}/{lead}{plane}{row}/{col}"
        for row in range(region.y0 // height, -(-region.y1 // height))
        for col in range(region.x0 // width, -(-region.x1 // width))
    ]


def checksum_unit(
    spec: PyramidSpec, level: int, region: Region, channel: int | None = None
) -> dict[str, str]:
    """SHA-256 of the files that one unit has, by their names relative to the root."""
    names = unit_files(spec, level, region, channel)
    found = {name: checksum_file(Path(spec.root) / name) for name in names}
    return {name: checksum for name, checksum in found.items() if checksum != ABSENT}


def check_unit(
    spec: PyramidSpec, level: int, region: Region, channel: int | None = None, *, lowest: int = 0
) -> None:
    """Refuse anything but one whole unit of a level, and a channel that the image does not have.

    Parameters
    ----------
    spec, level, region
        What is taken for a unit.
    channel
        Of the image; None for the labels.
    lowest
        The least level that is accepted: 1 where a level is made from the one before.

    Raises
    ------
    ValueError
        With the units of the level.
    """
    if level < lowest:
        raise ValueError(f"level {level} is not made from another level")
    if channel is not None and not (spec.image and 0 <= channel < len(spec.channels)):
        raise ValueError(f"the output has no image channel {channel}")
    grid = shard_grid(spec, level)
    row, col = region.y0 // grid.step_y, region.x0 // grid.step_x
    if not (0 <= row < grid.rows and 0 <= col < grid.cols) or grid[row, col] != region:
        raise ValueError(
            f"{region} is not one whole unit of level {level}: units are {grid.step_y} by"
            f" {grid.step_x} px of {grid.height} by {grid.width} px"
        )


@overload
def nearest(index: int, n: int, m: int) -> int: ...
@overload
def nearest(index: npt.NDArray[np.int64], n: int, m: int) -> npt.NDArray[np.int64]: ...
def nearest(index: int | npt.NDArray[np.int64], n: int, m: int) -> int | npt.NDArray[np.int64]:
    """The pixel of `n` that holds the centre of pixel `index` of `m`, in exact arithmetic.

    A centre that lies between two pixels goes to the first.

    Examples
    --------
    >>> nearest(np.arange(3), 6, 3), nearest(np.arange(3), 5, 3), nearest(np.arange(3), 7, 3)
    (array([0, 2, 4]), array([0, 2, 4]), array([1, 3, 5]))
    """
    return -((2 * index + 1) * -n // (2 * m)) - 1


def label_path(spec: PyramidSpec) -> Path:
    """The folder of the label image."""
    return Path(spec.root) / "labels" / spec.label_name


def level_path(spec: PyramidSpec, level: int, *, image: bool = False) -> Path:
    """The folder of one array of the label image, or of the image."""
    return (Path(spec.root) if image else label_path(spec)) / str(level)


def _read(array: zarr.Array[Any] | npt.NDArray[Any], *selection: int | slice) -> npt.NDArray[Any]:
    return np.asarray(array[selection])


def _write(folder: Path, selection: tuple[int | slice, ...], pixels: npt.NDArray[Any]) -> None:
    # Background is left out, because it then costs nothing, and a digest tells it from a lost file.
    array = zarr.open_array(LocalStore(folder), mode="r+")
    array = array.with_config({"write_empty_chunks": False})
    try:
        array[selection] = pixels
    except (ValueError, RuntimeError):
        # zarr reads a shard before it replaces it, and cannot if a crash or a bad disk damaged it.
        # A shard that can be read is not removed beforehand, because a late repetition of a
        # finished task would then show zeros to readers for a moment.
        steps = array.shards or array.chunks
        starts = (s if isinstance(s, int) else s.start for s in selection)
        unit = tuple(start // step for start, step in zip(starts, steps, strict=True))
        (folder / array.metadata.encode_chunk_key(unit)).unlink(missing_ok=True)
        array[selection] = pixels


def _strips(spec: PyramidSpec, level: int, region: Region) -> list[Region]:
    """A unit in rows of chunks, so that only a fraction of its source is held at once."""
    step = spec.chunk_shape(level)[0]
    starts = range(region.y0, region.y1, step)
    return [Region(y, region.x0, min(y + step, region.y1), region.x1) for y in starts]
