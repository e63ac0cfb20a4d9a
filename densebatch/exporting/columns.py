"""What the columns of the cell table are: of a channel, or of the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from densebatch.compartments.names import COMPARTMENTS
from densebatch.measuring.schema import is_statistic, name_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MEAN = "mean"


@dataclass(frozen=True)
class Columns:
    """Columns of a table, by what they are of.

    Attributes
    ----------
    channels : names, in the order of their means
    matrices : by statistic, such as `mean` or `total_nucleus`, the column of each channel; those
        alone that every channel has
    others : all other columns, in order
    """

    channels: tuple[str, ...]
    matrices: dict[str, tuple[str, ...]]
    others: tuple[str, ...]


def sort_columns(names: Sequence[str]) -> Columns:
    """Tell the columns of channels from those of cells, by their names.

    Parameters
    ----------
    names
        Of the table's columns: `mean_CD3` is the mean of the channel CD3 over the cell, and
        `mean_CD3_nucleus` that over its nucleus.

    Examples
    --------
    >>> found = sort_columns(["id", "mean_CD3", "mean_CD8", "std_CD3", "std_CD8", "q90_CD3"])
    >>> found.channels, found.matrices["std"], found.others
    (('CD3', 'CD8'), ('std_CD3', 'std_CD8'), ('id', 'q90_CD3'))
    """
    listed = set(names)
    means = [name.removeprefix(f"{MEAN}_") for name in names if name.startswith(f"{MEAN}_")]
    channels = tuple(name for name in means if not _is_of_compartment(name, listed))
    matrices: dict[str, tuple[str, ...]] = {}
    statistics = [name.partition("_")[0] for name in names]
    for statistic in dict.fromkeys(filter(is_statistic, statistics)):
        for ending in ("", *(f"_{each}" for each in COMPARTMENTS)):
            columns = tuple(name_column(f"{statistic}{ending}", channel) for channel in channels)
            if columns and listed.issuperset(columns):
                matrices[f"{statistic}{ending}"] = columns
    taken = {column for columns in matrices.values() for column in columns}
    return Columns(channels, matrices, tuple(name for name in names if name not in taken))


def _is_of_compartment(name: str, listed: set[str]) -> bool:
    channel, _, last = name.rpartition("_")
    return last in COMPARTMENTS and f"{MEAN}_{channel}" in listed


def as_matrix(batch: pa.RecordBatch, columns: Sequence[str]) -> NDArray[np.float32]:
    """`(rows, columns)` float32; NaN where the table has no value."""
    found = np.empty((batch.num_rows, len(columns)), np.float32)
    for index, name in enumerate(columns):
        found[:, index] = as_numbers(batch, name)
    return found


def as_numbers(batch: pa.RecordBatch, column: str) -> NDArray[np.generic]:
    """The values of a column; floats with NaN where some are unknown."""
    found = batch[column]
    if pa.types.is_boolean(found.type) and found.null_count:
        found = found.cast(pa.int8())
    values: NDArray[np.generic] = found.to_numpy(zero_copy_only=False)
    return values
