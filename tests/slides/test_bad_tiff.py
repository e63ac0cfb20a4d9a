"""Bad TIFF files are one sentence: the file, what was found, what is accepted."""

import struct

import numpy as np
import pytest
import tifffile

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from densebatch.sources import source
from tests.helpers.bad_slides import CYX, GREY, refused
from tests.helpers.slide_files import random_pixels
from tests.helpers.tiff_files import PLANES, ome_image, ome_xml, write_mmstack, write_pages

TILED = {"tile": (16, 16), "compression": "zlib"}


def write_tiff(path, pixels, **options):
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(path, pixels, **options)
    return path


def overwrite_tag(path, code, value, page=0):
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[page].tags[code].overwrite(value)


class TestTiffAxes:
    @pytest.mark.parametrize(
        ("axes", "shape"),
        [("ZYX", (3, 64, 96)), ("TYX", (3, 64, 96)), ("TCYX", (3, 2, 64, 96))],
    )
    def test_stack(self, tmp_path, axes, shape):
        path = write_tiff(
            tmp_path / "a.ome.tif", random_pixels(shape), metadata={"axes": axes}, **TILED
        )
        refused(path, f"holds 3 images along {axes[0]} .*one image of all channels is accepted")

    def test_channels_of_colours(self, tmp_path):
        path = write_tiff(
            tmp_path / "a.tif",
            random_pixels((2, 64, 96, 3), "uint8"),
            photometric="rgb",
            metadata={"axes": "CYXS"},
        )
        refused(path, "has axes CYXS of sizes 2 x 64 x 96 x 3; accepted")

    @pytest.mark.parametrize("dtype", ["complex64", "bool", "int64", "uint64"])
    def test_dtype(self, tmp_path, dtype):
        path = write_tiff(tmp_path / "a.tif", np.zeros((64, 96), dtype))
        refused(path, f"has pixels of type {dtype}; accepted are uint8, .*float64")

    def test_palette(self, tmp_path):
        colormap = random_pixels((3, 256))
        path = write_tiff(tmp_path / "a.tif", GREY, photometric="palette", colormap=colormap)
        refused(path, "has a palette, whose values are no intensities; accepted")

    def test_photometric(self, tmp_path):
        pixels = random_pixels((64, 96, 4), "uint8")
        path = write_tiff(tmp_path / "a.tif", pixels, photometric="separated")
        refused(path, "photometric interpretation SEPARATED; accepted")


class TestDamagedTiff:
    def test_header_only(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"II*\0")
        refused(tmp_path / "a.tif", "is truncated: its image directory 0")

    def test_garbage_after_the_header(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + b"\xff" * 100)
        refused(tmp_path / "a.tif", "truncated|cannot be read as a TIFF")

    def test_no_image(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + bytes(100))
        refused(tmp_path / "a.tif", "cannot be read as a TIFF|without an image")

    def test_directories_in_a_circle(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, metadata=None)
        with tifffile.TiffFile(path) as tif:
            offset = tif.pages.first.offset
            n_tags = len(tif.pages.first.tags)
        with path.open("r+b") as file:
            file.seek(offset + 2 + 12 * n_tags)
            file.write(struct.pack("<I", offset))
        refused(path, "its image directories form a circle")

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"rowsperstrip": 8},
            {"tile": (16, 16)},
            {"compression": "zlib", "rowsperstrip": 8},
            TILED,
            {**TILED, "bigtiff": True},
            {**TILED, "metadata": None},
            {"metadata": None},
            {"imagej": True, "metadata": {"axes": "CYX"}},
        ],
    )
    @pytest.mark.parametrize("share", [0.15, 0.5, 0.9, 0.999])
    def test_truncated(self, tmp_path, options, share):
        path = write_tiff(tmp_path / "a.tif", CYX, **options)
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))
        refused(path, "is truncated|pages that it has")

    @pytest.mark.parametrize("share", [0.15, 0.5, 0.9, 0.999])
    def test_truncated_ome(self, tmp_path, share):
        path = write_tiff(tmp_path / "a.ome.tif", CYX, metadata={"axes": "CYX"}, **TILED)
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))
        refused(path, "is truncated|planes that its metadata list")

    @pytest.mark.parametrize("page", [0, 2])
    @pytest.mark.parametrize("tag", ["offset", "count"])
    def test_empty_tile(self, tmp_path, page, tag):
        path = write_tiff(tmp_path / "a.tif", CYX, metadata=None, **TILED)
        with tifffile.TiffFile(path, mode="r+b") as tif:
            tags = tif.pages[page].tags
            found = tags[324 if tag == "offset" else 325]
            found.overwrite((*found.value[:5], 0, *found.value[6:]))
        refused(path, rf"no pixels for tile 5 of page {page} \(1 of 24 have .*sparse TIFF, as GDAL")

    def test_sparse(self, tmp_path):
        path = tmp_path / "a.tif"
        tiles = [GREY[:16, :16] if i == 0 else None for i in range(24)]
        tifffile.imwrite(path, iter(tiles), shape=(64, 96), dtype="uint8", **TILED)
        refused(path, r"no pixels for tile 1 of page 0 \(23 of 24")

    def test_empty_uncompressed_strip(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, rowsperstrip=16, metadata=None)
        overwrite_tag(path, 279, (1536, 0, 1536, 1536))
        refused(path, "no pixels for strip 1 of page 0")

    def test_missing_offsets(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, **TILED)
        overwrite_tag(path, 257, 640)
        refused(path, "24 offsets and 24 byte counts of page 0 for 240 tiles|truncated")

    def test_offset_beyond_any_file(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, bigtiff=True, metadata=None, **TILED)
        with tifffile.TiffFile(path, mode="r+b") as tif:
            found = tif.pages[0].tags[324]
            found.overwrite((2**64 - 1, *found.value[1:]), dtype=16)
        refused(path, "truncated: tile 0 of page 0 should end at byte 184467440737095")

    def test_tile_that_does_not_decode(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, **TILED)
        with tifffile.TiffFile(path) as tif:
            offset = tif.pages[0].dataoffsets[7]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * 20)
        slide = open_slide(path)
        slide.read(0, Region(0, 0, 16, 96))
        with pytest.raises(
            InputError,
            match=r"a\.tif cannot be read in rows 16 to 32, columns 0 to 40 of channel '0'",
        ):
            slide.read(0, Region(16, 0, 32, 40))

    @pytest.mark.parametrize("options", [TILED, {}])
    def test_file_cut_while_it_is_open(self, tmp_path, options):
        path = write_tiff(tmp_path / "a.tif", GREY, **options)
        slide = open_slide(path)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(InputError, match=r"a\.tif cannot be read in rows 40 to 64"):
            slide.read(0, Region(40, 0, 64, 96))

    def test_zero_size(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, metadata=None)
        overwrite_tag(path, 256, 0)
        refused(path, "has an image of 64 x 0 values; an image has at least one pixel")

    def test_document_type(self, tmp_path):
        bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><OME>&a;</OME>'
        path = write_tiff(tmp_path / "a.ome.tif", GREY, description=bomb, metadata=None)
        refused(path, "document type declaration; accepted is OME-XML without one")

    @pytest.mark.parametrize("xml", ["<OME><Image></OME>", "<OME></OME>", "<OME><Image/></OME>"])
    def test_ome_xml_that_describes_nothing(self, tmp_path, xml):
        path = write_tiff(tmp_path / "a.ome.tif", CYX, description=xml, metadata=None)
        refused(path, "its OME-XML cannot be followed with the 3 pages")


