import hashlib
import json
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from densebatch.base.errors import InputError
from densebatch.models import model as models
from densebatch.models import zoo
from densebatch.models.model import (
    ModelSpec,
    describe,
    find_model,
    list_bundled,
    load_network,
    save_model,
)
from densebatch.models.network import CPnet
from densebatch.planning.scale import choose_rescale
from densebatch.planning.settings import DEFAULT_MODEL
from tests.helpers.checkpoint_files import WIDTHS, Bomb, make_network, make_state

USE = {
    "um_per_px": 0.5,
    "patch_px": 96,
    "margin_px": 8,
    "percentiles": [1.0, 99.0],
    "nuclei": True,
}


def save(network, path, **changes):
    settings = {
        "um_per_px": 0.5,
        "patch_px": 96,
        "margin_px": 8,
        "percentiles": (1.0, 99.0),
        "nuclei": True,
        "card": {"name": "test", "recipe": {"seed": 0}},
    }
    save_model(network, path, **(settings | changes))
    return path


def save_with_card(path, card):
    state = {k: v for k, v in make_state().items() if "num_batches" not in k}
    safetensors.torch.save_file(state, path, metadata={"densebatch": card})
    return path


def outputs(network, seed=0, shape=(2, 2, 48, 64)):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return network(x)


def refusal(path):
    """The sentence with which a file is refused, before any network is built from it."""
    with pytest.raises(InputError) as caught:
        find_model(str(path))
    message = str(caught.value)
    assert message.startswith(f"model {path}: ")
    assert "\n" not in message
    assert len(message) < 600
    return message.removeprefix(f"model {path}: ")


def sentence_or_none(path):
    """Of a file that may be damaged: how it is refused, if it is."""
    try:
        load_network(find_model(str(path)))
    except InputError as error:
        return str(error)
    return None


# our own format


@pytest.mark.parametrize("half", [True, False])
def test_saved_model_comes_back(tmp_path, half):
    network = make_network(diam_mean=17.3)
    path = save(network, tmp_path / "a" / "mine.safetensors", half=half)
    spec = find_model(str(path))
    assert spec == ModelSpec(
        name="mine",
        path=str(path.resolve()),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        widths=WIDTHS,
        diameter_px=float(np.float32(17.3)),
        um_per_px=0.5,
        default_diameter_px=float(np.float32(17.3)),
        patch_px=96,
        margin_px=8,
        percentiles=(1.0, 99.0),
        nuclei=True,
        card={"name": "test", "recipe": {"seed": 0}, "use": USE},
    )
    loaded = load_network(spec)
    assert not loaded.training
    assert loaded.widths == WIDTHS
    for name, tensor in network.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == tensor.dtype
        if name.endswith("num_batches_tracked"):
            continue
        narrow = half and "running_" not in name and not name.startswith("diam_")
        assert torch.equal(found, tensor.half().float() if narrow else tensor), name
    expected, found = outputs(network), outputs(loaded)
    assert torch.equal(found, expected) != half
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


def test_stored_weights_are_narrow_and_statistics_are_not(tmp_path):
    network = make_network()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-9)  # float16 would make it zero
    path = save(network, tmp_path / "m.safetensors")
    state = safetensors.torch.load_file(path)
    assert state["output.2.weight"].dtype == torch.float16
    assert state["output.0.running_var"].dtype == torch.float32
    assert load_network(find_model(str(path))).output[0].running_var.min() == np.float32(1e-9)
    assert not any("num_batches" in name for name in state)


def test_same_network_is_the_same_file(tmp_path):
    paths = [save(make_network(), tmp_path / f"{name}.safetensors") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    other = save(make_network(seed=1), tmp_path / "c.safetensors")
    assert find_model(str(other)).sha256 != find_model(str(paths[0])).sha256


def test_network_beyond_float16_is_not_saved(tmp_path):
    network = make_network()
    network.output[2].bias.data[1] = 1e5
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match=r"weights 'output\.2\.bias' are beyond float16"):
        save(network, path)
    assert not path.exists()
    save(network, path, half=False)
    assert load_network(find_model(str(path))).output[2].bias[1] == 1e5


def test_changed_file_is_read_again(tmp_path):
    path = save(make_network(), tmp_path / "m.safetensors")
    first = find_model(str(path))
    save(make_network(seed=1), path)
    second = find_model(str(path))
    assert first.sha256 != second.sha256
    expected = make_network(seed=1).output[2].bias.half().float()
    assert torch.equal(load_network(second).output[2].bias, expected)


