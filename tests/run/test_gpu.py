"""A whole run that uses a GPU; `tests/engines` and `tests/tracing` test the parts of it on one."""

from __future__ import annotations

import pytest
import torch

from densebatch.run.segment import segment
from densebatch.scoring import score_labels
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from tests.helpers.run_files import assert_same_output, output_bytes, read_report, read_result

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = "cuda"


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    # two groups of patches, so that workers share them
    path = tmp_path_factory.mktemp("slide") / "slide.ome.zarr"
    write_slide(Tissue(1100, 1300, seed=3), path)
    return path


@pytest.fixture(scope="module")
def run(slide, tmp_path_factory):
    """A function from the settings of a run to its folder and its number of cells."""

    def call(**how):
        out = tmp_path_factory.mktemp("run")
        # tiles of which every worker gets some
        result = segment(slide, out, membrane=("membrane",), model="dense-tiny", tile=512, **how)
        return out, result.cells

    return call


@pytest.fixture(scope="module")
def on_gpu(run):
    return run(workers=0, device=GPU)


def test_cells_are_a_cpus(run, on_gpu):
    """Flows are rounded otherwise, which the gate allows to tip a cell in five hundred."""
    (out, cells), (on_cpu, expected) = on_gpu, run(workers=0, device="cpu")
    assert read_report(out)["devices"] == [GPU]
    assert read_report(on_cpu)["devices"] == ["cpu"]
    assert expected > 1000
    assert abs(cells - expected) <= expected / 500
    ap = score_labels(read_result(on_cpu)[0], read_result(out)[0]).at("0.50").ap
    assert ap >= 0.998


def test_tiles_are_traced_on_the_device(on_gpu):
    parts = read_report(on_gpu[0])["stages"]["trace"]["parts"]
    assert parts["trace_on_device"] > 0
    assert "trace" not in parts, "the device had no memory for a tile"


def test_files_are_the_same_whoever_does_what(run, on_gpu):
    """One of two workers has the GPU, so that the other traces its tiles on a CPU."""
    out, _ = run(workers=2, device=GPU)
    assert read_report(out)["device_workers"] == 1
    assert_same_output(out, output_bytes(on_gpu[0]))
