"""Cellpose-SAM's network: ours, and that of cellpose 4.2.1.1, on the same weights and patch.

    python benchmarks/cellpose_sam.py -o benchmarks/results/cellpose-sam.json

cellpose 4 cannot be installed beside cellpose 3, so the script puts it and segment-anything,
without what they depend on, into a folder of their own, and evaluates there in a process of its own
with the same torch. cellpose imports torchvision, which its network does not use: an empty stand-in
takes its place. No weights are fetched, since only the arithmetic is compared: the full-size
network's are torch's random ones, and positions, which start at zero, are drawn too. It needs 4 GB
of memory and evaluates one patch. The small network's weights are a formula (`fill_weights`), so
that `tests/models/test_sam.py` holds ours to the values that are recorded here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import types
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("cellpose==4.2.1.1", "segment-anything==1.0")
LIMIT = 1e-4  # largest difference of a flow or logit, in float32
SMALL = {
    "img_size": 64, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3, "out_chans": 8,
    "window_size": 5, "global_attn_indexes": (1, 3),
}  # fmt: skip
"""Of an encoder like SAM's, where 4 px are SAM's 16: tokens of 2 px, patches of 16 px."""
SMALL_PX = {"ps": 2, "bsize": 16}
POSITIONS = 0.2  # standard deviation of the full-size network's
N_RECORDED = 64  # outputs of the small network


def fill_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that anybody can make again: a sine for each tensor, as large as layers want it.

    Fixed tensors keep their values.
    """
    filled = {}
    for number, name in enumerate(sorted(state)):
        old = state[name]
        if name == "W2" or name.startswith("diam_"):
            filled[name] = old.clone()
            continue
        wave = torch.sin(torch.arange(old.numel(), dtype=torch.float64) * (0.7 + 0.01 * number))
        inner = old[0].numel() if old.ndim > 1 else 1
        scale = 0.2 if old.ndim == 1 or "pos" in name else 1.5 * inner**-0.5
        centre = 1.0 if old.ndim == 1 and name.endswith("weight") else 0.0
        filled[name] = (centre + scale * wave).reshape(old.shape).to(torch.float32)
    return filled


def make_patch(side: int) -> torch.Tensor:
    """A patch of three planes, 0 to 1."""
    wave = torch.sin(torch.arange(3 * side * side, dtype=torch.float64) ** 1.5 * 0.011)
    return (0.5 + 0.5 * wave).reshape(1, 3, side, side).to(torch.float32)


def stand_in_for_torchvision() -> None:
    """Let cellpose import what its network does not use."""
    for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.boxes"):
        module: Any = types.ModuleType(f"torchvision{name}")
        module.resize = module.to_pil_image = module.batched_nms = module.box_area = None
        sys.modules[module.__name__] = module


def evaluate_stock(folder: Path) -> None:
    """Evaluate cellpose's networks, in the process that has cellpose 4; leaves files there."""
    stand_in_for_torchvision()
    from cellpose import vit
    from segment_anything.modeling import ImageEncoderViT

    torch.manual_seed(0)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)  # as SAM has it
    for size in ("small", "full"):
        if size == "small":
            network = make_small(vit, ImageEncoderViT(**SMALL, use_rel_pos=True, norm_layer=norm))
            network.load_state_dict(fill_weights(network.state_dict()))
        else:
            network = vit.CPSAM()
            for name, weight in network.named_parameters():
                if "pos" in name:
                    weight.data.normal_(0, POSITIONS)
        network.save_model(str(folder / f"{size}.pth"))
        side = SMALL_PX["bsize"] if size == "small" else 256
        with torch.inference_mode():
            output, _ = network.eval()(make_patch(side))
        torch.save(output, folder / f"{size}.out")


def make_small(vit: Any, encoder: Any) -> Any:  # noqa: ANN401
    """Cellpose's network around the small encoder.

    CPSAM states SAM's sizes as numbers (tokens of 16 px, 1024 px), so what it does to the encoder
    is done here with the small one's: every second weight, position and no windows.
    """
    network = vit.CPSAM.__new__(vit.CPSAM)
    vit.BaseModel.__init__(network)
    ps, nout = SMALL_PX["ps"], 3
    step = SMALL["patch_size"] // ps
    weight = encoder.patch_embed.proj.weight.detach()
    encoder.patch_embed.proj = torch.nn.Conv2d(3, len(weight), stride=ps, kernel_size=ps)
    encoder.patch_embed.proj.weight.data = weight[:, :, ::step, ::step]
    places = SMALL["img_size"] // SMALL["patch_size"] // (SMALL_PX["bsize"] // ps)
    encoder.pos_embed = torch.nn.Parameter(encoder.pos_embed[:, ::places, ::places])
    for block in encoder.blocks:
        block.window_size = 0
    network.encoder, network.ps, network.nout, network.rdrop = encoder, ps, nout, 0.4
    network.out = torch.nn.Conv2d(SMALL["out_chans"], nout * ps**2, kernel_size=1)
    pixels = torch.eye(nout * ps**2).reshape(nout * ps**2, nout, ps, ps)
    network.W2 = torch.nn.Parameter(pixels, requires_grad=False)
    return network


def compare(folder: Path, size: str) -> dict[str, Any]:
    """Ours beside cellpose's, from the file that cellpose saved."""
    from densebatch.models.checkpoint import check_state, read_state, tell_kind

    path = str(folder / f"{size}.pth")
    state, card = read_state(path, size)
    kind = tell_kind(path, state, card)
    check_state(path, state, kind)
    sizes = kind.infer_sizes({name: value.shape for name, value in state.items()})
    with torch.device("meta"):
        network = kind.build(sizes)
    network.load_state_dict(state, assign=True)
    stock = torch.load(folder / f"{size}.out", weights_only=True)
    with torch.inference_mode():
        output = network.eval()(make_patch(stock.shape[-1]))
    difference = (output - stock).abs()
    found = {
        "sizes": list(sizes),
        "weights": sum(value.numel() for value in state.values()),
        "patch_px": stock.shape[-1],
        "largest_output": float(stock.abs().max()),
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "limit": LIMIT,
    }
    if size == "small":
        found["outputs"] = stock.flatten()[:: stock.numel() // N_RECORDED].tolist()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--stock", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stock is not None:
        evaluate_stock(arguments.stock)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder, packages = Path(scratch), Path(scratch) / "packages"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        subprocess.run([*install, str(packages), *PACKAGES], check=True)
        command = [sys.executable, __file__, "-o", str(folder), "--stock", str(folder)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(packages)})
        record = {
            "packages": list(PACKAGES),
            "versions": {name: version(name) for name in ("torch", "densebatch")},
            "full": compare(folder, "full"),
            "small": compare(folder, "small"),
        }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({size: record[size]["largest_difference"] for size in ("full", "small")}))
    return int(any(record[size]["largest_difference"] > LIMIT for size in ("full", "small")))


if __name__ == "__main__":
    sys.exit(main())
