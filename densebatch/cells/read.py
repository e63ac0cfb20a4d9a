"""Open label images: PNG, TIFF, NumPy, OME-Zarr and plain zarr.

A label image is read piece by piece wherever its format allows. What cannot be read or is no
label image is an `InputError` that names the file; it never turns into background.
"""

from __future__ import annotations

import struct
import weakref
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import psutil
import tifffile
import zarr
from PIL import Image

from densebatch.base.errors import CapacityError, InputError
from densebatch.base.geometry import Region
from densebatch.cells.pixels import ACCEPTED, Pixels, as_labels, guess_axes, tell
from densebatch.cells.read_zarr import open_zarr

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
MAX_PX = 2**40


class LabelImage:
    """A two-dimensional label image on disk that slices to uint32.

    It travels to other processes as its path, and is opened there once.

    Parameters
    ----------
    pixels
        The open file.
    """

    def __init__(self, pixels: Pixels) -> None:
        self.path = pixels.path
        self.where = str(pixels.path)
        self.shape = pixels.shape
        self.chunks = pixels.unit
        self._pixels = pixels
        if pixels.n_planes > 1 and "S" not in pixels.axes:
            raise InputError(
                f"{self.where} has {pixels.n_planes} planes (shape {pixels.array.shape}); a label "
                "image has one"
            )

    def __getitem__(self, index: tuple[slice, slice]) -> NDArray[np.uint32]:
        (y0, y1, _), (x0, x1, _) = (s.indices(n) for s, n in zip(index, self.shape, strict=True))
        planes = self._pixels.read(Region(y0, x0, y1, x1))
        for other in planes[1:]:
            if not np.array_equal(planes[0], other):
                raise InputError(
                    f"{self.where} is a colour picture whose planes differ; a label image has one "
                    "plane with a whole number per cell"
                )
        return as_labels(planes[0], self.where)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path.absolute()),)


@lru_cache(maxsize=4)
def _reopen(path: str) -> LabelImage:
    return open_labels(Path(path))


def open_labels(path: Path) -> LabelImage:
    """Open a label image.

    Parameters
    ----------
    path
        A PNG, TIFF or .npy file; an OME-Zarr label group (`X.ome.zarr/labels/cells`), an image
        group with exactly one label image, a plain zarr array (zarr 2 and 3), or the output
        folder of `densebatch segment`.

    Raises
    ------
    InputError
        Where the path does not exist, cannot be read, or is no label image. What only the pixels
        tell (their values, a damaged chunk) is raised when they are read.
    """
    return LabelImage(open_pixels(path, labels=True))


def open_pixels(path: Path, *, labels: bool = False) -> Pixels:
    """Open an image of any kind; of an OME-Zarr its label image or its highest resolution."""
    try:
        pixels = _open(path, labels=labels)
    except (InputError, MemoryError):
        raise
    # As above: whatever fails while a damaged header is read, the file cannot be used.
    except Exception as exc:
        raise InputError(f"{path} cannot be opened: {tell(exc)}") from exc
    height, width = pixels.shape
    if not 0 < height * width <= MAX_PX or pixels.n_planes == 0:
        raise InputError(
            f"{path} has shape {pixels.array.shape}; accepted are 1 to {MAX_PX} pixels"
        )
    unit_bytes = pixels.unit[0] * pixels.unit[1] * np.dtype(pixels.array.dtype).itemsize
    if unit_bytes > (available := psutil.virtual_memory().available // 4):
        raise CapacityError(
            f"{path} is stored in chunks of {unit_bytes / 1e9:.1f} GB, and a quarter of the free "
            f"memory is {available / 1e9:.1f} GB; write it with smaller chunks"
        )
    return pixels


def _open(path: Path, *, labels: bool) -> Pixels:
    if not path.exists():
        raise InputError(f"{path} does not exist; accepted are {ACCEPTED}")
    if path.is_dir():
        return open_zarr(path, labels=labels)
    suffix = path.suffix.lower()
    if suffix == ".png":
        return _open_png(path)
    if suffix in (".tif", ".tiff"):
        return _open_tiff(path)
    if suffix == ".npy":
        return _open_npy(path)
    raise InputError(f"{path} is of an unknown kind; accepted are {ACCEPTED}")


def _open_npy(path: Path) -> Pixels:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as exc:
        raise InputError(
            f"{path} is not a plain array ({tell(exc)}); accepted is what numpy.save writes of a "
            "label array"
        ) from exc
    return Pixels(path, array, guess_axes(array.shape, path))


def _open_png(path: Path) -> Pixels:
    coded = path.read_bytes()
    head = coded[:26]
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise InputError(f"{path} is not a PNG, whatever its name says")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    if (needed := 8 * width * height) > (available := psutil.virtual_memory().available // 2):
        raise CapacityError(
            f"{path} declares {height}x{width} px, which needs {needed / 1e9:.1f} GB, and half of "
            f"the free memory is {available / 1e9:.1f} GB"
        )
    if depth == 1:
        raise InputError(
            f"{path} is a yes/no mask (1 bit per pixel); a label image has one whole number per "
            "cell"
        )
    if colour == 3:
        # The index into the palette is the label; its colour is for the eye.
        with Image.open(path) as picture:
            return Pixels(path, np.asarray(picture), "YX")
    array = imagecodecs.png_decode(coded)
    if colour in (4, 6):
        if (array[..., -1] != np.iinfo(array.dtype).max).any():
            raise InputError(f"{path} is partly transparent; a label image is opaque")
        array = array[..., :-1]
    return Pixels(path, array, "YX" if array.ndim == 2 else "YXS")


def _open_tiff(path: Path) -> Pixels:
    tif = tifffile.TiffFile(path)
    try:
        pixels = _read_tiff_layout(path, tif)
    except BaseException:
        tif.close()
        raise
    # Reads go through the open file for as long as somebody holds the pixels.
    weakref.finalize(pixels, tif.close)
    return pixels


def _read_tiff_layout(path: Path, tif: tifffile.TiffFile) -> Pixels:
    series = tif.series[0]
    level = series.levels[0]
    size = path.stat().st_size
    for page in level.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            # tifffile reads a piece without bytes as zeros, which would be background.
            if count == 0 or offset + count > size:
                raise InputError(
                    f"{path} is damaged: a piece of {count} bytes at {offset} is not in the file "
                    f"of {size} bytes"
                )
    axes, first = str(level.axes), level.keyframe
    if not {"Y", "X"} <= set(axes) or len(set(axes)) < len(axes):
        axes = guess_axes(level.shape, path)
    if len(series.levels) == 1 and first.is_memmappable and level.dataoffset is not None:
        return Pixels(path, tifffile.memmap(path, series=0, mode="r"), axes)
    unit = (int(first.chunks[0]), int(first.chunks[1])) if len(first.chunks) > 1 else (1, 1)
    # Unlike a page of tifffile, its store may be read by several threads at once.
    return Pixels(path, zarr.open_array(series.aszarr(level=0), mode="r"), axes, unit)
