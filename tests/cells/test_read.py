"""Label images of every format: opened as strictly as slides are."""

import pickle

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densebatch.base.errors import InputError
from densebatch.cells.read import open_labels
from tests.helpers.slide_files import png_chunk, write_png, write_zarr
from tests.helpers.tiff_files import ome_image, ome_xml, place, write_pages

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


def write_npy_of(path, pixels):
    np.save(path.with_suffix(".npy"), pixels)
    return path.with_suffix(".npy")


def write_zarr_of(path, pixels, version=3):
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, zarr_format=version)
    array[...] = pixels
    return path


def write_ome_zarr_of(path, pixels):
    """Labels whose axes are told, as segmentation tools write them inside an image."""
    axes = {2: "yx", 3: "cyx", 4: "tcyx", 5: "tczyx"}[pixels.ndim]
    return write_zarr(path / "labels" / "cells", pixels, axes)


FORMATS = {
    "npy": write_npy_of,
    "zarr 2": lambda path, pixels: write_zarr_of(path, pixels, 2),
    "zarr 3": write_zarr_of,
    "tiff": write_tiff,
    "compressed tiff": lambda path, pixels: write_tiff(path, pixels, compression="zlib"),
}
SHAPES = [(1, 40, 50, 1), (40, 50, 1), (1, 1, 40, 50), (40, 50, 1, 1), (1, 40, 50), (1, 40, 1, 50)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_axes_of_length_1_are_dropped(tmp_path, name, shape):
    labels = open_labels(FORMATS[name](tmp_path / "a", LABELS.reshape(shape)))
    assert labels.shape == LABELS.shape
    np.testing.assert_array_equal(labels[3:30, 5:41], LABELS[3:30, 5:41])


@pytest.mark.parametrize("shape", [(40, 50, 1), (1, 40, 50, 1), (40, 1, 50)], ids=str)
def test_rows_that_a_tiff_has_as_pages(tmp_path, shape):
    path = write_tiff(tmp_path / "a", LABELS.reshape(shape), metadata=None)
    np.testing.assert_array_equal(open_labels(path)[:, :], LABELS)


@pytest.mark.parametrize("shape", [(1, 40, 50), (1, 1, 40, 50), (1, 1, 1, 40, 50)], ids=str)
def test_axes_of_length_1_with_names(tmp_path, shape):
    labels = open_labels(write_ome_zarr_of(tmp_path / "a.ome.zarr", LABELS.reshape(shape)))
    np.testing.assert_array_equal(labels[:, :], LABELS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(40, 1), (1, 40)], ids=str)
def test_an_image_of_one_column_or_row_keeps_it(tmp_path, name, shape):
    labels = open_labels(FORMATS[name](tmp_path / "a", LABELS[:, 7].reshape(shape)))
    assert labels.shape == shape
    np.testing.assert_array_equal(labels[:, :], LABELS[:, 7].reshape(shape))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": None}])
@pytest.mark.parametrize("shape", [(40, 1, 1), (1, 40, 1), (1, 1, 40)], ids=str)
def test_a_tiff_of_one_column_or_row_is_as_its_page(tmp_path, shape, options):
    path = write_tiff(tmp_path / "a", LABELS[:, 7].reshape(shape), **options)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0].shape if len(tif.pages) == 1 else (40, 1)
    assert open_labels(path).shape == page
    np.testing.assert_array_equal(open_labels(path)[:, :].ravel(), LABELS[:, 7])


def test_a_tiff_that_tells_its_axes_keeps_them(tmp_path):
    path = write_tiff(tmp_path / "a", LABELS[..., None], metadata={"axes": "ZYX"})
    with pytest.raises(InputError, match=r"has 40 planes \(shape \(40, 50, 1\)\); a label image"):
        open_labels(path)
    path = write_tiff(tmp_path / "a", LABELS[:, None], metadata={"axes": "YCX"})
    np.testing.assert_array_equal(open_labels(path)[:, :], LABELS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", [*FORMATS, "ome-zarr"])
def test_whole_numbers_stored_as_floats_are_labels(tmp_path, name, dtype):
    write = FORMATS.get(name, write_ome_zarr_of)
    labels = open_labels(write(tmp_path / "a", (LABELS % 2000).astype(dtype)))
    found = labels[3:30, 5:41]
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found, LABELS[3:30, 5:41] % 2000)


@pytest.mark.parametrize("name", [*FORMATS, "ome-zarr"])
def test_a_fraction_is_refused_with_the_file(tmp_path, name):
    pixels = (LABELS % 5).astype(np.float32)
    pixels[20, 30] = 2.5
    path = FORMATS.get(name, write_ome_zarr_of)(tmp_path / "a", pixels)
    with pytest.raises(InputError, match=r"a[./\w]* holds the value 2\.5; a label image has one"):
        open_labels(path)[:, :]


def write_bits(path, mask):
    Image.fromarray(mask).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def write_two_colours(path, mask):
    picture = Image.fromarray(mask.astype(np.uint8), "P")
    picture.putpalette([9, 9, 9, 200, 0, 0])
    picture.save(path.with_suffix(".png"), bits=1)
    return path.with_suffix(".png")


