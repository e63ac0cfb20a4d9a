"""Cellpose-SAM on backends: its outputs, a patch's bits, and which backends refuse it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.engines.backend import BACKENDS, PatchShape, evaluate_patches
from densebatch.engines.cuda import CudaBackend
from densebatch.engines.make import check_kind, make_backend
from densebatch.engines.pytorch import cast_network
from densebatch.engines.speed import measure_flop_per_s
from tests.helpers.backend_checks import check_bits_stay, check_trusted_part
from tests.helpers.networks import CLOSE, relative_rms
from tests.helpers.sam_files import make_sam

SHAPE = PatchShape(64, 64, Region(16, 16, 48, 48))


def on_device(network, precision, lanes):
    return CudaBackend(network, SHAPE, precision, 3, device="cpu")


def on_cpu(network, precision, lanes):
    name = {"f32": "torch", "bf16": "torch-bf16"}[precision]
    return make_backend(name, "cpu", network, SHAPE, batch=1, lanes=lanes)


MAKERS = [
    pytest.param(make, precision, id=f"{make.__name__}-{precision}")
    for make in (on_cpu, on_device)
    for precision in ("f32", "bf16")
]


@pytest.fixture(scope="module")
def patches():
    return list(np.random.default_rng(0).random((5, 3, 64, 64), np.float32))


@pytest.mark.parametrize(("make", "precision"), MAKERS)
def test_the_trusted_part_of_the_networks_output(make, precision, patches):
    network = make_sam()
    assert (len(patches), SHAPE.kept.shape) == (5, (32, 32))
    check_trusted_part(make(network, precision, 2), network, patches, SHAPE.kept, precision)


@pytest.mark.parametrize(("make", "precision"), MAKERS)
def test_lanes_company_order_and_threads_keep_the_bits(make, precision, patches):
    network = make_sam()
    check_bits_stay(lambda lanes: make(network, precision, lanes), patches)


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchInductor's own
def test_compiled(patches):
    network = make_sam()
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.stack(patches)))[:, :, *SHAPE.kept.slices].numpy()
    backend = make_backend("compile", "cpu", network, SHAPE, batch=1, lanes=1)
    assert relative_rms(evaluate_patches(backend, patches), expected) < CLOSE["f32"]


def test_weights_are_shared_until_they_are_cast():
    """A full-size network has 1.2 GB of them."""
    network = make_sam()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    same, cast = (cast_network(network, precision) for precision in ("f32", "bf16"))
    for ours, theirs in zip(network.parameters(), same.parameters(), strict=True):
        assert ours is not theirs
        assert ours.data_ptr() == theirs.data_ptr()
    norms = [p for name, p in cast.named_parameters() if "norm" in name or "neck.1" in name]
    linear = [p for name, p in cast.named_parameters() if ".mlp." in name or ".qkv." in name]
    assert {p.dtype for p in norms} == {torch.float32}
    assert {p.dtype for p in linear} == {torch.bfloat16}
    same.to(memory_format=torch.channels_last)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == before[name].stride()
        assert value.dtype == torch.float32


def test_backends_that_do_not_evaluate_it_say_so():
    for name, traits in BACKENDS.items():
        if traits.library == "openvino":
            with pytest.raises(InputError) as caught:
                check_kind(name, "cellpose-sam")
            assert str(caught.value) == (
                f"backend {name}: does not evaluate Cellpose-SAM (4.x) networks; accepted for them "
                "are torch, torch-bf16, compile, compile-bf16"
            )
        else:
            check_kind(name, "cellpose-sam")
        check_kind(name, "cpnet")


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_speed_is_measured_on_the_threads_that_are_asked_for(precision):
    before = torch.get_num_threads()
    assert 1e8 < measure_flop_per_s("cpu", precision, 1) < 1e14
    assert torch.get_num_threads() == before
