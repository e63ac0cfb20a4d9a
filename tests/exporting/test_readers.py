"""Each export is opened by the library that it is for, and holds the same cells, ids and areas."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from roifile import roiread
from shapely.geometry import shape
from skimage.measure import regionprops_table

from densebatch.cells.labels import read_labels
from densebatch.exporting.export import export
from tests.helpers.damage import KINDS, make_result
from tests.helpers.exports import ODD, add_columns, add_nuclei, make_odd_result, read_truth

# The libraries warn of what they use of each other.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", params=KINDS)
def result(request, tmp_path_factory):
    """OUT of a run, its labels and its table."""
    out, slide, _ = make_result(tmp_path_factory.mktemp("result"), request.param)
    return out, *read_truth(out, slide if request.param == "in place" else None)


@pytest.fixture(scope="module")
def with_nuclei(tmp_path_factory):
    """OUT of a run that has nuclei too, the cells, and the nuclei."""
    out, _, _ = make_result(tmp_path_factory.mktemp("nuclei"), "0.5")
    nuclei = add_nuclei(out)
    return out, read_truth(out)[0], nuclei


@pytest.fixture
def odd(tmp_path):
    """OUT of a merge of cells with holes and in pieces, and their labels."""
    out = make_odd_result(tmp_path)
    return out, read_truth(out)[0]


def labels_path(out):
    return json.loads((out / "run.json").read_text())["labels"]


def count_pixels(labels, ids):
    return np.bincount(labels.ravel(), minlength=max(ids) + 1)[list(ids)]


def assert_near(areas, pixels):
    assert (np.abs(areas - pixels) <= np.maximum(0.02 * pixels, 2)).all()


def read_features(path):
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)


def test_csv_is_the_table(result, tmp_path):
    out, _, table = result
    for name in ("a.csv", "a.csv.gz"):
        read = pd.read_csv(export(out, "csv", tmp_path / name).path)
        assert read.columns.tolist() == list(table)
        for column in table:
            assert np.array_equal(read[column], table[column], equal_nan=column != "touches_border")


def test_mcmicro_has_markers_alone_left_of_the_centroid(result, tmp_path):
    out, labels, table = result
    read = pd.read_csv(export(out, "mcmicro-csv", tmp_path / "a.csv").path)
    assert read.columns.tolist() == [
        "CellID", "CD3", "DAPI", "X_centroid", "Y_centroid", "Area", "MajorAxisLength",
        "MinorAxisLength", "Eccentricity", "Solidity", "Extent", "Orientation",
    ]  # fmt: skip
    assert np.array_equal(read["CellID"], table["id"])
    assert np.array_equal(read["CD3"], table["mean_CD3"])
    wanted = regionprops_table(
        labels,
        properties=(
            "label", "centroid", "area", "axis_major_length", "axis_minor_length", "eccentricity",
            "solidity", "extent", "orientation",
        ),
    )  # fmt: skip
    assert np.array_equal(read["CellID"], wanted["label"])
    for ours, theirs in {
        "X_centroid": "centroid-1", "Y_centroid": "centroid-0", "Area": "area",
        "MajorAxisLength": "axis_major_length", "MinorAxisLength": "axis_minor_length",
        "Eccentricity": "eccentricity", "Solidity": "solidity", "Extent": "extent",
        "Orientation": "orientation",
    }.items():  # fmt: skip
        np.testing.assert_allclose(read[ours], wanted[theirs], rtol=1e-9, atol=1e-9)


def test_geojson_has_a_cell_object_for_each_cell(result, tmp_path):
    out, labels, table = result
    read = read_features(export(out, "geojson", tmp_path / "a.geojson").path)
    assert read["type"] == "FeatureCollection"
    features = read["features"]
    assert [int(f["properties"]["name"]) for f in features] == table["id"].tolist()
    assert len({f["id"] for f in features}) == len(features)
    drawn = np.array([shape(f["geometry"]) for f in features])
    assert shapely.is_valid(drawn).all()
    assert_near(shapely.area(drawn), table["area_px"])
    centroids = shapely.get_coordinates(shapely.centroid(drawn))
    assert np.abs(centroids - np.column_stack([table["x_px"], table["y_px"]]) - 0.5).max() < 1
    for row, feature in enumerate(features):
        assert feature["properties"]["objectType"] == "cell"
        measured = feature["properties"]["measurements"]
        assert measured["area_px"] == table["area_px"][row]
        assert measured["mean_CD3"] == pytest.approx(table["mean_CD3"][row], rel=1e-8)
        assert all(type(value) in (int, float) for value in measured.values())
        assert "nucleusGeometry" not in feature
    exact = read_features(export(out, "geojson", tmp_path / "b.geojson.gz", simplify=0).path)
    drawn = np.array([shape(f["geometry"]) for f in exact["features"]])
    assert np.array_equal(shapely.area(drawn), table["area_px"])
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    tree = shapely.STRtree(drawn)
    points, cells = tree.query(shapely.points(x.ravel() + 0.5, y.ravel() + 0.5), "intersects")
    painted = np.zeros(labels.size, np.uint32)
    painted[points] = table["id"][cells]
    assert np.array_equal(painted.reshape(labels.shape), labels)


def test_geojson_has_nuclei_beside_cells(with_nuclei, tmp_path):
    out, cells, nuclei = with_nuclei
    features = read_features(export(out, "geojson", tmp_path / "a.json").path)["features"]
    inner = {int(f["properties"]["name"]): f["nucleusGeometry"] for f in features
             if "nucleusGeometry" in f}  # fmt: skip
    assert sorted(inner) == np.unique(nuclei)[1:].tolist()
    assert len(features) == cells.max() > len(inner) > 10
    drawn = np.array([shape(each) for each in inner.values()])
    assert shapely.is_valid(drawn).all()
    assert_near(shapely.area(drawn), count_pixels(nuclei, inner))


def test_geojson_of_odd_cells(odd, tmp_path):
    out, labels = odd
    features = read_features(export(out, "geojson", tmp_path / "a.json", simplify=0).path)
    drawn = [shape(f["geometry"]) for f in features["features"]]
    assert [each.area for each in drawn] == count_pixels(labels, range(1, len(drawn) + 1)).tolist()
    assert len(drawn) == len(np.unique(ODD)) - 1
    assert sum(each.geom_type == "MultiPolygon" for each in drawn) == 2
    assert sum(bool(each.geom_type == "Polygon" and each.interiors) for each in drawn) == 1


@pytest.mark.extra
def test_geoparquet_by_geopandas(result, with_nuclei, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    out, _, table = result
    read = geopandas.read_parquet(export(out, "geoparquet", tmp_path / "a.parquet").path)
    assert read.crs is None
    assert np.array_equal(read["id"], table["id"])
    assert read.columns.tolist() == [*table, "geometry"]
    assert read.is_valid.all()
    assert_near(read.area.to_numpy(), table["area_px"])
    out, _, nuclei = with_nuclei
    read = geopandas.read_parquet(export(out, "geoparquet", tmp_path / "b.parquet").path)
    inner = read.set_geometry("nucleus_geometry")
    inner = inner[~inner.geometry.isna()]
    assert inner["id"].tolist() == np.unique(nuclei)[1:].tolist()
    assert_near(inner.area.to_numpy(), count_pixels(nuclei, inner["id"]))


@pytest.mark.parametrize("place", ["a.h5ad", "a.zarr"])
@pytest.mark.extra
def test_anndata(result, tmp_path, place):
    anndata = pytest.importorskip("anndata")
    out, _, table = result
    path = export(out, "anndata", tmp_path / place).path
    read = anndata.read_zarr(path) if place.endswith("zarr") else anndata.read_h5ad(path)
    assert read.obs_names.tolist() == [str(cell) for cell in table["id"]]
    assert read.var_names.tolist() == ["CD3", "DAPI"]
    assert np.array_equal(read.X[:, 0], table["mean_CD3"].astype(np.float32))
    assert np.array_equal(read.obs["area_px"], table["area_px"])
    assert read.obs["touches_border"].dtype == bool
    assert np.array_equal(read.obs["touches_border"], table["touches_border"])
    assert np.array_equal(read.obsm["spatial"], np.column_stack([table["x_px"], table["y_px"]]))
    about = read.uns["densebatch"]
    assert about["um_per_px"] == 0.5
    assert json.loads(about["settings"])["membrane"] == ["CD3"]


@pytest.mark.parametrize("place", ["a.h5ad", "a.zarr"])
@pytest.mark.extra
def test_anndata_has_a_layer_for_each_statistic_of_all_channels(odd, tmp_path, place):
    anndata = pytest.importorskip("anndata")
    out, _ = odd
    n = len(read_truth(out)[1]["id"])
    rng = np.random.default_rng(1)
    names = ["mean_CD3/e", "mean_A b", "total_CD3/e", "total_A b", "q2.5_A b", "mean_CD3/e_nucleus"]
    added = {name: rng.uniform(0, 9, n) for name in names}
    added["positive_A b"] = [None, *(rng.uniform(0, 1, n - 1) > 0.5).tolist()]
    added["CD3/e+ A b-"] = rng.uniform(0, 1, n) > 0.5
    add_columns(out, added)
    path = export(out, "anndata", tmp_path / place).path
    read = anndata.read_zarr(path) if place.endswith("zarr") else anndata.read_h5ad(path)
    assert read.var_names.tolist() == ["CD3/e", "A b"]
    assert list(read.layers) == ["total"]
    for place, statistic in ((read.X, "mean"), (read.layers["total"], "total")):
        wanted = np.column_stack([added[f"{statistic}_CD3/e"], added[f"{statistic}_A b"]])
        assert np.array_equal(place, wanted.astype(np.float32))
    assert read.obs.columns.tolist()[-4:] == [
        *("q2.5_A_b", "mean_CD3_e_nucleus", "positive_A_b", "CD3_e__A_b-")
    ]
    assert read.obs["positive_A_b"].isna().tolist() == [True] + [False] * (n - 1)
    assert read.obs["positive_A_b"].tolist()[1:] == added["positive_A b"][1:]
    assert np.array_equal(read.obs["q2.5_A_b"], added["q2.5_A b"])
    assert np.array_equal(read.obs["CD3_e__A_b-"], added["CD3/e+ A b-"])


def test_mcmicro_takes_markers_named_as_its_own_columns(odd, tmp_path):
    out, _ = odd
    table = read_truth(out)[1]
    n = len(table["id"])
    add_columns(out, {"mean_Area": np.arange(n), "total_Area": np.arange(n)})
    read = pd.read_csv(export(out, "mcmicro-csv", tmp_path / "a.csv").path)
    assert read.columns.tolist()[:3] == ["CellID", "Area", "X_centroid"]
    assert read["Eccentricity"].tolist() == table["eccentricity"].tolist()


@pytest.mark.extra
def test_spatialdata(result, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    out, labels, table = result
    read = spatialdata.read_zarr(export(out, "spatialdata", tmp_path / "a.zarr").path)
    scales = read.labels["cells"]
    assert np.array_equal(scales["scale0"]["image"].to_numpy(), labels)
    for level in range(len(scales)):
        stored = read_labels(labels_path(out), level)[:]
        assert np.array_equal(scales[f"scale{level}"]["image"].to_numpy(), stored)
    assert len(scales) > 1
    annotated = read.tables["table"]
    spatialdata.models.TableModel().validate(annotated)
    assert annotated.uns["spatialdata_attrs"] == {
        "region": "cells", "region_key": "region", "instance_key": "id",
    }  # fmt: skip
    assert np.array_equal(annotated.obs["id"], table["id"])
    assert np.array_equal(annotated.obs["area_px"], table["area_px"])
    found = spatialdata.get_element_instances(scales)
    assert sorted(found[found > 0].tolist()) == table["id"].tolist()
    joined = spatialdata.join_spatialelement_table(
        sdata=read, spatial_element_names="cells", table_name="table", how="left"
    )[1]
    assert joined.n_obs == len(table["id"])
    scale = spatialdata.transformations.get_transformation(scales, to_coordinate_system="um")
    assert scale.to_affine_matrix(("x", "y"), ("x", "y"))[0, 0] == 0.5


@pytest.mark.extra
def test_spatialdata_with_nuclei(with_nuclei, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    out, cells, nuclei = with_nuclei
    read = spatialdata.read_zarr(export(out, "spatialdata", tmp_path / "a.zarr").path)
    assert np.array_equal(read.labels["cells"]["scale0"]["image"].to_numpy(), cells)
    assert np.array_equal(read.labels["nuclei"]["scale0"]["image"].to_numpy(), nuclei)


def test_imagej_rois(result, tmp_path):
    out, _, table = result
    rois = roiread(export(out, "imagej-rois", tmp_path / "a.zip").path)
    assert [int(roi.name.split("-")[0]) for roi in rois] == table["id"].tolist()
    drawn = np.array([shapely.Polygon(roi.coordinates()) for roi in rois])
    assert shapely.is_valid(drawn).all()
    assert_near(shapely.area(drawn), table["area_px"])


def test_imagej_rois_of_odd_cells(odd, tmp_path):
    out, labels = odd
    rois = roiread(export(out, "imagej-rois", tmp_path / "a.zip", simplify=0).path)
    areas = dict.fromkeys(np.unique(labels)[1:].tolist(), 0)
    for roi in rois:
        paths = roi.coordinates(multi=True) if roi.composite else [roi.coordinates()]
        outer, *holes = (shapely.Polygon(path) for path in paths)
        assert all(outer.covers(hole) for hole in holes)
        cell, _, piece = roi.name.partition("-")
        areas[int(cell)] += outer.area - sum(hole.area for hole in holes)
        assert bool(piece) == (sum(r.name.startswith(f"{cell}-") for r in rois) > 1)
    assert areas == {cell: np.count_nonzero(labels == cell) for cell in areas}
    assert sum(roi.composite for roi in rois) == 1
    assert len(rois) > len(areas)


@pytest.mark.parametrize("dtype", ["uint32", "int32"])
def test_label_tiff(result, tmp_path, dtype):
    out, labels, _ = result
    path = export(out, "ome-tiff", tmp_path / "a.ome.tif", label_dtype=dtype).path
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        (series,) = tiff.series
        assert series.axes == "YX"
        assert series.dtype == dtype
        assert all(level.keyframe.is_tiled for level in series.levels)
        assert np.array_equal(series.asarray(), labels)
        described = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        assert described["Name"] == "cells"
        assert described["Pixels"]["PhysicalSizeX"] == 0.5
        for index, level in enumerate(series.levels[1:], start=1):
            step = 2**index
            assert np.isin(level.asarray(), labels).all()
            assert level.shape == tuple(-(-n // step) for n in labels.shape)
