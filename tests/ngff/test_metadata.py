"""OME-Zarr metadata: what is written is valid and read back, and what the models refuse is read."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densebatch.base.errors import InputError
from densebatch.ngff import metadata as ngff
from densebatch.ngff import scales

VERSIONS = ["0.4", "0.5"]
PYRAMID = ngff.plain_pyramid(0.5, 2)
WHERE = Path("slide.zarr")


def describe(version, pyramid=PYRAMID, *, channel=True):
    """Attributes of an image of two channels, or of a label image."""
    method = "mean" if channel else "nearest"
    multiscale = ngff.describe_multiscale(version, "a", pyramid, method=method, channel=channel)
    if not channel:
        return ngff.label_attributes(version, multiscale, of_image=True)
    channels = [
        ngff.describe_channel(name, color, active=True, limits=(0, 255), shown=(1, 99))
        for name, color in (("CD3", "FF0000"), ("DAPI", "0000FF"))
    ]
    return ngff.image_attributes(version, multiscale, channels)


def edited(attributes, edit):
    """A copy whose multiscale entry and OME attributes `edit` has changed."""
    result = copy.deepcopy(attributes)
    ome = result.get("ome", result)
    edit(ome, ome["multiscales"][0])
    return result


lengths_um = st.floats(1e-3, 1e3)


@st.composite
def pyramids(draw):
    """Layouts that the specification allows: scales that grow, each perhaps with a translation."""
    n_levels = draw(st.integers(1, 5))
    y, x = draw(lengths_um), draw(lengths_um)
    transforms = []
    for level in range(n_levels):
        scale = ("scale", y * 3**level, x * 2**level)
        shift = ("translation", draw(st.floats(-5, 5)), draw(st.floats(-5, 5)))
        transforms.append((scale, shift) if draw(st.booleans()) else (scale,))
    outer = (("scale", draw(lengths_um), draw(lengths_um)),) if draw(st.booleans()) else ()
    shapes = tuple((max(1, 900 // 3**level), max(1, 700 // 2**level)) for level in range(n_levels))
    units = draw(st.tuples(*[st.sampled_from([None, "micrometer", "nanometer"])] * 2))
    return ngff.SlidePyramid(shapes, tuple(transforms), outer, units)


@given(pyramids(), st.sampled_from(VERSIONS), st.booleans())
def test_what_is_written_is_valid_and_read_back(pyramid, version, channel):
    attributes = describe(version, pyramid, channel=channel)
    assert ngff.find_fault(attributes) is None
    shapes = [(2,) * channel + shape for shape in pyramid.shapes]
    ome = ngff.ome_attributes(attributes)
    multiscale = ngff.find_multiscale(ome)
    assert scales.parse_pyramid(attributes, multiscale, shapes, "a") == (version, pyramid)
    assert ngff.check_version(ome, multiscale, ngff.ZARR_FORMATS[version], WHERE) == version
    assert ngff.list_axis_letters(multiscale, WHERE) == ["C"] * channel + ["Y", "X"]
    names = [str(level) for level in range(len(pyramid.shapes))]
    assert ngff.list_level_paths(multiscale, WHERE) == names
    assert ngff.list_channel_labels(ome) == (["CD3", "DAPI"] if channel else [])
    found = scales.find_pixel_lengths(multiscale, channel, 1 + channel, 2 + channel)
    factors = pyramid.outer[0][1:] if pyramid.outer else (1, 1)
    lengths = tuple(a * b for a, b in zip(pyramid.transforms[0][0][1:], factors, strict=True))
    assert found == (lengths, pyramid.units, None, ())


@pytest.mark.parametrize("version", VERSIONS)
def test_the_list_of_labels(version):
    attributes = ngff.labels_attributes(version, ["cells", "nuclei"])
    assert ngff.find_fault(attributes) is None
    assert ngff.list_labels(ngff.ome_attributes(attributes)) == ["cells", "nuclei"]


def no_axis_types(ome, multiscale):
    for axis in multiscale["axes"]:
        axis.pop("type")


def no_colors(ome, multiscale):
    ome["omero"]["channels"] = [{"label": "CD3"}, {"label": "DAPI"}]


def no_scale(ome, multiscale):
    multiscale["datasets"][1].pop("coordinateTransformations")


def another_transformation(ome, multiscale):
    multiscale["datasets"][1]["coordinateTransformations"].append({"type": "affine", "affine": []})


def two_scales(ome, multiscale):
    transforms = multiscale["datasets"][0]["coordinateTransformations"]
    transforms.append({"type": "scale", "scale": [1, 1, 1]})


def translation_first(ome, multiscale):
    for dataset in multiscale["datasets"]:
        step = {"type": "translation", "translation": [0.0, 1.0, 1.0]}
        dataset["coordinateTransformations"].insert(0, step)


FAULTS = [
    no_axis_types, no_colors, no_scale, another_transformation, two_scales, translation_first
]  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("edit", FAULTS)
def test_what_the_models_refuse_is_read_all_the_same(version, edit):
    attributes = edited(describe(version), edit)
    fault = ngff.find_fault(attributes)
    # Rendering metadata are no part of the models of 0.5.
    assert (fault is None) == (edit is no_colors and version == "0.5")
    assert "\n" not in (fault or "")
    ome = ngff.ome_attributes(attributes)
    multiscale = ngff.find_multiscale(ome)
    assert ngff.list_axis_letters(multiscale, WHERE) == ["C", "Y", "X"]
    assert ngff.list_level_paths(multiscale, WHERE) == ["0", "1"]
    assert ngff.list_channel_labels(ome) == ["CD3", "DAPI"]
    found = scales.find_pixel_lengths(multiscale, 1, 2, 3)
    assert (found.lengths, found.units) == ((0.5, 0.5), ("micrometer", "micrometer"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("edit", [no_axis_types, two_scales, translation_first])
def test_labels_copy_transformations_to_the_letter(version, edit):
    attributes = edited(describe(version), edit)
    multiscale = ngff.find_multiscale(ngff.ome_attributes(attributes))
    shapes = [(2, 8, 8), (2, 4, 4)]
    found, pyramid = scales.parse_pyramid(attributes, multiscale, shapes, "a")
    copied = ngff.find_multiscale(ngff.ome_attributes(describe(found, pyramid, channel=False)))
    for theirs, ours in zip(
        ngff.find_multiscale(ngff.ome_attributes(attributes))["datasets"],
        copied["datasets"],
        strict=True,
    ):
        assert [
            {"type": step["type"], step["type"]: step[step["type"]][1:]}
            for step in theirs["coordinateTransformations"]
        ] == ours["coordinateTransformations"]


def test_a_version_left_out_is_that_of_the_format_and_another_is_refused():
    assert ngff.check_version({}, {}, 2, WHERE) == "0.4"
    assert ngff.check_version({}, {"version": "0.4"}, 3, WHERE) == "0.5"
    with pytest.raises(
        InputError, match=r"^slide.zarr is OME-Zarr 0\.3 in Zarr format 2; accepted"
    ):
        ngff.check_version({}, {"version": "0.3"}, 2, WHERE)


def test_ome_attributes_are_where_the_format_keeps_them():
    attributes = {"ome": {"version": "0.5"}, "multiscales": []}
    assert ngff.ome_attributes(attributes) == {"version": "0.5"}
    assert ngff.ome_attributes(attributes, 2) == attributes
    assert ngff.ome_attributes({"multiscales": []}, 3) == {}
    assert ngff.ome_attributes({"ome": "nonsense"}) == {}


@pytest.mark.parametrize(
    "ome", [{}, {"multiscales": {}}, {"multiscales": []}, {"multiscales": [3]}]
)
def test_no_image(ome):
    assert ngff.find_multiscale(ome) is None


@given(st.permutations(range(4)))
def test_levels_are_ordered_by_their_size(order):
    shapes = [(3, 80 >> level, 60 >> level) for level in order]
    image = {"name": "a", "datasets": [{"path": f"s{level}"} for level in order]}
    found = ngff.order_levels(image, shapes)
    assert [dataset["path"] for dataset in found["datasets"]] == ["s0", "s1", "s2", "s3"]
    assert found["name"] == "a"
    assert ngff.order_levels(image, [(2, 2)] * 4) == image


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([2, 10], ["2", "10"]),
        ([1.5, "CD3"], ["1.5", "CD3"]),
        ([True, None, {"a": 1}], [True, None, {"a": 1}]),
    ],
)
def test_a_number_is_a_label(labels, expected):
    ome = {"omero": {"channels": [{"label": label} for label in labels]}}
    assert ngff.list_channel_labels(ome) == expected


@pytest.mark.parametrize("omero", [None, [], {"channels": None}, {"channels": {}}, "a"])
def test_no_channel_labels(omero):
    assert ngff.list_channel_labels({"omero": omero}) == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [("0", True), ("a/b", True), ("", False), ("/a", False), ("a/../b", False), (3, False)],
)
def test_paths_inside_a_group(path, expected):
    assert ngff.is_inside(path) == expected


@pytest.mark.parametrize("axes", [["c", "y", "x"], "cyx"])
def test_axes_before_0_4_were_bare_strings(axes):
    assert ngff.list_axis_names({"axes": axes}) == ["c", "y", "x"]
    with pytest.raises(InputError, match="without a list of axes"):
        ngff.list_axis_letters({"axes": axes}, WHERE)


def test_reading_slides_and_labels_does_not_load_the_models():
    """Each worker would pay for them."""
    modules = "densebatch.sources.omezarr, densebatch.cells.labels, densebatch.cells.read, sys"
    command = f"import {modules}; sys.exit('ome_zarr_models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
