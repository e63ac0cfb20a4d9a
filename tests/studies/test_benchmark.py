"""The benchmark command: what it measures adds up, and records compare."""

import json
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

from densebatch.base.errors import DensebatchError, InputError
from densebatch.cli.main import cli
from densebatch.studies import benchmark_parts
from densebatch.studies.benchmark import (
    Record,
    Row,
    compare,
    read_record,
    summarize,
    tell_differences,
)
from densebatch.studies.benchmark import write_record as write
from densebatch.studies.benchmark_report import draw_record
from densebatch.studies.watch import watch, watch_success
from tests.helpers.run_files import call_main


def make_record(kind="throughput", rows=None, **changes):
    values = {
        "wall_s": 2.0,
        "predict_task_s": 1.0,
        "predict_network_task_s": 0.9,
        "trace_trace_task_s": 0.4,
        "gpu_share": None,
    }
    rows = rows or [Row("segment", values)]
    return Record(
        kind,
        "densebatch benchmark",
        changes.get("settings", {"size": 256}),
        rows,
        changes.get("machine", {"cores": 2, "load_before": 0.1}),
        {"torch": "1"},
    )


def test_a_record_survives_its_file(tmp_path):
    record = make_record()
    write(tmp_path / "a.json", record)
    assert read_record(tmp_path / "a.json") == record


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rows": [{"name": "a"}]}', '{"kind": "score", "rows": 3}', "\x00"]
)
def test_a_file_that_is_no_record(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is no record of a benchmark; accepted is JSON"):
        read_record(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path / "absent.json")


@pytest.mark.parametrize("part", ["settings", "machine", "versions"])
def test_a_record_whose_parts_are_no_mappings(tmp_path, part):
    write(tmp_path / "a.json", make_record())
    document = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**document, part: None}))
    with pytest.raises(InputError, match="is no record of a benchmark"):
        read_record(tmp_path / "a.json")


def test_a_record_of_another_benchmark_is_refused_before_anything_is_measured(tmp_path):
    write(tmp_path / "old.json", make_record(kind="score"))
    command = ["benchmark", "backends", "--compare", str(tmp_path / "old.json")]
    result = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "new.json")])
    assert "is a record of benchmark score; accepted here is one of backends" in str(
        result.exception
    )
    assert not (tmp_path / "new.json").exists()


def test_ratios_are_new_over_old():
    old = make_record(rows=[Row("segment", {"wall_s": 4.0, "cells": 0, "gpu_share": None})])
    new = make_record(rows=[Row("segment", {"wall_s": 1.0, "cells": 5, "gpu_share": 0.5})])
    assert compare(old, new) == {"segment": {"wall_s": 0.25}}
    with pytest.raises(InputError, match="is of benchmark score; accepted is throughput"):
        compare(make_record(kind="score"), new)
    with pytest.raises(InputError, match="has rows other; none of them"):
        compare(make_record(rows=[Row("other", {"wall_s": 1.0})]), new)


def test_what_differs_is_told_but_for_the_load():
    old = make_record(machine={"cores": 2, "load_before": 9.0})
    assert tell_differences(old, make_record()) == []
    new = make_record(settings={"size": 512}, machine={"cores": 4})
    assert tell_differences(old, new) == [
        "settings: size was 256 and is now 512",
        "machine: cores was 2 and is now 4",
    ]


def test_a_median_needs_all_repeats():
    row = summarize("a", [{"s": 1.0, "mb": 5.0}, {"s": 9.0, "mb": None}, {"s": 2.0, "mb": 7.0}])
    assert row.values == {"s": 2.0, "mb": None}
    assert len(row.repeats) == 3


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


def test_a_command_is_watched():
    hold = "import time; a = bytearray(300_000_000); time.sleep(0.5); print('said')"
    watched = watch([sys.executable, "-c", hold])
    assert watched.returncode == 0
    assert watched.output == "said\n"
    assert 0.5 <= watched.wall_s < 60
    assert 300 < watched.largest_mb <= watched.peak_mb < 500


