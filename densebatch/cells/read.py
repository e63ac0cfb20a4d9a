"""Open label images: PNG, TIFF, NumPy, OME-Zarr and plain zarr.

A label image is read piece by piece wherever its format allows. What cannot be read or is no
label image is an `InputError` that names the file; it never turns into background.
"""

from __future__ import annotations

import weakref
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import zarr
from PIL import Image

from densebatch.base.errors import CapacityError, InputError, describe_cause
from densebatch.base.geometry import Region
from densebatch.base.image_files import (
    PALETTE,
    check_segments,
    decode_png,
    read_png_header,
)
from densebatch.base.machine import measure_memory
from densebatch.cells.pixels import (
    ACCEPTED,
    ADVICE,
    UNNAMED,
    Pixels,
    as_labels,
    complete_axes,
    guess_axes,
)
from densebatch.cells.read_zarr import open_zarr
from densebatch.tiff.choice import choose_image
from densebatch.tiff.images import open_tiff_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.tiff.images import OpenTiff

FILE_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
MAX_PX = 2**40


class LabelImage:
    """A two-dimensional label image on disk that slices to uint32.

    It travels to other processes as its path and scene, and is opened there once.

    Parameters
    ----------
    pixels
        The open file.
    masks
        Whether booleans are read, as 0 and 1.

    Raises
    ------
    InputError
        If it has several planes, or holds booleans and `masks` is false.
    """

    def __init__(self, pixels: Pixels, *, masks: bool = False) -> None:
        self.path = pixels.path
        self.where = str(pixels.path)
        self.shape = pixels.shape
        self.chunks = pixels.unit
        self.notes = pixels.notes
        self._pixels = pixels
        self._masks = masks
        if np.dtype(pixels.array.dtype) == bool and not masks:
            packed = self.path.suffix.lower() in (".png", ".tif", ".tiff")
            stored = "1 bit per pixel" if packed else "bool"
            raise InputError(
                f"{self.where} holds a yes/no mask ({stored}); a label image has one whole number "
                f"per cell: {ADVICE}"
            )
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
        return as_labels(planes[0], self.where, masks=self._masks)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self.path.absolute()), self._pixels.scene, self._masks)


@lru_cache(maxsize=4)
def _reopen(path: str, scene: str | None, masks: bool) -> LabelImage:
    return open_labels(Path(path), scene, masks=masks)


def open_labels(path: Path, scene: str | None = None, *, masks: bool = False) -> LabelImage:
    """Open a label image.

    Parameters
    ----------
    path
        A PNG, TIFF or .npy file; an OME-Zarr label group (`X.ome.zarr/labels/cells`), an image
        group with exactly one label image, a plain zarr array (zarr 2 and 3), or the output
        folder of `densebatch segment`.
    scene
        Which image of a file that holds several, by name or index; of no account for others.
    masks
        Whether yes/no masks of bool or one bit per pixel are read too, as 0 and 1.

    Raises
    ------
    InputError
        Where the path does not exist, cannot be read, is no label image, or holds several of which
        none was chosen. What only the pixels
        tell (their values, a damaged chunk) is raised when they are read.
    """
    return LabelImage(open_pixels(path, labels=True, scene=scene), masks=masks)


