"""Uncompressed rows of TIFF files."""

import tifffile

from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from densebatch.sources import tiff_rows
from tests.helpers.slide_files import random_pixels


def test_of_an_uncompressed_strip_only_the_region_is_read(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", random_pixels((512, 512)))
    n_bytes = []
    fill = tiff_rows.RowReader._fill

    def counted(self, values, *args):
        n_bytes.append(values.nbytes)
        fill(self, values, *args)

    monkeypatch.setattr(tiff_rows.RowReader, "_fill", counted)
    slide = open_slide(tmp_path / "a.tif")
    slide.read(0, Region(60, 130, 130, 190))
    assert sum(n_bytes) == 70 * 60 * 2
