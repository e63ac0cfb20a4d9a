"""Every backend: the network's outputs, and a patch's bits whatever runs beside it."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.base.geometry import Lattice, Region, fit_axis
from densebatch.engines import make
from densebatch.engines.backend import BACKENDS, PatchShape, evaluate_patches, patch_shape
from densebatch.engines.cuda import CudaBackend
from densebatch.engines.make import check_backend, choose_device, make_backend
from densebatch.engines.pytorch import TorchBackend
from densebatch.models.network import HALF_WIDTH
from densebatch.planning.settings import SegmentSettings
from tests.engines.test_folding import trained

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="the extra `cpu` is not installed"
)
SHAPE = PatchShape(80, 64, Region(8, 8, 72, 56))
# relative RMS of the difference to float32 that rounding to each precision may cost
CLOSE = {"f32": 5e-4, "bf16": 3e-2}


def on_device(network, shape, precision, lanes):
    """The CUDA path's own code, as far as it runs without CUDA; it has its own lanes."""
    return CudaBackend(network, shape, precision, 3, device="cpu")


def by_name(name):
    def make(network, shape, precision, lanes):
        return make_backend(name, "cpu", network, shape, batch=1, lanes=lanes)

    return make


def relative_rms(found, expected):
    difference = found.astype(np.float64) - expected
    return np.sqrt(np.square(difference).mean() / np.square(expected, dtype=np.float64).mean())


MAKERS = [
    pytest.param(by_name("torch"), "f32", id="torch"),
    pytest.param(by_name("torch-bf16"), "bf16", id="torch-bf16"),
    pytest.param(on_device, "f32", id="cuda-code"),
    pytest.param(on_device, "bf16", id="cuda-code-bf16"),
    pytest.param(by_name("openvino"), "f32", id="openvino", marks=needs_openvino),
]


@pytest.fixture(scope="module")
def patches():
    return list(np.random.default_rng(0).random((5, 2, 80, 64), np.float32))


@pytest.mark.parametrize(("make", "precision"), MAKERS)
def test_the_trusted_part_of_the_networks_output(make, precision, patches):
    network = trained((2, 8, 24))
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.stack(patches)))[:, :, *SHAPE.kept.slices].numpy()
    found = evaluate_patches(make(network, SHAPE, precision, 2), patches)
    assert found.dtype == np.float16
    assert found.shape == (5, 3, 64, 48)
    assert relative_rms(found, expected) < CLOSE[precision]
    if precision == "bf16":
        assert relative_rms(found, expected) > CLOSE["f32"], "this was computed in float32"


@pytest.mark.parametrize(("make", "precision"), MAKERS)
def test_lanes_company_order_and_threads_keep_the_bits(make, precision, patches):
    network = trained((2, 16, 32, 64))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        alone = make(network, SHAPE, precision, 1)
        expected = evaluate_patches(alone, patches)
        beside = make(network, SHAPE, precision, 3)
        assert np.array_equal(evaluate_patches(beside, patches), expected)
        assert np.array_equal(evaluate_patches(beside, patches[::-1])[::-1], expected)
        assert np.array_equal(evaluate_patches(alone, patches[3:4]), expected[3:4])
        # as several tasks of one worker process
        with ThreadPoolExecutor(4) as pool:
            ones = list(pool.map(lambda p: evaluate_patches(beside, [p])[0], patches * 2))
        assert np.array_equal(ones, [*expected, *expected])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@needs_openvino
def test_openvino_gives_the_same_bits_with_several_threads_a_patch(patches):
    from densebatch.engines.openvino import convert_network, import_openvino

    model = convert_network(trained(HALF_WIDTH), SHAPE)
    results = []
    for threads in (1, 2):
        compiled = (
            import_openvino()
            .Core()
            .compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
            )
        )
        results.append(compiled.create_infer_request().infer([patches[0][None]])[0].copy())
    assert np.array_equal(*results)


@needs_openvino
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
    pytest.importorskip("openvino")
    from densebatch.engines.openvino import convert_network, pack_model, unpack_model

    packed = pack_model(convert_network(trained((2, 8, 16)), SHAPE))
    again = pack_model(unpack_model(packed))
    assert len(packed) > 10_000
    assert again == pack_model(unpack_model(again))


def test_patches_of_a_lattice():
    lattice = Lattice(fit_axis(500, 224, 8, 16), fit_axis(300, 224, 8, 16))
    shape = patch_shape(lattice)
    assert (shape.height, shape.width) == (lattice.y.patch, lattice.x.patch)
    assert shape.kept.shape == (lattice.y.step, lattice.x.step)
    assert shape.kept.y0 == shape.kept.x0 == 8


def test_settings_and_backends_name_the_same():
    accepted = SegmentSettings.model_json_schema()["properties"]["backend"]["enum"]
    assert accepted == ["auto", *BACKENDS]


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(make, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"openvino is not installed; install densebatch\[cpu\]"):
        check_backend("openvino", "cpu")
    monkeypatch.setattr(make, "find_spec", lambda name: name == "openvino" or None)
    with pytest.raises(InputError, match=r"nncf is not installed; install densebatch\[int8\]"):
        check_backend("openvino-int8", "cpu")


def test_openvino_does_not_run_on_a_gpu():
    with pytest.raises(InputError, match="does not run on cuda; accepted there are torch, "):
        check_backend("openvino", "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_cpu():
    assert choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="device cuda: this process sees none"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_on_a_gpu(precision, compiled, patches):
    network = trained(HALF_WIDTH)
    cpu = evaluate_patches(TorchBackend(network, SHAPE, "f32", 1), patches)
    device = CudaBackend(network, SHAPE, precision, 3, compiled=compiled)
    found = evaluate_patches(device, patches)
    assert relative_rms(found, cpu) < CLOSE[precision]
    assert np.array_equal(evaluate_patches(device, patches[::-1])[::-1], found)
