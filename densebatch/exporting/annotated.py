"""AnnData on disk, written as the rows of the table come: HDF5 (`.h5ad`) or Zarr.

The format is public and versioned (anndata's documentation, "On-disk format"), and the same tree in
both containers. It is written here and not by anndata, because that has all of a table in memory.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import numpy as np
import pyarrow as pa
import zarr

from densebatch.exporting.columns import MEAN, Columns, as_matrix, as_numbers, sort_columns
from densebatch.measuring.schema import may_be_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from densebatch.exporting.options import Options
    from densebatch.exporting.source import Source

_ROWS = 8192  # of a chunk
_ARRAY = "array", "0.2.0"
_TEXTS = "string-array", "0.2.0"
_FRAME = "dataframe", "0.2.0"
_DICT = "dict", "0.1.0"


class Container(Protocol):
    """A tree of groups and arrays with attributes."""

    def group(
        self, path: str, encoding: tuple[str, str], more: Mapping[str, Any] | None = None
    ) -> None:
        """Make a group and say what it encodes, and more by attributes."""

    def array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type[str],
        encoding: tuple[str, str] = _ARRAY,
    ) -> Any:  # noqa: ANN401  h5py's or zarr's, which take slices
        """Make an array, of text for `str`, and say what it encodes."""


class Hdf5:
    """A container in an HDF5 file."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def group(
        self, path: str, encoding: tuple[str, str], more: Mapping[str, Any] | None = None
    ) -> None:
        """As `Container` has it."""
        attributes = self._file.require_group(path).attrs
        for name, value in {**_describe(*encoding), **(more or {})}.items():
            # Of an empty list, h5py would not know that it is one of text.
            attributes[name] = np.empty(0, h5py.string_dtype()) if value == [] else value

    def array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type[str],
        encoding: tuple[str, str] = _ARRAY,
    ) -> Any:  # noqa: ANN401
        """As `Container` has it."""
        packed: dict[str, Any] = {}
        if shape and 0 not in shape:  # what is empty or one value has no chunks
            packed = {"chunks": (min(_ROWS, shape[0]), *shape[1:])}
            packed |= {"compression": "gzip", "compression_opts": 4}
        kind = h5py.string_dtype() if dtype is str else dtype
        array = self._file.create_dataset(path, shape, kind, **packed)
        array.attrs.update(_describe(*encoding))
        return array


class ZarrFolder:
    """A container in a Zarr group of format 3."""

    def __init__(self, root: zarr.Group) -> None:
        self._root = root

    def group(
        self, path: str, encoding: tuple[str, str], more: Mapping[str, Any] | None = None
    ) -> None:
        """As `Container` has it."""
        group = self._root.require_group(path) if path != "/" else self._root
        group.update_attributes({**_describe(*encoding), **(more or {})})

    def array(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any] | type[str],
        encoding: tuple[str, str] = _ARRAY,
    ) -> Any:  # noqa: ANN401
        """As `Container` has it."""
        return self._root.create_array(
            path, shape=shape, dtype=dtype, attributes=_describe(*encoding),
            chunks=tuple(min(_ROWS, max(1, n)) for n in shape),
        )  # fmt: skip


