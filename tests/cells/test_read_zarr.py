"""Zarr arrays and OME-Zarr groups as label images."""

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells.read_zarr import CheckedArray, is_zarr, open_zarr
from tests.helpers.slide_files import write_zarr
from tests.helpers.zarr_folders import mark_labels, write_plate, write_store

VERSIONS = ["0.4", "0.5"]
LABELS = np.arange(40 * 50, dtype=np.uint32).reshape(40, 50)
WHOLE = Region(0, 0, 40, 50)
LAYOUTS = {
    "zarr 2": {"chunks": (16, 16), "zarr_format": 2},
    "zarr 3": {"chunks": (16, 16)},
    "sharded": {"chunks": (8, 8), "shards": (16, 16)},
    "uncompressed": {"chunks": (16, 16), "compressors": None},
}


def write_array(path, pixels=LABELS, **options):
    array = zarr.create_array(path, shape=pixels.shape, dtype=pixels.dtype, **options)
    array[...] = pixels
    return path


def write_image(path, version, names=("cells",), labels=LABELS):
    """An image group whose label images are as writers make them: listed, and marked."""
    picture = np.zeros((2, *labels.shape), np.uint16)
    write_zarr(path, picture, "cyx", version)
    zarr_format = 2 if version == "0.4" else 3
    group = zarr.open_group(path / "labels", mode="w", zarr_format=zarr_format)
    group.attrs.update({"labels": list(names)} if version == "0.4" else {"ome": {"labels": names}})
    for name in names:
        write_zarr(path / "labels" / name, labels, "yx", version, document=mark_labels)
    return path


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    return {name: write_array(folder / name, **options) for name, options in LAYOUTS.items()}


@given(data=st.data())
def test_a_rectangle_is_that_part_of_the_array(arrays, data):
    pixels = open_zarr(arrays[data.draw(st.sampled_from(sorted(LAYOUTS)))], labels=True)
    y0, y1 = sorted(data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40))))
    x0, x1 = sorted(data.draw(st.tuples(st.integers(0, 50), st.integers(0, 50))))
    assert (pixels.shape, pixels.n_planes, pixels.unit) == ((40, 50), 1, (16, 16))
    found = pixels.read(Region(y0, x0, y1, x1))
    np.testing.assert_array_equal(found[0], LABELS[y0:y1, x0:x1])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_way_to_name_a_label_image(tmp_path, version):
    image = write_image(tmp_path / "a.ome.zarr", version)
    write_image(tmp_path / "out" / "segmentation.ome.zarr", version)
    for path in (image, image / "labels", image / "labels" / "cells", tmp_path / "out"):
        pixels = open_zarr(path, labels=True)
        assert pixels.axes == "YX"
        np.testing.assert_array_equal(pixels.read(WHOLE)[0], LABELS)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_picture_is_the_highest_resolution(tmp_path, version):
    picture = np.arange(2 * 40 * 50, dtype=np.uint16).reshape(2, 40, 50)
    write_zarr(tmp_path / "a.zarr", picture, "cyx", version, n_levels=2)
    pixels = open_zarr(tmp_path / "a.zarr", labels=False)
    assert (pixels.axes, pixels.n_planes) == ("CYX", 2)
    np.testing.assert_array_equal(pixels.read(WHOLE), picture)


def test_labels_that_nobody_marked_or_listed(tmp_path):
    write_zarr(tmp_path / "a.zarr", np.zeros((1, 40, 50), np.uint16))
    zarr.open_group(tmp_path / "a.zarr" / "labels", mode="w")
    write_zarr(tmp_path / "a.zarr" / "labels" / "nuclei", LABELS, "yx")
    for path in (tmp_path / "a.zarr", tmp_path / "a.zarr" / "labels" / "nuclei"):
        np.testing.assert_array_equal(open_zarr(path, labels=True).read(WHOLE)[0], LABELS)


