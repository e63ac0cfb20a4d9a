"""`densebatch models import` and `show`, and what they refuse."""

import json

import pytest
import torch
import yaml
from safetensors import safe_open

from densebatch.models.model import find_model, load_network
from tests.helpers.checkpoint_files import WIDTHS, Bomb, make_network, make_state
from tests.helpers.run_files import call_main


def run(capsys, *arguments):
    code, out, err = call_main(capsys, "models", *arguments)
    assert (code, err) == (0, "")
    return out


def refused(capsys, tmp_path, *arguments):
    """The sentence; nothing is left behind."""
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call_main(capsys, "models", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert sorted(tmp_path.rglob("*")) == before
    return err.removeprefix("error: ").strip()


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "CP_lab"
    torch.save({f"module.{k}": v for k, v in make_state().items()}, path)
    return path


def test_import_keeps_every_bit_and_says_how_to_use_it(tmp_path, capsys, checkpoint):
    output = tmp_path / "lab.safetensors"
    out = run(
        capsys, "import", checkpoint, "-o", output, "--um-per-px", "0.25", "--patch", "448",
        "--percentiles", "0.5", "99.5", "--no-nuclei", "--licence", "CC BY 4.0",
        "--source", "our lab",
    )  # fmt: skip
    model = find_model(str(output))
    assert out == f"model  {output}, sha256 {model.sha256}\n"
    assert (model.name, model.widths, model.um_per_px, model.patch_px) == ("lab", WIDTHS, 0.25, 448)
    assert (model.percentiles, model.nuclei, model.diameter_px) == ((0.5, 99.5), False, 15.0)
    assert (model.card["licence"], model.card["source"]) == ("CC BY 4.0", "our lab")
    assert model.card["imported"]["sha256"] == find_model(str(checkpoint)).sha256
    loaded = load_network(model).state_dict()
    for name, tensor in make_network().state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], tensor), name


def test_import_without_options_changes_no_condition_of_use(tmp_path, capsys, checkpoint):
    run(capsys, "import", checkpoint, "-o", tmp_path / "m.safetensors")
    before, after = find_model(str(checkpoint)), find_model(str(tmp_path / "m.safetensors"))
    for name in ("um_per_px", "diameter_px", "default_diameter_px", "patch_px", "margin_px",
                 "percentiles", "nuclei"):  # fmt: skip
        assert getattr(after, name) == getattr(before, name), name
    # and a second import keeps what the first one was told
    run(capsys, "import", tmp_path / "m.safetensors", "-o", tmp_path / "n.safetensors",
        "--licence", "MIT")  # fmt: skip
    run(capsys, "import", tmp_path / "n.safetensors", "-o", tmp_path / "o.safetensors",
        "--patch", "96")  # fmt: skip
    last = find_model(str(tmp_path / "o.safetensors"))
    assert (last.patch_px, last.card["licence"], last.card["name"]) == (96, "MIT", "o")


def test_import_of_an_old_checkpoint_is_told_its_diameter(tmp_path, capsys):
    state = {k: v for k, v in make_state().items() if not k.startswith("diam_")}
    torch.save(state, tmp_path / "old")
    run(capsys, "import", tmp_path / "old", "-o", tmp_path / "a.safetensors")
    run(capsys, "import", tmp_path / "old", "-o", tmp_path / "b.safetensors", "--diameter", "17")
    a, b = (find_model(str(tmp_path / f"{name}.safetensors")) for name in "ab")
    assert (a.diameter_px, a.default_diameter_px) == (30, 30)
    assert (b.diameter_px, b.default_diameter_px) == (17, 17)


def test_stated_diameter_leaves_that_of_the_labels(tmp_path, capsys):
    torch.save(make_state(diam_labels=torch.tensor([12.0])), tmp_path / "m")
    run(capsys, "import", tmp_path / "m", "-o", tmp_path / "a.safetensors", "--diameter", "17")
    model = find_model(str(tmp_path / "a.safetensors"))
    assert (model.diameter_px, model.default_diameter_px) == (17, 12)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--um-per-px", "0"], "Invalid value for '--um-per-px': 0.0 is not in the range"),
        (["--um-per-px", "nan"], "its card says um_per_px = nan; accepted: null or 0.001 to 1000"),
        (["--diameter", "nan"], "diameter nan px: accepted are 0.1 to 10000"),
        (["--patch", "32"], "Invalid value for '--patch': 32 is not in the range 64<=x<=4096"),
        (["--percentiles", "99", "1"], "its card says percentiles = [99.0, 1.0]; accepted: two"),
    ],
)
def test_import_refuses_what_cannot_be_used(tmp_path, capsys, checkpoint, options, told):
    out = tmp_path / "m.safetensors"
    assert told in refused(capsys, tmp_path, "import", checkpoint, "-o", out, *options)


