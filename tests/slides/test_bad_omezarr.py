"""Bad OME-Zarr folders are one sentence: the folder, what was found, what is accepted."""

import json
import shutil

import numpy as np
import pytest
import zarr

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.slides.slide import open_slide
from tests.helpers.bad_slides import CYX, GREY, refused
from tests.helpers.slide_files import edit_json, random_pixels, write_zarr


class TestZarrGroup:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_group_without_image(self, tmp_path, zarr_format):
        zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=zarr_format)
        refused(tmp_path / "s.zarr", "without multiscales metadata, so no image; accepted")

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_metadata_of_the_other_format(self, tmp_path, version):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
        group = zarr.open_group(path, mode="r+")
        attributes = dict(group.attrs)
        group.attrs.put(attributes["ome"] if version == "0.5" else {"ome": attributes})
        refused(path, r"keeps its multiscales metadata where Zarr format . does not have them; acc")

    def test_plate(self, tmp_path):
        group = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "plate": {}}
        refused(tmp_path / "s.zarr", "is a plate that holds no images")

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_array(self, tmp_path, zarr_format):
        zarr.create_array(str(tmp_path / "0"), data=GREY, zarr_format=zarr_format)
        refused(tmp_path / "0", "is a single Zarr array; accepted is the image group above it")

    @pytest.mark.parametrize("n", [0, 2])
    def test_bioformats2raw(self, tmp_path, n):
        group = zarr.open_group(str(tmp_path / "s.zarr"), mode="w", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
        for i in range(n):
            write_zarr(tmp_path / "s.zarr" / str(i), CYX)
        found = (
            "holds 2 images and none was chosen; choose one with --scene, .* "
            r"\(0: '0', .*3 x 64 x 96 \(c, y, x\); 1: '1', "
        )
        refused(
            tmp_path / "s.zarr", found if n else "is a bioformats2raw folder that holds no images"
        )

    @pytest.mark.parametrize("document", [b"{", b"[]", b"\xff\xfe"])
    def test_broken_document(self, tmp_path, document):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        (path / "zarr.json").write_bytes(document)
        with pytest.raises(
            InputError, match=r"s\.zarr/zarr\.json (is not a readable JSON|holds a)"
        ):
            open_slide(path)

    @pytest.mark.parametrize(("version", "found"), [("0.4", "0.3"), ("0.5", "0.6")])
    def test_version(self, tmp_path, version, found):
        def document(attributes):
            holder = attributes if version == "0.5" else attributes["multiscales"][0]
            holder["version"] = found

        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version, document=document)
        refused(path, rf"is OME-Zarr {found} in Zarr format .*; accepted are 0\.4 in Zarr format 2")

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_missing_resolution(self, tmp_path, version):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version, n_levels=3)
        shutil.rmtree(path / "1")
        refused(path, r"lists 3 resolutions of which '1' is missing: there is no 1/")

    @pytest.mark.parametrize("name", ["../other", "/etc", "", 5, None])
    def test_dataset_outside(self, tmp_path, name):
        def document(attributes):
            attributes["multiscales"][0]["datasets"][0]["path"] = name

        path = write_zarr(tmp_path / "s.zarr", CYX, document=document)
        refused(path, "names a dataset .* which is no path inside it")

    @pytest.mark.parametrize(
        "change",
        [{"multiscales": []}, {"multiscales": {}}, {"multiscales": [{}]}, {"multiscales": [3]}],
    )
    def test_malformed(self, tmp_path, change):
        path = write_zarr(tmp_path / "s.zarr", CYX, document=lambda a: a.update(change))
        refused(path, "has multiscales metadata")

    @pytest.mark.parametrize("axes", [None, ["c", "y", "x"], "cyx"])
    def test_axes_that_are_no_list(self, tmp_path, axes):
        path = write_zarr(
            tmp_path / "s.zarr", CYX, document=lambda a: a["multiscales"][0].update(axes=axes)
        )
        refused(path, "without a list of axes")

    @pytest.mark.parametrize(
        ("axes", "shape"), [("cx", (3, 64)), ("yyx", (3, 64, 96)), ("qyx", (1, 64, 96))]
    )
    def test_axes(self, tmp_path, axes, shape):
        path = write_zarr(tmp_path / "s.zarr", random_pixels(shape), axes)
        found = f"has axes {axes.upper()} of sizes {' x '.join(map(str, shape))}; accepted"
        assert "--axes, such as CYX" in refused(path, found)

    @pytest.mark.parametrize(
        ("axes", "shape", "found"),
        [
            ("zyx", (3, 64, 96), r"3 images along z \(focal planes\), .* with --axes CYX"),
            ("tyx", (2, 64, 96), r"2 images along t \(time\), .* channels, say so with --axes CYX"),
            ("qyx", (3, 64, 96), "3 images along q, .* with --axes CYX"),
            ("yxt", (64, 96, 5), r"5 images along t \(time\), .* with --axes YXC"),
            (
                "tcyx",
                (2, 3, 64, 96),
                r"2 images along t \(time\) of 3 channels each .*--t INDEX, from 0 to 1",
            ),
            (
                "tzyx",
                (2, 3, 64, 96),
                r"2 images along t .* and 3 images along z .*--t INDEX, from 0 to 1 and .*--z max",
            ),
        ],
    )
    def test_several_images_of_all_channels(self, tmp_path, axes, shape, found):
        path = write_zarr(tmp_path / "s.zarr", random_pixels(shape), axes)
        refused(path, found)

    @pytest.mark.parametrize("name", ["", "yx", "channel", None])
    def test_axis_name(self, tmp_path, name):
        def document(attributes):
            attributes["multiscales"][0]["axes"][0]["name"] = name

        path = write_zarr(tmp_path / "s.zarr", CYX[:1], document=document)
        refused(path, f"has axes {str(name).upper()}YX of sizes 1 x 64 x 96; accepted")

    def test_number_of_axes(self, tmp_path):
        path = write_zarr(tmp_path / "s.zarr", CYX, "yx", chunks=(1, 32, 32))
        refused(path, "has axes YX of sizes 3 x 64 x 96; accepted")

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    @pytest.mark.parametrize("dtype", ["complex64", "bool", "int64"])
    def test_dtype(self, tmp_path, version, dtype):
        path = write_zarr(tmp_path / "s.zarr", np.zeros((3, 64, 96), dtype), "cyx", version)
        refused(path, f"has pixels of type {dtype}; accepted are uint8, .*float64")

    @pytest.mark.parametrize(
        ("version", "change"),
        [
            ("0.4", {"dtype": "|O"}),
            ("0.4", {"dtype": "<U5"}),
            ("0.4", {"dtype": [["a", "<u2"]]}),
            ("0.4", {"dtype": "nonsense"}),
            ("0.5", {"data_type": "string"}),
            ("0.5", {"data_type": {"name": "struct"}}),
            ("0.5", {"data_type": None}),
        ],
    )
    def test_no_number(self, tmp_path, version, change):
        path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
        edit_json(path / "0" / (".zarray" if version == "0.4" else "zarr.json"), **change)
        refused(path, "has pixels of type .*; accepted are uint8")


