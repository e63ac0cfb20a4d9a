"""A label image as plain data."""

import json
import pickle

import pytest

from densebatch.cells import labels as out
from tests.helpers.label_files import OTHER_READERS, make_spec, validate, write_all

pytestmark = OTHER_READERS


def test_a_small_slide_has_small_chunks(tmp_path):
    spec = make_spec(tmp_path / "s", shape=(40, 700), chunk_px=512, shard_px=4096, n_levels=1)
    assert (spec.chunk_shape(0), spec.unit_shape(0)) == ((40, 512), (40, 1024))
    assert len(out.shard_grid(spec, 0)) == 1
    large = make_spec(tmp_path / "s", shape=(5000, 9000), chunk_px=512, shard_px=4096, n_levels=1)
    assert large.unit_shape(0) == (4096, 4096)


def test_a_spec_travels_light(tmp_path):
    spec = make_spec(tmp_path / "s", channels=tuple(f"marker {i}" for i in range(10)))
    assert len(pickle.dumps(spec)) < 1000
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_px": 100}, "a shard of 100 px is no multiple of 32 px"),
        ({"label_name": "../x"}, "a label name has letters"),
        ({"label_name": ".."}, "a label name has letters"),
        ({"n_levels": 0}, "sizes and levels are positive"),
        ({"channels": ()}, "an image has channels"),
        ({"image_dtype": "complex64"}, "an image is of integer or real type, not complex64"),
        ({"windows": ((0, 1),)}, "2 channels have 1 windows"),
    ],
)
def test_impossible_specs_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_spec(tmp_path / "s", **changes)
    with pytest.raises(ValueError, match=r"OME-Zarr version is one of 0\.4, 0\.5: 0\.3"):
        make_spec(tmp_path / "s", "0.3")


def test_metadata_of_an_unknown_pixel_size_and_real_channels(tmp_path):
    spec = make_spec(
        tmp_path / "s", um_per_px=None, image_dtype="float32", windows=((-1.0, 2.0), (0, 5))
    )
    write_all(spec)
    validate(spec)
    image = json.loads((tmp_path / "s/zarr.json").read_text())["attributes"]["ome"]
    label = json.loads((tmp_path / "s/labels/cells/zarr.json").read_text())["attributes"]["ome"]
    assert image["multiscales"][0]["axes"][1:] == label["multiscales"][0]["axes"]
    assert label["multiscales"][0]["axes"] == [
        {"name": "y", "type": "space"},
        {"name": "x", "type": "space"},
    ]
    for level, (a, b) in enumerate(
        zip(image["multiscales"][0]["datasets"], label["multiscales"][0]["datasets"], strict=True)
    ):
        assert a["coordinateTransformations"] == [
            {"type": "scale", "scale": [1.0, 2.0**level, 2.0**level]}
        ]
        assert b["coordinateTransformations"] == [
            {"type": "scale", "scale": [2.0**level, 2.0**level]}
        ]
    assert [c["window"] for c in image["omero"]["channels"]] == [
        {"min": -1.0, "max": 2.0, "start": -1.0, "end": 2.0},
        {"min": 0.0, "max": 5.0, "start": 0.0, "end": 5.0},
    ]
    assert label["image-label"] == {"version": "0.5", "source": {"image": "../../"}}