@pytest.mark.parametrize("axes", [["y", "x"], None, [{"name": "a"}, {"name": "b"}]])
def test_axes_of_older_versions_or_without_sense(tmp_path, axes):
    def document(attributes):
        attributes["multiscales"][0]["axes"] = axes
        attributes["image-label"] = {}

    write_zarr(tmp_path / "a.zarr", LABELS, "yx", "0.4", document=document)
    pixels = open_zarr(tmp_path / "a.zarr", labels=True)
    assert pixels.axes == "YX"
    np.testing.assert_array_equal(pixels.read(WHOLE)[0], LABELS)


def test_axes_in_another_order(tmp_path):
    def document(attributes):
        attributes["multiscales"][0]["axes"] = [{"name": "x"}, {"name": "y"}]
        attributes["image-label"] = {}

    write_zarr(tmp_path / "a.zarr", LABELS.T.copy(), "yx", document=document)
    np.testing.assert_array_equal(
        open_zarr(tmp_path / "a.zarr", labels=True).read(WHOLE)[0], LABELS
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_several_label_images_or_none_are_refused(tmp_path, version):
    write_image(tmp_path / "two.zarr", version, names=("cells", "nuclei"))
    for path in (tmp_path / "two.zarr", tmp_path / "two.zarr" / "labels"):
        with pytest.raises(
            InputError, match=r"has 2 label images \(cells, nuclei\); give the path"
        ):
            open_zarr(path, labels=True)
    write_zarr(tmp_path / "none.zarr", np.zeros((1, 8, 8), np.uint16), "cyx", version)
    with pytest.raises(InputError, match="is a zarr group without a label image; accepted are a"):
        open_zarr(tmp_path / "none.zarr", labels=True)
    zarr.open_group(tmp_path / "empty.zarr", mode="w", zarr_format=2 if version == "0.4" else 3)
    with pytest.raises(InputError, match="is a zarr group without an image; accepted are PNG"):
        open_zarr(tmp_path / "empty.zarr", labels=False)


def test_a_level_that_is_a_group_is_refused(tmp_path):
    def document(attributes):
        attributes["multiscales"][0]["datasets"][0]["path"] = "labels"

    path = write_zarr(tmp_path / "a.zarr", LABELS, "yx", document=document)
    zarr.open_group(path / "labels", mode="w")
    with pytest.raises(
        InputError, match=r"lists .*a\.zarr/labels as a resolution, which is no array"
    ):
        open_zarr(path, labels=False)


def test_a_folder_that_is_no_zarr(tmp_path):
    assert not is_zarr(tmp_path)
    with pytest.raises(InputError, match="is a folder and no zarr; accepted are PNG, TIFF"):
        open_zarr(tmp_path, labels=True)
    for name, options in LAYOUTS.items():
        assert is_zarr(write_array(tmp_path / name, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_piece_is_an_error_and_an_absent_one_background(tmp_path, layout):
    path = write_array(tmp_path / "a", LABELS + 1, **LAYOUTS[layout])
    array = zarr.open_array(path, mode="r")
    key = array.metadata.encode_chunk_key((1, 2))
    checked = CheckedArray(array, path)
    (path / key).write_bytes(b"")
    with pytest.raises(InputError, match=rf"^the stored piece .*{key} is an empty file"):
        checked[0:40, 0:50]
    np.testing.assert_array_equal(checked[0:16, 0:50], LABELS[0:16] + 1)
    (path / key).unlink()
    assert not checked[16:32, 32:48].any()


@pytest.mark.parametrize("layout", ["zarr 2", "zarr 3", "sharded"])
def test_a_damaged_piece_is_named(tmp_path, layout):
    path = write_array(tmp_path / "a", **LAYOUTS[layout])
    array = zarr.open_array(path, mode="r")
    key = array.metadata.encode_chunk_key((2, 0))
    (path / key).write_bytes(b"nonsense")
    with pytest.raises(InputError, match=rf"^the stored piece {key} is damaged: \w+"):
        CheckedArray(array, path)[0:40, 0:50]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0), (1, 2, 0)])
