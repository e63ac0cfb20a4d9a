"""GeoJSON as QuPath reads it: a feature for each cell, a line each, written as they are drawn."""

from __future__ import annotations

import gzip
import json
import uuid
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import shapely

from densebatch.exporting.columns import as_numbers
from densebatch.exporting.outlines import iter_outlines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

_LINES = 1024  # are put together at once
_LEFT_OUT = {"id", "y0", "x0", "y1", "x1"}
# QuPath tells objects by UUIDs; those of a cell are the same whenever it is exported.
_NAMESPACE = uuid.UUID("6f0f3c0e-0d4e-4a53-9d0b-2a0f0a1c5b7e")


def write_geojson(source: Source, path: Path, options: Options) -> None:
    """Write cells as QuPath's cell objects, with their nuclei where there are any.

    Coordinates are pixels at full resolution. A cell's name is its id, and its measurements are the
    columns of the table that are numbers.
    """
    run = uuid.uuid5(_NAMESPACE, str(source.provenance.get("fingerprint", source.root)))
    with _open(path, options) as file:
        about = json.dumps(source.provenance)
        file.write(f'{{"type": "FeatureCollection", "densebatch": {about}, "features": ['.encode())
        separator = "\n"
        for batch, cells, nuclei in iter_outlines(source, options.simplify_px):
            for start in range(0, batch.num_rows, _LINES):
                some = slice(start, start + _LINES)
                inner = None if nuclei is None else nuclei[some]
                lines = _write_lines(batch.slice(start, _LINES), cells[some], inner, run)
                file.write((separator + ",\n".join(lines)).encode())
                separator = ",\n"
        file.write(b"\n]}\n")


def _write_lines(
    batch: pa.RecordBatch, cells: NDArray[Any], nuclei: NDArray[Any] | None, run: uuid.UUID
) -> Iterator[str]:
    """A feature for each row."""
    outlines = _draw(cells)
    inner = [""] * len(outlines) if nuclei is None else _draw(nuclei)
    rows = zip(
        batch["id"].to_pylist(), outlines, inner, _read_measurements(batch), _read_texts(batch),
        strict=True,
    )  # fmt: skip
    for cell, outline, nucleus, measured, texts in rows:
        beside = f'"nucleusGeometry": {nucleus}, ' if nucleus else ""
        yield (
            f'{{"type": "Feature", "id": "{uuid.uuid5(run, str(cell))}", "geometry": {outline}, '
            f'{beside}"properties": {{"objectType": "cell", "name": "{cell}", {texts}'
            f'"measurements": {{{measured}}}}}}}'
        )


def _draw(outlines: NDArray[Any]) -> list[str]:
    """Geometries as JSON, with whole numbers written as such."""
    return [
        "" if text is None else text.replace(".0,", ",").replace(".0]", "]")
        for text in shapely.to_geojson(outlines)
    ]


def _read_measurements(batch: pa.RecordBatch) -> Iterator[str]:
    """Measurements of each row; what is unknown or not finite has none, as JSON has no word for it.

    Fractions have nine digits, more than a float32: half of the file would be digits else.
    """
    columns = []
    for name in (name for name in batch.schema.names if name not in _LEFT_OUT):
        key, values = json.dumps(name), as_numbers(batch, name)
        if values.dtype.kind in "biu":
            columns.append([f"{key}: {value}" for value in values.astype(np.int64).tolist()])
        elif values.dtype.kind == "f":
            columns.append([f"{key}: {v:.9g}" if isfinite(v) else "" for v in values.tolist()])
    for row in zip(*columns, strict=True):
        yield ", ".join(filter(None, row))


def _read_texts(batch: pa.RecordBatch) -> Iterator[str]:
    """What QuPath calls metadata: the columns of text of each row, where they are known."""
    names = [f.name for f in batch.schema if pa.types.is_string(f.type)]
    for row in batch.select(names).to_pylist() if names else [{}] * batch.num_rows:
        told = {name: text for name, text in row.items() if text is not None}
        yield f'"metadata": {json.dumps(told)}, ' if told else ""


@contextmanager
def _open(path: Path, options: Options) -> Iterator[BinaryIO]:
    with path.open("wb") as file:
        if not options.is_compressed:
            yield file
            return
        # Without a time and a name in it, the same cells give the same bytes.
        with gzip.GzipFile(
            filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0
        ) as packed:
            yield cast("BinaryIO", packed)
