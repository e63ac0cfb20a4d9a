"""A mosaic of annotated fields, written in the form that each contestant reads."""

from __future__ import annotations

from dataclasses import dataclass
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


def build_mosaic(
    fields: Path, work: Path, side: int, crop: int | None, left_out: tuple[int, int] = (0, 0)
) -> Mosaic:
    """Put the first four annotated fields of a folder together, in turn, row by row.

    Parameters
    ----------
    fields
        Folder of `*_img.png` with `*_masks.png`; all of one shape.
    work
        Where to write.
    side
        Fields along each side.
    crop
        Keep only so many rows and columns around the middle, where fields meet.
    left_out
        First rows and columns of the mosaic that it begins without.
    """
    images = [
        image
        for image in sorted(fields.glob("*_img.png"))
        if image.with_name(image.name.replace("_img.", "_masks.")).exists()
    ][:4]
    if len(images) < 4:
        raise SystemExit(f"{fields}: has {len(images)} annotated fields; a mosaic takes 4")
    read = [_read_field(image) for image in images]
    shapes = {pixels.shape for pixels, _ in read}
    if len(shapes) > 1:
        raise SystemExit(f"{fields}: the fields have shapes {shapes}; a mosaic takes one shape")
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
    y0, x0 = left_out
    y1, x1 = truth.shape
    if crop is not None:
        y0, x0 = (
            max(0, n * max(1, side // 2) - crop // 2) + skip
            for n, skip in zip((height, width), left_out, strict=True)
        )
        y1, x1 = y0 + crop, x0 + crop
    pixels, truth = (a[y0:y1, x0:x1] for a in (pixels, truth))
    seams = [y - y0 for y in seams[0]], [x - x0 for x in seams[1]]
    ids, compact = np.unique(truth, return_inverse=True)
    truth = compact.reshape(truth.shape).astype(np.int64) + (0 if ids[0] == 0 else 1)
    npy = work / "mosaic.npy"
    np.save(npy, np.ascontiguousarray(pixels))
    store = work / "mosaic.ome.zarr"
    _write_store(store, pixels)
    return Mosaic(npy, store, truth, seams, [image.name for image in images])


def _write_store(path: Path, pixels: NDArray[np.generic]) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
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
