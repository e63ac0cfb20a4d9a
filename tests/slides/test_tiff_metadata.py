"""Channel names and pixel sizes of TIFF files."""

import numpy as np
import pytest
import tifffile

from densebatch.slides.slide import open_slide
from tests.helpers.slide_formats import CYX, GREY, read_all


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