def test_memory_is_that_of_all_processes():
    child = "a = bytearray(100_000_000); import time; time.sleep(2)"
    parent = f"import subprocess, sys; c = [sys.executable, '-c', {child!r}]; "
    parent += "p = [subprocess.Popen(c) for _ in range(2)]; [q.wait() for q in p]"
    watched = watch([sys.executable, "-c", parent])
    assert watched.peak_mb > 200 > watched.largest_mb > 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process to cores")
def test_processors_are_limited_for_the_command_alone():
    import os

    before = os.sched_getaffinity(0)
    tell = "import os; print(len(os.sched_getaffinity(0)))"
    assert watch([sys.executable, "-c", tell], cores=1).output == "1\n"
    assert os.sched_getaffinity(0) == before


def test_a_failed_command_is_told():
    with pytest.raises(DensebatchError, match=r"ended with 3: it broke$"):
        watch_success([sys.executable, "-c", "print('it broke'); raise SystemExit(3)"])


def test_backends(tmp_path, monkeypatch, capsys):
    opened = benchmark_parts.open_backend

    def open_off(name, *rest):
        evaluate = opened(name, *rest)
        return evaluate if name == "torch" else lambda x: evaluate(x) + np.float16(0.25)

    monkeypatch.setattr(benchmark_parts, "open_backend", open_off)
    monkeypatch.setattr(benchmark_parts, "TIMED", ("torch", "torch-bf16"))
    out = tmp_path / "new.json"
    arguments = ("benchmark", "backends", "--patches", 1, "--repeats", 1, "-o", out)
    code, told, _ = call_main(capsys, *arguments)
    assert code == 0
    record = json.loads(out.read_text())
    assert out.with_suffix(".svg").exists()
    torch, other = record["rows"]
    assert torch["values"]["max_difference"] == 0
    assert other["values"]["mean_difference"] == pytest.approx(0.25, abs=0.1)
    assert torch["values"]["s_per_mpx"] > 0
    assert record["settings"]["patches"] == 1
    assert record["machine"]["cores"] >= 1
    assert "max_difference" in told
    code, told, _ = call_main(capsys, *arguments, "--backend", "torch", "--compare", out)
    assert code == 0
    assert "new / old" in told


def test_score(tmp_path, capsys):
    out = tmp_path / "new.json"
    code, _, _ = call_main(capsys, "benchmark", "score", "--size", 256, "--repeats", 1, "-o", out)
    assert code == 0
    values = json.loads(out.read_text())["rows"][0]["values"]
    assert values["cells"] > 100
    assert 0.3 < values["ap"] < 1
    assert values["cells_per_s"] == pytest.approx(values["cells"] / values["score_s"], rel=0.01)


def test_throughput(tmp_path, capsys):
    out = tmp_path / "new.json"
    code, told, err = call_main(
        capsys, "benchmark", "throughput", "--size", 256, "--repeats", 1, "-o", out,
        "--", "--workers", 0,
    )  # fmt: skip
    assert code == 0, err
    values = json.loads(out.read_text())["rows"][0]["values"]
    assert values["slide_mpx"] == 0.0655
    assert values["cells"] > 20
    assert values["wall_s"] > values["run_s"] > values["network_s"] > 0
    assert values["network_share"] == pytest.approx(values["network_s"] / values["run_s"], rel=0.01)
    assert values["mpx_per_s"] == pytest.approx(0.0655 / values["wall_s"], rel=0.05, abs=1e-3)
    assert values["peak_mb"] > 200
    if sys.platform == "linux":
        assert values["read_mb"] > 0.2
        assert values["written_mb"] > 0.01
    assert "wall_over_network" in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("backends", "--backend", "abacus"), "error: backend 'abacus': accepted are torch"),
        (("scaling", "--workers", "1,1"), "accepted are different numbers from 1 on"),
        (("scaling", "--workers", "two"), "accepted are numbers such as 1,2,4"),
        (("scaling", "--workers", "100000"), "accepted are 1 to"),
        (("score", "-o", "absent/new.json"), "there is no folder absent"),
        (("score", "--compare", "absent.json"), "absent.json: cannot be read"),
    ],
)
def test_bad_input(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, told, err = call_main(capsys, "benchmark", *arguments)
    assert code == 2
    assert sentence in err
    assert not told
    assert not list(tmp_path.iterdir())
