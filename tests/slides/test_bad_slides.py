"""Every kind of bad input is one sentence: the file, what was found, what is accepted."""

import json
import os
import shutil
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides import source as slide_source
from densebatch.slides import tiff as slide_tiff
from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import edit_json, png_chunk, random_pixels, write_png, write_zarr

CYX = random_pixels((3, 64, 96))
GREY = random_pixels((64, 96), "uint8")
TILED = {"tile": (16, 16), "compression": "zlib"}


def refused(path, match):
    """The message, after the checks that hold for all of them."""
    with pytest.raises(InputError, match=match) as error:
        open_slide(path)
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    assert not message.endswith(".")
    return message


def write_tiff(path, pixels, **options):
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(path, pixels, **options)
    return path


def overwrite_tag(path, code, value, page=0):
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[page].tags[code].overwrite(value)


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
        write_tiff(tmp_path / "a.tif", GREY).chmod(0)
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


class TestTiffAxes:
    @pytest.mark.parametrize(
        ("axes", "shape"),
        [("ZYX", (3, 64, 96)), ("TYX", (3, 64, 96)), ("TCYX", (2, 3, 64, 96))],
    )
    def test_stack(self, tmp_path, axes, shape):
        path = write_tiff(
            tmp_path / "a.ome.tif", random_pixels(shape), metadata={"axes": axes}, **TILED
        )
        sizes = " x ".join(map(str, shape))
        refused(path, f"has axes {axes} of sizes {sizes}; accepted are Y and X, .*of size 1")

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
            match=r"a\.tif cannot be read in rows 16 to 32, columns 0 to 40 of channel 0",
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

    @pytest.mark.parametrize(
        "xml", ["<OME><Image></OME>", '<OME><BinaryOnly MetadataFile="a"/></OME>']
    )
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
        monkeypatch.setattr(slide_source, "MAX_CHANNELS", 2)
        path = write_tiff(tmp_path / "a.tif", CYX)
        refused(path, "declares 3 channels; at most 2 are accepted")

    def test_one_strip_below_a_gigabyte_is_fine(self, tmp_path):
        path = write_tiff(tmp_path / "a.tif", GREY, compression="zlib", rowsperstrip=64)
        np.testing.assert_array_equal(open_slide(path).read(0, Region(0, 0, 64, 96)), GREY)

    def test_an_uncompressed_strip_may_be_larger(self, tmp_path, monkeypatch):
        monkeypatch.setattr(slide_source, "MAX_CHUNK_BYTES", 1000)
        path = write_tiff(tmp_path / "a.tif", GREY)
        np.testing.assert_array_equal(open_slide(path).read(0, Region(0, 0, 64, 96)), GREY)


