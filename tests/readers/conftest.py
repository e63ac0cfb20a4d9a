"""A file of every format that can be written here, for the tests of reading."""

import numpy as np
import pytest
import tifffile

from tests.helpers import microscope_files as files
from tests.helpers.slide_files import random_pixels

CYX = random_pixels((2, 150, 130))
SMOOTH = (np.add.outer(np.arange(150), 3 * np.arange(130)) + CYX % 7).astype(np.uint16)
RGB = random_pixels((70, 90, 3), "uint8")
TILES = random_pixels((128, 192, 3), "uint8")
COUNTS = random_pixels((2, 60, 70), "float32") ** 2


def czi(planes, compression="uncompressed:"):
    def write(folder):
        pytest.importorskip("pylibCZIrw", reason="writes CZI files, and is not installed")
        return files.write_czi(folder / "slide.czi", planes, compression=compression)

    return write


def jpeg_xr(planes):
    def write(folder):
        path = czi(planes)(folder)
        return files.recompress_czi(path, 4, files.encode_jpeg_xr)

    return write


def imc(write, name, *options):
    def write_file(folder):
        pytest.importorskip("readimc")
        return write(folder / name, *options)

    return write_file


def library(name, write):
    def write_file(folder):
        pytest.importorskip(name)
        return write(folder)

    return write_file


def openslide_tiff(folder):
    path = folder / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        options = {"tile": (32, 32), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
        file.write(RGB, resolution=(1e4 / files.UM,) * 2, **options)
        file.write(RGB[::2, ::2], subfiletype=1, **options)
    return path


COLOURS = ("red", "green", "blue")
# name: how to write it, its planes, names of channels, um per pixel
FORMATS = {
    "CZI": (czi(CYX), CYX, files.NAMES, files.UM),
    "CZI, zstd": (czi(SMOOTH, "zstd0:ExplicitLevel=1"), SMOOTH, files.NAMES, files.UM),
    "CZI, zstd with bytes apart": (
        czi(SMOOTH, "zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack"),
        SMOOTH,
        files.NAMES,
        files.UM,
    ),
    "CZI, JPEG XR": (jpeg_xr(SMOOTH), SMOOTH, files.NAMES, files.UM),
    "CZI in colours": (czi(RGB), np.moveaxis(RGB[..., ::-1], -1, 0), COLOURS, files.UM),
    "MCD": (imc(files.write_mcd, "slide.mcd", [("ROI", COUNTS)]), COUNTS, files.NAMES, 1.0),
    "LIF": (
        library("liffile", lambda folder: files.write_lif(folder / "a.lif", [("one", CYX[None])])),
        CYX,
        files.NAMES,
        files.UM,
    ),
    "ND2": (
        library("nd2", lambda folder: files.write_nd2(folder / "a.nd2", CYX[None])),
        CYX,
        files.NAMES,
        files.UM,
    ),
    "TXT": (imc(files.write_imc_txt, "slide.txt", COUNTS), COUNTS, files.NAMES, None),
}
# With a folder beside the file.
FOLDERS = {
    "MRXS": (
        library("openslide", lambda folder: files.write_mrxs(folder / "slide.mrxs", TILES)),
        np.moveaxis(TILES, -1, 0),
        COLOURS,
        files.UM,
    ),
}


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Writes a format once; returns path, planes, names, um."""
    done = {}

    def get(name):
        if name not in done:
            write, *rest = (FORMATS | FOLDERS)[name]
            done[name] = (write(tmp_path_factory.mktemp("slide")), *rest)
        return done[name]

    return get