class TestZarrArray:
    def edited(self, tmp_path, **changes):
        path = write_zarr(tmp_path / "s.zarr", CYX)
        edit_json(path / "0" / "zarr.json", **changes)
        return path

    def grid(self, *shape):
        return {"name": "regular", "configuration": {"chunk_shape": shape}}

    @pytest.fixture(autouse=True)
    def _no_chunk_is_read(self, monkeypatch):
        get = zarr.storage.LocalStore.get

        async def guarded(self, key, *args, **kwargs):
            assert key.endswith("zarr.json"), "a chunk was read"
            return await get(self, key, *args, **kwargs)

        monkeypatch.setattr(zarr.storage.LocalStore, "get", guarded)

    def test_absurd_shape(self, tmp_path):
        path = self.edited(tmp_path, shape=[3, 10**9, 10**9])
        refused(path, f"declares 1000000000 x 1000000000 = {10**18} px .*at most {2**40} px")

    def test_absurd_chunks(self, tmp_path):
        path = self.edited(tmp_path, shape=[3, 10**6, 10**6], chunk_grid=self.grid(1, 10**6, 10**6))
        refused(path, f"chunks of 1 x 1000000 x 1000000 values, {2 * 10**12} bytes .*{2**30}")

    def test_too_many_channels(self, tmp_path):
        refused(self.edited(tmp_path, shape=[5000, 64, 96]), "declares 5000 channels; at most 4096")

    def test_absurd_shard_index(self, tmp_path):
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        sharding = {"chunk_shape": [1, 16, 16], "codecs": codecs, "index_codecs": codecs}
        path = self.edited(
            tmp_path,
            shape=[1, 2**18, 2**18],
            chunk_grid=self.grid(1, 2**18, 2**18),
            codecs=[{"name": "sharding_indexed", "configuration": sharding}],
        )
        refused(path, f"shards of {2**28} chunks; at most {2**26} chunks")

    @pytest.mark.parametrize("shape", [[3, 0, 96], [0, 64, 96]])
    def test_zero_size(self, tmp_path, shape):
        refused(self.edited(tmp_path, shape=shape), "an image has at least one pixel")

    @pytest.mark.parametrize("shape", [[3, -1, 96], "big", None, [3, 1.5, 2], [3, True, 2]])
    def test_no_shape(self, tmp_path, shape):
        refused(self.edited(tmp_path, shape=shape), "declares the shape .*; accepted are sizes")

    def test_empty_chunks(self, tmp_path):
        refused(self.edited(tmp_path, chunk_grid=self.grid(1, 0, 32)), r"chunks of \(1, 0, 32\)")

    @pytest.mark.parametrize(
        "change",
        [
            {"codecs": [{"name": "nonsense"}]},
            {"chunk_grid": {"name": "nonsense"}},
            {"zarr_format": 2},
            {"node_type": "group"},
        ],
    )
    def test_unknown_storage(self, tmp_path, change):
        refused(self.edited(tmp_path, **change), "cannot be opened as a Zarr array")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_zarr_chunk_that_does_not_decode(tmp_path, version, damage):
    path = write_zarr(tmp_path / "s.zarr", CYX, "cyx", version)
    name = path / "0" / ("1.1.0" if version == "0.4" else "c/1/1/0")
    data = name.read_bytes()
    name.write_bytes(data[: len(data) // 2] if damage is None else damage)
    slide = open_slide(path)
    assert (slide.read(1, Region(0, 0, 32, 96)) == CYX[1, :32]).all()
    with pytest.raises(
        InputError, match=r"s\.zarr cannot be read in rows 30 to 40, columns 0 to 20 of channel '1'"
    ):
        slide.read(1, Region(30, 0, 40, 20))


def test_uncompressed_zarr_chunk_that_is_cut(tmp_path):
    path = write_zarr(tmp_path / "s.zarr", CYX)
    zarr.create_array(
        str(path / "0"), data=CYX, chunks=(1, 32, 32), compressors=None, overwrite=True
    )
    chunk = path / "0" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-2])
    with pytest.raises(InputError, match="cannot be read in rows 0 to 5"):
        open_slide(path).read(0, Region(0, 0, 5, 5))


def test_damaged_shard_index(tmp_path):
    path = write_zarr(tmp_path / "s.zarr", CYX, chunks=(1, 16, 16), shards=(1, 64, 96))
    shard = path / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read in rows 0 to 5"):
        open_slide(path).read(0, Region(0, 0, 5, 5))


def test_the_cause_is_kept(tmp_path):
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(InputError) as error:
        open_slide(tmp_path)
    assert isinstance(error.value.__cause__, json.JSONDecodeError)
