"""GeoJSON as QuPath reads it: a feature for each cell, a line each, written as they are drawn."""

from __future__ import annotations

import gzip
import json
import math
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import shapely

from densebatch.exporting.outlines import iter_outlines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

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
            lines = []
            outlines = _draw(cells)
            inner = outlines if nuclei is None else _draw(nuclei)
            for row, (cell, measured) in enumerate(_read_measurements(batch)):
                nucleus = ""
                if nuclei is not None and nuclei[row] is not None:
                    nucleus = f'"nucleusGeometry": {inner[row]}, '
                lines.append(
                    f'{{"type": "Feature", "id": "{uuid.uuid5(run, str(cell))}", '
                    f'"geometry": {outlines[row]}, {nucleus}"properties": '
                    f'{{"objectType": "cell", "name": "{cell}", "measurements": {measured}}}}}'
                )
            file.write((separator + ",\n".join(lines)).encode())
            separator = ",\n"
        file.write(b"\n]}\n")


def _draw(outlines: NDArray[Any]) -> list[str]:
    """Geometries as JSON, with whole numbers written as such."""
    return [
        "" if text is None else text.replace(".0,", ",").replace(".0]", "]")
        for text in shapely.to_geojson(outlines)
    ]


def _read_measurements(batch: pa.RecordBatch) -> Iterator[tuple[int, str]]:
    """Id and measurements of each row; what is unknown or not finite has none, as in JSON."""
    names = [name for name in batch.schema.names if name not in _LEFT_OUT]
    columns = [batch[name].to_pylist() for name in names]
    for cell, *values in zip(batch["id"].to_pylist(), *columns, strict=True):
        measured = {
            name: int(value) if isinstance(value, bool) else value
            for name, value in zip(names, values, strict=True)
            if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        }
        yield cell, json.dumps(measured)


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
