"""Weights files from anywhere: what is read of them, and what is refused in one sentence."""

import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from densebatch.base.errors import InputError
from densebatch.models.model import find_model, load_network
from densebatch.models.network import CPnet
from tests.helpers.checkpoint_files import (
    WIDTHS,
    Bomb,
    make_network,
    make_state,
    outputs,
    refusal,
    save,
)


def sentence_or_none(path):
    """Of a file that may be damaged: how it is refused, if it is."""
    try:
        load_network(find_model(str(path)))
    except InputError as error:
        return str(error)
    return None


# Cellpose's checkpoints


@pytest.fixture(scope="module")
def stock():
    return pytest.importorskip("cellpose.resnet_torch")


@pytest.mark.parametrize("widths", [(2, 32, 64, 128, 256), WIDTHS])
def test_checkpoint_of_stock_loads_by_name(stock, tmp_path, widths):
    reference = stock.CPnet(list(widths), 3, sz=3, diam_mean=30.0)
    reference.load_state_dict(make_network(widths, diam_mean=30.0).state_dict())
    reference.diam_labels.data[0] = 15.0
    path = tmp_path / "CP_20261123"
    reference.save_model(path)
    model = find_model(str(path))
    assert (model.name, model.widths) == ("CP_20261123", widths)
    assert (model.diameter_px, model.default_diameter_px, model.um_per_px) == (30.0, 15.0, None)
    assert (model.patch_px, model.card) == (224, {})
    shape = (1, 2, 64, 48)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference.eval()(x)[0]
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        outputs(load_network(model), shape=shape), expected, atol=1e-5, rtol=0
    )


