"""Slides as PNG."""

import numpy as np

from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from densebatch.sources import png as png_module
from tests.helpers.slide_files import png_chunk, write_png
from tests.helpers.slide_formats import GREY, png, read_all


def test_a_png_is_decoded_once_and_two_are_kept(tmp_path, monkeypatch):
    decoded = []
    decode = png_module._decode
    monkeypatch.setattr(
        png_module, "_decode", lambda path, header: decoded.append(path) or decode(path, header)
    )
    paths = [png(GREY)(folder)[0] for folder in map(tmp_path.joinpath, "abc") if not folder.mkdir()]
    for _ in range(3):
        open_slide(paths[0]).read(0, Region(0, 0, 5, 5))
    assert decoded == paths[:1]
    for path in paths:
        open_slide(path).read(0, Region(0, 0, 5, 5))
    assert len(png_module._decoded) == 2


class TestChannels:
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
