"""Who follows pixels and measures flow errors, and what the measure is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from densebatch.tracing.candidates import Verdict
from densebatch.tracing.diffusion import compute_flows
from densebatch.tracing.dynamics import CpuDynamics, choose_dynamics
from tests.helpers.candidate_cells import tabulate


@pytest.fixture
def cells_and_flows():
    rng = np.random.default_rng(2)
    labels = ndimage.label(ndimage.gaussian_filter(rng.normal(size=(60, 70)), 2) > 0)[0]
    labels = labels.astype(np.int32)
    verdicts = rng.choice(list(Verdict), labels.max(), p=[0.2, 0.2, 0.6])
    return labels, tabulate(labels, verdicts), rng.normal(size=(60, 70, 2)).astype(np.float32)


def test_a_flow_error_is_the_mean_squared_difference_to_the_shapes_flows(cells_and_flows):
    labels, cells, flows = cells_and_flows
    errors = CpuDynamics(flows).measure_errors(labels, cells)
    squares = ((np.moveaxis(compute_flows(labels), 0, -1) - flows).astype(float) ** 2).sum(-1)
    expected = ndimage.mean(squares, labels, np.arange(1, labels.max() + 1))
    kept = cells.verdict == Verdict.KEPT
    assert 3 < kept.sum() < kept.size
    np.testing.assert_allclose(errors[kept], expected[kept], rtol=1e-5)
    assert not errors[~kept].any()


def test_the_cpu_does_without_pytorch():
    """It takes seconds to import, and the processes that trace on a CPU may never need it."""
    program = """
import sys
import numpy as np
from densebatch.base.geometry import Region
from densebatch.tracing.tile import TraceSettings, trace_tile
window = Region(0, 0, 8, 8)
trace_tile(np.zeros((3, 8, 8), np.float16), window, window, (8, 8), TraceSettings())
print("torch" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"


def test_a_device_is_pytorchs():
    flows = np.zeros((4, 5, 2), np.float32)
    assert isinstance(choose_dynamics(flows, "cpu"), CpuDynamics)
    assert type(choose_dynamics(flows, "cpu:0")).__name__ == "DeviceDynamics"
    with pytest.raises(RuntimeError, match="abacus"):
        choose_dynamics(flows, "abacus")