class TestZarrGroup:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_group_without_image(self, tmp_path, zarr_format):
        zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=zarr_format)
        refused(tmp_path / "s.zarr", "without multiscales metadata, so no image; accepted")

    def test_plate(self, tmp_path):
        group = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "plate": {}}
        refused(tmp_path / "s.zarr", "so a plate: name one of its images")

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_array(self, tmp_path, zarr_format):
        zarr.create_array(str(tmp_path / "0"), data=GREY, zarr_format=zarr_format)
        refused(tmp_path / "0", "is a single Zarr array; accepted is the image group above it")

    @pytest.mark.parametrize("n", [0, 2])
    def test_bioformats2raw(self, tmp_path, n):
        group = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
        for i in range(n):
            write_zarr(tmp_path / "s.zarr" / str(i), CYX)
        names = r"\(0, 1\)" if n else r"\(none\)"
        refused(
            tmp_path / "s.zarr", f"bioformats2raw folder of {n} images {names}; accepted is one"
        )

    @pytest.mark.parametrize("document", [b"{", b"[]", b"\xff\xfe"])
    def test_broken_document(self, tmp_path, document):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        (path / "zarr.json").write_bytes(document)
        with pytest.raises(
            InputError, match=r"s\.zarr/zarr\.json (is not a readable JSON|holds a)"
        ):
            open_slide(path)

    @pytest.mark.parametrize(("version", "found"), [("0.4", "0.3"), ("0.5", "0.6")])
    def test_version(self, tmp_path, version, found):
        def document(attributes):
            holder = attributes if version == "0.5" else attributes["multiscales"][0]
            holder["version"] = found

        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version, document=document)
        refused(path, rf"is OME-Zarr {found} in Zarr format .*; accepted are 0\.4 in Zarr format 2")

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_missing_resolution(self, tmp_path, version):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version, n_levels=3)
        shutil.rmtree(path / "1")
        refused(path, r"lists 3 resolutions of which '1' is missing: there is no 1/")

    @pytest.mark.parametrize("name", ["../other", "/etc", "", 5, None])
    def test_dataset_outside(self, tmp_path, name):
        def document(attributes):
            attributes["multiscales"][0]["datasets"][0]["path"] = name

        path = write_zarr(tmp_path / "s.zarr", CYX, document=document)
        refused(path, "names a dataset .* which is no path inside it")

    @pytest.mark.parametrize(
        "change",
        [{"multiscales": []}, {"multiscales": {}}, {"multiscales": [{}]}, {"multiscales": [3]}],
    )
    def test_malformed(self, tmp_path, change):
        path = write_zarr(tmp_path / "s.zarr", CYX, document=lambda a: a.update(change))
        refused(path, "has multiscales metadata")

    @pytest.mark.parametrize("axes", [None, ["c", "y", "x"], "cyx"])
    def test_axes_that_are_no_list(self, tmp_path, axes):
        path = write_zarr(
            tmp_path / "s.zarr", CYX, document=lambda a: a["multiscales"][0].update(axes=axes)
        )
        refused(path, "without a list of axes")

    @pytest.mark.parametrize(
        ("axes", "shape"),
        [
            ("zyx", (3, 64, 96)),
            ("tcyx", (2, 3, 64, 96)),
            ("cx", (3, 64)),
            ("yyx", (3, 64, 96)),
            ("qyx", (3, 64, 96)),
            ("qyx", (1, 64, 96)),
        ],
    )
    def test_axes(self, tmp_path, axes, shape):
        path = write_zarr(tmp_path / "s.zarr", random_pixels(shape), axes)
        refused(path, f"has axes {axes.upper()} of sizes {' x '.join(map(str, shape))}; accepted")

    @pytest.mark.parametrize("name", ["", "yx", "channel", None])
    def test_axis_name(self, tmp_path, name):
        def document(attributes):
            attributes["multiscales"][0]["axes"][0]["name"] = name

        path = write_zarr(tmp_path / "s.zarr", CYX[:1], document=document)
        refused(path, f"has axes {str(name).upper()}YX of sizes 1 x 64 x 96; accepted")

    def test_number_of_axes(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX, "yx", chunks=(1, 32, 32))
        refused(path, "has axes YX of sizes 3 x 64 x 96; accepted")

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize("dtype", ["complex64", "bool", "int64"])
    def test_dtype(self, tmp_path, version, dtype):
        path = write_zarr(tmp_path / "s.zarr", np.zeros((3, 64, 96), dtype), "cyx", version)
        refused(path, f"has pixels of type {dtype}; accepted are uint8, .*float64")

    @pytest.mark.parametrize(
        ("version", "change"),
        [
            ("0.4", {"dtype": "|O"}),
            ("0.4", {"dtype": "<U5"}),
            ("0.4", {"dtype": [["a", "<u2"]]}),
            ("0.4", {"dtype": "nonsense"}),
            ("0.5", {"data_type": "string"}),
            ("0.5", {"data_type": {"name": "struct"}}),
            ("0.5", {"data_type": None}),
        ],
    )
    def test_no_number(self, tmp_path, version, change):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
        edit_json(path / "0" / (".zarray" if version == "0.4" else "zarr.json"), **change)
        refused(path, "has pixels of type .*; accepted are uint8")


