"""GeoParquet 1.1: the table with outlines beside its columns."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from densebatch.exporting.outlines import iter_outlines

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

_CELLS, _NUCLEI = "geometry", "nucleus_geometry"


def write_geoparquet(source: Source, path: Path, options: Options) -> None:
    """Write the table with the outline of each cell and, where there are any, of its nucleus.

    Coordinates are pixels at full resolution, in no reference system of the Earth.
    """
    names = [_CELLS] if source.nuclei is None else [_CELLS, _NUCLEI]
    told: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "crs": None,
        "orientation": "counterclockwise",
        "edges": "planar",
    }
    about = {"version": "1.1.0", "primary_column": _CELLS, "columns": dict.fromkeys(names, told)}
    schema = source.schema
    for name in names:
        schema = schema.append(pa.field(name, pa.binary()))
    schema = schema.with_metadata(
        {"geo": json.dumps(about), "densebatch": json.dumps(source.provenance)}
    )
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch, *outlines in iter_outlines(source, options.simplify_px):
            # WKB is little-endian everywhere, because GeoParquet's readers need not know another.
            drawn = [
                pa.array(shapely.to_wkb(each, byte_order=1), pa.binary())
                for each in outlines[: len(names)]
            ]
            writer.write_batch(pa.record_batch([*batch.columns, *drawn], schema=schema))
