"""`densebatch info`: what is understood of a slide, in the words of `plan` and of run.json."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from densebatch.slides.slide import Slide
from tests.helpers.run_files import call_main, read_report, simulate
from tests.helpers.slide_files import write_zarr

PIXELS = simulate(150, 170)[0]


def stack(folder):
    planes = np.stack([PIXELS // 2, PIXELS, PIXELS // 3])
    path = folder / "a.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, planes, metadata=metadata, tile=(64, 64), compression="zlib")
    return path, ("--z", "max"), "PhysicalSizeX of the OME-XML"


def series(folder):
    path = folder / "a.ome.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(PIXELS, metadata={"axes": "YX", "Name": "left"})
        file.write(PIXELS[:90], metadata={"axes": "YX", "Name": "right"})
    return path, ("--scene", "left"), None


def zarr(folder):
    pixels = np.stack([PIXELS, PIXELS // 2])
    path = write_zarr(folder / "a.zarr", pixels, "zyx", n_levels=2)
    return path, ("--z", "0"), "scale of the OME-Zarr metadata"


@pytest.mark.parametrize("write", [stack, series, zarr])
def test_info_plan_and_run_json_say_the_same(capsys, tmp_path, write):
    path, chosen, um_from = write(tmp_path)
    code, out, err = call_main(capsys, "info", path, *chosen, "--json", "-")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["shape"] == [*PIXELS.shape]
    assert told["levels"][0] == told["shape"]
    assert told["um_per_px_from"] == um_from
    assert len(told["scenes"]) == (2 if write is series else 1)

    options = (*chosen, "--model", "dense-tiny", "--workers", "0")
    code, out, err = call_main(capsys, "plan", path, tmp_path / "out", *options, "--json")
    assert code == 0, err
    code, _, err = call_main(capsys, "segment", path, tmp_path / "out", *options)
    assert code == 0, err
    for slide in (json.loads(out)["plan"]["slide"], read_report(tmp_path / "out")["plan"]["slide"]):
        same = set(told) & set(slide)
        assert {"um_per_px", "um_per_px_from", "levels", "channels", "scene", "z", "t"} <= same
        assert {name: told[name] for name in same} == {name: slide[name] for name in same}
        assert (told["format"], told["shape"]) == (
            slide["kind"],
            [slide["height"], slide["width"]],
        )

    lines = call_main(capsys, "info", path, *chosen)[1].splitlines()
    assert (
        call_main(capsys, "plan", path, tmp_path / "out", *options)[1].splitlines()[:2]
        == (lines[:2])
    )


def test_images_are_listed_where_none_was_chosen(capsys, tmp_path):
    path, *_ = series(tmp_path)
    code, out, _ = call_main(capsys, "info", path, "--json", tmp_path / "told.json")
    assert (code, out) == (0, "")
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["format"], told["shape"], told["channels"]) == ("tiff", None, None)
    assert [(scene["index"], scene["name"]) for scene in told["scenes"]] == [
        (0, "left"),
        (1, "right"),
    ]
    code, out, _ = call_main(capsys, "info", path)
    assert code == 0
    assert "scene      1: 'right', 1 plane of 90 x 170 px, uint16" in out.splitlines()


def test_what_cannot_be_opened_is_an_error(capsys, tmp_path):
    code, out, err = call_main(capsys, "info", tmp_path / "a.czi")
    assert (code, out) == (2, "")
    assert (
        "a.czi does not exist; accepted are OME-Zarr folders, TIFF and PNG files, and .czi" in err
    )


@pytest.mark.parametrize(("write", "n"), [(stack, 3), (zarr, 2)])
def test_planes_are_counted_where_none_was_chosen(capsys, tmp_path, write, n):
    path, *_ = write(tmp_path)
    code, out, _ = call_main(capsys, "info", path)
    assert code == 0
    line = f"stack      {n} images along z, of which none was chosen: choose one with --z INDEX or "
    assert f"{line}--z max" in out.splitlines()
    told = json.loads(call_main(capsys, "info", path, "--json", "-")[1])
    assert (told["stacks"], told["z"], told["shape"]) == ({"z": n}, None, [*PIXELS.shape])
    code, _, err = call_main(capsys, "segment", path, tmp_path / "out")
    assert code == 2
    assert f"--z INDEX, from 0 to {n - 1}" in err


@pytest.mark.parametrize("suffix", ["ome.tif", "zarr"])
def test_info_reads_no_pixels_and_plan_those_of_its_channels_once(
    capsys, tmp_path, monkeypatch, suffix
):
    """Of a large slide with many channels the others cost nothing."""
    planes = np.stack([PIXELS, *[PIXELS // k for k in range(2, 6)]])
    path = tmp_path / f"a.{suffix}"
    if suffix == "zarr":
        write_zarr(path, planes, "cyx", n_levels=2)
    else:
        metadata = {"axes": "CYX"}
        tifffile.imwrite(path, planes, metadata=metadata, tile=(64, 64), photometric="minisblack")
    read = np.zeros(planes.shape, int)
    read_planes = Slide.read_planes

    def count(self, first, stop, region):
        read[(slice(first, stop), *region.slices)] += 1
        return read_planes(self, first, stop, region)

    monkeypatch.setattr(Slide, "read_planes", count)
    assert call_main(capsys, "info", path)[0] == 0
    assert not read.any()
    options = ("--membrane", "2,0", "--model", "dense-tiny", "--workers", "0")
    code, _, err = call_main(capsys, "plan", path, tmp_path / "out", *options)
    assert code == 0, err
    assert (read[[0, 2]] == 1).all()
    assert not read[[1, 3, 4]].any()
