"""Files that are no slides, and bad PNGs: one sentence of the file, what was found and accepted."""

import os

import imagecodecs
import pytest
import tifffile

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from tests.helpers.bad_slides import GREY, refused
from tests.helpers.slide_files import png_chunk, write_png


class TestNoSlide:
    def test_missing(self, tmp_path):
        refused(tmp_path / "a.tif", "does not exist; accepted are OME-Zarr folders, TIFF and PNG")

    def test_empty(self, tmp_path):
        (tmp_path / "a.tif").touch()
        refused(tmp_path / "a.tif", "is empty, neither TIFF nor PNG")

    def test_garbage(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"\xff\xd8\xff\xe0garbage")
        refused(tmp_path / "a.tif", "begins with the bytes ff d8 ff e0 .* neither TIFF nor PNG")

    def test_folder(self, tmp_path):
        refused(tmp_path, r"folder without Zarr metadata .*accepted folders are OME-Zarr 0\.4")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", GREY)
        (tmp_path / "a.tif").chmod(0)
        refused(tmp_path / "a.tif", "cannot be read: Permission denied")


class TestPng:
    def test_palette(self, tmp_path):
        palette = png_chunk(b"PLTE", bytes(range(6)))
        path = write_png(tmp_path / "a.png", 2, 1, 8, 3, [b"\0\1"], palette)
        refused(path, "PNG with a palette, whose values are no intensities; accepted")

    def test_single_bits(self, tmp_path):
        path = write_png(tmp_path / "a.png", 8, 1, 1, 0, [b"\xaa"])
        refused(path, "colour type 0 with 1 bits per value; accepted are")

    def test_without_pixels(self, tmp_path):
        path = write_png(tmp_path / "a.png", 0, 5, 8, 0, [b""] * 5)
        refused(path, "is 5 x 0 px .* at least one pixel")

    def test_absurd_size(self, tmp_path):
        path = write_png(tmp_path / "a.png", 2**31 - 1, 2**31 - 1, 8, 0, [b""])
        refused(path, f"= {(2**31 - 1) ** 2} px per channel; at most {2**40} px")

    def test_more_than_a_gigabyte(self, tmp_path):
        path = write_png(tmp_path / "a.png", 40000, 30000, 8, 0, [b""])
        refused(path, f"one piece of .* 1200000000 bytes each; at most {2**30} bytes")

    def test_cut_header(self, tmp_path):
        (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(GREY)[:30])
        refused(tmp_path / "a.png", "is truncated")

    @pytest.mark.parametrize("damage", ["cut", "flip"])
    def test_damaged_pixels(self, tmp_path, damage):
        data = bytearray(imagecodecs.png_encode(GREY))
        if damage == "cut":
            del data[len(data) // 2 :]
        else:
            data[len(data) // 2] ^= 1
        (tmp_path / "a.png").write_bytes(data)
        slide = open_slide(tmp_path / "a.png")
        with pytest.raises(InputError, match=r"a\.png cannot be decoded as PNG"):
            slide.read(0, Region(0, 0, 1, 1))
