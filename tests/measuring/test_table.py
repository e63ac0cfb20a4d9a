"""The cell table, read back from Parquet, against plain NumPy."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densebatch.base.geometry import Region
from densebatch.measuring.parts import Parts, StoredParts, pack_part
from densebatch.measuring.schema import Measures
from densebatch.measuring.table import group_rows, write_table
from tests.helpers.cell_parts import measure_parts

COLUMNS = [
    *("id", "y_px", "x_px", "y_um", "x_um", "area_px", "area_um2", "perimeter_px"),
    *("eccentricity", "solidity", "orientation", "major_axis_px", "minor_axis_px", "extent"),
    *("y0", "x0", "y1", "x1", "touches_border", "touches_missing", "neighbours", "nearest_px"),
]
STATISTICS = ("mean", "total", "std", "median")


def write(path, parts, n_cells, slide, um_per_px, channels, measures=None):
    measures = measures or Measures(tuple(range(len(channels))))
    write_table(path, Parts(parts), n_cells, slide, um_per_px, channels, measures)


def make_tissue(height, width, seed=0):
    """Cells of some pixels each, numbered from 1 without a gap, and two channels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    keys = (y // 5 * width + x // 7 + 1) * (rng.random((height, width)) < 0.8)
    labels = np.unique(keys, return_inverse=True)[1].reshape(keys.shape).astype(np.uint32)
    labels += keys.min() > 0
    return labels, rng.integers(0, 4095, (2, height, width)).astype(np.float32)


def read(path):
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("table") / "cells.parquet"


@given(st.integers(1, 30), st.integers(1, 30), st.integers(3, 40), st.integers(0, 99))
def test_rows_are_those_of_the_whole_slide_however_it_is_cut(path, height, width, step, seed):
    labels, image = make_tissue(height, width, seed)
    n_cells = int(labels.max())
    slide = Region(0, 0, height, width)
    write(path, measure_parts(labels, image, step), n_cells, slide, 0.5, ["CD3", "DAPI"])
    table = read(path)
    names = [f"{statistic}_{name}" for name in ("CD3", "DAPI") for statistic in STATISTICS]
    assert list(table) == [*COLUMNS, *names]
    assert [table[name].dtype.name for name in ("id", "area_px", "y_px", "touches_border")] == [
        *("uint32", "int64", "float64", "bool")
    ]
    assert table["id"].tolist() == list(range(1, n_cells + 1))
    for row, label in enumerate(table["id"]):
        y, x = np.nonzero(labels == label)
        assert table["area_px"][row] == y.size
        assert (table["y_px"][row], table["x_px"][row]) == (y.sum() / y.size, x.sum() / x.size)
        assert table["y_um"][row] == (y.sum() / y.size + 0.5) * 0.5
        assert table["x_um"][row] == (x.sum() / x.size + 0.5) * 0.5
        box = (y.min(), x.min(), y.max() + 1, x.max() + 1)
        assert tuple(table[name][row] for name in ("y0", "x0", "y1", "x1")) == box
        touches = box[0] == 0 or box[1] == 0 or box[2] == height or box[3] == width
        assert table["touches_border"][row] == touches
        for channel, name in enumerate(("mean_CD3", "mean_DAPI")):
            assert table[name][row] == image[channel][labels == label].astype(float).sum() / y.size


def test_pixels_that_are_not_finite_are_left_out_of_the_mean(path):
    labels = np.array([[1, 1, 2, 3]], np.uint32)
    image = np.array([[[2, np.nan, np.inf, 5]]], np.float32)
    write(path, measure_parts(labels, image, 4), 3, Region(0, 0, 1, 4), None, ["a"])
    np.testing.assert_array_equal(read(path)["mean_a"], [2, np.nan, 5])
    assert read(path)["area_px"].tolist() == [2, 1, 1]


def test_an_unread_pixel_makes_the_mean_nan_and_spares_other_cells(path):
    labels, image = make_tissue(12, 20)
    parts = list(measure_parts(labels, image, 6))
    parts[0].sums[1, 0] = np.nan
    lost = int(parts[0].ids[0])
    slide = Region(0, 0, *labels.shape)
    write(path, parts, int(labels.max()), slide, None, ["a", "b"])
    table = read(path)
    for statistic in STATISTICS:
        assert (np.flatnonzero(np.isnan(table[f"{statistic}_b"])) + 1).tolist() == [lost]
        assert not np.isnan(table[f"{statistic}_a"]).any()


def test_a_cell_touches_what_is_missing_if_it_does_so_in_any_shard(path):
    labels, image = make_tissue(12, 20)
    parts = list(measure_parts(labels, image, 6))
    touching = int(parts[1].ids[-1])
    parts[1].touching[-1] = True
    write(path, parts, int(labels.max()), Region(0, 0, *labels.shape), None, ["a", "b"])
    assert (np.flatnonzero(read(path)["touches_missing"]) + 1).tolist() == [touching]


def test_an_unknown_pixel_size_is_null(path):
    labels, image = make_tissue(6, 8)
    parts = measure_parts(labels, image, 8)
    write(path, parts, int(labels.max()), Region(0, 0, 6, 8), None, ["a", "b"])
    table = pq.read_table(path)
    for name in ("y_um", "x_um", "area_um2", "neighbours"):
        assert table[name].null_count == len(table) > 0


def test_channels_of_one_name_have_columns_of_their_own(path):
    labels, image = make_tissue(6, 8)
    image = np.concatenate([image, image + 1])
    names = ["a", "a", "b", "a_1"]
    parts = measure_parts(labels, image, 8)
    write(path, parts, int(labels.max()), Region(0, 0, 6, 8), None, names)
    table = read(path)
    found = [name for name in table if name.startswith("mean_")]
    assert found == ["mean_a", "mean_a_1", "mean_b", "mean_a_1_3"]
    np.testing.assert_allclose(table["mean_a_1_3"], table["mean_a_1"] + 1)


def test_a_slide_without_cells(path):
    write(path, [], 0, Region(0, 0, 5, 5), 0.5, ["a"])
    assert pq.read_table(path).num_rows == 0
    assert pq.read_table(path).column_names == [*COLUMNS, *(f"{s}_a" for s in STATISTICS)]
    assert [p.name for p in path.parent.iterdir()] == ["cells.parquet"]


def test_the_table_does_not_depend_on_the_cut_or_on_where_parts_are(path, tmp_path):
    """Values are whole numbers, so that sums are exact; all else is measured on the whole cell."""
    labels, image = make_tissue(30, 30)
    measures = Measures((0, 1), (0.9, 0.025))
    common = (int(labels.max()), Region(0, 0, 30, 30), 0.5, ["a", "b"], measures)
    write_table(path, Parts(measure_parts(labels, image, 30, measures.fractions)), *common)
    whole = path.read_bytes()
    parts = list(measure_parts(labels, image, 7, measures.fractions))
    write_table(path, Parts(parts), *common)
    assert path.read_bytes() == whole
    files = [tmp_path / f"{number}.npz" for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(pack_part(part))
    write_table(path, StoredParts(files), *common)
    assert path.read_bytes() == whole


def test_rows_come_group_by_group(path, monkeypatch):
    """The table of a large slide is written with a few rows in memory."""
    labels, image = make_tissue(30, 30)
    common = (int(labels.max()), Region(0, 0, 30, 30), 0.5, ["a", "b"], Measures((0, 1)))
    parts = list(measure_parts(labels, image, 7, (0.5,)))
    write_table(path, Parts(parts), *common)
    whole = pq.read_table(path)
    with monkeypatch.context() as patch:
        patch.setattr("densebatch.measuring.table._ROWS", 5)
        write_table(path, Parts(parts), *common)
    assert pq.ParquetFile(path).num_row_groups == -(-int(labels.max()) // 5) > 2
    assert pq.read_table(path).equals(whole)
    monkeypatch.setattr("densebatch.measuring.table._KEPT", 100)
    write_table(path, Parts(parts), *common)
    assert pq.ParquetFile(path).num_row_groups > 2
    assert pq.read_table(path).equals(whole)


@given(st.lists(st.integers(0, 2**27), max_size=30))
def test_groups_of_rows_keep_within_what_memory_holds(kept):
    groups = list(group_rows(np.array(kept, np.int64)))
    assert [row for rows in groups for row in rows] == list(range(len(kept)))
    for rows in groups:
        assert len(rows) <= 1 or sum(kept[row] for row in rows) <= 2**26
    for rows, following in itertools.pairwise(groups):
        assert sum(kept[row] for row in [*rows, following.start]) > 2**26


def test_a_damaged_page_is_found_by_readers_that_look(tmp_path):
    path = tmp_path / "cells.parquet"
    labels = np.arange(1, 2001, dtype=np.uint32).reshape(1, -1)
    image = np.random.default_rng(0).random((2, *labels.shape))
    write(path, measure_parts(labels, image, 2000), 2000, Region(0, 0, 1, 2000), None, "ab")
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(len(COLUMNS))
    assert column.path_in_schema == "mean_a"
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.read_table(path, page_checksum_verification=True)
