"""CZI: as Zeiss's library reads them; scenes, focal planes and levels; and what is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from densebatch.base.errors import InputError, SceneError
from densebatch.base.geometry import Region
from densebatch.readers import czi
from densebatch.readers.codecs import decompress
from densebatch.readers.czi import open_reader
from densebatch.slides.slide import open_slide
from tests.helpers import microscope_files as files
from tests.helpers.slide_files import random_pixels
from tests.helpers.slide_formats import read_all
from tests.readers.conftest import FORMATS

pytestmark = pytest.mark.extra
pylib = pytest.importorskip("pylibCZIrw.czi", reason="pylibCZIrw writes CZI files")


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("CZI")])
def test_pixels_are_those_of_zeiss_own_library(written, name):
    path, planes, *_ = written(name)
    found = read_all(open_slide(path))
    with pylib.open_czi(str(path)) as file:
        if "colours" in name:
            theirs = np.moveaxis(file.read(plane={"C": 0})[..., ::-1], -1, 0)
        else:
            theirs = np.stack([file.read(plane={"C": c})[..., 0] for c in range(len(planes))])
    np.testing.assert_array_equal(found, theirs)


def test_colours_of_jpeg_xr_are_in_zeiss_order(tmp_path):
    ramps = [np.add.outer(np.arange(48), np.arange(56) * k) % 200 for k in (1, 2, 3)]
    smooth = np.stack(ramps, -1)
    path = files.write_czi(tmp_path / "a.czi", smooth.astype(np.uint8))
    plain = read_all(open_slide(path))
    files.recompress_czi(path, 4, files.encode_jpeg_xr)
    slide = open_slide(path)
    assert slide.info.compression == "JPEG XR"
    np.testing.assert_array_equal(read_all(slide), plain)
    with pylib.open_czi(str(path)) as file:
        theirs = file.read(plane={"C": 0})
    np.testing.assert_array_equal(np.moveaxis(theirs[..., ::-1], -1, 0), plain)


def test_scenes_and_stacks_are_chosen_and_never_taken(tmp_path):
    planes = random_pixels((2, 2, 3, 2, 40, 50), seed=1)  # scenes, t, z, channels
    path = files.write_czi(tmp_path / "a.czi", planes)
    with pytest.raises(SceneError, match="holds 2 images and none was chosen") as error:
        open_slide(path)
    assert [what for _, what in error.value.scenes] == [
        "2 channels of 40 x 50 px, 3 focal planes, 2 points in time"
    ] * 2
    with pytest.raises(
        InputError,
        match=r"3 images along Z \(focal planes\) and 2 images along T .*--z INDEX, from 0 to 2, "
        r"or the largest value of all with --z max and choose one with --t INDEX, from 0 to 1$",
    ):
        open_slide(path, scene="1")
    one = open_slide(path, scene="1", z="2", t="1")
    np.testing.assert_array_equal(read_all(one), planes[1, 1, 2])
    largest = open_slide(path, scene="0", z="max", t="0")
    np.testing.assert_array_equal(read_all(largest), planes[0, 0].max(0))
    assert one.info.identity != largest.info.identity
    assert (largest.info.scene, largest.info.z, largest.info.t) == ("#0", "max", "0")


def test_lower_resolutions_are_not_taken_for_pixels(tmp_path):
    """Blocks that stand for more pixels than they have belong to a level of their own."""
    planes = random_pixels((1, 64, 64))
    more = files.write_czi(tmp_path / "a.czi", np.repeat(planes, 2, 0), tile=80)
    data = bytearray(more.read_bytes())
    (directory,) = struct.unpack_from("<q", data, 32 + 52)
    with open_reader(more) as reader:
        blocks = reader._czi.blocks
    entry = directory + 32 + 128
    sizes = []
    for block in blocks:
        if block.places["C"] == 1:  # becomes a level of channel 0, of twice the size
            for place in (block.position + 32 + 16, entry):
                for at in range(place + 32, place + block.n_bytes, 20):
                    axis = data[at : at + 1]
                    if axis in (b"X", b"Y"):
                        struct.pack_into("<i", data, at + 8, 128)
                    if axis == b"C":
                        struct.pack_into("<i", data, at + 4, 0)
            sizes.append(block.stored)
        entry += block.n_bytes
    assert sizes == [(64, 64)]
    more.write_bytes(data)
    with open_reader(more) as reader:
        facts, pixels = reader.describe(0), reader.read(0, [0], Region(0, 0, 64, 64))
        below = reader.read(0, [0], Region(8, 0, 32, 32), level=1)
    assert (facts.height, facts.width) == (64, 64)
    assert facts.levels == ((64, 64), (32, 32))
    np.testing.assert_array_equal(pixels, planes)
    np.testing.assert_array_equal(below, planes[:, 8:32, :32])


def test_a_file_without_its_end_and_one_of_another_kind(tmp_path, written):
    whole = written("CZI")[0].read_bytes()
    path = tmp_path / "a.czi"
    for n in (20, 200, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:n])
        with pytest.raises(InputError, match="is damaged or cut: ") as error:
            open_slide(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="--axes CYX is not accepted"):
        open_slide(written("CZI")[0], axes="CYX")
    with pytest.raises(InputError, match="--panel is accepted with those of imaging mass"):
        open_slide(written("CZI")[0], panel="panel.csv")


def test_a_region_decodes_the_blocks_that_it_touches_and_no_other(written, monkeypatch):
    path, planes, *_ = written("CZI, zstd")
    decoded = []

    def count(data, *rest):
        decoded.append(len(data))
        return decompress(data, *rest)

    monkeypatch.setattr(czi, "decompress", count)
    slide = open_slide(path)
    np.testing.assert_array_equal(slide.read(0, Region(10, 10, 30, 40)), planes[0, 10:30, 10:40])
    assert len(decoded) == 1
    slide.read(1, Region(60, 10, 64, 40))  # shared by the blocks of two rows
    assert len(decoded) == 1 + 2