def test_stock_loads_what_we_save(stock, tmp_path):
    network = make_network()
    torch.save(network.state_dict(), tmp_path / "ours")
    reference = stock.CPnet(list(WIDTHS), 3, sz=3)
    assert set(reference.state_dict()) == set(network.state_dict())
    reference.load_model(tmp_path / "ours")
    x = torch.rand((2, 2, 48, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = reference.eval()(x)[0]
    torch.testing.assert_close(found, outputs(network), atol=1e-5, rtol=0)


@pytest.mark.parametrize("new_zipfile", [True, False])
def test_prefix_of_data_parallel_is_accepted(tmp_path, new_zipfile):
    state = {f"module.{name}": tensor for name, tensor in make_state().items()}
    torch.save(state, tmp_path / "m", _use_new_zipfile_serialization=new_zipfile)
    loaded = load_network(find_model(str(tmp_path / "m")))
    assert torch.equal(outputs(loaded), outputs(make_network()))


def test_old_checkpoint_without_diameters_is_of_30_px(tmp_path):
    state = make_state(diam_mean=None, diam_labels=None)
    state = {k: v for k, v in state.items() if "num_batches" not in k}
    torch.save(state, tmp_path / "cyto")
    model = find_model(str(tmp_path / "cyto"))
    assert (model.diameter_px, model.default_diameter_px) == (30.0, 30.0)
    assert torch.equal(outputs(load_network(model)), outputs(make_network()))


def test_double_precision_is_brought_to_single(tmp_path):
    torch.save({k: v.double() for k, v in make_state().items()}, tmp_path / "m")
    loaded = load_network(find_model(str(tmp_path / "m")))
    assert loaded.output[2].weight.dtype == torch.float32
    assert torch.equal(outputs(loaded), outputs(make_network()))


def test_foreign_safetensors_without_a_card(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(dict(make_state()), path)
    model = find_model(str(path))
    assert (model.um_per_px, model.patch_px, model.nuclei) == (None, 224, True)
    assert torch.equal(outputs(load_network(model)), outputs(make_network()))


# what is refused


def test_pickled_call_is_not_made(tmp_path):
    trap = tmp_path / "executed"
    for number, payload in enumerate(
        [Bomb(trap), {"output.2.weight": Bomb(trap)}, make_state(extra=Bomb(trap))]
    ):
        for name in ("pickle", "old", "new", "renamed.safetensors"):
            path = tmp_path / f"{number}-{name}"
            if name == "pickle":
                path.write_bytes(pickle.dumps(payload))
            else:
                torch.save(payload, path, _use_new_zipfile_serialization=name == "new")
            told = refusal(path)
            assert told.startswith("cannot be read as weights (")
            assert told.endswith(
                "accepted are .safetensors and Cellpose checkpoints (tensors only)"
            )
    assert not trap.exists()
    # the trap works
    pickle.loads((tmp_path / "0-pickle").read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_damaged_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    if suffix:
        save(make_network(), path)
    else:
        torch.save(make_state(), path)
    good = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert refusal(path).startswith("cannot be read as weights (")
    for content in (b"\0" * 1000, b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02."):
        path.write_bytes(content)
        assert refusal(path).startswith("cannot be read as weights (")


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_no_damage_gives_another_kind_of_error(tmp_path, suffix):
    """Flipped bytes in names, shapes and structure: refused or harmless, never a traceback."""
    path = tmp_path / f"m{suffix}"
    if suffix:
        save(make_network((2, 2, 2)), path)
    else:
        torch.save(make_network((2, 2, 2)).state_dict(), path)
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = []
    # the pickle, or the header, comes first
    for place in rng.integers(0, min(len(good), 9000), 70):
        path.write_bytes(
            good[:place] + bytes([good[place] ^ rng.integers(1, 256)]) + good[place + 1 :]
        )
        refused.append(sentence_or_none(path))
    assert not any("\n" in told for told in refused if told)
    assert sum(told is not None for told in refused) > 25


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "no 'downsample.down.res_down_N.proj' weights: not a Cellpose 1-3 network; accepted"),
        ({"state_dict": {}}, "holds no named tensors; accepted are Cellpose checkpoints"),
        ({"epoch": 3, "loss": 0.1}, "holds no named tensors; accepted"),
        ([1, 2], "holds no named tensors; accepted"),
        (torch.zeros(3), "holds no named tensors; accepted"),
        ({3: torch.zeros(3)}, "holds no named tensors; accepted"),
        (
            {"W2": torch.zeros(3)},
            "is a Cellpose-SAM (4.x) network, but weights 'encoder.patch_embed.proj.weight' are "
            "missing",
        ),
        (
            {"encoder.patch_embed.proj.weight": torch.zeros(3)},
            "is a Cellpose-SAM (4.x) network, but weights 'encoder.patch_embed.proj.weight' have 1 "
            "axes, not 4",
        ),
        (
            # as 4.x saves it: half precision, a wrapper's prefix, diameters of its own
            {
                "module.W2": torch.zeros(192, 3, 8, 8, dtype=torch.bfloat16),
                "module.encoder.pos_embed": torch.zeros(1, 32, 32, 4, dtype=torch.bfloat16),
                "module.encoder.blocks.0.attn.rel_pos_h": torch.zeros(27, 4, dtype=torch.bfloat16),
                "module.out.weight": torch.zeros(192, 4, 1, 1, dtype=torch.bfloat16),
                "module.diam_mean": torch.tensor([30.0]),
            },
            "is a Cellpose-SAM (4.x) network, but weights 'encoder.patch_embed.proj.weight' are "
            "missing",
        ),
        (
            {"W2": torch.zeros(3), "encoder.cls_token": torch.zeros(1, 1, 4)},
            "is a Cellpose-DINO (4.x) network: its encoder, DINOv3, is under a licence of its own",
        ),
        (
            {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 4)},
            "is Segment Anything itself, which gives no flows, and not a Cellpose-SAM network",
        ),
        ({"conv1.weight": torch.zeros(3)}, "no 'downsample.down.res_down_N.proj' weights: not"),
    ],
)
def test_file_of_something_else_is_refused(tmp_path, content, told):
    torch.save(content, tmp_path / "m")
    assert refusal(tmp_path / "m").startswith(told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"output__2__weight": None}, "weights 'output.2.weight' are missing"),
        (
            {"upsample__up__res_up_0__conv__conv_1__full__bias": None},
            "weights 'upsample.up.res_up_0.conv.conv_1.full.bias' are missing",
        ),
        ({"surplus": torch.zeros(2)}, "unknown weights 'surplus' (1)"),
        (
            {"output__2__weight": torch.zeros(2, 4, 1, 1)},
            "weights 'output.2.weight' are (2, 4, 1, 1), expected (3, 4, 1, 1)",
        ),
        (
            {"output__0__running_var": torch.zeros(())},
            "weights 'output.0.running_var' are (), expected (4,)",
        ),
        ({"diam_mean": torch.zeros(())}, "weights 'diam_mean' are (), expected (1,)"),
        ({"diam_mean": torch.zeros(1)}, "diam_mean is 0 px; accepted are 0.1 to 10000"),
        ({"diam_labels": torch.tensor([-5.0])}, "diam_labels is -5 px; accepted are 0.1 to"),
        (
            {"output__2__bias": torch.tensor([0, np.nan, 0])},
            "weights 'output.2.bias' are not finite (1 tensors)",
        ),
        (
            {"output__2__bias": torch.tensor([0, -np.inf, 0])},
            "weights 'output.2.bias' are not finite (1 tensors)",
        ),
        (
            {"output__2__bias": torch.zeros(3, dtype=torch.complex64)},
            "weights 'output.2.bias' are torch.complex64, torch.strided, on cpu; accepted",
        ),
        (
            {"output__2__bias": torch.zeros(3).to_sparse()},
            "weights 'output.2.bias' are torch.float32, torch.sparse_coo, on cpu; accepted",
        ),
        (
            {"output__2__bias": torch.full((3,), 1e300, dtype=torch.float64)},
            "weights 'output.2.bias' are not finite",
        ),
        (
            {"output__0__running_var": torch.full((4,), -1.0)},
            "variances 'output.0.running_var' are negative",
        ),
        (
            {"output__2__bias": torch.empty(3, device="meta")},
            "weights 'output.2.bias' are torch.float32, torch.strided, on meta; accepted",
        ),
        (
            {"output__2__bias": torch.zeros(1).expand(2**40)},
            "has 109951",  # a billion-fold view of one number: counted, not touched
        ),
        (
            {"downsample__down__res_down_0__proj__1__weight": torch.zeros(4, 3, 1, 1)},
            "takes 3 input channels; accepted are 2",
        ),
        (
            {"downsample__down__res_down_0__proj__1__weight": torch.zeros(4)},
            "projection weights of level 0 have 1 axes, not 4; accepted are Cellpose 1-3 networks",
        ),
        (
            {"downsample__down__res_down_1__proj__1__weight": torch.zeros(100_000, 4, 1, 1)},
            "weights 'downsample.down.res_down_1.proj.1.bias' are (8,), expected (100000,)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, changes, told):
    torch.save(make_state(**changes), tmp_path / "m")
    assert refusal(tmp_path / "m").startswith(told)


def test_network_deeper_than_its_patches_allow_is_refused(tmp_path):
    torch.save(CPnet((2, *[2] * 6)).state_dict(), tmp_path / "m")
    assert refusal(tmp_path / "m") == "has 6 resolutions; accepted are 2 to 5"
    torch.save(make_network((2, *[2] * 5)).state_dict(), tmp_path / "m")
    assert find_model(str(tmp_path / "m")).widths == (2, *[2] * 5)


def test_archive_with_less_than_it_declares_is_refused(tmp_path):
    torch.save(make_state(), tmp_path / "good")
    with (
        zipfile.ZipFile(tmp_path / "good") as good,
        zipfile.ZipFile(tmp_path / "m", "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for item in good.infolist():
            data = good.read(item)
            bad.writestr(
                item.filename, data[: len(data) // 2] if "/data/" in item.filename else data
            )
    assert refusal(tmp_path / "m").startswith("cannot be read as weights (")
