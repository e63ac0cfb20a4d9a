"""Files that say which part of a slide counts: what is read of them, and what is refused."""

import json
import zipfile

import numpy as np
import pytest
import tifffile
from imageio.v3 import imwrite
from roifile import ROI_TYPE, ImagejRoi

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.geometry import Region
from densebatch.regions.read import RegionFiles, describe_areas, read_areas

SHAPE = (40, 60)


def box(y0, x0, y1, x1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, name=None, kind=None):
    properties = {"objectType": "annotation"}
    if name:
        properties["name"] = name
    if kind:
        properties["classification"] = {"name": kind, "color": [1, 2, 3]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def collection(*features):
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def read(tmp_path):
    def read(roi=None, exclude=None):
        paths = {}
        for name, content in (("roi", roi), ("exclude", exclude)):
            if isinstance(content, dict | list):
                paths[name] = tmp_path / f"{name}.geojson"
                paths[name].write_text(json.dumps(content))
            else:
                paths[name] = content
        return read_areas(RegionFiles(**paths), SHAPE)

    return read


def show(areas):
    """The name of each pixel's area, "-" outside."""
    return np.array(["-", *areas.names])[areas.show(Region(0, 0, *SHAPE))]


A, HOLE = box(10, 10, 30, 30), box(15, 15, 20, 20)


@pytest.mark.parametrize(
    "document",
    [
        polygon(A, HOLE),
        feature(polygon(A, HOLE)),
        [feature(polygon(A, HOLE))],
        collection(feature(polygon(A, HOLE[::-1]))),
        {"type": "MultiPolygon", "coordinates": [[A, HOLE]]},
        {"type": "GeometryCollection", "geometries": [polygon(A, HOLE)]},
    ],
)
def test_forms_of_geojson(read, document):
    areas, notes = read(document)
    expected = np.zeros(SHAPE, bool)
    expected[10:30, 10:30] = True
    expected[15:20, 15:20] = False
    np.testing.assert_array_equal(areas.find_inside(Region(0, 0, *SHAPE)), expected)
    assert not notes
    assert areas.names == ("",)


def test_a_name_that_is_no_text_can_be_written(read):
    """JSON may hold half of a surrogate pair, of which neither UTF-8 nor a plan can be made."""
    ring = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
    areas, _ = read(roi=feature({"type": "Polygon", "coordinates": [ring]}, " T\ud800 "))
    assert areas.names == ("T?",)


def test_names_and_which_of_several_areas_counts(read):
    """The smallest one that has a name; of a class, where the object has none."""
    areas, notes = read(
        collection(
            feature(polygon(box(0, 0, 40, 60))),
            feature(polygon(box(5, 5, 35, 40)), kind="Tissue"),
            feature(polygon(box(10, 10, 20, 20)), "Tumor", "Other"),
            feature(polygon(box(30, 30, 38, 50)), kind="Tissue"),
            feature({"type": "Point", "coordinates": [1, 2]}),
            feature(polygon(box(0, 50, 8, 99)), "Edge"),
        ),
        polygon(box(0, 0, 12, 12)),
    )
    expected = np.full(SHAPE, "", "U6")
    expected[5:35, 5:40] = expected[30:38, 30:50] = "Tissue"
    expected[10:20, 10:20] = "Tumor"
    expected[0:8, 50:60] = "Edge"
    expected[:12, :12] = "-"
    np.testing.assert_array_equal(show(areas), expected)
    assert [note.split(": ", 1)[1] for note in notes] == [
        "1 object without an area (points, lines) left out",
        "outlines that reach beyond the slide, which is 40 x 60 px: 1 of 5; what lies there does "
        "not count",
    ]
    told = describe_areas(areas)
    assert told["area_px"] == np.count_nonzero(expected != "-")
    assert sorted(told["names"]) == ["Edge", "Tissue", "Tumor"]
    assert len(told["files"]["exclude"]["sha256"]) == 64


def test_exclude_alone(read):
    areas, _ = read(exclude=polygon(box(0, 0, 40, 20)))
    assert areas.area_px == 40 * 40
    assert not areas.has_names
    assert areas.box == Region(0, 20, 40, 60)


def test_imagej_rois(read, tmp_path):
    square = ImagejRoi.frompoints([[10, 10], [30, 10], [30, 20], [10, 20]], name="square")
    square.roitype = ROI_TYPE.POLYGON
    rois = [square]
    for name, kind in (("rect", ROI_TYPE.RECT), ("oval", ROI_TYPE.OVAL), ("line", ROI_TYPE.LINE)):
        roi = ImagejRoi()
        roi.roitype, roi.name = kind, name
        roi.top, roi.left, roi.bottom, roi.right = 24, 4, 36, 20
        if name == "oval":
            roi.left, roi.right = 30, 50
        rois.append(roi)
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as packed:
        for roi in rois:
            packed.writestr(f"{roi.name}.roi", roi.tobytes())
    areas, notes = read(tmp_path / "r.zip")
    expected = np.full(SHAPE, "-", "U6")
    expected[10:20, 10:30], expected[24:36, 4:20] = "square", "rect"
    y, x = np.mgrid[:40, :60] + 0.5
    expected[((y - 30) / 6) ** 2 + ((x - 40) / 10) ** 2 < 1] = "oval"
    np.testing.assert_array_equal(show(areas), expected)
    assert "1 object without an area" in notes[0]
    rois[0].tofile(tmp_path / "one.roi")
    assert read(tmp_path / "one.roi")[0].area_px == 200


@pytest.mark.parametrize("kind", ["png", "bits", "tif", "npy", "zarr"])
def test_masks_of_any_scale(read, tmp_path, kind):
    mask = np.zeros((20, 30), np.uint8)
    mask[2:10, 5:25] = 255
    path = tmp_path / f"m.{'tif' if kind == 'bits' else kind}"
    if kind == "png":
        imwrite(path, mask)
    elif kind == "npy":
        np.save(path, mask > 0)
    elif kind == "zarr":
        import zarr

        zarr.save_array(path, mask)
    else:
        tifffile.imwrite(path, mask > 0 if kind == "bits" else mask)
    areas, notes = read(path)
    assert not notes
    assert areas.area_px == 4 * 160
    assert areas.box == Region(4, 10, 20, 50)


def test_a_mask_of_another_shape_is_told(read, tmp_path):
    imwrite(tmp_path / "m.png", np.full((20, 20), 1, np.uint8))
    areas, [note] = read(tmp_path / "m.png")
    assert areas.area_px == 2400
    assert "is 20 x 20 px and is stretched to the slide 2 times along y and 3 times along" in note


def number(value):
    return polygon([[value, 0], [10, 0], [10, 10]])


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"type": "FeatureCollection"}, "has no list of features; accepted are Polygon"),
        ([3], "feature 0 is no object"),
        (collection(), "has no area, as a polygon has"),
        ({"a": 1}, "feature 0: has a geometry of the type None; accepted are Polygon"),
        (collection(feature(None)), "feature 0: has a geometry of the type None"),
        (feature({"type": "Polygon"}), "feature 0: its coordinates are no lists"),
        (polygon([1, 2]), "its coordinates are not pairs of numbers"),
        (number("x"), "its coordinates are not pairs of numbers"),
        (number(float("nan")), "not finite or beyond any slide"),
        (number(1e300), "not finite or beyond any slide"),
        (feature({"type": "Point", "coordinates": [1, 2]}), "has no area, as a polygon has"),
        (polygon(box(100, 100, 120, 120)), "has no pixel of the slide, which is 40 x 60 px"),
        (polygon(box(1, 1, 1, 9)), "has no pixel of the slide"),
    ],
)
def test_geojson_that_is_refused(read, document, told):
    with pytest.raises(InputError, match=r"\.geojson: ") as caught:
        read(document)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(read, tmp_path):
    (tmp_path / "a.geojson").write_bytes(b'{"type": \xff')
    (tmp_path / "a.roi").write_bytes(b"Iout" + bytes(70))
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    (tmp_path / "a.svg").write_bytes(b"")
    imwrite(tmp_path / "a.png", np.zeros((9, 9), np.uint8))
    for name, told in (
        ("none.geojson", "does not exist; accepted are GeoJSON"),
        ("a.geojson", "is not JSON"),
        ("a.roi", "has no pixel of the slide"),
        ("a.zip", "cannot be read as regions of ImageJ"),
        ("a.svg", "is of an unknown kind; accepted are GeoJSON"),
        ("a.png", "has no pixel but 0"),
    ):
        with pytest.raises(InputError, match=told):
            read(tmp_path / name)
    with pytest.raises(InputError, match="leaves no pixel of the slide"):
        read(exclude=polygon(box(-1, -1, 50, 70)))
    with pytest.raises(InputError, match=r"leaves no pixel of .*roi\.geojson"):
        read(polygon(A), polygon(box(0, 0, 40, 60)))


def test_damaged_files_give_areas_or_one_sentence(read, tmp_path):
    rng = np.random.default_rng(0)
    square = ImagejRoi.frompoints([[10, 10], [30, 10], [30, 20], [10, 20]], name="square")
    text = json.dumps(collection(feature(polygon(A, HOLE), "A"), feature(polygon(HOLE), kind="B")))
    for name, whole in (("a.roi", square.tobytes()), ("a.geojson", text.encode())):
        for k in range(150):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)] if k % 3 == 0 else whole)
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(len(damaged))] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            try:
                areas, _ = read(tmp_path / name)
            except DensebatchError as error:
                told = str(error)
            else:
                told = ""
                assert 0 < areas.area_px <= SHAPE[0] * SHAPE[1]
            assert "\n" not in told
