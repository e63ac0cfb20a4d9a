"""Label images of every format: opened as strictly as slides are."""

import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densebatch.base.errors import InputError
from densebatch.cells.read import open_labels
from tests.helpers.slide_files import png_chunk, write_png

LABELS = (np.arange(40 * 50).reshape(40, 50) * 13 % 60_000).astype(np.uint16)
TILED = {"tile": (16, 16), "compression": "zlib"}


def write_png16(path):
    path.with_suffix(".png").write_bytes(imagecodecs.png_encode(LABELS))
    return path.with_suffix(".png")


def write_tiff(path, pixels=LABELS, **options):
    tifffile.imwrite(path.with_suffix(".tif"), pixels, **options)
    return path.with_suffix(".tif")


def write_npy(path):
    np.save(path.with_suffix(".npy"), LABELS)
    return path.with_suffix(".npy")


WRITERS = {
    "png": write_png16,
    "one strip": write_tiff,
    "tiles": lambda path: write_tiff(path, **TILED),
    "npy": write_npy,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    return {name: write(folder / name) for name, write in WRITERS.items()}


@given(data=st.data())
def test_a_slice_is_that_part_of_the_labels(files, data):
    labels = open_labels(files[data.draw(st.sampled_from(sorted(WRITERS)))])
    y0, y1 = sorted(data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40))))
    x0, x1 = sorted(data.draw(st.tuples(st.integers(0, 50), st.integers(0, 50))))
    assert labels.shape == LABELS.shape
    found = labels[y0:y1, x0:x1]
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, LABELS[y0:y1, x0:x1])


@pytest.mark.parametrize("name", WRITERS)
def test_it_travels_as_its_path(files, name):
    labels = open_labels(files[name])
    travelled = pickle.dumps(labels)
    assert len(travelled) < 300
    np.testing.assert_array_equal(pickle.loads(travelled)[:, :], LABELS)


def test_of_a_palette_the_index_is_the_label(tmp_path):
    picture = Image.fromarray((LABELS % 7).astype(np.uint8), "P")
    picture.putpalette([5] * 768)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_labels(tmp_path / "a.png")[:, :], LABELS % 7)


def test_opacity_is_no_label_and_transparency_is_refused(tmp_path):
    opaque = np.full_like(LABELS, 2**16 - 1)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(np.stack([LABELS, opaque], -1)))
    np.testing.assert_array_equal(open_labels(path)[:, :], LABELS)
    opaque[3, 4] -= 1
    path.write_bytes(imagecodecs.png_encode(np.stack([LABELS, opaque], -1)))
    with pytest.raises(InputError, match="is partly transparent; a label image is opaque"):
        open_labels(path)


def test_a_transparent_colour_is_a_plane_that_differs(tmp_path):
    rows = [bytes([0, 7, 0, 9])]
    path = write_png(tmp_path / "a.png", 2, 1, 16, 0, rows, png_chunk(b"tRNS", b"\0\7"))
    with pytest.raises(InputError, match="is a colour picture whose planes differ"):
        open_labels(path)[:, :]


def test_a_sparse_tiff_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tiles = [LABELS[:16, :16] if i == 0 else None for i in range(12)]
    tifffile.imwrite(path, iter(tiles), shape=(40, 50), dtype="uint16", **TILED)
    with pytest.raises(InputError, match=r"no pixels for tile 1 of page 0 \(11 of 12"):
        open_labels(path)


@pytest.mark.parametrize("options", [{}, TILED])
def test_a_truncated_tiff_is_refused(tmp_path, options):
    path = write_tiff(tmp_path / "a", **options)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=r"a\.tif is truncated"):
            open_labels(path)


def test_a_tiff_of_several_planes_is_refused(tmp_path):
    path = write_tiff(tmp_path / "a", np.stack([LABELS] * 5), photometric="minisblack")
    with pytest.raises(InputError, match=r"has 5 planes \(shape \(5, 40, 50\)\); a label image"):
        open_labels(path)
