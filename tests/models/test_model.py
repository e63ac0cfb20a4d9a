"""Models: saved, found by name or file, loaded, and refused if they have changed."""

import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch

from densebatch.base.errors import InputError
from densebatch.models import model, zoo
from densebatch.models.model import Model, find_model, list_bundled, load_network
from densebatch.planning.settings import DEFAULT_MODEL
from tests.helpers.checkpoint_files import USE, WIDTHS, make_network, outputs, save


@pytest.mark.parametrize("half", [True, False])
def test_saved_model_comes_back(tmp_path, half):
    network = make_network(diam_mean=17.3)
    path = save(network, tmp_path / "a" / "mine.safetensors", half=half)
    found = find_model(str(path))
    assert found == Model(
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
    loaded = load_network(found)
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
    whole = model.bundled_path(name).read_bytes()
    found = find_model(name)
    assert found == model._read_model(name, model.bundled_path(name), found.sha256)
    path = tmp_path / f"{name}.safetensors"
    monkeypatch.setattr(model, "bundled_path", lambda _: path)
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    for content in (whole[: len(whole) // 2], b"", flipped):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not the file that came with densebatch"):
            find_model(name)


def test_bundled_model():
    assert DEFAULT_MODEL in list_bundled()
    found = find_model(DEFAULT_MODEL)
    assert found.name == DEFAULT_MODEL
    assert found.um_per_px == 0.5
    assert 5 < found.diameter_px < 30
    assert outputs(load_network(found)).isfinite().all()


def test_unknown_name_tells_what_there_is(tmp_path):
    for name in ("cyto9", str(tmp_path), str(tmp_path / "no.safetensors")):
        with pytest.raises(InputError) as caught:
            find_model(name)
        bundled = ", ".join(list_bundled()) or "none"
        assert str(caught.value) == (
            f"model {name!r} is neither bundled ({bundled}), nor one that `densebatch models "
            f"fetch` knows ({', '.join(zoo.KNOWN)}), nor a file; give such a name or the path of "
            "a .safetensors or Cellpose checkpoint"
        )


def test_file_that_changed_after_planning_is_refused(tmp_path):
    """A worker gets the model and reads the file itself, maybe much later."""
    path = save(make_network(), tmp_path / "m.safetensors")
    found = find_model(str(path))
    load_network(found)
    save(make_network(seed=1), path)
    with pytest.raises(InputError) as caught:
        load_network(found)
    assert str(caught.value) == f"model {path}: has changed since the run was planned"
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)"):
        load_network(found)
