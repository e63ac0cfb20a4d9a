"""The per-cell table, as Parquet: what was measured in the shards of a slide, added up."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from densebatch.compartments.names import NUCLEUS
from densebatch.measuring.kernels import AREA, SUM_X, SUM_Y, X0, X1, Y0, Y1
from densebatch.measuring.neighbours import count_neighbours, find_nearest
from densebatch.measuring.positivity import decide
from densebatch.measuring.schema import (
    MEDIAN,
    OF_LABELS,
    OF_NUCLEI,
    OF_REGIONS,
    Measures,
    list_columns,
    name_channels,
    name_compartment,
    name_quantile,
)
from densebatch.measuring.shapes import describe_shapes
from densebatch.measuring.totals import CellShapes, CellValues, add_shapes, add_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.measuring.parts import Parts
    from densebatch.regions.areas import Areas

# Rows whose intensities are in memory at once, 0.3 GB of forty channels, and kept pixels of split
# cells; they are a group in the file as well.
_ROWS, _KEPT = 2**17, 2**26
_BOX = {"y0": Y0, "x0": X0, "y1": Y1, "x1": X1}


def write_table(
    path: Path,
    parts: Parts,
    n_cells: int,
    slide: Region,
    um_per_px: float | None,
    channels: Sequence[str],
    measures: Measures,
    known: Mapping[str, Any] | None = None,
    nuclei: Nuclei | None = None,
    areas: Areas | None = None,
) -> dict[str, Any]:
    """Add the shards and write the table as Parquet, whose pages carry checksums.

    The file is either absent, old or whole.

    Parameters
    ----------
    path
        Output file.
    parts
        Of every shard, in the order of the shards.
    n_cells
        Cells of the slide; the table has one row each, by ascending id.
    slide
        The slide's extent, for the border flag.
    um_per_px
        Pixel size; the columns in um hold nulls if it is unknown.
    channels
        Names of all channels of the image.
    measures
        What was measured.
    known
        Cuts that were found in this table before, see `positivity.decide`.
    nuclei
        Of the cells, where compartments are measured.
    areas
        Of the slide that count; None for all.

    Returns
    -------
    dict
        Which cells are positive, as `run.json` has it under `positivity`.
    """
    bare = replace(measures, markers=(), phenotypes=())
    partial = path.with_name(f".{path.name}.partial")
    _write_rows(partial, parts, n_cells, slide, um_per_px, channels, bare, nuclei, areas)

    def read(name: str) -> NDArray[np.float64]:
        return read_numbers(partial, name)

    told, columns = decide(read, channels, measures, known)
    added = path.with_name(f".{path.name}.added.partial")
    added.unlink(missing_ok=True)  # of a writer that was killed
    if columns:
        _add_columns(partial, added, columns, make_schema(measures, channels))
        added.replace(partial)
    partial.replace(path)
    return told


def read_numbers(path: Path, name: str) -> NDArray[np.float64]:
    """A column of floats of a table, `(n,)`."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        values: NDArray[np.float64] = file.read([name]).column(0).to_numpy()
    return values


def make_schema(measures: Measures, channels: Sequence[str]) -> pa.Schema:
    """Names and types of the columns of a table, in their order; as for `write_table`."""
    columns = list_columns(measures, channels)
    return pa.schema([(each.name, pa.type_for_alias(each.dtype)) for each in columns])


@contextmanager
def _open_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    # Readers that look at them (pyarrow: `page_checksum_verification`) find a damaged page.
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        yield writer
        writer.close()
        file.flush()
        os.fsync(file.fileno())


def _add_columns(
    path: Path, added: Path, columns: Mapping[str, pa.Array], schema: pa.Schema
) -> None:
    """Write a table with more columns, a group of rows at a time."""
    start = 0
    with pq.ParquetFile(path) as file, _open_writer(added, schema) as writer:
        for index in range(file.num_row_groups):
            rows = file.read_row_group(index)
            more = {name: each.slice(start, len(rows)) for name, each in columns.items()}
            start += len(rows)
            every = dict(zip(rows.column_names, rows.columns, strict=True)) | more
            writer.write_table(pa.table(every, schema=schema))


