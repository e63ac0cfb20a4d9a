"""Slides whatever their format: pixels, channels, identity."""

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides import slide as slide_module
from densebatch.slides.slide import open_slide
from densebatch.sources import tiff as tiff_module
from tests.helpers.real_tissue import DATA, needs_data
from tests.helpers.slide_files import random_pixels, write_zarr
from tests.helpers.slide_formats import CYX, GREY, SLIDES, png, read_all

FIELDS = DATA / "fields"
REAL = FIELDS / "M872956_JML_Position8.ome.tif"


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


class TestInfo:
    def test_planes_that_are_decoded_together(self, slides):
        planes = {name: open_slide(path).info.chunk_planes for name, (path, _) in slides.items()}
        several = {name: n for name, n in planes.items() if n != 1}
        assert several == {
            "RGB tiles": 3, "RGB rows": 3, "markers as samples": 5,
            "OME-Zarr 0.5, channels in one chunk": 3,
            "RGB PNG": 3, "16-bit RGB PNG": 3, "RGBA PNG": 4,
        }  # fmt: skip

    def test_colour_planes_have_names(self, slides):
        assert open_slide(slides["RGB PNG"][0]).info.channels == ("red", "green", "blue")
        assert open_slide(slides["RGBA PNG"][0]).info.channels == ("red", "green", "blue", "alpha")
        assert open_slide(slides["planar RGB"][0]).info.channels == ("red", "green", "blue")
        assert open_slide(slides["markers as samples"][0]).info.channels == tuple("01234")
        assert open_slide(slides["16-bit PNG"][0]).info.channels == ("0",)

    def test_is_plain_data(self, slides):
        info = open_slide(slides["tiles"][0]).info
        assert pickle.loads(pickle.dumps(info)) == info


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
            InputError, match=r"s\.zarr has no channel .*'CD3', 'cd4', '488', or an index"
        ):
            slide.channel_index(name)

    def test_ambiguous(self, tmp_path):
        slide = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=["CD3", "cd3", "cd3"]))
        assert slide.channel_index("CD3") == 0
        with pytest.raises(
            InputError,
            match=r"2 channels named 'cd3' \('cd3' at index 1, 'cd3' at index 2\); name one by its "
            "index, such as '#1'",
        ):
            slide.channel_index("cd3")
        with pytest.raises(InputError, match="3 channels named 'Cd3'"):
            slide.channel_index("Cd3")

    @pytest.mark.parametrize("labels", [["CD3", "2", "1"], ["0", "2", "x"], ["a", "2", "#1"]])
    def test_a_label_that_is_a_number_wins_over_the_index(self, tmp_path, labels):
        slide = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=labels))
        assert slide.channel_index("2") == 1
        assert slide.channel_index("#2") == 2

    def test_two_labels_of_one_number_are_refused_not_taken_as_index(self, tmp_path):
        slide = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=["2", "2", "CD3"]))
        with pytest.raises(InputError, match=r"'2' at index 0, '2' at index 1.*such as '#0'"):
            slide.channel_index("2")
        assert slide.channel_index("#1") == 1

    def test_names_with_commas_are_quoted_and_found(self, tmp_path):
        labels = ["CD8, clone 4B", "CD8", "clone 4B"]
        slide = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=labels))
        assert slide.split_channels("CD8, clone 4B") == ("CD8, clone 4B",)
        with pytest.raises(
            InputError,
            match=r"'CD8, clone 4B,CD8' may be the channels .*; name them one by one, by repeating",
        ):
            slide.split_channels("CD8, clone 4B,CD8")
        with pytest.raises(InputError, match="accepted are 'CD8, clone 4B', 'CD8', 'clone 4B', or"):
            slide.channel_index("CD4")
        assert slide.split_channels("CD8,CD4") == ("CD8", "CD4")

    def test_several_markers_have_no_default(self, slide):
        with pytest.raises(InputError, match=r"3 channels and none was named.*'CD3', 'cd4', '488'"):
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

    def test_opening_again_is_cheap(self, tmp_path, monkeypatch):
        paths = [tmp_path / f"{i}.tif" for i in range(3)]
        for path in paths:
            tifffile.imwrite(path, GREY, tile=(16, 16))
        opened = []
        open_tiff = tiff_module.open_tiff
        monkeypatch.setattr(
            tiff_module, "open_tiff", lambda *args: opened.append(args[0]) or open_tiff(*args)
        )
        for _ in range(5):
            for path in paths:
                open_slide(path).read(0, Region(0, 0, 5, 5))
        assert opened == paths

    def test_files_left_behind_are_closed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(slide_module, "_N_KEPT_OPEN", 1)
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


@needs_data
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
