"""OpenVINO: bits whatever the threads, no reports, networks as files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from densebatch.engines.openvino import (
    OpenVinoBackend,
    convert_network,
    import_openvino,
    pack_model,
    unpack_model,
)
from densebatch.models.network import HALF_WIDTH
from tests.helpers.networks import SHAPE, make_patches, needs_openvino, trained

pytestmark = [pytest.mark.extra, needs_openvino]


def test_openvino_gives_the_same_bits_with_several_threads_a_patch():
    model = convert_network(trained(HALF_WIDTH), SHAPE)
    patch = make_patches(1)[0][None]
    results = []
    for threads in (1, 2):
        compiled = (
            import_openvino()
            .Core()
            .compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
            )
        )
        results.append(compiled.create_infer_request().infer([patch])[0].copy())
    assert np.array_equal(*results)


def test_openvino_reports_to_nobody():
    """In a process of its own, whose imports are nobody else's."""
    code = (
        "import sys\n"
        "from densebatch.engines.openvino import import_openvino\n"
        "import_openvino()\n"
        "assert 'openvino.tools.ovc' in sys.modules\n"
        "assert not sys.modules['openvino_telemetry']\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_packed_network_is_the_network():
    packed = pack_model(convert_network(trained((2, 8, 16)), SHAPE))
    again = pack_model(unpack_model(packed))
    assert len(packed) > 10_000
    assert again == pack_model(unpack_model(again))


@pytest.mark.parametrize(("precision", "quantised"), [("int8", None), ("f32", b"packed")])
def test_eight_bits_are_those_of_a_quantised_network(precision, quantised):
    with pytest.raises(ValueError, match=f"precision {precision} and quantised weights do not fit"):
        OpenVinoBackend(trained((2, 8, 16)), SHAPE, precision, 1, quantised)
