"""Every backend: the network's outputs, and a patch's bits whatever runs beside it."""

from __future__ import annotations

import pytest

from densebatch.base.geometry import Lattice, fit_axis
from densebatch.engines.backend import BACKENDS, patch_shape
from densebatch.engines.cuda import CudaBackend
from densebatch.engines.make import make_backend
from densebatch.planning.settings import SegmentSettings
from tests.helpers.backend_checks import check_bits_stay, check_trusted_part
from tests.helpers.networks import (
    SHAPE,
    make_patches,
    needs_openvino,
    trained,
)


def on_device(network, shape, precision, lanes):
    """The CUDA path's own code, as far as it runs without CUDA; it has its own lanes."""
    return CudaBackend(network, shape, precision, 3, device="cpu")


def by_name(name):
    def make(network, shape, precision, lanes):
        return make_backend(name, "cpu", network, shape, batch=1, lanes=lanes)

    return make


MAKERS = [
    pytest.param(by_name("torch"), "f32", id="torch"),
    pytest.param(by_name("torch-bf16"), "bf16", id="torch-bf16"),
    pytest.param(on_device, "f32", id="cuda-code"),
    pytest.param(on_device, "bf16", id="cuda-code-bf16"),
    pytest.param(
        by_name("openvino"), "f32", id="openvino", marks=[pytest.mark.extra, needs_openvino]
    ),
]


@pytest.fixture(scope="module")
def patches():
    return make_patches()


@pytest.mark.parametrize(("make", "precision"), MAKERS)
def test_the_trusted_part_of_the_networks_output(make, precision, patches):
    network = trained((2, 8, 24))
    assert (len(patches), SHAPE.kept.shape) == (5, (64, 48))
    check_trusted_part(make(network, SHAPE, precision, 2), network, patches, SHAPE.kept, precision)


@pytest.mark.parametrize(("make", "precision"), MAKERS)
def test_lanes_company_order_and_threads_keep_the_bits(make, precision, patches):
    network = trained((2, 16, 32, 64))
    check_bits_stay(lambda lanes: make(network, SHAPE, precision, lanes), patches)


def test_patches_of_a_lattice():
    lattice = Lattice(fit_axis(500, 224, 8, 16), fit_axis(300, 224, 8, 16))
    shape = patch_shape(lattice)
    assert (shape.height, shape.width) == (lattice.y.patch, lattice.x.patch)
    assert shape.kept.shape == (lattice.y.step, lattice.x.step)
    assert shape.kept.y0 == shape.kept.x0 == 8


def test_settings_and_backends_name_the_same():
    accepted = SegmentSettings.model_json_schema()["properties"]["backend"]["enum"]
    assert accepted == ["auto", *BACKENDS]
