"""Cells get their ids, shapes and intensities, shard by shard."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from densebatch.run.segment import segment
from densebatch.stages import number
from tests.helpers.run_files import count_calls, write_tiff


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
