"""The benchmark command: what it measures adds up."""

import json
import sys

import numpy as np
import pytest

from densebatch.studies import benchmark_backends
from tests.helpers.run_files import call_main


def test_backends(tmp_path, monkeypatch, capsys):
    opened = benchmark_backends.open_backend

    def open_off(name, *rest):
        evaluate = opened(name, *rest)
        return evaluate if name == "torch" else lambda x: evaluate(x) + np.float16(0.25)

    monkeypatch.setattr(benchmark_backends, "open_backend", open_off)
    monkeypatch.setattr(benchmark_backends, "TIMED", ("torch", "torch-bf16"))
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
        "--", "--workers", 0, "--pixel-size", 0.506,
    )  # fmt: skip
    assert code == 0, err
    row = json.loads(out.read_text())["rows"][0]
    values = row["values"]
    # What the runs told of their settings reaches the reader of the record.
    [note] = row["notes"]
    assert "pixel size 0.506 um/px, as stated, is used" in note
    assert note in err.splitlines()
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
