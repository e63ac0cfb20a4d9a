"""A record's table and picture."""

import io
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from densebatch.studies.benchmark_record import Row
from densebatch.studies.benchmark_report import build_table, draw_record
from tests.helpers.benchmark_records import make_record


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("throughput", None, {"network", "trace", "predict", "number"}),
        (
            "scaling",
            [
                Row("1 workers", {"workers": 1, "speedup": 1.0, "efficiency": 1.0}),
                Row("2 workers", {"workers": 2, "speedup": 1.8, "efficiency": 0.9}),
            ],
            {"speedup", "efficiency", "2"},
        ),
        ("backends", [Row("torch <b>", {"s_per_mpx": 2.0})], {"torch <b>", "s_per_mpx"}),
        ("score", [Row("score", {"score_s": None})], {"score_s"}),
    ],
)
def test_pictures_are_svg_files(kind, rows, words):
    root = ET.fromstring(draw_record(make_record(kind=kind, rows=rows)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert words <= {element.text for element in root.iter()}


def print_table(*arguments):
    text = io.StringIO()
    Console(file=text, width=100).print(build_table(*arguments))
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().split("\n")
    ]
    return [row for row in rows if row]


ROWS = [
    Row("1 workers", {"wall_s": 12345.6, "cells": 25, "gpu_share": None}),
    Row("2 workers", {"wall_s": 0.0123456, "speedup": 2.0}),
]


def test_table_has_a_column_for_each_row_and_a_line_for_each_number():
    assert print_table(make_record(rows=ROWS)) == [
        ["wall_s", "12346", "0.01235"],
        ["cells", "25", "-"],
        ["gpu_share", "-", "-"],
        ["speedup", "-", "2"],
    ]


def test_table_has_ratios_beside_the_numbers():
    ratios = {"2 workers": {"wall_s": 0.5}}
    assert print_table(make_record(rows=ROWS), ratios)[0] == [
        *("wall_s", "12346", "-"),
        *("0.01235", "0.5"),
    ]


def test_throughput_is_drawn_by_stage_and_part():
    values = {
        "wall_s": 9.0,
        "predict_task_s": 8.0,
        "predict_read_task_s": 1.0,
        "predict_network_task_s": 4.0,
        "trace_read_task_s": 2.0,
        "predict_mpx_per_s_of_a_worker": 3.0,
    }
    root = ET.fromstring(draw_record(make_record(rows=[Row("segment", values)])))
    space = "{http://www.w3.org/2000/svg}"
    chart = root.find(f"{space}svg")
    bars = {}
    for bar in chart.findall(f"{space}rect"):
        bars.setdefault(bar.get("fill"), []).append(float(bar.get("height")))
    assert [*bars.values()] == [[46, 92], [184]]
    assert [text.text for text in root.findall(f"{space}text")] == ["read", "network"]