def _describe(kind: str, version: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": version}


def write_anndata(source: Source, path: Path, options: Options) -> None:
    """Write a row for each cell, a variable for each channel; `.zarr` by name, else HDF5."""
    if options.suffix.endswith(".zarr"):
        write_tree(source, ZarrFolder(zarr.open_group(path, mode="w", zarr_format=3)))
        return
    with h5py.File(path, "w") as file:
        write_tree(source, Hdf5(file))


def write_tree(
    source: Source,
    tree: Container,
    region: str | None = None,
    uns: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write a table of cells as AnnData has it.

    `X` has the means, `layers` every other statistic that all channels have, float32 as the tools
    want it; `obs` the other columns, and `obsm["spatial"]` x and y of the centroid in pixels.

    Parameters
    ----------
    source
        The result.
    tree
        Where to write.
    region
        What a column `region` says of every cell; None leaves it out.
    uns
        More of what is told of the table.
    """
    names = source.schema.names
    columns = sort_columns(names)
    n_cells = source.n_cells
    tree.group("/", ("anndata", "0.1.0"))
    for group in ("layers", "obsm", "obsp", "varm", "varp"):
        tree.group(group, _DICT)
    own = ["region"] if region else []
    obs = dict(
        zip(columns.others, sanitize_names([*own, *columns.others])[len(own) :], strict=True)
    )
    order = [*obs.values(), *own]
    tree.group("obs", _FRAME, {"_index": "_index", "column-order": order})
    tree.group("var", _FRAME, {"_index": "_index", "column-order": []})
    _write_text(tree, "var/_index", columns.channels)
    _write_uns(tree, {"densebatch": source.provenance, **(uns or {})})
    index = tree.array("obs/_index", (n_cells,), str, _TEXTS)
    spatial = tree.array("obsm/spatial", (n_cells, 2), np.dtype(np.float64))
    matrices = _make_matrices(tree, columns, n_cells)
    masks: dict[str, Any] = {}
    kept, texts = {}, {}
    for name in columns.others:
        if pa.types.is_string(source.schema.field(name).type):
            texts[name] = _Categories(tree, f"obs/{obs[name]}", n_cells)
            continue
        path, kind = f"obs/{obs[name]}", _find_type(source.schema, name)
        if may_be_unknown(name):
            tree.group(path, ("nullable-boolean", "0.1.0"))
            masks[name] = tree.array(f"{path}/mask", (n_cells,), kind)
            path += "/values"
        kept[name] = tree.array(path, (n_cells,), kind)
    if region:
        tree.group("obs/region", ("categorical", "0.2.0"), {"ordered": False})
        _write_text(tree, "obs/region/categories", [region])
        tree.array("obs/region/codes", (n_cells,), np.dtype(np.int8))  # zeros, as it is made
    start = 0
    for batch in source.read_batches():
        rows = slice(start, start + batch.num_rows)
        start = rows.stop
        index[rows] = np.array([str(cell) for cell in batch["id"].to_pylist()], dtype=object)
        spatial[rows] = np.column_stack([as_numbers(batch, "x_px"), as_numbers(batch, "y_px")])
        for statistic, array in matrices.items():
            array[rows] = as_matrix(batch, columns.matrices[statistic])
        for name, array in kept.items():
            values = as_numbers(batch, name)
            if name in masks:
                masks[name][rows] = np.isnan(values.astype(np.float64))
                values = np.nan_to_num(values.astype(np.float64))
            array[rows] = values.astype(array.dtype)
        for name, column in texts.items():
            column.write(rows, batch[name].to_pylist())
    for column in texts.values():
        column.finish()


class _Categories:
    """A column of a few texts, some of which may be unknown; they are known when all is written.

    Parameters
    ----------
    tree
        Where to write.
    path
        Of the column.
    n_cells
        Its length.
    """

    def __init__(self, tree: Container, path: str, n_cells: int) -> None:
        self._tree, self._path = tree, path
        self._known: dict[str | None, int] = {None: -1}
        tree.group(path, ("categorical", "0.2.0"), {"ordered": False})
        self._codes = tree.array(f"{path}/codes", (n_cells,), np.dtype(np.int32))

    def write(self, rows: slice, texts: Sequence[str | None]) -> None:
        """Write some rows."""
        codes = [self._known.setdefault(text, len(self._known) - 1) for text in texts]
        self._codes[rows] = np.array(codes, np.int32)

    def finish(self) -> None:
        """Write the texts; all rows are written."""
        _write_text(
            self._tree, f"{self._path}/categories", [t for t in self._known if t is not None]
        )


def _make_matrices(tree: Container, columns: Columns, n_cells: int) -> dict[str, Any]:
    """Arrays for the statistics of channels: `X` for the mean, a layer for each other one."""
    made = {}
    for statistic, names in {MEAN: (), **columns.matrices}.items():
        path = "X" if statistic == MEAN else f"layers/{statistic}"
        array = tree.array(path, (n_cells, len(names)), np.dtype(np.float32))
        if names:  # without a channel, `X` is there and has no column
            made[statistic] = array
    return made


def _find_type(schema: pa.Schema, name: str) -> np.dtype[Any]:
    """The type of a column; that of one without a value is a float's."""
    kind = schema.field(name).type
    return np.dtype(np.float64) if pa.types.is_null(kind) else np.dtype(kind.to_pandas_dtype())


def _write_text(tree: Container, path: str, texts: Sequence[str]) -> None:
    array = tree.array(path, (len(texts),), str, _TEXTS)
    if texts:
        array[:] = np.array(texts, dtype=object)


def _write_uns(tree: Container, about: Mapping[str, Mapping[str, str | float]]) -> None:
    tree.group("uns", _DICT)
    for top, values in about.items():
        tree.group(f"uns/{top}", _DICT)
        for name, value in values.items():
            path = f"uns/{top}/{name}"
            if isinstance(value, str):
                tree.array(path, (), str, ("string", "0.2.0"))[()] = value
            else:
                kind = np.dtype(type(value))
                tree.array(path, (), kind, ("numeric-scalar", "0.2.0"))[()] = value


def sanitize_names(names: Iterable[str]) -> list[str]:
    """Names of letters, digits, `.`, `-` and `_`, which differ in more than case.

    Examples
    --------
    >>> sanitize_names(["mean_CD3/CD4", "mean_CD3 CD4", "Id", "id", "__a"])
    ['mean_CD3_CD4', 'mean_CD3_CD4_1', 'Id', 'id_1', 'a']
    """
    made: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        plain = plain.lstrip("_") or "_"
        tried, number = plain, 0
        while tried.lower() in made:
            number += 1
            tried = f"{plain}_{number}"
        made[tried.lower()] = tried
    return list(made.values())
