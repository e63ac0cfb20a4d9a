import gc
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import tifffile.zarr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import densebatch.slides.slide as slide_module
from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides import omezarr as slide_zarr
from densebatch.slides import png as slide_png
from densebatch.slides import tiff as slide_tiff
from densebatch.slides import tiff_storage as slide_tiff_storage
from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import FIELDS, png_chunk, random_pixels, write_png, write_zarr

REAL = FIELDS / "M872956_JML_Position8.ome.tif"


def read_all(slide):
    info = slide.info
    whole = Region(0, 0, info.height, info.width)
    return np.stack([slide.read(c, whole) for c in range(len(info.channels))])


def tiff(pixels, name="slide.tif", **options):
    def write(folder):
        tifffile.imwrite(folder / name, pixels, **options)
        return folder / name, pixels

    return write


CYX = random_pixels((3, 75, 110))
YXS = random_pixels((75, 110, 3), "uint8")
GREY = random_pixels((75, 110), "uint8")
GREY_CHANNELS = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}


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


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Path and (planes, height, width) of one slide per way of storing it."""
    written = {}
    for name, (write, to_planes) in SLIDES.items():
        path, pixels = write(tmp_path_factory.mktemp("slide"))
        written[name] = path, to_planes(pixels)
    return written


@pytest.mark.parametrize("name", SLIDES)
def test_every_way_of_storing_gives_the_same_pixels(slides, name):
    path, planes = slides[name]
    slide = open_slide(path)
    info = slide.info
    assert (len(info.channels), info.height, info.width) == planes.shape
    assert info.dtype == planes.dtype.name
    assert info.path == str(path)
    assert Path(info.path).is_absolute()
    pixels = read_all(slide)
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, planes)


@given(data=st.data())
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_region_is_that_part_of_the_whole(slides, data):
    path, planes = slides[data.draw(st.sampled_from(sorted(SLIDES)))]
    n, height, width = planes.shape
    y0, y1 = sorted(data.draw(st.tuples(*[st.integers(0, height)] * 2)))
    x0, x1 = sorted(data.draw(st.tuples(*[st.integers(0, width)] * 2)))
    channel = data.draw(st.integers(0, n - 1))
    pixels = open_slide(path).read(channel, Region(y0, x0, y1, x1))
    assert pixels.dtype == planes.dtype.newbyteorder("=")
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, planes[channel, y0:y1, x0:x1])


@pytest.mark.parametrize("name", ["tiles", "RGB rows", "OME-Zarr 0.5, sharded", "16-bit PNG"])
def test_threads_read_the_same_pixels(slides, name):
    path, planes = slides[name]
    slide = open_slide(path)
    regions = [Region(y, x, y + 20, x + 30) for y in range(0, 50, 7) for x in range(0, 80, 11)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda region: slide.read(0, region), regions)
        for region, pixels in zip(regions, found, strict=True):
            np.testing.assert_array_equal(pixels, planes[0][region.slices])


def test_only_the_tiles_of_a_region_are_decoded(tmp_path, monkeypatch):
    tifffile.imwrite(
        tmp_path / "a.tif",
        random_pixels((2, 512, 512)),
        tile=(64, 64),
        compression="zlib",
        **GREY_CHANNELS,
    )
    decoded = []
    get = tifffile.zarr.ZarrTiffStore.get

    async def counted(self, key, *args, **kwargs):
        if key[-1].isdigit():
            decoded.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(tifffile.zarr.ZarrTiffStore, "get", counted)
    slide = open_slide(tmp_path / "a.tif")
    assert not decoded
    slide.read(1, Region(60, 130, 130, 190))
    assert sorted(decoded) == ["1.0.2", "1.1.2", "1.2.2"]


def test_of_an_uncompressed_strip_only_the_region_is_read(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((512, 512)))
    n_bytes = []
    fill = slide_tiff_storage.RowReader._fill

    def counted(self, values, *args):
        n_bytes.append(values.nbytes)
        fill(self, values, *args)

    monkeypatch.setattr(slide_tiff_storage.RowReader, "_fill", counted)
    slide = open_slide(tmp_path / "a.tif")
    slide.read(0, Region(60, 130, 130, 190))
    assert sum(n_bytes) == 70 * 60 * 2


def test_a_png_is_decoded_once_and_two_are_kept(tmp_path, monkeypatch):
    decoded = []
    decode = slide_png._decode
    monkeypatch.setattr(
        slide_png, "_decode", lambda path, layout: decoded.append(path) or decode(path, layout)
    )
    paths = [png(GREY)(folder)[0] for folder in map(tmp_path.joinpath, "abc") if not folder.mkdir()]
    for _ in range(3):
        open_slide(paths[0]).read(0, Region(0, 0, 5, 5))
    assert decoded == paths[:1]
    for path in paths:
        open_slide(path).read(0, Region(0, 0, 5, 5))
    assert len(slide_png._decoded) == 2


class TestInfo:
    def test_ome_tiff(self, tmp_path):
        path = tmp_path / "slide.ome.tif"
        options = {"tile": (32, 48), "compression": "zlib", "photometric": "minisblack"}
        with tifffile.TiffWriter(path, ome=True, bigtiff=True) as writer:
            writer.write(
                CYX,
                subifds=1,
                metadata={
                    "axes": "CYX",
                    "Channel": {"Name": ["CD3", "CD8", "DAPI"]},
                    "PhysicalSizeX": 325.0,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeY": 0.325,
                    "PhysicalSizeYUnit": "µm",
                },
                **options,
            )
            writer.write(CYX[:, ::2, ::2], subfiletype=1, **options)
        info = open_slide(path).info
        assert info.kind == "tiff"
        assert info.channels == ("CD3", "CD8", "DAPI")
        assert info.um_per_px == pytest.approx(0.325)
        assert info.chunk_px == (32, 48)
        assert (info.n_levels, info.ngff) == (2, None)
        np.testing.assert_array_equal(read_all(open_slide(path)), CYX)

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_ome_zarr(self, tmp_path, version):
        path = write_zarr(
            tmp_path / "s.zarr",
            CYX,
            "cyx",
            version,
            labels=["CD3", "CD8", "DAPI"],
            n_levels=3,
            scale=250.0,
            unit="nanometer",
        )
        info = open_slide(path).info
        assert info.kind == "ome-zarr"
        assert info.channels == ("CD3", "CD8", "DAPI")
        assert info.um_per_px == pytest.approx(0.25)
        assert info.chunk_px == (32, 32)
        assert (info.n_levels, info.ngff) == (3, version)

    def test_planes_that_are_decoded_together(self, slides):
        planes = {name: open_slide(path).info.chunk_planes for name, (path, _) in slides.items()}
        several = {name: n for name, n in planes.items() if n != 1}
        assert several == {
            "RGB tiles": 3, "RGB rows": 3, "markers as samples": 5,
            "OME-Zarr 0.5, channels in one chunk": 3,
            "RGB PNG": 3, "16-bit RGB PNG": 3, "RGBA PNG": 4,
        }  # fmt: skip

    def test_shards_are_read_in_chunks(self, slides):
        assert open_slide(slides["OME-Zarr 0.5, sharded"][0]).info.chunk_px == (16, 16)

    def test_scale_of_the_whole_image_multiplies(self, tmp_path):
        def document(attributes):
            attributes["multiscales"][0]["coordinateTransformations"] = [
                {"type": "scale", "scale": [1, 2, 2]}
            ]

        path = write_zarr(tmp_path / "s.zarr", CYX, scale=0.25, document=document)
        assert open_slide(path).info.um_per_px == 0.5

    @pytest.mark.parametrize(("scale", "unit"), [(1.0, None), (1.0, "parsec"), (-1.0, "meter")])
    def test_scale_without_a_length_is_unknown(self, tmp_path, scale, unit):
        path = write_zarr(tmp_path / "s.zarr", CYX, scale=scale, unit=unit)
        assert open_slide(path).info.um_per_px is None

    @pytest.mark.parametrize(
        ("options", "um_per_px"),
        [
            ({}, None),
            ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
            ({"resolution": (25400, 25400), "resolutionunit": "INCH"}, 1.0),
            ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
            ({"resolution": (20000, 20000), "resolutionunit": "NONE"}, None),
            ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER"}, None),
            ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "micron"}}, 0.5),
            ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "\\u00B5m"}}, 0.5),
            ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "pixel"}}, None),
        ],
    )
    def test_tiff_resolution(self, tmp_path, options, um_per_px):
        tifffile.imwrite(tmp_path / "a.tif", GREY, **options)
        assert open_slide(tmp_path / "a.tif").info.um_per_px == um_per_px

    @pytest.mark.parametrize(
        ("x", "y", "unit", "um_per_px"),
        [
            (0.5, 0.5, "µm", 0.5),
            (0.5, 0.7, "µm", None),
            (0.5, 0.5, "pixel", None),
            (0, 0, "m", None),
        ],
    )
    def test_ome_physical_size(self, tmp_path, x, y, unit, um_per_px):
        metadata = {
            "axes": "YX",
            **{"PhysicalSizeX": x, "PhysicalSizeY": y},
            **{"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit},
        }
        tifffile.imwrite(tmp_path / "a.ome.tif", GREY, metadata=metadata)
        assert open_slide(tmp_path / "a.ome.tif").info.um_per_px == um_per_px

    def test_imagej_labels(self, tmp_path):
        metadata = {"axes": "CYX", "Labels": ["CD3", "CD8", "DAPI"]}
        tifffile.imwrite(tmp_path / "a.tif", CYX, imagej=True, metadata=metadata)
        assert open_slide(tmp_path / "a.tif").info.channels == ("CD3", "CD8", "DAPI")

    def test_colour_planes_have_names(self, slides):
        assert open_slide(slides["RGB PNG"][0]).info.channels == ("red", "green", "blue")
        assert open_slide(slides["RGBA PNG"][0]).info.channels == ("red", "green", "blue", "alpha")
        assert open_slide(slides["planar RGB"][0]).info.channels == ("red", "green", "blue")
        assert open_slide(slides["markers as samples"][0]).info.channels == tuple("01234")
        assert open_slide(slides["16-bit PNG"][0]).info.channels == ("0",)

    def test_is_plain_data(self, slides):
        info = open_slide(slides["tiles"][0]).info
        assert pickle.loads(pickle.dumps(info)) == info

    def test_bioformats2raw_with_one_image(self, tmp_path):
        root = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=2)
        root.attrs["bioformats2raw.layout"] = 3
        (tmp_path / "s.zarr" / "OME").mkdir()
        write_zarr(tmp_path / "s.zarr" / "0", CYX, "cyx", "0.4")
        slide = open_slide(tmp_path / "s.zarr")
        assert slide.info.path == str(tmp_path / "s.zarr" / "0")
        np.testing.assert_array_equal(read_all(slide), CYX)

    def test_tinted_grey_values_are_grey_values(self, tmp_path):
        colormap = np.zeros((3, 256), np.uint16)
        colormap[0] = np.arange(256) * 257
        tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=colormap)
        np.testing.assert_array_equal(read_all(open_slide(tmp_path / "a.tif"))[0], GREY)


class TestChannels:
    @pytest.fixture
    def slide(self, tmp_path):
        return open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=["CD3", "cd4", "488"]))

    def test_by_name_then_regardless_of_case_then_by_index(self, slide):
        assert [slide.channel_index(name) for name in ("CD3", "cd3", "CD4", "488", "2", "0")] == [
            *(0, 0, 1, 2, 2, 0)
        ]

    @pytest.mark.parametrize("name", ["CD9", "3", "-1", "", "٢"])
    def test_missing(self, slide, name):
        with pytest.raises(
            InputError, match=r"s\.zarr has no channel .*CD3, cd4, 488, or an index"
        ):
            slide.channel_index(name)

    def test_ambiguous(self, tmp_path):
        slide = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=["CD3", "cd3", "cd3"]))
        assert slide.channel_index("CD3") == 0
        with pytest.raises(InputError, match="2 channels named 'cd3'"):
            slide.channel_index("cd3")
        with pytest.raises(InputError, match="3 channels named 'Cd3'"):
            slide.channel_index("Cd3")

    def test_several_markers_have_no_default(self, slide):
        with pytest.raises(InputError, match=r"3 channels and none was named.*CD3, cd4, 488"):
            slide.default_channel()

    def test_the_only_channel_is_the_default(self, slides):
        for name in ("one strip", "16-bit PNG", "OME-Zarr 0.5, one plane"):
            assert open_slide(slides[name][0]).default_channel() == 0

    @pytest.mark.parametrize("write", ["png", "tiff"])
    @pytest.mark.parametrize(
        ("weights", "alpha", "expected"),
        [
            ((1, 0, 0), None, 0),
            ((0, 0, 1), None, 2),
            ((1, 1, 1), None, 0),
            ((0, 0, 0), None, 0),
            ((0, 1, 0), 255, 1),
            ((1, 1, 1), 128, 0),
            ((1, 0, 1), None, None),
            ((1, 2, 3), 255, None),
            ((1, 0, 0), "varies", None),
        ],
    )
    def test_plane_of_a_colour_image(self, tmp_path, write, weights, alpha, expected):
        grey = random_pixels((90, 70), "uint8") // 4
        planes = [grey * weight for weight in weights]
        if alpha is not None:
            planes.append(grey if alpha == "varies" else np.full_like(grey, alpha))
        pixels = np.stack(planes, -1)
        if write == "png":
            path, _ = png(pixels)(tmp_path)
        else:
            path = tmp_path / "a.tif"
            extra = {} if alpha is None else {"extrasamples": ["unassalpha"]}
            tifffile.imwrite(path, pixels, photometric="rgb", tile=(16, 16), **extra)
        slide = open_slide(path)
        if expected is None:
            with pytest.raises(InputError, match=r"planes differ.*--membrane red\|green\|blue"):
                slide.default_channel()
        else:
            assert slide.default_channel() == expected

    def test_a_single_differing_pixel_counts(self, tmp_path):
        pixels = np.repeat(GREY[..., None], 3, -1)
        pixels[-1, -1, 2] ^= 1
        with pytest.raises(InputError, match="planes differ"):
            open_slide(png(pixels)(tmp_path)[0]).default_channel()

    def test_a_differing_image_is_not_read_to_its_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(slide_module, "_SCAN_PX", 32 * 32)
        tifffile.imwrite(
            tmp_path / "a.tif",
            random_pixels((320, 320, 3), "uint8"),
            photometric="rgb",
            tile=(32, 32),
            compression="zlib",
        )
        slide = open_slide(tmp_path / "a.tif")
        regions = []
        read = slide._source.read
        monkeypatch.setattr(slide._source, "read", lambda *a: regions.append(a[2]) or read(*a))
        with pytest.raises(InputError, match="planes differ"):
            slide.default_channel()
        assert regions == [Region(0, 0, 1, 1), Region(0, 0, 32, 32)]

    def test_grey_with_alpha(self, tmp_path):
        pixels = np.stack([GREY, np.full_like(GREY, 255)], -1)
        slide = open_slide(png(pixels)(tmp_path)[0])
        assert slide.info.channels == ("0", "alpha")
        assert slide.default_channel() == 0

    def test_a_transparent_colour_is_no_plane(self, tmp_path):
        rows = [bytes([1, 2, 3, 4, 5, 6])]
        path = write_png(tmp_path / "a.png", 2, 1, 8, 2, rows, png_chunk(b"tRNS", bytes(6)))
        assert open_slide(path).info.channels == ("red", "green", "blue")
        assert read_all(open_slide(path)).tolist() == [[[1, 4]], [[2, 5]], [[3, 6]]]


class TestIdentity:
    def test_a_changed_file_is_opened_again(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, GREY)
        before = open_slide(path)
        first = before.info.identity
        assert open_slide(path).info.identity == first
        tifffile.imwrite(path, 255 - GREY)
        os.utime(path, ns=(1, 1))
        after = open_slide(path)
        assert after.info.identity != first
        np.testing.assert_array_equal(read_all(after)[0], 255 - GREY)

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_a_changed_chunk_changes_it_and_labels_do_not(self, tmp_path, version):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
        identity = open_slide(path).info.identity
        write_zarr(path / "labels" / "cells", CYX[0], "yx", version)
        zarr_format = 2 if version == "0.4" else 3
        labels = zarr.open_group(str(path / "labels"), mode="a", zarr_format=zarr_format)
        labels.attrs["labels"] = ["cells"]
        assert open_slide(path).info.identity == identity
        zarr.open_array(str(path / "0"), mode="r+")[0, 0, 0] ^= 1
        assert open_slide(path).info.identity != identity

    def test_changed_names_change_it(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX, labels=["a", "b", "c"])
        identity = open_slide(path).info.identity
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["ome"]["omero"]["channels"][0]["label"] = "d"
        (path / "zarr.json").write_text(json.dumps(document))
        slide = open_slide(path)
        assert slide.info.channels == ("d", "b", "c")
        assert slide.info.identity != identity

    def test_stats_are_capped(self, tmp_path, monkeypatch):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        full = open_slide(path).info.identity
        monkeypatch.setattr(slide_zarr, "MAX_STATS", 3)
        capped = open_slide(path).info.identity
        assert capped != full
        next((path / "0" / "c" / "2").rglob("*")).touch()
        assert open_slide(path).info.identity == capped

    def test_opening_again_is_cheap(self, tmp_path, monkeypatch):
        paths = [tmp_path / f"{i}.tif" for i in range(3)]
        for path in paths:
            tifffile.imwrite(path, GREY, tile=(16, 16))
        opened = []
        open_tiff = slide_tiff.open_tiff
        monkeypatch.setattr(
            slide_tiff, "open_tiff", lambda path: opened.append(path) or open_tiff(path)
        )
        for _ in range(5):
            for path in paths:
                open_slide(path).read(0, Region(0, 0, 5, 5))
        assert opened == paths

    def test_files_left_behind_are_closed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(slide_module, "_KEEP_OPEN", 1)
        slides, handles = [], []
        for name in "ab":
            tifffile.imwrite(tmp_path / f"{name}.tif", GREY, tile=(16, 16))
            slides.append(open_slide(tmp_path / f"{name}.tif"))
            store = slides[-1]._source._array.store
            handles.append(store._data[0].keyframe.parent.filehandle)
        assert [handle.closed for handle in handles] == [False, False]
        slides.clear()
        gc.collect()
        assert [handle.closed for handle in handles] == [True, False]


def test_an_absent_chunk_reads_as_the_fill_value(tmp_path):
    group = zarr.open_group(str(write_zarr(tmp_path / "s.zarr", CYX[:1])), mode="a")
    group.create_array(
        "0", shape=(1, 64, 64), chunks=(1, 32, 32), dtype="uint16", fill_value=7, overwrite=True
    )[0, :32, :32] = 9
    pixels = open_slide(tmp_path / "s.zarr").read(0, Region(0, 0, 64, 64))
    assert pixels[:32, :32].min() == 9
    assert (pixels[32:] == 7).all()


@pytest.mark.parametrize("write", ["tiff", "zarr"])
def test_nan_and_infinity_are_returned(tmp_path, write):
    pixels = random_pixels((40, 30), "float32")
    pixels[0, :3] = np.nan, np.inf, -np.inf
    if write == "tiff":
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, pixels, tile=(16, 16), compression="zlib")
    else:
        path = write_zarr(tmp_path / "s.zarr", pixels, "yx")
    np.testing.assert_array_equal(open_slide(path).read(0, Region(0, 0, 40, 30)), pixels)


def test_a_region_outside_or_a_channel_beyond_is_a_mistake_of_the_caller(slides):
    slide = open_slide(slides["tiles"][0])
    for region in (Region(-1, 0, 5, 5), Region(0, 0, 76, 5), Region(0, 100, 5, 111)):
        with pytest.raises(ValueError, match="not inside"):
            slide.read(0, region)
    for channel in (-1, 3):
        with pytest.raises(ValueError, match="has channels 0 to 2"):
            slide.read(channel, Region(0, 0, 1, 1))


def test_an_ome_tiff_in_several_files(tmp_path):
    names = [tmp_path / f"{i}.ome.tif" for i in range(2)]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        'SizeX="110" SizeY="75" SizeC="2" SizeZ="1" SizeT="1">'
        '<Channel ID="Channel:0:0" Name="a" SamplesPerPixel="1"/>'
        '<Channel ID="Channel:0:1" Name="b" SamplesPerPixel="1"/>'
        + "".join(
            f'<TiffData FirstC="{i}" IFD="0" PlaneCount="1">'
            f'<UUID FileName="{i}.ome.tif">urn:uuid:{i}</UUID></TiffData>'
            for i in range(2)
        )
        + "</Pixels></Image></OME>"
    )
    for i, name in enumerate(names):
        tifffile.imwrite(
            name,
            CYX[i],
            description=xml.replace('UUID="urn:uuid:0"', f'UUID="urn:uuid:{i}"'),
            metadata=None,
            tile=(32, 32),
        )
    slide = open_slide(names[0])
    assert slide.info.channels == ("a", "b")
    np.testing.assert_array_equal(read_all(slide), CYX[:2])
    identity = slide.info.identity
    os.utime(names[1], ns=(1, 1))
    assert open_slide(names[0]).info.identity != identity
    names[1].unlink()
    with pytest.raises(InputError, match="lacks 1 of the 2 planes"):
        open_slide(names[0])


@pytest.mark.skipif(not FIELDS.is_dir(), reason="the shared hsv-dense fields are not here")
class TestRealFields:
    def test_multiplexed_field(self):
        slide = open_slide(REAL)
        info = slide.info
        assert info.channels == ("CD3", "CD4", "CD8", "DAPI")
        assert (info.height, info.width, info.dtype) == (1040, 1392, "uint8")
        assert (info.um_per_px, info.chunk_px) == (0.5, (256, 256))
        whole = tifffile.imread(REAL)
        region = Region(100, 200, 700, 1391)
        for channel, name in enumerate(info.channels):
            assert slide.channel_index(name.lower()) == channel
            np.testing.assert_array_equal(
                slide.read(channel, region), whole[channel][region.slices]
            )

    def test_marker_is_in_the_red_plane_or_in_all(self):
        for path in sorted(FIELDS.glob("*_img.png")):
            with Image.open(path) as image:
                brightest = np.asarray(image).max(-1)
            slide = open_slide(path)
            plane = slide.read(slide.default_channel(), Region(0, 0, 1040, 1392))
            np.testing.assert_array_equal(plane, brightest)

    def test_masks_keep_16_bits(self):
        for path in sorted(FIELDS.glob("*_masks.png")):
            with Image.open(path) as image:
                ids = np.asarray(image)
            slide = open_slide(path)
            assert slide.info.dtype == "uint16"
            np.testing.assert_array_equal(slide.read(0, Region(0, 0, 1040, 1392)), ids)
