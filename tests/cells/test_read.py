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
