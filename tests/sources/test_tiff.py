"""Slides as TIFF and OME-TIFF."""

import os

import numpy as np
import pytest
import tifffile
import tifffile.zarr

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import random_pixels
from tests.helpers.slide_formats import CYX, GREY, GREY_CHANNELS, read_all


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


class TestInfo:
    def test_tinted_grey_values_are_grey_values(self, tmp_path):
        colormap = np.zeros((3, 256), np.uint16)
        colormap[0] = np.arange(256) * 257
        tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=colormap)
        np.testing.assert_array_equal(read_all(open_slide(tmp_path / "a.tif"))[0], GREY)