def _write_rows(
    path: Path,
    parts: Parts,
    n_cells: int,
    slide: Region,
    um_per_px: float | None,
    channels: Sequence[str],
    measures: Measures,
    nuclei: Nuclei | None,
    areas: Areas | None,
) -> None:
    """Write what is measured of each cell, as for `write_table`, group by group of rows."""
    schema = make_schema(measures, channels)
    total = add_shapes(parts.with_shapes(), n_cells, slide.width)
    fixed = shape_columns(total, slide, um_per_px, measures.radius_um)
    if measures.has_regions:
        assert areas is not None
        fixed |= region_columns(areas, fixed)
    within = {} if nuclei is None else nuclei.parts
    if nuclei is not None:
        fixed |= nucleus_columns(nuclei, n_cells)
    with _open_writer(path, schema) as writer:
        for rows in group_rows(total.split_px * len(measures.channels) * (1 + len(within))):
            group = {name: column[rows.start : rows.stop] for name, column in fixed.items()}
            for compartment, some in {"": parts, **within}.items() if measures.channels else ():
                values = add_values(
                    some.with_cells(rows), rows, len(measures.channels), measures.fractions,
                    len(measures.shares_of),
                )  # fmt: skip
                group |= dict(value_columns(values, channels, measures, compartment))
            writer.write_table(pa.table(group, schema=schema))


def group_rows(kept: NDArray[np.int64]) -> Iterator[range]:
    """Rows that are written together; one empty group if there are none.

    Parameters
    ----------
    kept
        `(n,)`: values that shards have kept of each row's cell.
    """
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    first = 0
    while first < kept.size or not first:
        most = int(np.searchsorted(before, before[first] + _KEPT, side="right")) - 1
        stop = min(max(most, first + 1), first + _ROWS, kept.size)
        yield range(first, stop)
        if stop == kept.size:
            return
        first = stop


def shape_columns(
    total: CellShapes, slide: Region, um_per_px: float | None, radius_um: float
) -> dict[str, pa.Array]:
    """Columns that labels alone decide.

    Parameters
    ----------
    total
        Of the cells 1..N.
    slide, um_per_px
        As for `write_table`.
    radius_um
        Within which neighbours are counted.
    """
    n_cells = len(total.shapes)
    shapes, area = total.shapes, total.shapes[:, AREA]
    divisor = np.maximum(area, 1)
    y, x = shapes[:, SUM_Y] / divisor, shapes[:, SUM_X] / divisor
    centroids = np.stack([y, x], axis=1)
    touches = (
        (shapes[:, Y0] == slide.y0)
        | (shapes[:, X0] == slide.x0)
        | (shapes[:, Y1] == slide.y1)
        | (shapes[:, X1] == slide.x1)
    )
    columns = {
        "id": np.arange(1, n_cells + 1, dtype=np.uint32),
        "y_px": y,
        "x_px": x,
        "area_px": area,
        **describe_shapes(shapes, total.forms),
        **{name: shapes[:, column] for name, column in _BOX.items()},
        "touches_border": touches,
        "touches_missing": total.touching,
        "nearest_px": find_nearest(centroids),
    }
    if um_per_px:
        # A pixel's centre lies half a pixel from its corner; um are measured from the slide's
        # corner.
        columns |= {
            "y_um": (y + 0.5) * um_per_px,
            "x_um": (x + 0.5) * um_per_px,
            "area_um2": area * um_per_px**2,
            "neighbours": count_neighbours(centroids, radius_um / um_per_px),
        }
    return {
        each.name: _column(columns[each.name])
        if each.name in columns
        else pa.nulls(n_cells, pa.type_for_alias(each.dtype))
        for each in OF_LABELS
    }