def open_pixels(path: Path, *, labels: bool = False, scene: str | None = None) -> Pixels:
    """Open an image of any kind.

    Parameters
    ----------
    path
        As for `open_labels`, or an image.
    labels
        Whether an OME-Zarr image stands for its label image, or for its highest resolution.
    scene
        As for `open_labels`.

    Raises
    ------
    InputError
        Where it cannot be opened.
    CapacityError
        Where a piece of it does not fit into memory.
    """
    try:
        pixels = _open(path, labels=labels, scene=scene)
    except (InputError, MemoryError):
        raise
    # Whatever fails while a damaged header is read, the file cannot be used.
    except Exception as exc:
        raise InputError(f"{path} cannot be opened: {describe_cause(exc)}") from exc
    height, width = pixels.shape
    if not 0 < height * width <= MAX_PX or pixels.n_planes == 0:
        raise InputError(
            f"{path} has shape {pixels.array.shape}; accepted are 1 to {MAX_PX} pixels"
        )
    unit_bytes = pixels.unit[0] * pixels.unit[1] * np.dtype(pixels.array.dtype).itemsize
    if unit_bytes > (available := measure_memory().available // 4):
        raise CapacityError(
            f"{path} is stored in chunks of {unit_bytes / 1e9:.1f} GB, and a quarter of the free "
            f"memory is {available / 1e9:.1f} GB; write it with smaller chunks"
        )
    return pixels


def _open(path: Path, *, labels: bool, scene: str | None) -> Pixels:
    if not path.exists():
        raise InputError(f"{path} does not exist; accepted are {ACCEPTED}")
    if path.is_dir():
        return open_zarr(path, labels=labels, scene=scene)
    suffix = path.suffix.lower()
    if suffix == ".png":
        return _open_png(path)
    if suffix in (".tif", ".tiff"):
        return _open_tiff(path, scene, labels=labels)
    if suffix == ".npy":
        return _open_npy(path)
    raise InputError(f"{path} is of an unknown kind; accepted are {ACCEPTED}")


def _open_npy(path: Path) -> Pixels:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as exc:
        raise InputError(
            f"{path} is not a plain array ({describe_cause(exc)}); accepted is what numpy.save "
            "writes of a label array"
        ) from exc
    return Pixels(path, array, guess_axes(array.shape, path))


def _open_png(path: Path) -> Pixels:
    header = read_png_header(path)
    needed, available = 8 * header.height * header.width, measure_memory().available // 2
    if needed > available:
        raise CapacityError(
            f"{path} declares {header.height}x{header.width} px, which needs {needed / 1e9:.1f} "
            f"GB, and half of the free memory is {available / 1e9:.1f} GB"
        )
    if header.colour_type == PALETTE:
        # The index into the palette is the label, and its colour is for the eye.
        with Image.open(path) as picture:
            index = np.asarray(picture)
            return Pixels(path, index > 0 if header.bits == 1 else index, "YX")
    pixels = decode_png(path, header)
    if header.has_alpha:
        if (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
            raise InputError(f"{path} is partly transparent; a label image is opaque")
        pixels = pixels[..., :-1]
    if header.bits == 1:
        pixels = pixels > 0
    return Pixels(path, pixels, "YX" if pixels.ndim == 2 else "YXS")


def _open_tiff(path: Path, scene: str | None, *, labels: bool) -> Pixels:
    opened = open_tiff_images(path, for_cells=labels)
    try:
        pixels = _read_tiff_layout(opened, scene)
    except BaseException:
        opened.tif.close()
        raise
    # Reads go through the open file for as long as somebody holds the pixels.
    weakref.finalize(pixels, opened.tif.close)
    return pixels


def _read_tiff_layout(opened: OpenTiff, scene: str | None) -> Pixels:
    path = opened.path
    chosen = choose_image(opened, scene, only_if_several=True)
    level = chosen.series
    check_segments(path, level)
    told, first = str(level.axes), level.keyframe
    axes = complete_axes(told, level.shape, path)
    is_inverted = level.dtype == bool and first.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    # tifffile says so of every mask, and means 1 by true nevertheless.
    if is_inverted and not first.software.startswith("tifffile"):
        raise InputError(
            f"{path} has one bit per pixel and says that 0 is white, so that it is not clear what "
            "is inside; save it with 0 as black, or with 8 bits"
        )
    unit = (1, 1)
    if len(chosen.image.levels) <= 1 and first.is_memmappable and level.dataoffset is not None:
        dtype = np.dtype(level.dtype).newbyteorder(opened.tif.byteorder)
        file = level.keyframe.parent.filehandle.path
        array: Any = np.memmap(file, dtype, "r", level.dataoffset, level.shape)
    else:
        unit = (int(first.chunks[0]), int(first.chunks[1])) if len(first.chunks) > 1 else (1, 1)
        # The store fails at unnamed axes of length 1 behind those of a page, which it can leave
        # out.
        squeeze = 1 in level.shape and bool(set(UNNAMED) & set(told))
        if squeeze:
            axes = complete_axes(level.get_axes(squeeze=True), level.get_shape(squeeze=True), path)
        # Unlike a page of tifffile, its store may be read by several threads at once.
        store = level.aszarr(level=0, squeeze=squeeze or None)
        array = zarr.open_array(store, mode="r")
    return Pixels(path, array, axes, unit, scene, chosen.notes)
