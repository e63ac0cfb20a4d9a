"""A folder that holds several OME-Zarr images, or lies above or below one."""

import json
import shutil

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.slides.slide import open_slide, reopen_slide
from tests.helpers.bad_slides import refused
from tests.helpers.slide_files import random_pixels, write_zarr
from tests.helpers.slide_formats import read_all
from tests.helpers.zarr_folders import (
    CYX,
    name_image,
    write_group,
    write_plate,
    write_series,
    write_store,
    write_well,
)

VERSIONS = ["0.4", "0.5"]


def found(path, scene=None):
    """Where the image is that is opened; it opens again by what is known of it."""
    slide = open_slide(path, scene)
    again = reopen_slide(slide.info).info
    assert again == slide.info
    assert slide.info.scene is None
    return slide.info.path.removeprefix(f"{path}/")


class TestChoice:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_plate(self, tmp_path, version):
        plate = write_plate(tmp_path / "plate.zarr", version)
        message = refused(plate, "holds 4 images and none was chosen; choose one with --scene")
        assert "2: 'B/2/0', named 'B/2 field 0', 3 x 64 x 96 (c, y, x)" in message
        for scene in ("B/2/0", "/B/2/0/", "b/2/0", "2", "#2", "B/2 field 0"):
            assert found(plate, scene) == "B/2/0"
        for scene in ("C/1/0", "#4", "field"):
            with pytest.raises(InputError, match=f"holds no image '{scene}'; accepted with --sc"):
                open_slide(plate, scene)

    def test_a_plate_of_one_image_needs_no_choice(self, tmp_path):
        plate = write_plate(tmp_path / "plate.zarr", wells=("A/1",), fields=("0",))
        assert found(plate) == found(plate, "A/1/0") == "A/1/0"

    def test_a_well_that_was_not_copied_is_no_reason_to_take_the_other(self, tmp_path):
        plate = write_plate(tmp_path / "plate.zarr", fields=("0",))
        shutil.rmtree(plate / "A" / "1")
        assert "0: 'A/1', not there" in refused(plate, "holds 2 images and none was chosen")
        assert found(plate, "B/2/0") == "B/2/0"
        with pytest.raises(InputError, match=r"lists an image that is not there: .*A/1 is no OME"):
            open_slide(plate, "A/1")

    @pytest.mark.parametrize("version", VERSIONS)
    def test_well(self, tmp_path, version):
        well = write_well(tmp_path / "1", version)
        refused(well, "holds 2 images and none was chosen")
        assert found(well, "1") == found(well, "well field 1") == "1"

    def test_many_series_count_as_numbers(self, tmp_path):
        names = [str(k) for k in range(12)]
        path = write_series(tmp_path / "s.zarr", names=names)
        assert "2: '2', named 'scan 2'" in refused(path, "holds 12 images")
        assert found(path, "#10") == "10"
        assert found(path, "scan 3") == "3"

    @pytest.mark.parametrize("version", VERSIONS)
    def test_series_in_the_order_that_is_written(self, tmp_path, version):
        path = write_series(tmp_path / "s.zarr", version, names=("b", "a"))
        write_group(path / "OME", version, {"series": ["b", "a"]})
        assert found(path, "#0") == "b"

    @pytest.mark.parametrize("version", VERSIONS)
    def test_spatialdata(self, tmp_path, version):
        store = write_store(tmp_path / "store.zarr", version)
        assert "1: 'he'" in refused(store, "holds 2 images and none was chosen")
        for scene in ("he", "images/he", "1", "HE"):
            assert found(store, scene) == "images/he"
        assert found(write_store(tmp_path / "one.zarr", version, images=("he",))) == "images/he"

    def test_two_images_of_one_name_are_told_by_their_index(self, tmp_path):
        path = write_group(tmp_path / "s.zarr", "0.5", {"bioformats2raw.layout": 3})
        for name in ("p", "q"):
            write_zarr(path / name, CYX, document=name_image("scan"))
        with pytest.raises(InputError, match=r"holds 2 images named 'scan'.*index, such as '#0'"):
            open_slide(path, "scan")

    def test_the_only_image_may_be_named_and_no_other(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        assert open_slide(path, "test").info == open_slide(path, "#0").info == open_slide(path).info
        with pytest.raises(InputError, match="holds no image 'other'; accepted with --scene are 0"):
            open_slide(path, "other")


class TestSeveralInOneGroup:
    def write(self, folder, version="0.5"):
        def document(attributes):
            (first,) = attributes["multiscales"]
            second = json.loads(json.dumps(first)) | {"name": "second"}
            second["datasets"] = [second["datasets"].pop()]
            attributes["multiscales"] = [first, second]

        return write_zarr(folder / "s.zarr", CYX, "cyx", version, n_levels=2, document=document)

    @pytest.mark.parametrize("version", VERSIONS)
    def test_they_are_listed_and_one_is_chosen(self, tmp_path, version):
        path = self.write(tmp_path, version)
        refused(path, r"holds 2 images .*\(0: 'test', 3 x 64 x 96 .*; 1: 'second', 3 x 32 x 48")
        first, second = (open_slide(path, scene) for scene in ("test", "second"))
        assert (first.info.height, second.info.height) == (64, 32)
        assert first.info.identity != second.info.identity
        assert first.info.path == second.info.path == str(path)
        for slide in (first, second):
            assert reopen_slide(slide.info).info == slide.info
            np.testing.assert_array_equal(read_all(reopen_slide(slide.info)), read_all(slide))

    def test_the_same_choice_in_other_words_is_the_same_slide(self, tmp_path):
        path = self.write(tmp_path)
        assert open_slide(path, "second").info == open_slide(path, "1").info


class TestFoldersAboveAndBelow:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_below_an_image(self, tmp_path, version):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version, n_levels=2)
        write_group(path / "labels", version)
        for inside in ("0", "1", "labels"):
            refused(path / inside, f"; give the image above it, {path}$")

    def test_chunks(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        refused(path / "0" / "c" / "0", f"without Zarr metadata .*the image above it, {path}$")

    def test_folders_above(self, tmp_path):
        write_zarr(tmp_path / "data" / "a.zarr", CYX)
        refused(tmp_path / "data", rf"; give the image in it, {tmp_path}/data/a\.zarr$")
        for name in "bcde":
            write_zarr(tmp_path / "data" / "deep" / f"{name}.zarr", CYX)
        message = refused(tmp_path / "data", "; give one of the 5 images in it: ")
        assert message.endswith("/deep/b.zarr, " + f"{tmp_path}/data/deep/c.zarr and 2 more")

    @pytest.mark.parametrize("version", VERSIONS)
    def test_groups_in_the_middle(self, tmp_path, version):
        plate = write_plate(tmp_path / "plate.zarr", version)
        refused(plate / "A", rf"; give one of the 2 images in it: .*A/1/0, {plate}/A/1/1$")
        store = write_store(tmp_path / "store.zarr", version)
        refused(store / "images", "; give one of the 2 images in it: ")
        refused(store / "tables", rf"; give one of the 2 images in {store}: ")
        refused(store / "labels" / "cells", rf"is a label image; .* in {store}: ")

    def test_nothing_anywhere(self, tmp_path):
        (tmp_path / "empty").mkdir()
        assert refused(tmp_path / "empty", "without Zarr metadata").endswith("0.5 images")

    def test_a_run_names_its_image(self, tmp_path):
        write_zarr(tmp_path / "out" / "segmentation.ome.zarr", CYX)
        refused(tmp_path / "out", "; give the image in it, .*segmentation.ome.zarr$")


class TestBothFormats:
    def write(self, folder, old):
        """An image of format 3 with documents of format 2 beside it."""
        path = write_zarr(folder / "s.zarr", CYX)
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        ome = json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
        if old is not None:
            ome.pop("version")
            ome["multiscales"][0]["version"] = "0.4"
            (path / ".zattrs").write_text(json.dumps(old(ome)))
        return path

    def test_that_agree(self, tmp_path):
        path = self.write(tmp_path, lambda ome: ome | {"creator": "x"})
        np.testing.assert_array_equal(read_all(open_slide(path)), CYX)

    @pytest.mark.parametrize(
        ("old", "expected"),
        [
            (lambda ome: {}, "zarr.json tells of an image, .zattrs of a group without an image"),
            (None, "zarr.json tells of an image, .zgroup of a group without an image"),
            (
                lambda ome: ome | {"omero": {"channels": []}},
                "zarr.json and .zattrs differ in omero",
            ),
            (
                lambda ome: {"multiscales": [ome["multiscales"][0] | {"name": "b"}]},
                "zarr.json and .zattrs differ in multiscales",
            ),
        ],
    )
    def test_that_disagree(self, tmp_path, old, expected):
        path = self.write(tmp_path, old)
        refused(path, rf"metadata of both Zarr formats that disagree \({expected}\); remove those")

    def test_an_image_of_the_older_format_that_a_program_spoilt(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", "0.4")
        document = {"zarr_format": 3, "node_type": "group", "attributes": {}}
        (path / "zarr.json").write_text(json.dumps(document))
        refused(path, r"\(zarr.json tells of a group without an image, .zattrs of an image\)")

    def test_arrays(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        document = {"zarr_format": 2, "shape": [3, 32, 96]}
        (path / "0" / ".zarray").write_text(json.dumps(document))
        with pytest.raises(
            InputError, match=r"zarr/0 has metadata of both .* \[3, 64, 96\], .zarr"
        ):
            open_slide(path)


class TestAxes:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize(
        ("names", "shape", "axes", "full"),
        [
            ("zyx", (3, 64, 96), "CYX", "CYX"),
            ("tyx", (3, 64, 96), "cyx", "CYX"),
            ("tczyx", (1, 1, 3, 64, 96), "CYX", "TZCYX"),
            ("tczyx", (3, 1, 1, 64, 96), "CTZYX", "CTZYX"),
            ("yxz", (64, 96, 3), "YXC", "YXC"),
            ("yx", (64, 96), "YX", "YX"),
            ("zyx", (1, 64, 96), "YX", "TYX"),
            ("cyx", (3, 64, 96), "CXY", "CXY"),
        ],
    )
    def test_what_the_user_says(self, tmp_path, version, names, shape, axes, full):
        pixels = random_pixels(shape)
        path = write_zarr(tmp_path / "s.zarr", pixels, names, version)
        slide = open_slide(path, axes=axes)
        assert slide.info.axes == full
        assert reopen_slide(slide.info).info == slide.info
        order = [full.index(letter) for letter in "CYX" if letter in full]
        rest = [i for i in range(len(full)) if i not in order]
        planes = pixels.transpose(*rest, *order).reshape(-1, *(shape[i] for i in order[-2:]))
        np.testing.assert_array_equal(read_all(slide), planes)

    @pytest.mark.parametrize("axes", [["z", "y", "x"], None, [{"name": None}] * 3, "zyx", 7])
    def test_axes_without_names_or_of_older_versions(self, tmp_path, axes):
        def document(attributes):
            attributes["multiscales"][0]["axes"] = axes

        path = write_zarr(tmp_path / "s.zarr", CYX, document=document)
        assert "--axes" in refused(path, "axes")
        slide = open_slide(path, axes="CYX")
        np.testing.assert_array_equal(read_all(slide), CYX)
        assert slide.info.um_per_px is None
        assert "a scale of 0.5 without a unit" in slide.info.notes[0]

    @pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
    @pytest.mark.parametrize("axes", [["t", "c", "z", "y", "x"], None])
    def test_versions_before_0_4(self, tmp_path, version, axes):
        def document(attributes):
            (image,) = attributes["multiscales"]
            image |= {"version": version, "datasets": [{"path": "0"}]}
            image.pop("axes") if axes is None else image.update(axes=axes)

        pixels = CYX[None, :, None]
        path = write_zarr(tmp_path / "s.zarr", pixels, "tczyx", "0.4", document=document)
        refused(path, f"is OME-Zarr {version} in Zarr format 2; .* 0.1 to 0.3 if --axes says what")
        slide = open_slide(path, axes="TCZYX")
        np.testing.assert_array_equal(read_all(slide), CYX)
        assert "no scale of the highest resolution" in slide.info.notes[0]

    @pytest.mark.parametrize(
        ("axes", "expected"),
        [
            ("CYYX", "give each dimension"),
            ("CX", "give each dimension"),
            ("C Y X", "give each dimension"),
            ("", "give each dimension"),
            ("YX", "has 2 letters for .* which has 3 dimensions"),
            ("TCZYX", "has 5 letters for"),
            ("ZYX", "3 images along z"),
        ],
    )
    def test_letters_that_are_not_accepted(self, tmp_path, axes, expected):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        with pytest.raises(InputError, match=expected):
            open_slide(path, axes=axes)

    def test_dimensions_that_may_be_meant_in_two_ways(self, tmp_path):
        pixels = random_pixels((1, 64, 1, 96))
        path = write_zarr(tmp_path / "s.zarr", pixels, "czyx", chunks=(1, 32, 1, 32))
        with pytest.raises(InputError, match=r"has 3 letters for .* which has 4 dimensions"):
            open_slide(path, axes="CYX")
        assert open_slide(path, axes="CYZX").info.height == 64