class TestZarrArray:
    def edited(self, tmp_path, **changes):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        edit_json(path / "0" / "zarr.json", **changes)
        return path

    def grid(self, *shape):
        return {"name": "regular", "configuration": {"chunk_shape": shape}}

    @pytest.fixture(autouse=True)
    def _no_chunk_is_read(self, monkeypatch):
        get = zarr.storage.LocalStore.get

        async def guarded(self, key, *args, **kwargs):
            assert key.endswith("zarr.json"), "a chunk was read"
            return await get(self, key, *args, **kwargs)

        monkeypatch.setattr(zarr.storage.LocalStore, "get", guarded)

    def test_absurd_shape(self, tmp_path):
        path = self.edited(tmp_path, shape=[3, 10**9, 10**9])
        refused(path, f"declares 1000000000 x 1000000000 = {10**18} px .*at most {2**40} px")

    def test_absurd_chunks(self, tmp_path):
        path = self.edited(tmp_path, shape=[3, 10**6, 10**6], chunk_grid=self.grid(1, 10**6, 10**6))
        refused(path, f"chunks of 1 x 1000000 x 1000000 values, {2 * 10**12} bytes .*{2**30}")

    def test_too_many_channels(self, tmp_path):
        refused(self.edited(tmp_path, shape=[5000, 64, 96]), "declares 5000 channels; at most 4096")

    def test_absurd_shard_index(self, tmp_path):
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        sharding = {"chunk_shape": [1, 16, 16], "codecs": codecs, "index_codecs": codecs}
        path = self.edited(
            tmp_path,
            shape=[1, 2**18, 2**18],
            chunk_grid=self.grid(1, 2**18, 2**18),
            codecs=[{"name": "sharding_indexed", "configuration": sharding}],
        )
        refused(path, f"shards of {2**28} chunks; at most {2**26} chunks")

    @pytest.mark.parametrize("shape", [[3, 0, 96], [0, 64, 96]])
    def test_zero_size(self, tmp_path, shape):
        refused(self.edited(tmp_path, shape=shape), "an image has at least one pixel")

    @pytest.mark.parametrize("shape", [[3, -1, 96], "big", None, [3, 1.5, 2], [3, True, 2]])
    def test_no_shape(self, tmp_path, shape):
        refused(self.edited(tmp_path, shape=shape), "declares the shape .*; accepted are sizes")

    def test_empty_chunks(self, tmp_path):
        refused(self.edited(tmp_path, chunk_grid=self.grid(1, 0, 32)), r"chunks of \(1, 0, 32\)")

    @pytest.mark.parametrize(
        "change",
        [
            {"codecs": [{"name": "nonsense"}]},
            {"chunk_grid": {"name": "nonsense"}},
            {"zarr_format": 2},
            {"node_type": "group"},
        ],
    )
    def test_unknown_storage(self, tmp_path, change):
        refused(self.edited(tmp_path, **change), "cannot be opened as a Zarr array")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_zarr_chunk_that_does_not_decode(tmp_path, version, damage):
    path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
    name = path / "0" / ("1.1.0" if version == "0.4" else "c/1/1/0")
    data = name.read_bytes()
    name.write_bytes(data[: len(data) // 2] if damage is None else damage)
    slide = open_slide(path)
    assert (slide.read(1, Region(0, 0, 32, 96)) == CYX[1, :32]).all()
    with pytest.raises(
        InputError, match=r"s\.zarr cannot be read in rows 30 to 40, columns 0 to 20 of channel 1"
    ):
        slide.read(1, Region(30, 0, 40, 20))


def test_uncompressed_zarr_chunk_that_is_cut(tmp_path):
    path = write_zarr(tmp_path / "s.zarr", CYX)
    zarr.create_array(
        str(path / "0"), data=CYX, chunks=(1, 32, 32), compressors=None, overwrite=True
    )
    chunk = path / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-2])
    with pytest.raises(InputError, match="cannot be read in rows 0 to 5"):
        open_slide(path).read(0, Region(0, 0, 5, 5))


def test_damaged_shard_index(tmp_path):
    path = write_zarr(tmp_path / "s.zarr", CYX, chunks=(1, 16, 16), shards=(1, 64, 96))
    shard = path / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read in rows 0 to 5"):
        open_slide(path).read(0, Region(0, 0, 5, 5))


def test_the_cause_is_kept(tmp_path):
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(InputError) as error:
        open_slide(tmp_path)
    assert isinstance(error.value.__cause__, json.JSONDecodeError)


def test_a_refused_tiff_is_closed(tmp_path, monkeypatch):
    opened = []
    original = tifffile.TiffFile

    def recorded(path):
        opened.append(original(path))
        return opened[-1]

    path = write_tiff(tmp_path / "a.ome.tif", CYX, metadata={"axes": "ZYX"})
    monkeypatch.setattr(slide_tiff.tifffile, "TiffFile", recorded)
    refused(path, "has axes ZYX")
    assert opened[0].filehandle.closed