@pytest.mark.parametrize("name", list_bundled())
def test_a_bundled_model_that_is_not_what_it_came_as_is_refused(name, tmp_path, monkeypatch):
    whole = models.bundled_path(name).read_bytes()
    spec = find_model(name)
    assert spec == models._read_spec(name, models.bundled_path(name), spec.sha256)
    path = tmp_path / f"{name}.safetensors"
    monkeypatch.setattr(models, "bundled_path", lambda _: path)
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    for content in (whole[: len(whole) // 2], b"", flipped):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not the file that came with densebatch"):
            find_model(name)


def test_bundled_model():
    assert DEFAULT_MODEL in list_bundled()
    spec = find_model(DEFAULT_MODEL)
    assert spec.name == DEFAULT_MODEL
    assert spec.um_per_px == 0.5
    assert 5 < spec.diameter_px < 30
    assert outputs(load_network(spec)).isfinite().all()


def test_record_of_a_model_is_plain(tmp_path):
    spec = find_model(str(save(make_network(), tmp_path / "m.safetensors")))
    record = describe(spec)
    json.dumps(record)
    assert record["sha256"] == spec.sha256
    assert "card" not in record


def test_unknown_name_tells_what_there_is(tmp_path):
    for name in ("cyto9", str(tmp_path), str(tmp_path / "no.safetensors")):
        with pytest.raises(InputError) as caught:
            find_model(name)
        bundled = ", ".join(list_bundled()) or "none"
        assert str(caught.value) == (
            f"model {name!r} is neither bundled ({bundled}), nor one that `densebatch models "
            f"fetch` knows ({', '.join(zoo.KNOWN)}), nor a file; give such a name or the path of "
            "a .safetensors or Cellpose 1-3 checkpoint"
        )


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
    spec = find_model(str(path))
    assert (spec.name, spec.widths) == ("CP_20261123", widths)
    assert (spec.diameter_px, spec.default_diameter_px, spec.um_per_px) == (30.0, 15.0, None)
    assert (spec.patch_px, spec.card) == (224, {})
    shape = (1, 2, 64, 48)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = reference.eval()(x)[0]
    assert expected.std() > 1e-3
    torch.testing.assert_close(
        outputs(load_network(spec), shape=shape), expected, atol=1e-5, rtol=0
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
    spec = find_model(str(tmp_path / "cyto"))
    assert (spec.diameter_px, spec.default_diameter_px) == (30.0, 30.0)
    assert torch.equal(outputs(load_network(spec)), outputs(make_network()))


def test_double_precision_is_brought_to_single(tmp_path):
    torch.save({k: v.double() for k, v in make_state().items()}, tmp_path / "m")
    loaded = load_network(find_model(str(tmp_path / "m")))
    assert loaded.output[2].weight.dtype == torch.float32
    assert torch.equal(outputs(loaded), outputs(make_network()))


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
                "accepted are .safetensors and Cellpose 1-3 checkpoints (tensors only)"
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
        ({"state_dict": {}}, "holds no named tensors; accepted are Cellpose 1-3 checkpoints"),
        ({"epoch": 3, "loss": 0.1}, "holds no named tensors; accepted"),
        ([1, 2], "holds no named tensors; accepted"),
        (torch.zeros(3), "holds no named tensors; accepted"),
        ({3: torch.zeros(3)}, "holds no named tensors; accepted"),
        ({"W2": torch.zeros(3)}, "is a Cellpose-SAM (4.x) model; accepted are Cellpose 1-3"),
        (
            {"encoder.patch_embed.proj.weight": torch.zeros(3)},
            "is a Cellpose-SAM (4.x) model; accepted are Cellpose 1-3",
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
            "is a Cellpose-SAM (4.x) model; accepted are Cellpose 1-3",
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


def test_file_that_changed_after_planning_is_refused(tmp_path):
    """A worker gets the spec and reads the file itself, maybe much later."""
    path = save(make_network(), tmp_path / "m.safetensors")
    spec = find_model(str(path))
    load_network(spec)
    save(make_network(seed=1), path)
    with pytest.raises(InputError) as caught:
        load_network(spec)
    assert str(caught.value) == f"model {path}: has changed since the run was planned"
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)"):
        load_network(spec)


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("{", "cannot be read as weights ("),
        ("[]", "its card is a list; accepted is a mapping"),
        ('{"use": 3}', "its card tells of use 'int'; accepted are um_per_px, patch_px"),
        ('{"use": {}}', "its card tells of use ''; accepted are um_per_px, patch_px"),
        (
            json.dumps({"use": USE | {"sha256": "0" * 64}}),
            "its card tells of use 'margin_px, nuclei, patch_px, percentiles, sha256, um_per_px'",
        ),
        (
            json.dumps({"use": USE | {"um_per_px": 0}}),
            "its card says um_per_px = 0; accepted: null",
        ),
        (json.dumps({"use": USE | {"um_per_px": float("nan")}}), "its card says um_per_px = nan"),
        (json.dumps({"use": USE | {"um_per_px": "a"}}), "its card says um_per_px = a; accepted"),
        (json.dumps({"use": USE | {"patch_px": 10**9}}), "its card says patch_px = 1000000000;"),
        (json.dumps({"use": USE | {"patch_px": 96.0}}), "its card says patch_px = 96.0; accepted"),
        (json.dumps({"use": USE | {"patch_px": 8}}), "its card says patch_px = 8; accepted: an"),
        (json.dumps({"use": USE | {"margin_px": -1}}), "its card says margin_px = -1; accepted"),
        (json.dumps({"use": USE | {"margin_px": True}}), "its card says margin_px = True;"),
        (
            json.dumps({"use": USE | {"percentiles": [99, 1]}}),
            "its card says percentiles = [99, 1]",
        ),
        (json.dumps({"use": USE | {"percentiles": 3}}), "its card says percentiles = 3; accepted"),
        (
            json.dumps({"use": USE | {"percentiles": [1, 101]}}),
            "its card says percentiles = [1, 10",
        ),
        (json.dumps({"use": USE | {"nuclei": 1}}), "its card says nuclei = 1; accepted: true or"),
    ],
)
def test_card_that_says_something_else_is_refused(tmp_path, card, told):
    assert refusal(save_with_card(tmp_path / "m.safetensors", card)).startswith(told)


def test_foreign_safetensors_without_a_card(tmp_path):
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file(dict(make_state()), path)
    spec = find_model(str(path))
    assert (spec.um_per_px, spec.patch_px, spec.nuclei) == (None, 224, True)
    assert torch.equal(outputs(load_network(spec)), outputs(make_network()))


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


# scale


def spec_of(um_per_px=None, diameter_px=30.0, default_diameter_px=30.0):
    return ModelSpec("m", "/m", "0", WIDTHS, diameter_px, um_per_px, default_diameter_px)


@pytest.mark.parametrize(
    ("spec", "um_per_px", "diameter_px", "factor", "reason"),
    [
        # a diameter decides over everything
        (spec_of(0.5), 0.25, 15.0, 2.0, "cells of 15 px, network trained on 30 px"),
        (spec_of(), None, 60.0, 0.5, "cells of 60 px, network trained on 30 px"),
        # then pixel sizes
        (spec_of(0.5), 0.25, None, 0.5, "slide 0.25 um/px, network 0.5 um/px"),
        (spec_of(0.5), 1.0, None, 2.0, "slide 1 um/px, network 0.5 um/px"),
        # then the model alone
        (
            spec_of(0.5, 30, 15),
            None,
            None,
            2.0,
            "pixel size unknown, taken as 1 um/px, that of the model's images",
        ),
        (
            spec_of(None, 30, 15),
            0.25,
            None,
            2.0,
            "model's default cell diameter 15 px, network trained on 30 px",
        ),
        (
            spec_of(None, 17, 17),
            None,
            None,
            1.0,
            "model's default cell diameter 17 px, network trained on 17 px",
        ),
    ],
)
def test_rescale_follows_what_is_known(spec, um_per_px, diameter_px, factor, reason):
    assert choose_rescale(spec, um_per_px, diameter_px) == (factor, reason)


@pytest.mark.parametrize(
    ("um_per_px", "factor"),
    [
        (0.5, 1),
        (0.514, 1),
        (0.486, 1),
        (0.516, 1.032),
        (0.484, 0.968),
        (4.0, 8.0),
        (0.03125, 0.0625),
    ],
)
def test_a_factor_near_1_is_1(um_per_px, factor):
    found, _ = choose_rescale(spec_of(0.5), um_per_px, None)
    assert found == pytest.approx(factor, abs=1e-12)
    assert (found == 1.0) == (factor == 1)


@pytest.mark.parametrize(
    ("um_per_px", "factor"), [(4.01, "8.02"), (0.0312, "0.0624"), (1e9, "2e+09")]
)
def test_a_factor_out_of_range_is_refused(um_per_px, factor):
    with pytest.raises(InputError) as caught:
        choose_rescale(spec_of(0.5), um_per_px, None)
    assert str(caught.value) == (
        f"the slide would be rescaled by {factor} (slide {um_per_px:g} um/px, network 0.5 um/px); "
        "accepted is 0.0625 to 8: check --pixel-size or --diameter"
    )


@pytest.mark.parametrize("diameter_px", [0.0, -3.0, float("nan"), float("inf")])
def test_a_diameter_that_is_none_is_refused(diameter_px):
    with pytest.raises(InputError, match=rf"^diameter {diameter_px} px: accepted are positive"):
        choose_rescale(spec_of(0.5), 0.5, diameter_px)