def test_import_refuses_where_it_would_write(tmp_path, capsys, checkpoint):
    taken = tmp_path / "taken.safetensors"
    taken.write_text("mine")
    told = refused(capsys, tmp_path, "import", checkpoint, "-o", taken)
    assert told == f"{taken}: exists; remove it or choose another name"
    assert taken.read_text() == "mine"
    told = refused(capsys, tmp_path, "import", checkpoint, "-o", tmp_path / "m.pt")
    assert told == f"{tmp_path / 'm.pt'}: a model's name ends in .safetensors"
    told = refused(capsys, tmp_path, "import", checkpoint, "-o", taken / "m.safetensors")
    assert told == f"{taken / 'm.safetensors'}: cannot be written (File exists)"


def write_pickle(path):
    torch.save(make_state(extra=Bomb(path.parent / "executed")), path)
    return "cannot be read as weights ("


def write_wrong_shapes(path):
    torch.save(make_state(output__2__weight=torch.zeros(2, 4, 1, 1)), path)
    return "weights 'output.2.weight' are (2, 4, 1, 1), expected (3, 4, 1, 1)"


def write_nan(path):
    torch.save(make_state(output__2__bias=torch.tensor([0, torch.nan, 0])), path)
    return "weights 'output.2.bias' are not finite (1 tensors)"


def write_truncated(path):
    torch.save(make_state(), path)
    path.write_bytes(path.read_bytes()[:-200])
    return "cannot be read as weights ("


def write_sam(path):
    torch.save({"W2": torch.zeros(3), "encoder.pos_embed": torch.zeros(3)}, path)
    return "is a Cellpose-SAM (4.x) network, but weights 'encoder.patch_embed.proj.weight' are"


@pytest.mark.parametrize(
    "write", [write_pickle, write_wrong_shapes, write_nan, write_truncated, write_sam]
)
@pytest.mark.parametrize("command", ["import", "show"])
def test_hostile_checkpoint_is_refused(tmp_path, capsys, write, command):
    path = tmp_path / "hostile"
    told = write(path)
    options = ["-o", tmp_path / "m.safetensors"] if command == "import" else ["--json"]
    assert refused(capsys, tmp_path, command, path, *options).startswith(f"model {path}: {told}")
    assert not (tmp_path / "executed").exists()


def test_show_tells_of_a_file(tmp_path, capsys, checkpoint):
    facts = json.loads(run(capsys, "show", checkpoint, "--json"))
    assert facts == {
        "name": "CP_lab",
        "path": str(checkpoint),
        "sha256": find_model(str(checkpoint)).sha256,
        "widths": list(WIDTHS),
        "diameter_px": 15.0,
        "um_per_px": None,
        "default_diameter_px": 15.0,
        "patch_px": 224,
        "margin_px": 8,
        "percentiles": [1.0, 99.0],
        "nuclei": True,
        "weights": sum(p.numel() for p in make_network().parameters() if p.requires_grad),
        "card": {},
        "notes": [],
        "kind": "cpnet",
    }
    assert yaml.safe_load(run(capsys, "show", checkpoint)) == facts | {"card": None}


def test_show_tells_the_bundled_model_with_its_card(capsys):
    facts = json.loads(run(capsys, "show", "dense-small", "--json"))
    with safe_open(facts["path"], framework="pt") as file:
        assert facts["card"] == json.loads(file.metadata()["densebatch"])
        assert facts["weights"] == sum(
            file.get_tensor(name).numel()
            for name in file.keys()  # noqa: SIM118
            if name.endswith(("weight", "bias"))
        )
    assert "recipe:" in run(capsys, "show", "dense-small")
