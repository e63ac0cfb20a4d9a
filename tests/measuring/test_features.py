"""Every column against scikit-image's regionprops and NumPy, however the labels are cut."""

from __future__ import annotations

import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import regionprops_table

from densebatch.base.geometry import Region
from densebatch.measuring.parts import Parts
from densebatch.measuring.schema import Measures, list_columns, name_quantile
from densebatch.measuring.shard import Shard
from densebatch.measuring.table import write_table
from tests.helpers.cell_parts import measure_parts
from tests.helpers.real_tissue import FIELDS, needs_data, read_field

QUANTILES = (0.9, 0.025, 0.5)
SHAPES = {  # here: there
    "area_px": "area",
    "perimeter_px": "perimeter",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
    "major_axis_px": "axis_major_length",
    "minor_axis_px": "axis_minor_length",
    "extent": "extent",
    "y_px": "centroid-0",
    "x_px": "centroid-1",
    **{name: f"bbox-{axis}" for axis, name in enumerate(("y0", "x0", "y1", "x1"))},
}
INTENSITIES = {"mean": "intensity_mean", "std": "intensity_std", "median": "intensity_median"}


def tabulate(path, labels, image, step):
    """The table of a label image, cut into shards of `step` px."""
    measures = Measures(tuple(range(len(image))), QUANTILES)
    names = [f"c{channel}" for channel in range(len(image))]
    parts = Parts(measure_parts(labels, image, step, measures.fractions))
    slide = Region(0, 0, *labels.shape)
    write_table(path, parts, int(labels.max()), slide, 0.5, names, measures)
    table = pq.read_table(path)
    assert table.column_names == [each.name for each in list_columns(measures, names)]
    return {name: table[name].to_numpy() for name in table.column_names}


def assert_as_regionprops(table, labels, image):
    """Equal up to rounding: scikit-image takes square roots of what is 1e-16 instead of 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = regionprops_table(
            labels.astype(np.int64),
            np.moveaxis(image.astype(float), 0, -1),
            properties=(
                "area", "perimeter", "eccentricity", "solidity", "orientation", "centroid", "bbox",
                "axis_major_length", "axis_minor_length", "extent", *INTENSITIES.values(),
            ),
        )  # fmt: skip
    for name, theirs in SHAPES.items():
        np.testing.assert_allclose(
            table[name], expected[theirs], rtol=1e-9, atol=1e-6, err_msg=name
        )
    np.testing.assert_array_equal(table["area_um2"], table["area_px"] * 0.25)
    is_long = table["major_axis_px"] - table["minor_axis_px"] > 1e-3
    turned = table["orientation"] - expected["orientation"]
    turned = np.abs((turned + np.pi / 2) % np.pi - np.pi / 2)  # -π/2 and π/2 are one direction
    assert turned[is_long].max(initial=0) < 1e-6
    round_ones = table["major_axis_px"] == table["minor_axis_px"]
    assert (table["orientation"][round_ones] == -np.pi / 4).all()
    for channel, pixels in enumerate(image.astype(float)):
        for name, theirs in INTENSITIES.items():
            found, wanted = table[f"{name}_c{channel}"], expected[f"{theirs}-{channel}"]
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-9, err_msg=name)
        for cell in table["id"]:
            inside = pixels[labels == cell]
            assert table[f"total_c{channel}"][cell - 1] == inside.sum()
            for fraction in QUANTILES:
                found = table[f"{name_quantile(fraction)}c{channel}"][cell - 1]
                np.testing.assert_allclose(found, np.quantile(inside, fraction), rtol=1e-14)


def renumber(labels):
    """Labels 1..N without a gap."""
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape) + (labels.min() > 0)
    return labels.astype(np.uint32)


sides = st.tuples(st.integers(1, 24), st.integers(1, 24))
noise = sides.flatmap(lambda shape: hnp.arrays(np.uint32, shape, elements=st.integers(0, 6)))


@st.composite
def blobs(draw):
    """Cells of some pixels each, with holes, in pieces now and then."""
    height, width = draw(sides)
    small = draw(hnp.arrays(np.uint32, (4, 4), elements=st.integers(0, 9)))
    size = draw(st.integers(2, 7))
    labels = np.kron(small, np.ones((size, size), np.uint32))[:height, :width]
    dropped = draw(hnp.arrays(np.bool_, labels.shape, elements=st.booleans()))
    return labels * ~(dropped & draw(st.booleans()))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("features") / "cells.parquet"


@given(st.data(), st.integers(1, 30), st.integers(0, 2**31), st.sampled_from("BHif"))
@settings(max_examples=150, deadline=None)
def test_any_labels(path, data, step, seed, kind):
    """One pixel, lines, rings, many pieces; cut into shards of any size."""
    labels = renumber(data.draw(st.one_of(noise, blobs())))
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, (2, *labels.shape)).astype(kind)
    if not labels.any():
        return
    assert_as_regionprops(tabulate(path, labels, image, step), labels, image)


def draw_odd_cells():
    """Cells whose features are easily got wrong."""
    labels = np.zeros((60, 90), np.uint32)
    y, x = np.mgrid[:60, :90]
    labels[2, 30] = 1  # a pixel
    labels[4, 2:22] = 2  # lines
    labels[6:30, 2] = 3
    labels[y - 6 == x - 6] = 4
    labels[(y - 15) ** 2 + (x - 40) ** 2 <= 64] = 5  # a ring and what it holds
    labels[(y - 15) ** 2 + (x - 40) ** 2 <= 30] = 6
    labels[40:44, 2:6] = labels[40:44, 70:74] = labels[58, 88] = 7  # pieces far apart
    labels[50:55, 30:35] = 8  # a square
    labels[45:48, 50:53][np.eye(3, dtype=bool)] = 9  # pixels that touch at corners
    labels[56, 40:43] = labels[54:59, 41] = 10  # a cross
    labels[0, :] = 11  # the slide's border
    return labels


@pytest.mark.parametrize("step", [100, 41, 16, 7, 1])
def test_odd_cells(path, step):
    labels = draw_odd_cells()
    assert np.unique(labels).size == 12
    image = np.random.default_rng(0).integers(0, 4000, (1, *labels.shape)).astype(np.uint16)
    assert_as_regionprops(tabulate(path, labels, image, step), labels, image)


@needs_data
@pytest.mark.parametrize("step", [4096, 333])
@pytest.mark.parametrize("field", FIELDS)
def test_real_cells(path, field, step):
    pixels, masks = read_field(field)
    labels, pixels = renumber(masks[:500, :600]), pixels[None, :500, :600]
    assert labels.max() > 100
    assert_as_regionprops(tabulate(path, labels, pixels, step), labels, pixels)


def test_a_feature_does_not_depend_on_where_the_cell_lies(path):
    """Far from the slide's first pixel nothing is lost to rounding."""
    cell = np.zeros((20, 30), np.uint32)
    cell[3:9, 4:20] = cell[7:15, 18] = 1
    tables = []
    for place in (0, 10**6):
        region = Region(place, place, place + 20, place + 30)
        one = np.ones(1, np.uint32)
        shard = Shard(cell, one, np.zeros(1, np.bool_), region, 2 * 10**6)
        slide = Region(0, 0, 2 * 10**6, 2 * 10**6)
        write_table(path, Parts([shard.finish(one[:0])]), 1, slide, None, (), Measures(()))
        tables.append(pq.read_table(path).to_pydict())
    near, far = tables
    moved = {"y_px", "x_px", "y0", "x0", "y1", "x1", "nearest_px"}
    assert {n: v for n, v in near.items() if n not in moved} == {
        n: v for n, v in far.items() if n not in moved
    }
