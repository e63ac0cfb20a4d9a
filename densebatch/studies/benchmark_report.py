"""A benchmark's record as a table and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from densebatch.base.charts import compose_picture, draw_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from densebatch.studies.benchmark import Record, Row

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


def build_table(record: Record, ratios: Mapping[str, Mapping[str, float]] | None = None) -> Table:
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


def draw_record(record: Record) -> str:
    """The numbers that a record is about, as an SVG file's text."""
    rows = record.rows
    if record.kind == "scaling":
        series = {key: [_number(row, key) for row in rows] for key in ("speedup", "efficiency")}
        ticks, x_label, bars = (
            [format_value(row.values["workers"]) for row in rows],
            "workers",
            False,
        )
    elif record.kind == "throughput":
        stages = ("predict", "trace", "number")
        values = rows[0].values
        parts = {
            key.removeprefix(f"{stage}_").removesuffix("_task_s"): None
            for stage in stages
            for key in values
            if key.startswith(f"{stage}_") and key.endswith("_task_s") and key.count("_") > 2
        }
        series = {
            part: [_number(rows[0], f"{stage}_{part}_task_s") for stage in stages] for part in parts
        }
        ticks, x_label, bars = list(stages), "stage", True
    else:
        key = "s_per_mpx" if record.kind == "backends" else "score_s"
        series = {key: [_number(row, key) for row in rows]}
        ticks, x_label, bars = [row.name for row in rows], "", True
    chart = draw_chart(_TITLES[record.kind], x_label, ticks, series, bars=bars)
    # stage and part names are too long for a legend beside the title
    return compose_picture([chart], list(series))


def _number(row: Row, key: str) -> float:
    value = row.values.get(key)
    return float("nan") if value is None else value
