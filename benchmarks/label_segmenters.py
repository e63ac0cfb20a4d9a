"""StarDist and InstanSeg as label segmenters, each in an environment with its extra.

    python benchmarks/label_segmenters.py IMAGES -o benchmarks/results/label-segmenters.json

IMAGES has pairs `NAME_img.png` and `NAME_masks.png` of nuclei, such as those of BBBC038. No weights
are fetched: both models are trained here for a few minutes, only to have one of each architecture,
and what they find says nothing about the methods. Every fifth image is kept for the test.

Each environment is made in a folder of its own, which `--work` keeps. There the script trains,
checks the segmenter by `densebatch.testing`, labels the images that were kept, and segments a
simulated slide by the command line.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
NEEDS = {
    "stardist": (f"{ROOT}[stardist]",),
    # Its package is for training alone.
    "instanseg": (f"{ROOT}[instanseg]", "instanseg-torch==0.1.2"),
}
DIAMETERS_PX = (10, 22)  # median of an image's nuclei; others are left out
PATCH_PX = 128
TEST_EVERY = 5
SLIDE_PX = 1500
UM_PER_PX = 0.5
STARDIST_EPOCHS = 40
INSTANSEG_STEPS = 600
Pair = tuple["NDArray[np.float32]", "NDArray[np.int32]"]


def read_pairs(folder: Path) -> tuple[list[Pair], list[Pair]]:
    """Images, 0 to 1 between percentiles, with labels: to train on, and to test with."""
    from skimage.io import imread

    pairs: list[Pair] = []
    for path in sorted(folder.glob("*_img.png")):
        labels = imread(path.with_name(path.name.replace("_img", "_masks"))).astype(np.int32)
        diameter = np.median(np.sqrt(np.bincount(labels.ravel())[1:] * 4 / np.pi))
        if DIAMETERS_PX[0] <= diameter <= DIAMETERS_PX[1] and min(labels.shape) >= PATCH_PX:
            image = imread(path).astype(np.float32)
            low, high = np.percentile(image, (1, 99.8))
            scaled = np.clip((image - low) / (high - low), 0, 1).astype(np.float32)
            pairs.append((scaled, labels))
    kept = [pair for n, pair in enumerate(pairs) if n % TEST_EVERY == 0]
    return [pair for n, pair in enumerate(pairs) if n % TEST_EVERY], kept


def train_stardist(pairs: list[Pair], folder: Path) -> Path:
    """A small StarDist model; the folder it was saved to."""
    from stardist.models import Config2D, StarDist2D

    config = Config2D(
        n_rays=16, grid=(2, 2), n_channel_in=1, unet_n_depth=2, unet_n_filter_base=16,
        net_conv_after_unet=32, train_patch_size=(PATCH_PX, PATCH_PX), train_batch_size=4,
        train_epochs=STARDIST_EPOCHS, train_steps_per_epoch=50, train_tensorboard=False,
    )  # fmt: skip
    model = StarDist2D(config, name="small", basedir=str(folder))
    check, train = pairs[::10], [pair for n, pair in enumerate(pairs) if n % 10]
    images, labels = zip(*train, strict=True)
    model.train(list(images), list(labels), validation_data=tuple(map(list, zip(*check))), seed=0)
    images, labels = zip(*check, strict=True)
    model.optimize_thresholds(list(images), list(labels))
    return folder / "small"


def train_instanseg(pairs: list[Pair], folder: Path) -> Path:
    """A small network of InstanSeg with its own loss; the TorchScript file it was exported to."""
    import torch
    from instanseg.utils.loss.instanseg_loss import InstanSeg, InstanSeg_Torchscript
    from instanseg.utils.models.InstanSeg_UNet import InstanSeg_UNet

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    loss_of = InstanSeg(
        n_sigma=2, device="cpu", window_size=64, seed_loss_fn="binary_xloss", cells_and_nuclei=False
    )
    network = InstanSeg_UNet(in_channels=1, out_channels=[[2, 2, 1]], layers=[64, 32, 16])
    network = loss_of.initialize_pixel_classifier(network, MLP_width=10)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(INSTANSEG_STEPS):
        patches = [cut_patch(*pairs[rng.integers(len(pairs))], rng) for _ in range(3)]
        images, labels = (torch.from_numpy(np.stack(each))[:, None] for each in zip(*patches))
        if step == INSTANSEG_STEPS // 2:
            optimiser.param_groups[0]["lr"] /= 4
        loss = loss_of(network(images), labels.float()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0:
            print(step, float(loss), flush=True)
    whole = InstanSeg_Torchscript(
        network.eval(), pixel_size=UM_PER_PX, n_sigma=2, backbone_dim_in=1
    )
    path = folder / "small.pt"
    torch.jit.save(torch.jit.script(whole), path)
    return path


def cut_patch(
    image: NDArray[np.float32], labels: NDArray[np.int32], rng: np.random.Generator
) -> Pair:
    """A patch at a random place, turned at random."""
    y, x = (rng.integers(length - PATCH_PX + 1) for length in image.shape)
    turns = rng.integers(4)
    inside = np.s_[y : y + PATCH_PX, x : x + PATCH_PX]
    image, labels = (np.rot90(each[inside], turns).copy() for each in (image, labels))
    return image, labels


def measure_tiles(name: str, options: dict[str, Any], pairs: list[Pair]) -> dict[str, Any]:
    """Label each image as a tile; matches at IoU 0.5 over all of them."""
    from densebatch.scoring.score import score_labels
    from densebatch.segmenters.find import find_segmenter
    from densebatch.segmenters.run import label_tile
    from densebatch.segmenters.segmenter import Tile

    segmenter = find_segmenter(name)
    complete = segmenter.complete_options(options, [0.5], 20.0)
    hits = cells = found = 0
    for image, truth in pairs:
        labels = label_tile(segmenter, Tile(image[None], ("nuclei",), UM_PER_PX, complete))
        print(score_labels)
        n_hits, n_truth, n_found = count_matches(truth, labels)
        hits, cells, found = hits + n_hits, cells + n_truth, found + n_found
    return {
        "tiles": len(pairs),
        "cells": cells,
        "found": found,
        "ap_at_0.5": round(hits / (cells + found - hits), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder of environments and models; kept")
    arguments = parser.parse_args()
    return int(not arguments)


if __name__ == "__main__":
    sys.exit(main())
