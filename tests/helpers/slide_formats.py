"""A slide in every way of storing it, for the tests of reading."""

from __future__ import annotations

import imagecodecs
import numpy as np
import tifffile

from densebatch.base.geometry import Region
from tests.helpers.slide_files import random_pixels, write_zarr

CYX = random_pixels((3, 75, 110))
YXS = random_pixels((75, 110, 3), "uint8")
GREY = random_pixels((75, 110), "uint8")
GREY_CHANNELS = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}


def read_all(slide):
    info = slide.info
    whole = Region(0, 0, info.height, info.width)
    return np.stack([slide.read(c, whole) for c in range(len(info.channels))])


def tiff(pixels, name="slide.tif", **options):
    def write(folder):
        tifffile.imwrite(folder / name, pixels, **options)
        return folder / name, pixels

    return write


def zarr_slide(pixels, axes, version, **options):
    def write(folder):
        path = write_zarr(folder / "slide.ome.zarr", pixels, axes, version, **options)
        return path, pixels

    return write


def png(pixels):
    def write(folder):
        path = folder / "slide.png"
        path.write_bytes(imagecodecs.png_encode(pixels))
        return path, pixels

    return write


# name: how to write it, how its pixels become (planes, height, width)
SLIDES = {
    "one strip": (tiff(GREY), lambda p: p[None]),
    "rows as strips, two's complement": (
        tiff(random_pixels((40, 30), "int16"), rowsperstrip=7),
        lambda p: p[None],
    ),
    "deflated strips": (tiff(CYX[0], compression="zlib", rowsperstrip=16), lambda p: p[None]),
    "one deflated strip": (tiff(CYX[0], compression="zlib", rowsperstrip=75), lambda p: p[None]),
    "tiles": (tiff(CYX, tile=(32, 48), **GREY_CHANNELS), lambda p: p),
    "LZW tiles with predictor": (
        tiff(CYX, tile=(32, 32), compression="lzw", predictor=True, **GREY_CHANNELS),
        lambda p: p,
    ),
    "big-endian BigTIFF": (
        tiff(CYX, tile=(32, 32), bigtiff=True, byteorder=">", **GREY_CHANNELS),
        lambda p: p,
    ),
    "big-endian rows": (tiff(CYX, byteorder=">", **GREY_CHANNELS), lambda p: p),
    "float32 rows": (tiff(random_pixels((2, 40, 30), "float32"), **GREY_CHANNELS), lambda p: p),
    "float64 tiles": (
        tiff(random_pixels((50, 40), "float64"), tile=(16, 16)),
        lambda p: p[None],
    ),
    "float16": (tiff(random_pixels((50, 40), "float16")), lambda p: p[None]),
    "pages without metadata": (
        tiff(CYX, photometric="minisblack", metadata=None, compression="zlib"),
        lambda p: p,
    ),
    "pages of rows without metadata": (
        tiff(CYX, photometric="minisblack", metadata=None, rowsperstrip=10),
        lambda p: p,
    ),
    "RGB tiles": (tiff(YXS, tile=(16, 16), photometric="rgb"), lambda p: p.transpose(2, 0, 1)),
    "RGB rows": (tiff(YXS, photometric="rgb"), lambda p: p.transpose(2, 0, 1)),
    "planar RGB": (
        tiff(YXS.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        lambda p: p,
    ),
    "planar RGB tiles": (
        tiff(
            YXS.transpose(2, 0, 1).copy(),
            photometric="rgb",
            planarconfig="separate",
            tile=(32, 32),
            compression="zlib",
        ),
        lambda p: p,
    ),
    "markers as samples": (
        tiff(random_pixels((40, 30, 5)), photometric="minisblack", planarconfig="contig"),
        lambda p: p.transpose(2, 0, 1),
    ),
    "ImageJ": (tiff(CYX, imagej=True, metadata={"axes": "CYX"}), lambda p: p),
    "OME-TIFF": (
        tiff(
            CYX[None, :, None],
            "slide.ome.tif",
            tile=(32, 32),
            compression="zlib",
            photometric="minisblack",
            metadata={"axes": "TCZYX"},
        ),
        lambda p: p[0, :, 0],
    ),
    "OME-Zarr 0.4": (zarr_slide(CYX, "cyx", "0.4"), lambda p: p),
    "OME-Zarr 0.4, five axes": (
        zarr_slide(CYX[None, :, None], "tczyx", "0.4", n_levels=2),
        lambda p: p[0, :, 0],
    ),
    "OME-Zarr 0.4, big-endian": (zarr_slide(CYX.astype(">u2"), "cyx", "0.4"), lambda p: p),
    "OME-Zarr 0.5": (zarr_slide(CYX, "cyx", "0.5", n_levels=3), lambda p: p),
    "OME-Zarr 0.5, one plane": (
        zarr_slide(random_pixels((75, 110), "float32"), "yx", "0.5"),
        lambda p: p[None],
    ),
    "OME-Zarr 0.5, sharded": (
        zarr_slide(CYX, "cyx", "0.5", chunks=(1, 16, 16), shards=(1, 64, 64)),
        lambda p: p,
    ),
    "OME-Zarr 0.5, channels in one chunk": (
        zarr_slide(CYX, "cyx", "0.5", chunks=(3, 20, 40)),
        lambda p: p,
    ),
    "grey PNG": (png(GREY), lambda p: p[None]),
    "16-bit PNG": (png(CYX[0]), lambda p: p[None]),
    "RGB PNG": (png(YXS), lambda p: p.transpose(2, 0, 1)),
    "16-bit RGB PNG": (png(random_pixels((40, 30, 3))), lambda p: p.transpose(2, 0, 1)),
    "RGBA PNG": (png(random_pixels((40, 30, 4), "uint8")), lambda p: p.transpose(2, 0, 1)),
}
