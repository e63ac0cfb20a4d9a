"""A benchmark's record as a table and as a picture."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from rich.table import Table

from densebatch.base.charts import compose_picture, draw_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.studies.benchmark_record import BenchmarkRecord, Row

_STAGES = ("predict", "trace", "number")
_TITLES = {
    "throughput": "Seconds of all tasks, by stage and part",
    "scaling": "Speed over one worker's, and efficiency",
    "score": "Scoring: seconds",
    "backends": "Network: seconds per Mpx",
}


def format_value(value: float | None) -> str:
    """Four digits that matter.

    Examples
    --------
    >>> format_value(None), format_value(0.012344), format_value(12345.6), format_value(2.0)
    ('-', '0.01234', '12346', '2')
    """
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def build_table(
    record: BenchmarkRecord, ratios: Mapping[str, Mapping[str, float]] | None = None
) -> Table:
    """Numbers down, rows across; with ratios to an earlier record, a column of them after each."""
    table = Table(title=f"{record.kind}: medians", title_justify="left")
    table.add_column("")
    for row in record.rows:
        table.add_column(row.name, justify="right")
        if ratios is not None:
            table.add_column("new / old", justify="right")
    for key in dict.fromkeys(key for row in record.rows for key in row.values):
        cells = []
        for row in record.rows:
            cells.append(format_value(row.values.get(key)))
            if ratios is not None:
                cells.append(format_value(ratios.get(row.name, {}).get(key)))
        table.add_row(key, *cells)
    return table


def draw_record(record: BenchmarkRecord) -> str:
    """The numbers that a record is about, as an SVG file's text."""
    rows = record.rows
    bars, x_label = True, ""
    if record.kind == "scaling":
        series = {key: [_number(row, key) for row in rows] for key in ("speedup", "efficiency")}
        ticks = [format_value(row.values["workers"]) for row in rows]
        bars, x_label = False, "workers"
    elif record.kind == "throughput":
        series = _collect_parts(rows[0])
        ticks, x_label = list(_STAGES), "stage"
    else:
        key = "s_per_mpx" if record.kind == "backends" else "score_s"
        series = {key: [_number(row, key) for row in rows]}
        ticks = [row.name for row in rows]
    chart = draw_chart(_TITLES[record.kind], x_label, ticks, series, bars=bars)
    # Names of stages and parts are too long for a legend beside the title.
    return compose_picture([chart], list(series))


def _collect_parts(row: Row) -> dict[str, list[float]]:
    """Seconds by part (`read`, `network`, ...) in each stage, from `STAGE_PART_task_s`."""
    found = (re.fullmatch(rf"(?:{'|'.join(_STAGES)})_(.+)_task_s", key) for key in row.values)
    parts = dict.fromkeys(match[1] for match in found if match)
    return {part: [_number(row, f"{stage}_{part}_task_s") for stage in _STAGES] for part in parts}


def _number(row: Row, key: str) -> float:
    value = row.values.get(key)
    return math.nan if value is None else value