def region_columns(areas: Areas, columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """Columns of `schema.OF_REGIONS`.

    Parameters
    ----------
    areas
        Of the slide that count.
    columns
        As of `shape_columns`.
    """
    at = areas.find_at(*(columns[name].to_numpy() for name in ("y_px", "x_px")))
    names = pa.array(["", *areas.names], pa.string())
    names = pa.compute.if_else(pa.compute.equal(names, ""), None, names)
    [column] = OF_REGIONS
    return {column.name: names.take(pa.array(at))}


@dataclass(frozen=True)
class Nuclei:
    """The nuclei of cells 1..N.

    Attributes
    ----------
    owners : `(n,)` uint32: the cell that each nucleus belongs to, 0 for none
    grown : `(N,)` bool: whether a cell was grown from its nucleus
    parts : by compartment, what was measured in each shard, in the order of the shards
    """

    owners: NDArray[np.uint32]
    grown: NDArray[np.bool_]
    parts: Mapping[str, Parts]

    @property
    def counts(self) -> NDArray[np.int64]:
        """`(N,)`: nuclei that belong to each cell."""
        return np.bincount(self.owners, minlength=self.grown.size + 1)[1:].astype(np.int64)

    def describe(self) -> dict[str, int]:
        """How many cells have how many nuclei."""
        counts = self.counts
        return {
            "cells_without_nucleus": int((counts == 0).sum()),
            "cells_with_several_nuclei": int((counts > 1).sum()),
            "cells_grown_from_nuclei": int(self.grown.sum()),
        }

    def pack_owners(self) -> bytes:
        """The owners as the content of a file."""
        buffer = io.BytesIO()
        np.save(buffer, self.owners)
        return buffer.getvalue()


def nucleus_columns(nuclei: Nuclei, n_cells: int) -> dict[str, pa.Array]:
    """Columns of `schema.OF_NUCLEI`."""
    area = np.zeros(n_cells, np.int64)
    for part in nuclei.parts[NUCLEUS].with_shapes():
        known = part.ids <= n_cells
        area[part.ids[known].astype(np.int64) - 1] += part.shapes[known, AREA]
    columns = {"n_nuclei": nuclei.counts, "nucleus_area": area, "from_nucleus": nuclei.grown}
    return {each.name: _column(columns[each.name]) for each in OF_NUCLEI}


def value_columns(
    values: CellValues, channels: Sequence[str], measures: Measures, compartment: str = ""
) -> Iterator[tuple[str, pa.Array]]:
    """Names and values of the columns of the measured channels; `schema` has their order.

    Parameters
    ----------
    values
        Of some rows, in these channels.
    channels
        Names of all channels of the image.
    measures
        What was measured.
    compartment
        Of the cells, that was measured; "" for all of a cell.
    """
    ending = name_compartment(compartment) if compartment else ""
    names, fractions, n_shares = name_channels(channels), measures.fractions, 0
    for place, channel in enumerate(measures.channels):
        name, sums = f"{names[channel]}{ending}", values.sums[place]
        counted = values.areas - values.missing[place]
        mean = np.full(sums.size, np.nan)
        np.divide(sums, counted, out=mean, where=counted > 0)
        yield f"mean_{name}", _column(mean)
        yield f"total_{name}", _column(np.where(counted > 0, sums, np.nan))
        yield f"std_{name}", _column(values.deviations[place])
        yield f"median_{name}", _column(values.quantiles[place, fractions.index(MEDIAN)])
        for fraction in measures.quantiles:
            column = values.quantiles[place, fractions.index(fraction)]
            yield f"{name_quantile(fraction)}{name}", _column(column)
        share = measures.shares_of.get(channel)
        if share is not None:
            # All of a cell's pixels may lie under labels, whatever their values.
            of = values.areas if share.under is not None else np.where(np.isnan(sums), 0, counted)
            found = np.full(sums.size, np.nan)
            np.divide(values.counts[n_shares], of, out=found, where=of > 0)
            n_shares += 1
            yield f"fraction_{name}", _column(found)


def _column(values: NDArray[np.generic]) -> pa.Array:
    """As `pa.array`, which imports pandas where it is installed; that takes half a second."""
    packed: NDArray[np.generic] = values
    if values.dtype == bool:
        packed = np.packbits(values.view(np.uint8), bitorder="little")
    data = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), values.size, [None, data])