def test_bits_of_which_0_is_white_are_refused(tmp_path):
    options = {"photometric": "miniswhite", "software": "another"}
    for more in ({}, {"compression": "zlib"}):
        path = write_tiff(tmp_path / "a", LABELS % 3 > 0, **options, **more)
        with pytest.raises(InputError, match="says that 0 is white, so that it is not clear what"):
            open_labels(path, masks=True)


BOOLEANS = {**FORMATS, "png of one bit": write_bits, "png of two colours": write_two_colours}


@pytest.mark.parametrize("name", BOOLEANS)
def test_booleans_are_read_where_masks_are_meant(tmp_path, name):
    mask = LABELS % 3 > 0
    path = BOOLEANS[name](tmp_path / "a", mask)
    kind = "bool" if name.startswith(("npy", "zarr")) else "1 bit per pixel"
    told = rf"holds a yes/no mask \({kind}\); a label image has one whole number per cell: label"
    with pytest.raises(InputError, match=told):
        open_labels(path)
    labels = open_labels(path, masks=True)
    np.testing.assert_array_equal(labels[:, :], mask)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels))[:, :], mask)


OTHER = (LABELS + 1).astype(np.uint16)


def write_twice(path, **options):
    for labels in (LABELS, OTHER):
        tifffile.imwrite(path, labels, append=True, **options)
    return path


class TestScene:
    @pytest.mark.parametrize("options", [{}, TILED, {"compression": "zlib"}])
    def test_of_several_label_images_none_is_taken_silently(self, tmp_path, options):
        path = write_twice(tmp_path / "a.tif", **options)
        with pytest.raises(InputError, match="holds 2 images and none was chosen"):
            open_labels(path)
        for scene, expected in (("0", LABELS), ("#1", OTHER)):
            np.testing.assert_array_equal(open_labels(path, scene)[:, :], expected)

    def test_by_name(self, tmp_path):
        xml = ome_xml(
            *(
                ome_image(f"core {name}", "x", ifd=ifd, size=LABELS.shape)
                for ifd, name in enumerate("AB")
            )
        )
        path = write_pages(tmp_path / "a.ome.tif", LABELS, OTHER, description=xml)
        np.testing.assert_array_equal(open_labels(path, "core B")[:, :], OTHER)
        with pytest.raises(InputError, match=r"0: 'core A'.*1: 'core B'"):
            open_labels(path, "core C")

    def test_it_travels(self, tmp_path):
        labels = open_labels(write_twice(tmp_path / "a.tif"), "1")
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(labels))[:, :], OTHER)

    @pytest.mark.parametrize("name", WRITERS)
    def test_of_a_file_of_one_image_it_is_of_no_account(self, files, name):
        np.testing.assert_array_equal(open_labels(files[name], "core B")[:, :], LABELS)

    def test_a_thumbnail_is_left_out_and_told(self, tmp_path):
        thumbnail = LABELS[::4, ::4].copy(), {"subfiletype": 1}
        pages = [thumbnail, (LABELS, {"tile": (16, 16)})]
        labels = open_labels(write_pages(tmp_path / "a.tif", *pages))
        np.testing.assert_array_equal(labels[:, :], LABELS)
        labels = open_labels(
            write_pages(tmp_path / "b.tif", (LABELS[:9, :9].copy(), {"subfiletype": 1}), LABELS)
        )
        np.testing.assert_array_equal(labels[:, :], LABELS)
        assert "9 x 9 px (reduced image)" in labels.notes[0]

    def test_an_image_named_label_is_one(self, tmp_path):
        xml = ome_xml(
            ome_image("label", "x", size=LABELS.shape),
            ome_image("larger", "x", ifd=1, size=(60, 70)),
        )
        larger = np.ones((60, 70), np.uint16)
        path = write_pages(tmp_path / "a.ome.tif", LABELS, larger, description=xml)
        with pytest.raises(InputError, match=r"0: 'label'.*1: 'larger'"):
            open_labels(path)
        np.testing.assert_array_equal(open_labels(path, "label")[:, :], LABELS)

    def test_levels_from_the_smallest(self, tmp_path):
        pages = [LABELS[::step, ::step].copy() for step in (4, 2, 1)]
        labels = open_labels(write_pages(tmp_path / "a.tif", *pages))
        np.testing.assert_array_equal(labels[:, :], LABELS)

    def test_pixels_of_another_file(self, tmp_path):
        planes = [place(0, 0, file=f"{k}.ome.tif", uuid=f"urn:uuid:{k}") for k in range(2)]
        images = [
            ome_image(f"well {k}", "x", size=LABELS.shape, planes=planes[k]) for k in range(2)
        ]
        for k, pixels in enumerate((LABELS, OTHER)):
            write_pages(tmp_path / f"{k}.ome.tif", pixels, description=ome_xml(*images))
        np.testing.assert_array_equal(open_labels(tmp_path / "0.ome.tif")[:, :], LABELS)
        other = open_labels(tmp_path / "0.ome.tif", "well 1")
        np.testing.assert_array_equal(other[:, :], OTHER)

    def test_one_page_with_the_description_of_a_slide(self, tmp_path):
        xml = ome_xml(ome_image("slide", "abc", size=(400, 500)))
        path = write_pages(tmp_path / "a.ome.tif", LABELS, description=xml)
        np.testing.assert_array_equal(open_labels(path)[:, :], LABELS)
