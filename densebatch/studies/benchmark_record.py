"""What all benchmarks share: a record of rows of numbers, and how two records compare.

A record is plain data, written as JSON: what was run and where, and for each row a name and
numbers by name. A number that nobody knows is null.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import ConfigDict, TypeAdapter, ValidationError

from densebatch.base.errors import InputError
from densebatch.base.files import write_atomic
from densebatch.base.machine import count_cores, measure_memory, name_gpu, name_processor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LIBRARIES = ("densebatch", "torch", "numpy", "numba", "zarr", "dask", "distributed")
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Attributes
    ----------
    name : of the row, unique in its record
    values : medians of the repeats, by name; None if nobody knows
    repeats : the values of each repeat
    notes : what a reader should know of how it came about, a sentence each
    """

    __pydantic_config__ = _STRICT

    name: str
    values: dict[str, float | None]
    repeats: list[dict[str, float | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BenchmarkRecord:
    """One benchmark, as it is written.

    Attributes
    ----------
    kind : name of the benchmark
    command : what was typed
    settings : what its numbers depend on
    rows : what was measured
    machine : see `describe_machine`
    versions : see `describe_versions`
    """

    __pydantic_config__ = _STRICT

    kind: str
    command: str
    settings: dict[str, Any]
    rows: list[Row]
    machine: dict[str, Any]
    versions: dict[str, str]


def describe_machine() -> dict[str, Any]:
    """Processor, cores, GPU, memory and load; nothing that identifies the machine."""
    return {
        "processor": name_processor(),
        "cores": count_cores(),
        "gpu": name_gpu(),
        "memory_mb": measure_memory().total // 10**6,
        "system": platform.system(),
        "load_before": round(psutil.getloadavg()[0], 2),
    }


def describe_versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def take_medians(name: str, repeats: Sequence[Mapping[str, float | None]]) -> Row:
    """A row of medians; a number that one repeat does not know has none.

    Examples
    --------
    >>> take_medians("a", [{"s": 3.0, "mb": None}, {"s": 1.0, "mb": None}]).values
    {'s': 2.0, 'mb': None}
    """
    values: dict[str, float | None] = {}
    for key in repeats[0]:
        known = [value for repeat in repeats if (value := repeat[key]) is not None]
        values[key] = round(statistics.median(known), 4) if len(known) == len(repeats) else None
    return Row(name, values, [dict(repeat) for repeat in repeats])


def write_record(path: Path, record: BenchmarkRecord) -> None:
    """Write a record as JSON.

    Raises
    ------
    InputError
        If the file cannot be written.
    """
    try:
        write_atomic(path, (json.dumps(asdict(record), indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def read_record(path: Path, kind: str | None = None) -> BenchmarkRecord:
    """Inverse of `write_record`.

    Parameters
    ----------
    path
        The record.
    kind
        Of the benchmark that it ought to be of; None for any.

    Raises
    ------
    InputError
        If the file is not one that a benchmark wrote, or of another benchmark.
    """
    try:
        record = TypeAdapter(BenchmarkRecord).validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(
            f"{path}: is no record of a benchmark; accepted is JSON that "
            "`densebatch benchmark` wrote"
        ) from error
    if kind is not None and record.kind != kind:
        raise InputError(
            f"{path}: is a record of benchmark {record.kind}; accepted here is one of {kind}"
        )
    return record


def compare_records(old: BenchmarkRecord, new: BenchmarkRecord) -> dict[str, dict[str, float]]:
    """New over old, for each number of each row that both records have.

    Raises
    ------
    InputError
        If the records are of different benchmarks, or have no row in common.
    """
    if old.kind != new.kind:
        raise InputError(
            f"the record to compare with is of benchmark {old.kind}; accepted is {new.kind}"
        )
    before = {row.name: row.values for row in old.rows}
    ratios: dict[str, dict[str, float]] = {}
    for row in new.rows:
        for key, value in row.values.items():
            past = before.get(row.name, {}).get(key)
            if value is not None and past:
                ratios.setdefault(row.name, {})[key] = round(value / past, 4)
    if not ratios:
        raise InputError(
            f"the record to compare with has rows {', '.join(before)}; none of them is in this "
            f"one ({', '.join(row.name for row in new.rows)})"
        )
    return ratios


def tell_differences(old: BenchmarkRecord, new: BenchmarkRecord) -> list[str]:
    """Why two records may not compare: settings, machine and versions that differ, in words."""
    return [
        f"{what}: {key} was {before.get(key)!r} and is now {after.get(key)!r}"
        for what, before, after in (
            ("settings", old.settings, new.settings),
            ("machine", old.machine, new.machine),
            ("versions", old.versions, new.versions),
        )
        for key in sorted({*before, *after} - {"load_before"})
        if before.get(key) != after.get(key)
    ]
