"""PNG and TIFF files are opened whole or refused."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from densebatch.base.errors import InputError
from densebatch.base.image_files import (
    check_segments,
    decode_png,
    open_tiff_file,
    read_png_header,
)
from tests.helpers.slide_files import png_chunk, random_pixels, write_png

GREY = random_pixels((64, 96), "uint8")
pictures = st.sampled_from([1, 2, 3, 4]).flatmap(
    lambda n: hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(n)),
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(pixels=pictures)
def test_a_png_decodes_to_what_was_written(folder, pixels):
    path = folder / "a.png"
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    path.write_bytes(imagecodecs.png_encode(pixels))
    header = read_png_header(path)
    assert (header.height, header.width) == pixels.shape[:2]
    assert header.dtype == pixels.dtype
    assert header.has_alpha == (pixels.ndim == 3 and pixels.shape[2] in (2, 4))
    np.testing.assert_array_equal(decode_png(path, header), pixels)


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_become_bytes(tmp_path, bits):
    path = write_png(tmp_path / "a.png", 2, 1, bits, 0, [b"\xb0"])
    header = read_png_header(path)
    decoded = decode_png(path, header)
    assert (header.bits, header.dtype) == (bits, decoded.dtype)
    assert decoded.shape == (1, 2)


def test_a_transparent_colour_is_a_plane_more(tmp_path):
    rows = [bytes([1, 2, 3, 4, 5, 6])]
    path = write_png(tmp_path / "a.png", 2, 1, 8, 2, rows, png_chunk(b"tRNS", bytes(6)))
    assert decode_png(path, read_png_header(path)).shape == (1, 2, 4)


def test_every_cut_of_a_png_is_refused(tmp_path):
    path = tmp_path / "a.png"
    whole = imagecodecs.png_encode(GREY[:6, :7])
    for size in range(len(whole) - 12):  # the last chunk is empty and marks the end
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a\.png (is not a PNG|is truncated|cannot be deco)"):
            decode_png(path, read_png_header(path))


def test_a_png_that_is_not_what_its_header_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(GREY))
    header = read_png_header(path)
    path.write_bytes(imagecodecs.png_encode(GREY[:-1]))
    with pytest.raises(InputError, match=r"decodes to \(63, 96\) values .* not to \(64, 96, 1\)"):
        decode_png(path, header)


TIFFS = [{}, {"tile": (16, 16), "compression": "zlib"}, {"bigtiff": True, "rowsperstrip": 8}]


@pytest.mark.parametrize("options", TIFFS)
def test_every_cut_of_a_tiff_is_refused(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, **options)
    whole = path.read_bytes()
    with open_tiff_file(path) as tif:
        check_segments(path, tif.series[0])
        np.testing.assert_array_equal(tif.asarray(), GREY)
    for size in range(4, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a\.tif is truncated"), open_tiff_file(path) as tif:
            check_segments(path, tif.series[0])


def test_a_document_type_is_refused_and_the_file_closed(tmp_path, monkeypatch):
    opened = []
    original = tifffile.TiffFile
    monkeypatch.setattr(
        tifffile, "TiffFile", lambda path: opened.append(original(path)) or opened[-1]
    )
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><OME>&a;</OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", GREY, description=bomb, metadata=None)
    with pytest.raises(InputError, match="document type declaration; accepted is OME-XML without"):
        open_tiff_file(tmp_path / "a.ome.tif")
    assert [file.filehandle.closed for file in opened] == [True]
