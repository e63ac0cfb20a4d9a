"""Slides as OME-Zarr."""

import json

import numpy as np
import pytest
import zarr

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from densebatch.sources import omezarr_source
from tests.helpers.slide_files import edit_json, random_pixels, write_zarr
from tests.helpers.slide_formats import CYX, SLIDES, read_all


def test_an_absent_chunk_reads_as_the_fill_value(tmp_path):
    group = zarr.open_group(str(write_zarr(tmp_path / "s.zarr", CYX[:1])), mode="a")
    group.create_array(
        "0", shape=(1, 64, 64), chunks=(1, 32, 32), dtype="uint16", fill_value=7, overwrite=True
    )[0, :32, :32] = 9
    pixels = open_slide(tmp_path / "s.zarr").read(0, Region(0, 0, 64, 64))
    assert pixels[:32, :32].min() == 9
    assert (pixels[32:] == 7).all()


class TestInfo:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_ome_zarr(self, tmp_path, version):
        path = write_zarr(
            tmp_path / "s.zarr",
            CYX,
            "cyx",
            version,
            labels=["CD3", "CD8", "DAPI"],
            n_levels=3,
            scale=250.0,
            unit="nanometer",
        )
        info = open_slide(path).info
        assert info.kind == "ome-zarr"
        assert info.channels == ("CD3", "CD8", "DAPI")
        assert info.um_per_px == pytest.approx(0.25)
        assert info.chunk_px == (32, 32)
        assert (info.n_levels, info.ngff) == (3, version)

    def test_shards_are_read_in_chunks(self, tmp_path):
        path, _ = SLIDES["OME-Zarr 0.5, sharded"][0](tmp_path)
        assert open_slide(path).info.chunk_px == (16, 16)

    def test_scale_of_the_whole_image_multiplies(self, tmp_path):
        def document(attributes):
            attributes["multiscales"][0]["coordinateTransformations"] = [
                {"type": "scale", "scale": [1, 2, 2]}
            ]

        path = write_zarr(tmp_path / "s.zarr", CYX, scale=0.25, document=document)
        assert open_slide(path).info.um_per_px == 0.5

    @pytest.mark.parametrize(("scale", "unit"), [(1.0, None), (1.0, "parsec"), (-1.0, "meter")])
    def test_scale_without_a_length_is_unknown(self, tmp_path, scale, unit):
        path = write_zarr(tmp_path / "s.zarr", CYX, scale=scale, unit=unit)
        assert open_slide(path).info.um_per_px is None

    def test_bioformats2raw_with_one_image(self, tmp_path):
        root = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=2)
        root.attrs["bioformats2raw.layout"] = 3
        (tmp_path / "s.zarr" / "OME").mkdir()
        write_zarr(tmp_path / "s.zarr" / "0", CYX, "cyx", "0.4")
        slide = open_slide(tmp_path / "s.zarr")
        assert slide.info.path == str(tmp_path / "s.zarr" / "0")
        np.testing.assert_array_equal(read_all(slide), CYX)


class TestLevels:
    """The highest resolution is the largest array, wherever it is listed."""

    def write(self, folder, version, order):
        def document(attributes):
            datasets = attributes["multiscales"][0]["datasets"]
            attributes["multiscales"][0]["datasets"] = [datasets[level] for level in order]

        return write_zarr(folder / "s.zarr", CYX, "cyx", version, n_levels=3, document=document)

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (2, 0, 1), (0, 1, 2), (1, 0)])
    def test_any_order(self, tmp_path, version, order):
        slide = open_slide(self.write(tmp_path, version, order))
        assert (slide.info.height, slide.info.um_per_px) == (75, 0.5)
        assert slide.info.n_levels == len(order)
        assert slide.info.notes == ()
        np.testing.assert_array_equal(read_all(slide), CYX)

    def test_levels_of_one_size_keep_their_order(self, tmp_path):
        path = self.write(tmp_path, "0.5", (0, 1))
        document = json.loads((path / "zarr.json").read_text())
        image = document["attributes"]["ome"]["multiscales"][0]
        write_zarr(tmp_path / "other.zarr", CYX[::-1])
        (tmp_path / "other.zarr" / "0").rename(path / "twin")
        image["datasets"].insert(0, image["datasets"][0] | {"path": "twin"})
        (path / "zarr.json").write_text(json.dumps(document))
        np.testing.assert_array_equal(read_all(open_slide(path)), CYX[::-1])

    def test_a_level_without_a_shape(self, tmp_path):
        path = self.write(tmp_path, "0.5", (0, 1))
        edit_json(path / "1" / "zarr.json", shape=None)
        with pytest.raises(InputError, match=r"s\.zarr/1 declares the shape None; accepted are"):
            open_slide(path)


