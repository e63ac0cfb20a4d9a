"""Positive cells and phenotypes in the table, against NumPy on labels and pixels."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densebatch.base.geometry import Region
from densebatch.measuring.cuts import find_cut
from densebatch.measuring.parts import Parts, StoredParts, pack_part
from densebatch.measuring.positivity import tell_positivity
from densebatch.measuring.schema import Marker, Measures, Phenotype, Share, list_columns
from densebatch.measuring.table import write_table
from tests.helpers.cell_parts import measure_parts
from tests.measuring.test_table import make_tissue

CHANNELS = ("a", "b", "c")
MEASURES = Measures(
    (0, 1, 2),
    (0.9,),
    shares=(Share(0, over=2000.0), Share(2, under="elsewhere")),
    markers=(Marker(0, "fraction", 0.4), Marker(1, "q90", "otsu"), Marker(2, "fraction", 0.5)),
    phenotypes=(
        Phenotype("both", ((0, True), (1, True))),
        Phenotype("a- c+", ((0, False), (2, True))),
    ),
)


def make_slide(height, width, seed, dtype=np.uint16):
    labels, image = make_tissue(height, width, seed)
    rng = np.random.default_rng(seed)
    image = np.concatenate([image, image[:1]]).astype(dtype)
    return labels, image, (rng.random(labels.shape) < 0.5).astype(np.uint32) * 7


def write(path, labels, image, cover, step, measures=MEASURES, known=None):
    parts = measure_parts(labels, image, step, measures.fractions, {0: 2000.0}, {2: cover})
    slide = Region(0, 0, *labels.shape)
    n_cells = int(labels.max(initial=0))
    return write_table(path, Parts(parts), n_cells, slide, 0.5, CHANNELS, measures, known)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("positive") / "cells.parquet"


@settings(max_examples=25)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(3, 40), st.integers(0, 99),
    st.sampled_from([np.uint16, np.float32, np.uint64, np.float16]),
)  # fmt: skip
def test_positive_cells_are_those_of_numpy(path, height, width, step, seed, dtype):
    labels, image, cover = make_slide(height, width, seed, dtype)
    told = write(path, labels, image, cover, step)
    table = pq.read_table(path)
    assert table.column_names == [c.name for c in list_columns(MEASURES, CHANNELS)]
    cells = [labels == cell for cell in range(1, int(labels.max()) + 1)]
    over = np.array([(image[0][cell] > 2000).mean() for cell in cells])
    under = np.array([(cover[cell] > 0).mean() for cell in cells])
    np.testing.assert_array_equal(table["fraction_a"], over)
    np.testing.assert_array_equal(table["fraction_c"], under)
    assert table["positive_a"].to_pylist() == (over >= 0.4).tolist()
    assert table["positive_c"].to_pylist() == (under >= 0.5).tolist()
    cut = find_cut(table["q90_b"].to_numpy(), "otsu").value
    bright = [None if cut is None else value >= cut for value in table["q90_b"].to_pylist()]
    assert table["positive_b"].to_pylist() == bright
    both = [b and bool(a >= 0.4) if b is not None or a >= 0.4 else False for a, b in
            zip(over, bright, strict=True)]  # fmt: skip
    assert table["phenotype_both"].to_pylist() == both
    assert table["phenotype_a- c+"].to_pylist() == ((over < 0.4) & (under >= 0.5)).tolist()
    assert [each["positive"] for each in told["markers"]] == [
        *((over >= 0.4).sum(), sum(map(bool, bright)), (under >= 0.5).sum())
    ]
    assert told["phenotypes"][0]["positive"] == sum(map(bool, both))


def test_neither_cut_of_the_slide_nor_files_nor_groups_of_rows_matter(path, tmp_path, monkeypatch):
    labels, image, cover = make_slide(60, 60, 1)
    told = write(path, labels, image, cover, 60)
    whole = path.read_bytes()
    assert write(path, labels, image, cover, 7) == told
    assert path.read_bytes() == whole
    parts = measure_parts(labels, image, 7, MEASURES.fractions, {0: 2000.0}, {2: cover})
    files = []
    for number, part in enumerate(parts):
        files.append(tmp_path / f"{number}.npz")
        files[-1].write_bytes(pack_part(part))
    slide = Region(0, 0, *labels.shape)
    common = (int(labels.max()), slide, 0.5, CHANNELS, MEASURES)
    assert write_table(path, StoredParts(files), *common) == told
    assert path.read_bytes() == whole
    table = pq.read_table(path)
    monkeypatch.setattr("densebatch.measuring.table._ROWS", 5)
    assert write_table(path, StoredParts(files), *common) == told
    assert pq.ParquetFile(path).num_row_groups > 2
    assert pq.read_table(path).equals(table)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_is_unknown_is_null_unless_it_does_not_matter(path):
    """One marker that is not as it should be decides, whatever is unknown of the others."""
    labels = np.array([[1, 2, 3, 4]], np.uint32)
    image = np.array([[[9, 9, 1, np.nan]], [[np.nan, 9, np.nan, np.nan]]], np.float32)
    markers = (Marker(0, "mean", 5.0), Marker(1, "mean", 5.0))
    signs = Phenotype("x", ((0, True), (1, True)))
    measures = Measures((0, 1), markers=markers, phenotypes=(signs,))
    slide = Region(0, 0, 1, 4)
    parts = Parts(measure_parts(labels, image, 4))
    told = write_table(path, parts, 4, slide, None, ("a", "b"), measures)
    table = pq.read_table(path)
    assert table["positive_a"].to_pylist() == [True, True, False, None]
    assert table["positive_b"].to_pylist() == [None, True, None, None]
    assert table["phenotype_x"].to_pylist() == [None, True, False, None]
    counts = [(each["cells"], each["positive"], each["unknown"]) for each in told["markers"]]
    assert counts == [(4, 2, 1), (4, 1, 3)]
    assert told["phenotypes"] == [
        {"phenotype": "x", "markers": "a+ b+", "cells": 4, "positive": 1, "unknown": 2}
    ]
    assert tell_positivity(told) == [
        "a+  2 of 4 cells, 1 unknown (mean_a from 5 on)",
        "b+  1 of 4 cells, 3 unknown (mean_b from 5 on)",
        "x  1 of 4 cells, 2 unknown (a+ b+)",
    ]


def test_pixels_that_are_not_finite_are_in_no_share(path):
    labels = np.array([[1, 1, 1, 1, 2, 2]], np.uint32)
    image = np.array([[[2001, 1, np.inf, np.nan, np.inf, np.nan]]], np.float32)
    measures = Measures((0,), shares=(Share(0, over=2000.0),))
    parts = Parts(measure_parts(labels, image, 4, (0.5,), {0: 2000.0}))
    write_table(path, parts, 2, Region(0, 0, 1, 6), None, ("a",), measures)
    np.testing.assert_array_equal(pq.read_table(path)["fraction_a"], [0.5, np.nan])


def test_cells_with_an_unread_pixel_have_no_share_but_one_under_labels(path):
    labels, image, cover = make_slide(12, 20, 0)
    parts = list(measure_parts(labels, image, 6, MEASURES.fractions, {0: 2000.0}, {2: cover}))
    parts[0].sums[:, 0] = np.nan
    slide = Region(0, 0, *labels.shape)
    write_table(path, Parts(parts), int(labels.max()), slide, None, CHANNELS, MEASURES)
    table = pq.read_table(path)
    lost = int(parts[0].ids[0])
    assert (np.flatnonzero(np.isnan(table["fraction_a"])) + 1).tolist() == [lost]
    assert not np.isnan(table["fraction_c"]).any()
    assert table["positive_a"].null_count == table["positive_b"].null_count == 1


def test_a_slide_without_cells(path):
    told = write(path, np.zeros((5, 5), np.uint32), *make_slide(5, 5, 0)[1:], 5)
    table = pq.read_table(path)
    assert table.num_rows == 0
    assert table.column_names == [c.name for c in list_columns(MEASURES, CHANNELS)]
    assert [each["cells"] for each in told["markers"]] == [0, 0, 0]
    assert told["markers"][1]["note"] == "there is no cut: the cells do not differ"


def test_known_cuts_are_taken(path):
    labels, image, cover = make_slide(30, 30, 2)
    told = write(path, labels, image, cover, 30)
    other = {**told, "markers": [{**each, "cut": 1e9} for each in told["markers"]]}
    again = write(path, labels, image, cover, 30, known=other)
    assert [each["positive"] for each in again["markers"]] == [0, 0, 0]
    assert write(path, labels, image, cover, 30, known=told) == told
