"""A mosaic of annotated fields, written in the form that each contestant reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import zarr
from skimage.io import imread

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UM_PER_PX = 0.5


@dataclass(frozen=True)
class Mosaic:
    """Fields side by side.

    Attributes
    ----------
    npy : pixels, `(h, w)` uint8 or uint16
    store : the same as OME-Zarr 0.5
    truth : `(h, w)` int64, ids without gaps
    seams : rows and columns where fields meet
    fields : names
    """

    npy: Path
    store: Path
    truth: NDArray[np.int64]
    seams: tuple[list[int], list[int]]
    fields: list[str]


def _read_field(image: Path) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    pixels = imread(image)
    if pixels.ndim == 3:  # one marker, stored as a colour picture
        pixels = pixels[..., :3].max(axis=-1)
    masks = imread(image.with_name(image.name.replace("_img.", "_masks."))).astype(np.int64)
    return pixels, masks


@dataclass(frozen=True)
class Joined:
    """Fields put together, not yet written: pixels `(h, w)`, truth and the rest as in `Mosaic`."""

    pixels: NDArray[np.generic]
    truth: NDArray[np.int64]
    seams: tuple[list[int], list[int]]
    fields: list[str]

    def cut(self, y: int, x: int, height: int, width: int) -> Joined:
        """A window of it, which lies inside."""
        rows, cols = self.truth.shape
        if not (0 <= y < y + height <= rows and 0 <= x < x + width <= cols):
            raise SystemExit(f"no window of {height} x {width} px at {y}, {x} in {rows} x {cols}")
        at = (slice(y, y + height), slice(x, x + width))
        seams = [row - y for row in self.seams[0]], [col - x for col in self.seams[1]]
        return replace(self, pixels=self.pixels[at], truth=self.truth[at], seams=seams)


def join_fields(folder: Path, side: int) -> Joined:
    """Put the first four annotated fields of a folder together, in turn, row by row.

    Parameters
    ----------
    folder
        Of `*_img.png` with `*_masks.png`; all of one shape.
    side
        Fields along each side.
    """
    images = [
        image
        for image in sorted(folder.glob("*_img.png"))
        if image.with_name(image.name.replace("_img.", "_masks.")).exists()
    ][:4]
    if len(images) < 4:
        raise SystemExit(f"{folder}: has {len(images)} annotated fields; a mosaic takes 4")
    read = [_read_field(image) for image in images]
    shapes = {pixels.shape for pixels, _ in read}
    if len(shapes) > 1:
        raise SystemExit(f"{folder}: the fields have shapes {shapes}; a mosaic takes one shape")
    height, width = shapes.pop()
    # rows of an even number of fields would repeat each other
    places = [[(2 * row + row // 2 + col) % 4 for col in range(side)] for row in range(side)]
    pixels = np.block([[read[k][0] for k in row] for row in places])
    # a field that comes again has other cells
    step = max(int(masks.max()) for _, masks in read)
    truth = np.block(
        [
            [
                np.where(read[k][1] > 0, read[k][1] + (row * side + col) * step, 0)
                for col, k in enumerate(line)
            ]
            for row, line in enumerate(places)
        ]
    )
    seams = [height * k for k in range(1, side)], [width * k for k in range(1, side)]
    return Joined(pixels, truth, seams, [image.name for image in images])


def write_mosaic(joined: Joined, work: Path) -> Mosaic:
    """Write pixels for each contestant; ids of the truth become those without gaps."""
    ids, compact = np.unique(joined.truth, return_inverse=True)
    truth = compact.reshape(joined.truth.shape).astype(np.int64) + (0 if ids[0] == 0 else 1)
    npy = work / "mosaic.npy"
    np.save(npy, np.ascontiguousarray(joined.pixels))
    store = work / "mosaic.ome.zarr"
    _write_store(store, joined.pixels)
    return Mosaic(npy, store, truth, joined.seams, joined.fields)


def build_mosaic(fields: Path, work: Path, side: int, crop: int | None) -> Mosaic:
    """The mosaic of a folder's fields, written to `work`.

    Parameters
    ----------
    fields, side
        As for `join_fields`.
    work
        Where to write.
    crop
        Keep only so many rows and columns around the middle, where fields meet.
    """
    joined = join_fields(fields, side)
    if crop is not None:
        middle = (lines[max(1, side // 2) - 1] for lines in joined.seams)
        y, x = (max(0, line - crop // 2) for line in middle)
        height, width = joined.truth.shape
        joined = joined.cut(y, x, min(crop, height - y), min(crop, width - x))
    return write_mosaic(joined, work)


def _write_store(path: Path, pixels: NDArray[np.generic]) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array(
        "0",
        shape=pixels.shape,
        chunks=tuple(min(512, n) for n in pixels.shape),
        dtype=pixels.dtype,
        dimension_names=("y", "x"),
    )
    array[:] = pixels
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in ("y", "x")]
    scale = [{"type": "scale", "scale": [UM_PER_PX, UM_PER_PX]}]
    multiscale = {
        "name": "mosaic",
        "axes": space,
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