class TestChannelLabels:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            ([2, 10, 0], ("2", "10", "0")),
            (["CD3", 2, "DAPI"], ("CD3", "2", "DAPI")),
            ([1.5, -1, 10**12], ("1.5", "-1", "1000000000000")),
            (["CD3\ud800", "\udfff", "é"], ("CD3?", "?", "é")),  # no characters but in JSON
        ],
    )
    def test_numbers(self, tmp_path, labels, expected):
        info = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=labels)).info
        assert (info.channels, info.notes) == (expected, ())

    @pytest.mark.parametrize(
        ("labels", "expected", "note"),
        [
            (["a", None, "c"], ("a", "1", "c"), "no text as label of channel 1, which is named"),
            (["a", "", " "], ("a", "1", "2"), "no text as label of channel 1, 2, which is named"),
            ([True, False, None], ("0", "1", "2"), "no text as label of channel 0, 1, 2"),
            ([["a"], {"b": 1}, "c"], ("0", "1", "c"), "no text as label of channel 0, 1, which"),
            (["a", "b"], ("0", "1", "2"), "labels for 2 channels and there are 3"),
            ([1, 2, 3, 4], ("0", "1", "2"), "labels for 4 channels and there are 3"),
        ],
    )
    def test_what_is_no_label_is_told(self, tmp_path, labels, expected, note):
        info = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=labels)).info
        assert info.channels == expected
        assert note in info.notes[0]
        assert len(info.notes) == 1

    @pytest.mark.parametrize("labels", [[None, None, None], ["", "", ""], [None], None])
    def test_no_labels_are_no_news(self, tmp_path, labels):
        info = open_slide(write_zarr(tmp_path / "s.zarr", CYX, labels=labels)).info
        assert (info.channels, info.notes) == (("0", "1", "2"), ())


class TestIdentity:
    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_a_changed_chunk_changes_it_and_labels_do_not(self, tmp_path, version):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
        identity = open_slide(path).info.identity
        write_zarr(path / "labels" / "cells", CYX[0], "yx", version)
        zarr_format = 2 if version == "0.4" else 3
        labels = zarr.open_group(str(path / "labels"), mode="a", zarr_format=zarr_format)
        labels.attrs["labels"] = ["cells"]
        assert open_slide(path).info.identity == identity
        zarr.open_array(str(path / "0"), mode="r+")[0, 0, 0] ^= 1
        assert open_slide(path).info.identity != identity

    def test_changed_names_change_it(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX, labels=["a", "b", "c"])
        identity = open_slide(path).info.identity
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["ome"]["omero"]["channels"][0]["label"] = "d"
        (path / "zarr.json").write_text(json.dumps(document))
        slide = open_slide(path)
        assert slide.info.channels == ("d", "b", "c")
        assert slide.info.identity != identity

    def test_stats_are_capped(self, tmp_path, monkeypatch):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        full = open_slide(path).info.identity
        monkeypatch.setattr(omezarr_source, "MAX_STATS", 3)
        capped = open_slide(path).info.identity
        assert capped != full
        next((path / "0" / "c" / "2").rglob("*")).touch()
        assert open_slide(path).info.identity == capped


@pytest.mark.parametrize("shards", [None, (1, 1, 3, 32, 32)])
def test_a_plane_of_several_or_their_maximum_is_taken_when_told(tmp_path, shards):
    planes = random_pixels((2, 2, 3, 64, 64))  # t, c, z
    path = write_zarr(tmp_path / "s.zarr", planes, "tczyx", chunks=(1, 1, 1, 32, 32), shards=shards)
    with pytest.raises(InputError, match=r"--t INDEX, from 0 to 1 and .*--z max$"):
        open_slide(path)
    one = open_slide(path, z="2", t="1")
    np.testing.assert_array_equal(read_all(one), planes[1, :, 2])
    largest = open_slide(path, z="max", t="0")
    np.testing.assert_array_equal(read_all(largest), planes[0].max(1))
    assert (largest.info.z, largest.info.t) == ("max", "0")
    assert largest.info.identity != one.info.identity
    region = Region(0, 0, 32, 32)
    for slide, n in ((one, 1), (largest, 3 if shards is None else 1)):
        files = list(slide.source.list_files(1, 2, region))
        assert len(files) == n
        assert all(file.is_file() for file in files)
    with pytest.raises(InputError, match="has 3 focal planes; --z 3 is not accepted"):
        open_slide(path, z="3", t="0")
