"""What a user was given by somebody else is read as data: no file runs a program."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.helpers.checkpoint_files import Bomb
from tests.helpers.run_files import call_main, simulate, write_tiff


@pytest.fixture
def trap(tmp_path):
    """A path that is there once anything was run."""
    path = tmp_path / "trap"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    return path


@pytest.fixture
def slide(tmp_path):
    return write_tiff(tmp_path / "a.ome.tif", simulate(70, 90), ["CD3", "DAPI"])


def write_weights(path, trap, kind):
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trap)))
    else:
        torch.save({"a": Bomb(trap)}, path, _use_new_zipfile_serialization=kind == "new")
    return path


@pytest.mark.parametrize("name", ["model", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "old", "new"])
def test_weights(capsys, tmp_path, trap, slide, name, kind):
    model = write_weights(tmp_path / name, trap, kind)
    for command in (
        ("segment", slide, tmp_path / "out", "--membrane", "CD3", "--model", model),
        ("models", "show", model),
        ("models", "import", model, "-o", tmp_path / "b.safetensors", "--license", "none"),
    ):
        code, _, err = call_main(capsys, *command)
        assert (code, trap.exists()) == (2, False), (command, err)
    assert not (tmp_path / "out").exists()


def write_zarr(path, trap, dtype, filters, compressor):
    (path / "0").mkdir(parents=True)
    document = {
        "zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": dtype,
        "compressor": compressor, "filters": filters, "fill_value": "" if dtype == "|O" else 0,
        "order": "C", "dimension_separator": "/",
    }  # fmt: skip
    (path / ".zarray").write_text(json.dumps(document))
    (path / "0" / "0").write_bytes(pickle.dumps(Bomb(trap)))


def write_image(path, **array):
    path.mkdir()
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"multiscales": [{
        "version": "0.4", "axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}],
        "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale",
                                                                  "scale": [1, 1]}]}],
    }]}))  # fmt: skip
    write_zarr(path / "0", **array)


PICKLED = {"id": "pickle"}


@pytest.mark.parametrize(
    ("dtype", "filters", "compressor"),
    [
        ("|O", [{"id": "vlen-utf8"}, PICKLED], None),
        ("|O", [{"id": "vlen-utf8"}], PICKLED),
        ("|O", [PICKLED], None),
        ("<u4", [PICKLED], None),
        ("<u4", None, PICKLED),
    ],
)
def test_zarr(capsys, tmp_path, trap, monkeypatch, dtype, filters, compressor):
    """Also with a numcodecs that would decode what it is told to."""
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    array = {"trap": trap, "dtype": dtype, "filters": filters, "compressor": compressor}
    write_zarr(tmp_path / "labels.zarr", **array)
    write_image(tmp_path / "image.zarr", **array)
    labels, image = tmp_path / "labels.zarr", tmp_path / "image.zarr"
    for command in (
        ("score", labels, labels),
        ("score", labels, labels, "--label-components"),
        ("segment", image, tmp_path / "out", "--membrane", "0"),
        ("sweep", image, "--truth", labels, "-o", tmp_path / "sweep"),
    ):
        code, _, err = call_main(capsys, *command)
        assert (code, trap.exists()) == (2, False), (command, err)


def test_arrays_of_objects(capsys, tmp_path, trap):
    values = np.empty((4, 4), object)
    values[:] = Bomb(trap)
    np.save(tmp_path / "a.npy", values)
    code, _, err = call_main(capsys, "score", tmp_path / "a.npy", tmp_path / "a.npy")
    assert (code, trap.exists()) == (2, False), err


def test_settings(capsys, tmp_path, trap, slide):
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(text := f"tile: !!python/object/apply:os.mkdir [{trap}]\n")
    (tmp_path / "a.yaml").write_text(text)
    for command in (
        ("segment", slide, tmp_path / "out", "--config", tmp_path / "a.yaml"),
        ("sweep", slide, "--truth", slide, "-o", tmp_path / "b", "-c", tmp_path / "a.yaml"),
        ("train", tmp_path, "-o", tmp_path / "c.safetensors", "-c", tmp_path / "a.yaml"),
    ):
        code, _, err = call_main(capsys, *command)
        assert (code, trap.exists()) == (2, False), err
        assert "not a readable YAML file" in err


ADDRESSES = [
    "http://127.0.0.1:9/a.zarr", "https://example.org/a.tif", "s3://bucket/a.zarr",
    "gs://bucket/a", "file:///etc/a", "simplecache::http://h/a.zarr", "zip::http://h/a.zip",
    "memory://a", "ssh://h/a", "git://a", "local://a", "ftp://h/a",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_no_paths(capsys, tmp_path, monkeypatch, slide, address):
    """Nothing is opened, and no folder is made that is called like a scheme."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    scheme = address.partition("://")[0]
    of_slides = [
        ("segment", address, "out", "--membrane", "CD3"),
        ("plan", address, "out"),
    ]
    for command in (
        *([] if scheme in ("s3", "gs", "http", "https") else of_slides),
        ("segment", slide, address, "--membrane", "CD3"),
        ("segment", slide, "out", "--config", address),
        ("score", address, slide),
        ("score", slide, slide, "--also", address),
        ("score", slide, slide, "--report", address),
        ("sweep", address, "-o", "out"),
        ("train", address, "-o", "a.safetensors"),
        ("status", address),
        ("verify", address),
        ("fetch", "hsv-dense", address),
    ):
        code, said, err = call_main(capsys, *command)
        assert (code, said) == (2, ""), (command, err)
        assert f"is an address ({scheme}://) and no path; accepted are files" in err, command
        assert len(err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_weights_and_mirrors_come_encrypted(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    for url in ("http://example.org/a", "ftp://h/a", "file:///etc/a", "simplecache::https://h/a"):
        for command in (
            ("fetch", "hsv-dense", tmp_path / "set", "--url", url),
            ("models", "fetch", "cyto", "--url", url),
        ):
            code, _, err = call_main(capsys, *command)
            assert code == 2, err
            assert "accepted are addresses that begin with https://" in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_be_called_like_a_scheme(tmp_path, monkeypatch, slide, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data:").mkdir()
    slide.rename("data:/a.ome.tif")
    code, _, err = call_main(capsys, "plan", "data:/a.ome.tif", "out", "--membrane", "CD3")
    assert code == 0, err
