"""Cellpose-SAM: outputs, files as cellpose 4 leaves them, and what of them is refused."""

from __future__ import annotations

import json
import math
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from densebatch.base.errors import InputError
from densebatch.models.kinds import CellposeSam
from densebatch.models.model import count_weights, find_model, load_network
from densebatch.models.sam import CellposeSamNet
from densebatch.models.sam_sizes import FULL_SAM, SamSizes
from tests.helpers.checkpoint_files import make_network, make_state, outputs, refusal, save
from tests.helpers.run_files import call_main
from tests.helpers.sam_files import SMALL, make_sam, save_sam

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # it is no package

from cellpose_sam import LIMIT, fill_weights, make_patch  # noqa: E402

RECORD = json.loads((BENCHMARKS / "results/cellpose-sam.json").read_text())
KIND = CellposeSam()
SHAPE = (2, 3, 64, 64)


# what it computes


def test_outputs_are_those_of_cellpose_4():
    """Values that `benchmarks/cellpose_sam.py` recorded, of cellpose's own code."""
    network = CellposeSamNet(SamSizes(*RECORD["small"]["sizes"])).eval()
    network.load_state_dict(fill_weights(network.state_dict()))
    with torch.inference_mode():
        found = network(make_patch(RECORD["small"]["patch_px"])).flatten()
    expected = RECORD["small"]["outputs"]
    np.testing.assert_allclose(found[:: len(found) // 64], expected, rtol=0, atol=LIMIT)
    assert np.std(expected) > 0.1


def test_full_size_network_was_compared():
    assert tuple(RECORD["full"]["sizes"]) == FULL_SAM
    assert RECORD["full"]["largest_difference"] <= RECORD["full"]["limit"] == LIMIT
    with torch.device("meta"):
        state = CellposeSamNet(FULL_SAM).state_dict()
    assert RECORD["full"]["weights"] == sum(value.numel() for value in state.values())


def attend_slowly(attention, x):
    """Attention as its definition has it: token by token, in float64."""
    side, width = x.shape[1:3], x.shape[3]
    head = width // attention.heads
    tokens = x.reshape(-1, width)
    qkv = tokens @ attention.qkv.weight.double().T + attention.qkv.bias.double()
    query, key, value = qkv.reshape(len(tokens), 3, attention.heads, head).permute(1, 2, 0, 3)

    def embed(table, distance, length):
        """Of the patch's `2 length - 1` distances, sampled linearly between pixel centres."""
        rows = table.detach().double().numpy()
        wanted = 2 * length - 1
        place = (distance + length - 1 + 0.5) * len(rows) / wanted - 0.5
        places = np.arange(len(rows))
        return torch.tensor([np.interp(place, places, column) for column in rows.T])

    mixed = torch.zeros(len(tokens), attention.heads, head, dtype=torch.float64)
    for h in range(attention.heads):
        for i in range(len(tokens)):
            logits = query[h, i] @ key[h].T / math.sqrt(head)
            for j in range(len(tokens)):
                dy, dx = (i // side[1]) - (j // side[1]), (i % side[1]) - (j % side[1])
                logits[j] += query[h, i] @ embed(attention.rel_pos_h, dy, side[0])
                logits[j] += query[h, i] @ embed(attention.rel_pos_w, dx, side[1])
            mixed[i, h] = logits.softmax(0) @ value[h]
    flat = mixed.reshape(len(tokens), width)
    return (flat @ attention.proj.weight.double().T + attention.proj.bias.double()).reshape(x.shape)


@pytest.mark.parametrize("positions", [5, 7, 13])
def test_attention_is_what_its_definition_says(positions):
    """Of tables as long as the patch's nine distances need, shorter ones and longer ones."""
    sizes = SMALL._replace(width=8, heads=2, hidden=8, grid=4, wide=positions, every=1, depth=1)
    attention = make_sam(sizes).encoder.blocks[0].attn
    x = torch.rand(1, 4, 4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(attention(x), attend_slowly(attention, x.double()), atol=2e-6)


def test_a_patch_does_not_depend_on_those_beside_it():
    network = make_sam()
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(x)[1:], network(x[1:]), rtol=0, atol=1e-5)


# files


@pytest.mark.parametrize("prefix", ["", "module."])
def test_file_of_cellpose_4_loads(tmp_path, prefix):
    network = make_sam()
    state = OrderedDict((prefix + name, value) for name, value in network.state_dict().items())
    torch.save(state, tmp_path / "cpsam_lab")
    model = find_model(str(tmp_path / "cpsam_lab"))
    assert (model.kind, model.widths) == ("cellpose-sam", tuple(SMALL))
    assert (model.patch_px, model.margin_px, model.percentiles) == (64, 16, (1.0, 99.0))
    assert (model.diameter_px, model.default_diameter_px, model.um_per_px) == (30, 30, None)
    assert model.notes == ()
    assert torch.equal(outputs(load_network(model), shape=SHAPE), outputs(network, shape=SHAPE))
    assert count_weights(model) == sum(
        value.numel() for name, value in network.state_dict().items()
        if name != "W2" and not name.startswith("diam_")
    )  # fmt: skip


def test_names_are_those_of_cellpose_4():
    """The keys of its file, as cellpose 4.2.1.1 writes them."""
    attention = ["rel_pos_h", "rel_pos_w", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    block = [f"attn.{name}" for name in attention]
    block += [f"norm{n}.{what}" for n in (1, 2) for what in ("weight", "bias")]
    block += [f"mlp.lin{n}.{what}" for n in (1, 2) for what in ("weight", "bias")]
    names = [f"encoder.blocks.{n}.{name}" for n in range(3) for name in block]
    names += ["encoder.pos_embed", "encoder.patch_embed.proj.weight"]
    names += ["encoder.patch_embed.proj.bias", "encoder.neck.0.weight", "encoder.neck.2.weight"]
    names += [f"encoder.neck.{n}.{what}" for n in (1, 3) for what in ("weight", "bias")]
    names += ["out.weight", "out.bias", "W2", "diam_mean", "diam_labels"]
    assert set(make_sam().state_dict()) == set(names)


def test_file_in_half_precision_and_without_diameters_loads(tmp_path):
    network = make_sam().to(torch.bfloat16)
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("diam_")}
    torch.save(state, tmp_path / "m")
    loaded = load_network(find_model(str(tmp_path / "m")))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    found, expected = outputs(loaded, shape=SHAPE), outputs(network.float(), shape=SHAPE)
    assert torch.equal(found, expected)


def test_import_keeps_weights_and_tells_the_kind(tmp_path, capsys):
    network = save_sam(tmp_path / "m")
    output = tmp_path / "lab.safetensors"
    options = ("--um-per-px", "0.5", "--diameter", "25", "--no-nuclei")
    code, _, err = call_main(capsys, "models", "import", tmp_path / "m", "-o", output, *options)
    assert (code, err) == (0, "")
    model = find_model(str(output))
    assert (model.kind, model.card["kind"], model.patch_px) == ("cellpose-sam", "cellpose-sam", 64)
    assert (model.um_per_px, model.diameter_px, model.nuclei) == (0.5, 25, False)
    assert torch.equal(outputs(load_network(model), shape=SHAPE), outputs(network, shape=SHAPE))
    code, out, _ = call_main(capsys, "models", "show", output, "--json")
    assert json.loads(out)["kind"] == "cellpose-sam"
    # what was read for the import was not changed by it
    assert float(load_network(find_model(str(tmp_path / "m"))).diam_mean.data) == 30


def test_only_its_own_patch_is_accepted(tmp_path, capsys):
    save_sam(tmp_path / "m")
    output = tmp_path / "lab.safetensors"
    code, out, err = call_main(
        capsys, "models", "import", tmp_path / "m", "-o", output, "--patch", "224"
    )
    assert (code, out) == (2, "")
    assert err == (
        "error: patch 224 px: accepted is 64, because m takes patches of no other size\n"
    )
    assert not output.exists()
    save(make_sam(), output, half=False)
    assert refusal(output) == "takes patches of 64 px and no others, and is to have 96"


# each kind given for another


def test_each_kind_is_known_for_what_it_is(tmp_path):
    torch.save(make_state(), tmp_path / "cpsam_v9")
    save_sam(tmp_path / "cyto9")
    assert find_model(str(tmp_path / "cpsam_v9")).kind == "cpnet"
    assert find_model(str(tmp_path / "cyto9")).kind == "cellpose-sam"


def test_card_cannot_make_one_kind_another(tmp_path):
    path = tmp_path / "m.safetensors"
    card = json.dumps({"kind": "cellpose-sam"})
    safetensors.torch.save_file(dict(make_state()), path, metadata={"densebatch": card})
    assert refusal(path) == "its card says 'cellpose-sam', and its weights are no such"


@pytest.mark.parametrize("name", ["cpdino", "cpdino-vitb"])
def test_dino_is_refused_by_name(name, capsys):
    with pytest.raises(
        InputError, match=f"^model '{name}' cannot be used: its encoder, DINOv3, is"
    ):
        find_model(name)
    code, _, err = call_main(capsys, "models", "fetch", name)
    assert code == 2
    assert err.startswith(f"error: model '{name}' cannot be used: its encoder, DINOv3, is")


def change(**changes):
    state = dict(make_sam().state_dict())
    for name, value in changes.items():
        state[name.replace("__", ".")] = value
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (change(out__bias=None), "weights 'out.bias' are missing"),
        (change(extra=torch.zeros(2)), "unknown weights 'extra' (1)"),
        (
            change(encoder__patch_embed__proj__weight=torch.zeros(32, 4, 8, 8)),
            "is a Cellpose-SAM (4.x) network, but takes 4 input channels; accepted are 3",
        ),
        (
            change(out__weight=torch.zeros(256, 16, 1, 1)),
            "is a Cellpose-SAM (4.x) network, but has 256 outputs for tokens of 8 px; accepted are "
            "192, flows and cell probability",
        ),
        (
            change(encoder__blocks__1__attn__rel_pos_h=torch.zeros(11, 8)),
            "weights 'encoder.blocks.1.attn.rel_pos_h' are (11, 8), expected (9, 8)",
        ),
        (
            change(encoder__blocks__0__attn__rel_pos_h=torch.zeros(9, 7)),
            "is a Cellpose-SAM (4.x) network, but its heads of 7 numbers do not divide tokens of "
            "32",
        ),
        (
            change(encoder__blocks__9__mlp__lin1__bias=torch.zeros(64)),
            "is a Cellpose-SAM (4.x) network, but its 4 blocks are not numbered from 0",
        ),
        (change(out__bias=torch.full((192,), np.nan)), "weights 'out.bias' are not finite"),
        (
            change(encoder__pos_embed=torch.zeros(1).expand(1, 10**6, 10**6, 32)),
            "has 320000",  # a view of one number: counted, not touched
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, state, told):
    torch.save(state, tmp_path / "m")
    assert refusal(tmp_path / "m").startswith(told)


def test_patch_that_no_lattice_takes_is_refused(tmp_path):
    save_sam(tmp_path / "m", SMALL._replace(grid=4))
    assert refusal(tmp_path / "m") == "takes patches of 32 px; accepted are 64 to 4096"


def test_training_from_it_is_refused(tmp_path, capsys):
    save_sam(tmp_path / "m")
    assert make_network().inputs == 2
    from densebatch.training.recipe import Recipe
    from densebatch.training.train import build_network

    with pytest.raises(ValueError, match=r"^model m: is no Cellpose 1-3 network, and only these"):
        build_network([], Recipe(), find_model(str(tmp_path / "m")))


# what is told of it before it runs


def test_costs_are_those_of_its_layers():
    state = make_sam().state_dict()
    weights = sum(v.numel() for n, v in state.items() if n != "W2" and not n.startswith("diam_"))
    assert weights == pytest.approx(KIND.count_weights(tuple(SMALL)), rel=0.1)
    flop = KIND.patch_flop(tuple(FULL_SAM), 256, 256)
    assert flop / 0.256**2 == pytest.approx(11e12, rel=0.02)
    assert KIND.count_weights(tuple(FULL_SAM)) == pytest.approx(RECORD["full"]["weights"], rel=0.01)
