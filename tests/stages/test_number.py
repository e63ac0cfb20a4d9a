"""Cells get their ids, shapes and intensities, shard by shard."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from densebatch.base.errors import InputError
from densebatch.measuring.parts import pack_part
from densebatch.run import steps
from densebatch.run.segment import segment
from densebatch.stages import number
from tests.helpers.run_files import count_calls, read_result, simulate, write_tiff


def test_glass_is_not_measured(tmp_path, monkeypatch):
    """Where there are no cells, nobody reads pixels for intensities; a copy is made still."""
    work = count_calls(monkeypatch, number, "read_pieces")
    slide = write_tiff(
        tmp_path / "a.ome.tif", np.full((2, 300, 400), 7, np.uint16), ["CD3", "DAPI"]
    )
    for image, calls in (("none", 0), ("copy", 2)):
        result = segment(slide, tmp_path / image, image=image, membrane=("CD3",), workers=0)
        assert result.cells == 0
        assert work["read_pieces"] == calls
        table = pq.read_table(tmp_path / image / "cells.parquet")
        assert table.num_rows == 0
        assert {"mean_CD3", "mean_DAPI"} <= set(table.column_names)


def test_an_unfinished_run_goes_on_with_what_is_asked_for_now(tmp_path, monkeypatch):
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(90, 2100), ["CD3", "DAPI"])
    options = {"membrane": ("CD3",), "workers": 0, "image": "none"}

    def fail(*_, **__):
        raise InputError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_table", fail)
        with pytest.raises(InputError, match="stopped"):
            segment(slide, tmp_path / "out", **options)
    asked = {"channels": ("DAPI",), "quantiles": (0.9,), "neighbour_radius": 11}
    again = segment(slide, tmp_path / "out", **options, **asked)
    assert again.report["tasks_kept"] > 0
    fresh = segment(slide, tmp_path / "fresh", **options, **asked)
    assert again.table.read_bytes() == fresh.table.read_bytes()
    assert pq.read_table(again.table).column_names[-5:] == [
        *("mean_DAPI", "total_DAPI", "std_DAPI", "median_DAPI", "q90_DAPI")
    ]


@pytest.mark.parametrize("tile", [2048, 700])
def test_cells_in_several_shards_are_known_as_such(tmp_path, monkeypatch, tile):
    """Also where a tile reaches into two shards; of other cells no pixel is kept."""
    found = []

    def note(part):
        found.append(part)
        return pack_part(part)

    monkeypatch.setattr(number, "pack_part", note)
    slide = write_tiff(tmp_path / "a.ome.tif", simulate(90, 2300), ["CD3", "DAPI"])
    segment(slide, tmp_path / "out", membrane=("CD3",), workers=0, tile=tile)
    labels, _ = read_result(tmp_path / "out")
    left, right = (np.unique(labels[:, part]) for part in (np.s_[:2048], np.s_[2048:]))
    both = np.intersect1d(left, right)
    assert both[both > 0].size > 2
    assert len(found) == 2
    for part in found:
        assert part.ids[part.split].tolist() == both[both > 0].tolist()
        assert part.values.shape == (2, part.places.size)
        np.testing.assert_array_equal(
            labels.ravel()[part.places], np.repeat(part.ids, part.shapes[:, 0])[
                np.repeat(part.split, part.shapes[:, 0])
            ],
        )  # fmt: skip