def test_the_largest_level_is_meant_wherever_it_is_listed(tmp_path, version, order):
    def document(attributes):
        mark_labels(attributes)
        datasets = attributes["multiscales"][0]["datasets"]
        attributes["multiscales"][0]["datasets"] = [datasets[level] for level in order]

    write_zarr(tmp_path / "a.zarr", LABELS, "yx", version, n_levels=3, document=document)
    for labels in (True, False):
        pixels = open_zarr(tmp_path / "a.zarr", labels=labels)
        np.testing.assert_array_equal(pixels.read(WHOLE)[0], LABELS)


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_of_a_spatialdata_store(tmp_path, version):
    store = write_store(tmp_path / "store.zarr", version)
    for path in (store, store / "labels"):
        with pytest.raises(
            InputError,
            match=rf"has 2 label images \(cells, nuclei\); .* such as {store}/labels/cel",
        ):
            open_zarr(path, labels=True)
        for scene in ("nuclei", "1"):
            pixels = open_zarr(path, labels=True, scene=scene)
            assert pixels.array.folder == store / "labels" / "nuclei" / "0"
            assert (pixels.path, pixels.scene) == (path, scene)
        with pytest.raises(InputError, match="holds no image 'membranes'; accepted with --scene"):
            open_zarr(path, labels=True, scene="membranes")
    for path in (store / "images" / "he", store / "images"):
        with pytest.raises(InputError, match=rf"give one of the 2 label images in {store}: "):
            open_zarr(path, labels=True)
    only = write_store(tmp_path / "one.zarr", version, labels=("cells",), images=("he",))
    assert open_zarr(only, labels=True).array.folder == only / "labels" / "cells" / "0"
    assert open_zarr(only, labels=True, scene="of no account").shape == (64, 96)
    assert open_zarr(only, labels=False).array.folder == only / "images" / "he" / "0"


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_and_pictures_of_a_plate(tmp_path, version):
    plate = write_plate(tmp_path / "plate.zarr", version)
    with pytest.raises(InputError, match=r"without a label image; accepted are a label image .*y$"):
        open_zarr(plate, labels=True)
    write_image(plate / "B" / "2" / "1", version)
    with pytest.raises(InputError, match=rf"; give the label image in it, {plate}/B/2/1/labels/c"):
        open_zarr(plate, labels=True)
    with pytest.raises(InputError, match="holds 4 images and none was chosen"):
        open_zarr(plate, labels=False)
    pixels = open_zarr(plate, labels=False, scene="B/2/0")
    assert pixels.array.folder == plate / "B" / "2" / "0" / "0"


@pytest.mark.parametrize("version", VERSIONS)
def test_folders_near_label_images(tmp_path, version):
    image = write_image(tmp_path / "data" / "a.zarr", version)
    cells = image / "labels" / "cells"
    with pytest.raises(InputError, match=rf"is a folder and no zarr; .* image in it, {cells}$"):
        open_zarr(tmp_path / "data", labels=True)
    with pytest.raises(InputError, match=rf"is a folder and no zarr; .* image in it, {image}$"):
        open_zarr(tmp_path / "data", labels=False)


def test_several_images_in_one_group_are_never_one_without_a_word(tmp_path):
    def document(attributes):
        (first,) = attributes["multiscales"]
        attributes["multiscales"] = [first, first | {"name": "second"}]
        mark_labels(attributes)

    path = write_zarr(tmp_path / "a.zarr", LABELS, "yx", document=document)
    with pytest.raises(InputError, match="holds 2 images and none was chosen"):
        open_zarr(path, labels=True)
    assert open_zarr(path, labels=True, scene="second").shape == LABELS.shape


def test_metadata_of_both_formats_that_disagree(tmp_path):
    path = write_image(tmp_path / "a.zarr", "0.5") / "labels" / "cells"
    (path / ".zattrs").write_text("{}")
    with pytest.raises(InputError, match="cells has metadata of both Zarr formats that disagree"):
        open_zarr(path, labels=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_metadata_where_the_other_format_keeps_them(tmp_path, version):
    path = write_image(tmp_path / "a.zarr", version) / "labels" / "cells"
    group = zarr.open_group(path, mode="r+")
    attributes = dict(group.attrs)
    group.attrs.put(attributes["ome"] if version == "0.5" else {"ome": attributes})
    for place in (path, tmp_path / "a.zarr"):
        np.testing.assert_array_equal(open_zarr(place, labels=True).read(WHOLE)[0], LABELS)
