"""Slides as OME-Zarr."""

import json

import numpy as np
import pytest
import zarr

from densebatch.base.geometry import Region
from densebatch.slides import omezarr
from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import write_zarr
from tests.helpers.slide_formats import CYX, read_all


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

    def test_shards_are_read_in_chunks(self, slides):
        assert open_slide(slides["OME-Zarr 0.5, sharded"][0]).info.chunk_px == (16, 16)

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
        monkeypatch.setattr(omezarr, "MAX_STATS", 3)
        capped = open_slide(path).info.identity
        assert capped != full
        next((path / "0" / "c" / "2").rglob("*")).touch()
        assert open_slide(path).info.identity == capped
