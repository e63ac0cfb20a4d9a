"""What is written fits the published JSON schemas of OME-Zarr, as ngff-zarr brings them."""

from __future__ import annotations

import json

import pytest
import zarr

from densebatch.cells.labels import read_labels
from densebatch.cells.pyramid_spec import PyramidSpec, label_document
from densebatch.run.segment import segment
from tests.helpers.damage import KINDS, make_result
from tests.helpers.run_files import read_result, simulate, write_tiff

# The library warns of what it uses.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def validate():
    return pytest.importorskip("ngff_zarr.validate").validate


@pytest.mark.extra
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", ["auto", "copy"])
def test_results_fit_the_schemas(validate, tmp_path, kind, image):
    if kind == "in place" and image == "copy":
        pytest.skip("labels in a slide bring no image")
    out, slide, _ = make_result(tmp_path, kind, image=image)
    root = slide if kind == "in place" else out / "segmentation.ome.zarr"
    version = "0.4" if kind == "0.4" else "0.5"
    label = dict(zarr.open_group(root / "labels" / "cells", mode="r").attrs)
    validate(label, version, "image")
    validate(label, version, "label")
    if kind == "in place" or image == "copy":
        validate(dict(zarr.open_group(root, mode="r").attrs), version, "image")
        assert label.get("ome", label)["image-label"]["source"] == {"image": "../../"}
    table = read_result(out, root)[1]
    told = label.get("ome", label)["image-label"]["properties"]
    assert [each["label-value"] for each in told] == table["id"].tolist()
    assert [each["area_px"] for each in told] == table["area_px"].tolist()


@pytest.mark.extra
def test_the_schemas_refuse_what_is_wrong(validate):
    """So that fitting them says something."""
    from jsonschema import ValidationError

    document = label_document(PyramidSpec("out", "0.5", 10, 10, 1), [3, 4])
    validate(document, "0.5", "label")
    del document["ome"]["image-label"]["properties"][0]["label-value"]
    with pytest.raises(ValidationError, match="label-value"):
        validate(document, "0.5", "label")


def test_many_cells_have_no_properties(tmp_path, monkeypatch):
    monkeypatch.setattr("densebatch.cells.labels.MAX_PROPERTIES", 3)
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(150, 150), ["CD3", "DAPI"])
    assert segment(slide, tmp_path / "out", membrane=("CD3",), workers=0).cells > 3
    label = tmp_path / "out/segmentation.ome.zarr/labels/cells"
    assert (
        "properties"
        not in json.loads((label / "zarr.json").read_text())["attributes"]["ome"]["image-label"]
    )
    assert read_labels(label).shape == (150, 150)
