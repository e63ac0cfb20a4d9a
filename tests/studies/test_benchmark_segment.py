"""Whole runs on a slide of one's own, with one core a worker."""

import json
import os

import pytest

from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import CHANNELS, Tissue
from tests.helpers.run_files import call_main

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, and a system that limits a process to one of them",
)


@pytest.mark.slow
def test_scaling_over_the_first_number_of_workers(tmp_path, capsys):
    write_slide(Tissue(256, 256, seed=5), tmp_path / "own.ome.zarr")
    out = tmp_path / "new.json"
    code, told, err = call_main(
        capsys, "benchmark", "scaling", "--slide", tmp_path / "own.ome.zarr", "--workers", "2,1",
        "--repeats", 1, "-o", out, "--", "--membrane", CHANNELS[0], "--membrane", CHANNELS[1],
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out.read_text())
    two, one = (row["values"] for row in record["rows"])
    assert [row["name"] for row in record["rows"]] == ["2 workers", "1 workers"]
    assert (two["workers"], two["speedup"], two["efficiency"]) == (2, 1, 1)
    assert one["speedup"] == pytest.approx(one["mpx_per_s"] / two["mpx_per_s"], rel=0.01)
    assert one["efficiency"] == pytest.approx(2 * one["speedup"], abs=2e-4)
    assert [row["notes"] for row in record["rows"]] == [[], []]
    assert one["cells"] == two["cells"] > 20
    assert record["settings"]["slide"] == str(tmp_path / "own.ome.zarr")
    assert "efficiency" in told