class TestAbsurdTiff:
    def test_strip_of_more_than_a_gigabyte(self, tmp_path):
        path = write_tiff(
            tmp_path / "a.tif", GREY, compression="zlib", metadata=None, rowsperstrip=64
        )
        for code in (256, 257, 278):
            overwrite_tag(path, code, 100_000)
        message = refused(path, r"stored in strips of 100000 x 100000 values, 10000000000 bytes")
        assert f"at most {2**30} bytes are accepted: convert it to" in message

    def test_plane(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, compression="zlib", metadata=None)
        for code in (256, 257):
            overwrite_tag(path, code, 2**31)
        refused(path, f"declares 2147483648 x 2147483648 = {2**62} px .*at most {2**40} px")

    def test_channels(self, tmp_path, monkeypatch):
        monkeypatch.setattr(source, "MAX_CHANNELS", 2)
        path = write_tiff(tmp_path / "a.tif", CYX)
        refused(path, "declares 3 channels; at most 2 are accepted")

    @pytest.mark.parametrize(
        ("planes", "counts"), [(f'<TiffData PlaneCount="{10**11}"/>', ""), ("<TiffData/>", "T")]
    )
    def test_planes_of_ome_xml(self, tmp_path, planes, counts):
        xml = ome_xml(ome_image("a", "abc", planes=planes))
        if counts:
            xml = xml.replace('SizeT="1"', f'SizeT="{10**9}"')
        path = write_pages(tmp_path / "a.ome.tif", *PLANES, description=xml)
        refused(path, rf"declares \d+ planes in its OME-XML; at most {2**20} are accepted")

    @pytest.mark.parametrize("summary", [{"Frames": 10**9}, {"Slices": 2**20, "Channels": 3}])
    def test_planes_of_micro_manager(self, tmp_path, summary):
        path = write_mmstack(tmp_path / "a.tif", PLANES, **summary)
        refused(path, rf"declares \d+ planes; at most {2**20} are accepted")

    def test_one_strip_below_a_gigabyte_is_fine(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, compression="zlib", rowsperstrip=64)
        np.testing.assert_array_equal(open_slide(path).read(0, Region(0, 0, 64, 96)), GREY)

    def test_an_uncompressed_strip_may_be_larger(self, tmp_path, monkeypatch):
        monkeypatch.setattr(source, "MAX_CHUNK_BYTES", 1000)
        path = write_tiff(tmp_path / "a.tif", GREY)
        np.testing.assert_array_equal(open_slide(path).read(0, Region(0, 0, 64, 96)), GREY)


def test_a_refused_tiff_is_closed(tmp_path, monkeypatch):
    opened = []
    original = tifffile.TiffFile

    def recorded(path):
        opened.append(original(path))
        return opened[-1]

    path = write_tiff(tmp_path / "a.ome.tif", CYX, metadata={"axes": "ZYX"})
    monkeypatch.setattr(tifffile, "TiffFile", recorded)
    refused(path, "holds 3 images along Z")
    assert opened[0].filehandle.closed
