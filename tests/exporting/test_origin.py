"""Where a slide lies goes on into what is made of it; pixels stay pixels."""

import gzip
import json

import numpy as np
import pytest
import zarr

from densebatch.cells.pyramid_spec import MISSING_NAME, PyramidSpec, label_document
from densebatch.converting.convert import convert
from densebatch.exporting.export import export
from densebatch.ngff.metadata import find_fault
from densebatch.run.segment import segment
from densebatch.slides.slide import open_slide
from densebatch.upkeep.verify import verify
from tests.helpers.run_files import call_main, read_report, read_result, simulate, write_tiff
from tests.helpers.slide_files import write_zarr

SIDE, ORIGIN = 700, (1200.0, -340.5)
STEP = {"type": "translation", "translation": list(ORIGIN)}
WATERSHED = {
    "membrane": ("DAPI",), "segmenter": "watershed", "tile": 256, "overlap": 48, "diameter": 12,
    "workers": 0,
}  # fmt: skip


def read_transforms(path):
    """Transformations of all levels along y and x."""
    attributes = dict(zarr.open_group(path, mode="r").attrs)
    assert find_fault(attributes) is None
    [image] = attributes["ome"]["multiscales"]
    return [
        [{"type": s["type"], s["type"]: s[s["type"]][-2:]} for s in d["coordinateTransformations"]]
        for d in image["datasets"]
    ]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """One slide as OME-TIFF and as OME-Zarr, away from the origin."""
    folder = tmp_path_factory.mktemp("slides")
    pixels = simulate(SIDE, SIDE, seed=4)
    (y, x), unit = ORIGIN, ["µm"] * 2
    plane = {"PositionX": [x] * 2, "PositionXUnit": unit,
             "PositionY": [y] * 2, "PositionYUnit": unit}  # fmt: skip
    tiff = write_tiff(folder / "a.ome.tif", pixels, ["CD3", "DAPI"], Plane=plane)

    def place(attributes):
        for level in attributes["multiscales"][0]["datasets"]:
            level["coordinateTransformations"].append(
                {"type": "translation", "translation": [0.0, *ORIGIN]}
            )

    path = folder / "a.ome.zarr"
    return tiff, write_zarr(path, pixels, labels=["CD3", "DAPI"], n_levels=2, document=place)


@pytest.fixture(scope="module")
def out(slides):
    """A run of the OME-TIFF."""
    folder = slides[0].with_name("out")
    segment(slides[0], folder, **WATERSHED)
    return folder


def test_it_is_told(slides, out, capsys):
    for slide, source in zip(slides, ["PositionX of the OME-XML", "translation of"], strict=True):
        assert open_slide(slide).info.origin_um == ORIGIN
        code, told, _ = call_main(capsys, "info", slide)
        assert code == 0
        assert f"origin     y 1200 um, x -340.5 um ({source}" in told
    code, told, _ = call_main(capsys, "info", slides[0], "--json", "-")
    assert json.loads(told)["origin_um"] == list(ORIGIN)
    assert read_report(out)["plan"]["slide"]["origin_um"] == list(ORIGIN)


def test_labels_lie_where_their_image_does(slides, out):
    """Whether the image is copied, or the labels take their layout from it."""
    root = out / "segmentation.ome.zarr"
    expected = [[{"type": "scale", "scale": [s, s]}, STEP] for s in (0.5, 1.0)]
    assert read_transforms(root) == read_transforms(root / "labels/cells") == expected
    assert verify(out).is_right
    of_zarr = slides[1].with_name("of-zarr")
    segment(slides[1], of_zarr, **WATERSHED, image="none")
    assert read_transforms(of_zarr / "segmentation.ome.zarr/labels/cells") == expected
    np.testing.assert_array_equal(read_result(of_zarr)[0], read_result(out)[0])


def test_a_slide_at_the_origin_has_plain_scales():
    spec = PyramidSpec("a.zarr", "0.5", 8, 8, 2, um_per_px=0.5, label_name=MISSING_NAME)
    assert "translation" not in json.dumps(label_document(spec))
    unknown = PyramidSpec("a.zarr", "0.5", 8, 8, 2, origin_um=ORIGIN)
    assert "translation" not in json.dumps(label_document(unknown))


def test_a_converted_slide_lies_there_too(slides, tmp_path):
    for number, slide in enumerate(slides):
        made = convert(slide, tmp_path / f"{number}.ome.zarr", workers=0).out
        assert open_slide(made).info.origin_um == ORIGIN
        assert [steps[1:] for steps in read_transforms(made)] == [[STEP]] * 2


def test_exports_lie_there_too(out, tmp_path):
    path = export(out, "ome-tiff", tmp_path / "a.ome.tif").path
    assert open_slide(path).info.origin_um == ORIGIN
    path = export(out, "geojson", tmp_path / "a.geojson.gz").path
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    corners = np.array([f["geometry"]["coordinates"][0][0] for f in features[:9]])
    assert ((corners >= 0) & (corners <= SIDE)).all()


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_spatialdata_lies_there_too(out, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    read = spatialdata.read_zarr(export(out, "spatialdata", tmp_path / "a.zarr").path)
    place = spatialdata.transformations.get_transformation(read.labels["cells"], "um")
    matrix = place.to_affine_matrix(("x", "y"), ("x", "y"))
    assert matrix.tolist() == [[0.5, 0, ORIGIN[1]], [0, 0.5, ORIGIN[0]], [0, 0, 1]]
