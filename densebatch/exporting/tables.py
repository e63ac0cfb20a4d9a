"""Comma-separated text: the whole table, and the one that MCMICRO's quantification would write."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv

from densebatch.exporting.columns import MEAN, sort_columns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

_SHAPE = {
    "X_centroid": "x_px",
    "Y_centroid": "y_px",
    "Area": "area_px",
    "MajorAxisLength": "major_axis_px",
    "MinorAxisLength": "minor_axis_px",
    "Eccentricity": "eccentricity",
    "Solidity": "solidity",
    "Extent": "extent",
    "Orientation": "orientation",
}


def write_csv(source: Source, path: Path, options: Options) -> None:
    """Write the table as it is."""
    with _open(path, source.schema, options) as writer:
        for batch in source.read_batches():
            writer.write_batch(batch)


def write_mcmicro(source: Source, path: Path, options: Options) -> None:
    """Write what MCMICRO has of a cell: its id, the mean of each marker, then its shape.

    Programs take everything left of `X_centroid` for a marker, so that nothing else is there.
    """
    columns = sort_columns(source.schema.names)
    taken = ["id", *columns.matrices.get(MEAN, ()), *_SHAPE.values()]
    names = ["CellID", *columns.channels, *_SHAPE]
    types = [source.schema.field(column).type for column in taken]
    schema = pa.schema(list(zip(names, types, strict=True)))
    with _open(path, schema, options) as writer:
        for batch in source.read_batches():
            writer.write_batch(pa.record_batch([batch[c] for c in taken], schema=schema))


@contextmanager
def _open(path: Path, schema: pa.Schema, options: Options) -> Iterator[pyarrow.csv.CSVWriter]:
    compression = "gzip" if options.is_compressed else None
    with (
        pa.output_stream(path, compression=compression) as file,
        pyarrow.csv.CSVWriter(file, schema) as writer,
    ):
        yield writer
