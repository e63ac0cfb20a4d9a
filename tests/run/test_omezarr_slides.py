"""Whole runs on OME-Zarr slides that say less than the specification wants, or say it otherwise."""

import json

import numpy as np
import pytest
import zarr

from tests.helpers.run_files import call_main, read_report, read_result, simulate
from tests.helpers.slide_files import write_zarr
from tests.helpers.zarr_folders import FORMATS, write_group

pytestmark = pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")

PIXELS = simulate(130, 150)
HOW = ("--membrane", "0", "--workers", 0)


def write_slide(path, pixels=PIXELS, axes="cyx", version="0.5", **options):
    return write_zarr(path, pixels, axes, version, n_levels=2, **options)


def run(capsys, *arguments):
    code, told, err = call_main(capsys, *arguments)
    assert code == 0, err
    return told


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Labels of an ordinary slide of the same pixels."""
    from densebatch import segment

    folder = tmp_path_factory.mktemp("expected")
    slide = write_slide(folder / "slide.zarr")
    segment(slide, folder / "out", membrane=("0",), workers=0)
    return read_result(folder / "out")[0]


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("kind", ["plate", "store", "series"])
def test_labels_in_place_are_seen_through_the_folder_that_holds_the_image(
    tmp_path, capsys, expected, version, kind
):
    top = tmp_path / "top.zarr"
    inside = {"plate": ["A/1/0", "B/2/0"], "store": ["images/a", "images/b"], "series": ["0", "1"]}
    attributes = {
        "plate": {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}]}},
        "store": {},
        "series": {"bioformats2raw.layout": 3},
    }
    others = {"spatialdata_attrs": {"version": "0.2"}} if kind == "store" else {}
    write_group(top, version, attributes[kind], **others)
    for path in {"plate": ["A", "B", "A/1", "B/2"], "store": ["images"], "series": []}[kind]:
        well = {"well": {"images": [{"path": "0"}]}} if path in ("A/1", "B/2") else None
        write_group(top / path, version, well)
    for path in inside[kind]:
        write_slide(top / path, PIXELS, "cyx", version)
    zarr.consolidate_metadata(top)
    chosen = inside[kind][1]
    code, _, err = call_main(capsys, "segment", top, tmp_path / "out", *HOW, "--in-place")
    assert (code, "holds 2 images and none was chosen" in err) == (2, True)
    arguments = ("segment", top, tmp_path / "out", *HOW, "--in-place", "--scene", chosen)
    run(capsys, *arguments)
    assert read_report(tmp_path / "out")["labels"] == str(top / chosen / "labels" / "cells")
    for folder, path in ((top, f"{chosen}/"), (top / chosen, "")):
        # The image itself has no consolidated metadata, and gets none.
        group = zarr.open_consolidated(folder) if path else zarr.open_group(folder, mode="r")
        np.testing.assert_array_equal(group[f"{path}labels/cells/0"][:], expected)
    run(capsys, *arguments, "--restart")
    run(capsys, "score", top / chosen, top / chosen / "labels" / "cells")
    np.testing.assert_array_equal(
        zarr.open_consolidated(top)[f"{chosen}/labels/cells/0"][:], expected
    )


def reverse(attributes):
    attributes["multiscales"][0]["datasets"].reverse()


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("in_place", [False, True])
def test_levels_from_the_smallest(tmp_path, capsys, expected, version, in_place):
    slide = write_slide(tmp_path / "s.zarr", version=version, document=reverse)
    out = tmp_path / "out"
    run(capsys, "segment", slide, out, *HOW, *(["--in-place"] if in_place else []))
    root = slide if in_place else out / "segmentation.ome.zarr"
    labels, table = read_result(out, root)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(table["y_um"], (table["y_px"] + 0.5) * 0.5)
    assert zarr.open_array(root / "labels" / "cells" / "1", mode="r").shape == (65, 75)
    # They are labels for everybody who reads the slide.
    run(capsys, "score", root, out if not in_place else slide / "labels" / "cells")


@pytest.mark.parametrize(
    ("names", "shape"), [("zyx", (2, 130, 150)), ("tcyx", (2, 1, 130, 150)), ("yxz", None)]
)
@pytest.mark.parametrize("in_place", [False, True])
def test_channels_saved_as_something_else(tmp_path, capsys, expected, names, shape, in_place):
    pixels = PIXELS.reshape(shape) if shape else PIXELS.transpose(1, 2, 0)
    chunks = (64, 64, 1) if names == "yxz" else None
    slide = write_zarr(tmp_path / "s.zarr", pixels, names, chunks=chunks)
    code, _, err = call_main(capsys, "segment", slide, tmp_path / "out", *HOW)
    axes = "YXC" if names == "yxz" else "CYX"
    assert (code, f"if these are channels, say so with --axes {axes}" in err) == (2, True)
    options = ["--axes", axes, "--pixel-size", 0.5, *(["--in-place"] if in_place else [])]
    run(capsys, "segment", slide, tmp_path / "out", *HOW, *options)
    root = slide if in_place else tmp_path / "out" / "segmentation.ome.zarr"
    np.testing.assert_array_equal(read_result(tmp_path / "out", root)[0], expected)


def no_scale(attributes):
    for dataset in attributes["multiscales"][0]["datasets"]:
        del dataset["coordinateTransformations"]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_scale_that_is_absent_is_told_and_given(tmp_path, capsys, expected, in_place):
    slide = write_slide(tmp_path / "s.zarr", document=no_scale)
    told = run(capsys, "plan", slide, tmp_path / "out", *HOW, "--json")
    plan = json.loads(told)["plan"]
    note = "the metadata give no scale of the highest resolution: the pixel size counts as unknown"
    assert plan["um_per_px"] is None
    assert any(each.startswith(note) for each in plan["notes"])
    options = ["--pixel-size", 0.5, *(["--in-place"] if in_place else [])]
    run(capsys, "segment", slide, tmp_path / "out", *HOW, *options)
    root = slide if in_place else tmp_path / "out" / "segmentation.ome.zarr"
    np.testing.assert_array_equal(read_result(tmp_path / "out", root)[0], expected)
    label = zarr.open_group(root / "labels" / "cells", mode="r").attrs["ome"]["multiscales"][0]
    scales = [each["coordinateTransformations"][0]["scale"] for each in label["datasets"]]
    # Beside the slide labels have the size that was given; inside they lie as their slide does.
    assert scales[0] == ([1.0, 1.0] if in_place else [0.5, 0.5])
    assert label["axes"][0].get("unit") == (None if in_place else "micrometer")


def affine(attributes):
    step = {"type": "affine", "affine": [[0.5, 0, 0], [0, 0.5, 0]]}
    for dataset in attributes["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"] = [step]


@pytest.mark.parametrize("command", ["plan", "segment"])
def test_a_scale_that_labels_cannot_copy_is_refused_in_place(tmp_path, capsys, expected, command):
    slide = write_slide(tmp_path / "s.zarr", document=affine)
    options = (tmp_path / "out", *HOW, "--pixel-size", 0.5)
    code, _, err = call_main(capsys, command, slide, *options, "--in-place")
    assert (code, "type 'affine', which labels cannot copy; accepted are" in err) == (2, True)
    assert not (tmp_path / "out").exists()
    assert not (slide / "labels").exists()
    run(capsys, "segment", slide, *options)
    np.testing.assert_array_equal(read_result(tmp_path / "out")[0], expected)


def test_the_second_image_of_a_group(tmp_path, capsys, expected):
    def document(attributes):
        (first,) = attributes["multiscales"]
        small = first | {"name": "overview", "datasets": first["datasets"][1:]}
        attributes["multiscales"] = [small, first | {"name": "slide"}]

    slide = write_slide(tmp_path / "s.zarr", document=document)
    arguments = ("segment", slide, tmp_path / "out", *HOW, "--in-place")
    code, _, err = call_main(capsys, *arguments)
    assert (code, "0: 'overview', 2 x 65 x 75" in err) == (2, True)
    run(capsys, *arguments, "--scene", "slide")
    np.testing.assert_array_equal(read_result(tmp_path / "out", slide)[0], expected)
    code, _, err = call_main(capsys, *arguments[:2], tmp_path / "b", *arguments[3:], "--scene", 0)
    assert (code, "belongs to another run" in err) == (2, True)
