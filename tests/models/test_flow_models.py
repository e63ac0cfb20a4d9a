"""Kinds of flow models: the built-in ones, and those that other packages bring."""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import safetensors.torch
import torch

from densebatch.base.errors import InputError
from densebatch.models import flow_models
from densebatch.models.flow_models import BUILT_IN, FlowModel, find_kind, get_kind, list_packages
from densebatch.models.model import find_model
from densebatch.models.network import FULL_WIDTH
from densebatch.models.sam_sizes import FULL_SAM
from densebatch.run.segment import segment
from tests.helpers.checkpoint_files import refusal
from tests.helpers.run_files import call_main, read_result, simulate, write_tiff

# A network that takes a pixel for a cell where it is bright, and has flows point nowhere.
MODULE = """
import torch


class Net(torch.nn.Module):
    inputs = 1

    def __init__(self):
        super().__init__()
        self.bright = torch.nn.Conv2d(1, 3, 1)

    def forward(self, x):
        return self.bright(x)


class Bright:
    name = "bright"
    title = "bright networks"
    inputs = ("membrane",)
    multiple = 1
    stretches = True
    libraries = ("torch",)
    max_weights = 100

    def recognises(self, names):
        return "bright.weight" in names

    def infer_sizes(self, shapes):
        return (1,)

    def describe(self, sizes, diameters):
        return {"diameter_px": 20.0, "default_diameter_px": 20.0, "margin_px": 0, "nuclei": False}

    def build(self, sizes):
        return Net()

    def count_weights(self, sizes):
        return 6

    def patch_bytes(self, sizes, height, width):
        return 16 * height * width

    def patch_flop(self, sizes, height, width):
        return None
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package with an entry point where Python finds it, for this test only."""

    def put(module, target, name="bright"):
        folder = tmp_path / "site"
        facts = folder / "bright_flows-2.1.dist-info"
        facts.mkdir(parents=True)
        (folder / "bright_flows.py").write_text(module)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-flows\nVersion: 2.1\n")
        (facts / "entry_points.txt").write_text(f"[{flow_models.GROUP}]\n{name} = {target}\n")
        monkeypatch.syspath_prepend(folder)
        flow_models._list_plugins.cache_clear()

    yield put
    flow_models._list_plugins.cache_clear()
    sys.modules.pop("bright_flows", None)


def save_bright(path, **card):
    weight = torch.tensor([0.0, 0.0, 10.0]).reshape(3, 1, 1, 1)
    state = {"bright.weight": weight, "bright.bias": torch.tensor([0.0, 0.0, -5.0])}
    if path.suffix == ".safetensors":
        metadata = {"densebatch": json.dumps({"kind": "bright"} | card)}
        safetensors.torch.save_file(state, path, metadata=metadata)
    else:
        torch.save(state, path)


def test_built_in_kinds_are_what_a_kind_is():
    for kind, sizes in zip(BUILT_IN, (FULL_WIDTH, FULL_SAM), strict=True):
        assert isinstance(kind, FlowModel)
        assert get_kind(kind.name) is kind
        assert len(kind.inputs) == sizes[0]
        assert list_packages(kind.name) == {}
        with torch.device("meta"):
            network = kind.build(tuple(sizes))
        state = network.state_dict()
        assert find_kind(state) is kind
        assert kind.infer_sizes({name: value.shape for name, value in state.items()}) == sizes
        n = sum(value.numel() for value in state.values())
        assert n <= kind.max_weights
        assert 0.9 * n < kind.count_weights(tuple(sizes)) < 2 * n
        assert network.inputs == sizes[0]


def test_a_kind_of_another_package_runs_on_a_slide(tmp_path, install):
    install(MODULE, "bright_flows:Bright")
    save_bright(tmp_path / "m")
    model = find_model(str(tmp_path / "m"))
    assert (model.kind, model.widths, model.diameter_px) == ("bright", (1,), 20)
    assert list_packages("bright") == {"bright-flows": "2.1"}
    slide = write_tiff(tmp_path / "s.ome.tif", simulate(150, 160), ["CD3", "DAPI"])
    found = []
    for tile in (64, 2048):
        out = tmp_path / f"out-{tile}"
        options = {"membrane": ("CD3",), "nuclei": "DAPI", "model": str(tmp_path / "m")}
        result = segment(slide, out, workers=0, tile=tile, flow_threshold=0, min_size=0, **options)
        found.append(read_result(out)[0])
    assert result.report["plan"]["versions"]["bright-flows"] == "2.1"
    assert result.report["plan"]["model"]["kind"] == "bright"
    assert any("was trained without a nuclear channel" in n for n in result.report["plan"]["notes"])
    assert np.array_equal(*found)


def test_a_kind_that_is_not_installed_is_named(tmp_path):
    assert not entry_points(group=flow_models.GROUP)
    save_bright(tmp_path / "m.safetensors")
    assert refusal(tmp_path / "m.safetensors") == (
        "flow model 'bright': is not installed here (cpnet, cellpose-sam are); install the package "
        "that brings it, which has an entry point of densebatch.flow_models"
    )
    save_bright(tmp_path / "m.safetensors", package="bright-flows")
    assert refusal(tmp_path / "m.safetensors").endswith("; install the package bright-flows")
    save_bright(tmp_path / "m")  # no card, so that nothing tells which package that would be
    assert refusal(tmp_path / "m").endswith(
        "and what packages with an entry point of densebatch.flow_models bring"
    )


def test_an_imported_file_names_its_package(tmp_path, install, capsys):
    install(MODULE, "bright_flows:Bright")
    save_bright(tmp_path / "m")
    output = tmp_path / "lab.safetensors"
    code, _, err = call_main(capsys, "models", "import", tmp_path / "m", "-o", output)
    assert (code, err) == (0, "")
    assert find_model(str(output)).card["package"] == "bright-flows"
    code, _, err = call_main(
        capsys, "models", "import", tmp_path / "m", "-o", tmp_path / "n.safetensors",
        "--diameter", "12",
    )  # fmt: skip
    assert (code, err) == (2, "error: diameter 12 px: files of 'bright' cannot state one\n")


@pytest.mark.parametrize(
    ("module", "target", "told"),
    [
        ("1 / 0", "bright_flows:Bright", "cannot be loaded (ZeroDivisionError: division by zero)"),
        ("", "bright_flows:Bright", "cannot be loaded (AttributeError: "),
        (
            "class Bright: name = 'bright'",
            "bright_flows:Bright",
            "is no kind of that name as dense",
        ),
        (
            MODULE.replace('"membrane"', '"nuclei"'),
            "bright_flows:Bright",
            "is no kind of that name",
        ),
        (MODULE.replace('"bright"', '"dim"'), "bright_flows:Bright", "is no kind of that name as"),
    ],
)
def test_a_package_that_brings_no_kind_is_named(install, module, target, told):
    install(module, target)
    with pytest.raises(InputError) as caught:
        get_kind("bright")
    said = "flow model 'bright' of the package bright-flows: "
    assert str(caught.value).startswith(said + told)
    # what needs none of it goes on
    assert find_model("dense-small").kind == "cpnet"
