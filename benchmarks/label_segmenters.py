"""StarDist and InstanSeg as label segmenters, each in an environment with its extra.

    python benchmarks/label_segmenters.py IMAGES -o benchmarks/results/label-segmenters.json

IMAGES has pairs `NAME_img.png` and `NAME_masks.png` of nuclei, such as those of BBBC038. No weights
are fetched: both models are trained here for a few minutes, only to have one of each architecture,
and what they find says nothing about the methods. Every fifth image is kept for the test.

Each environment is made in a folder of its own, which `--work` keeps. There the script trains,
checks the segmenter by `densebatch.testing`, labels the images that were kept, and segments a
slide that is made of them by the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
NEEDS = {
    "stardist": (f"{ROOT}[stardist]",),
    # Its package is for training alone, and imports more than it says that it needs.
    "instanseg": (
        f"{ROOT}[instanseg]",
        "instanseg-torch==0.1.2",
        "kornia",
        "pandas",
        "scikit-learn",
        "seaborn",
    ),
}
DIAMETERS_PX = (10, 22)  # median of an image's nuclei; others are left out
PATCH_PX = 128
TEST_EVERY = 5
TILE_PX = 640
MOSAIC = 5
"""Images along a side of the slide."""
UM_PER_PX = 0.5
STARDIST_EPOCHS = 40
INSTANSEG_STEPS = 500
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
    validation = tuple(map(list, zip(*check, strict=True)))
    model.train(list(images), list(labels), validation_data=validation, seed=0)
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
        images, labels = (
            torch.from_numpy(np.stack(each))[:, None] for each in zip(*patches, strict=True)
        )
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
    from densebatch.scoring.settings import ScoreSettings

    settings = ScoreSettings((Fraction(1, 2),))
    scores = [
        score_labels(truth, label_whole(name, options, image), settings) for image, truth in pairs
    ]
    total = sum((score.by_threshold[0] for score in scores[1:]), scores[0].by_threshold[0])
    return {"tiles": len(pairs), "cells": total.tp + total.fn, "ap_at_0.5": round(total.ap, 4)}


def label_whole(name: str, options: dict[str, Any], image: NDArray[np.float32]) -> NDArray[Any]:
    """Labels of an image as one tile."""
    from densebatch.segmenters.find import find_segmenter
    from densebatch.segmenters.run import label_tile
    from densebatch.segmenters.segmenter import SlideFacts, Tile

    segmenter = find_segmenter(name)
    complete = segmenter.complete_options(options, SlideFacts((0.5,), 20.0, UM_PER_PX))
    return label_tile(segmenter, Tile(image[None], ("nuclei",), UM_PER_PX, complete))


def make_slide(pairs: list[Pair]) -> Pair:
    """A mosaic of parts of the images."""
    side = 256
    parts = [
        (image[:side, :side], labels[:side, :side])
        for image, labels in pairs
        if min(image.shape) >= side
    ][: MOSAIC**2]
    image = np.zeros((MOSAIC * side, MOSAIC * side), np.float32)
    truth = np.zeros(image.shape, np.int32)
    for number, (pixels, labels) in enumerate(parts):
        y, x = (side * n for n in divmod(number, MOSAIC))
        image[y : y + side, x : x + side] = pixels
        truth[y : y + side, x : x + side] = np.where(labels, labels + truth.max(), 0)
    return image, truth


def measure_slide(
    name: str, options: dict[str, Any], pairs: list[Pair], folder: Path
) -> dict[str, Any]:
    """Segment a slide by the command line; compare with the truth, and with one tile for all."""
    import tifffile

    from densebatch.cells.labels import read_labels
    from densebatch.scoring.score import score_labels
    from densebatch.scoring.settings import ScoreSettings

    image, truth = make_slide(pairs)
    slide = folder / "slide.ome.tif"
    tifffile.imwrite(
        slide, np.rint(image * 4095).astype(np.uint16), tile=(256, 256), photometric="minisblack",
        metadata={"axes": "YX", "Channel": {"Name": ["nuclei"]}, "PhysicalSizeX": UM_PER_PX,
                  "PhysicalSizeY": UM_PER_PX},
    )  # fmt: skip
    labels = {}
    for tile in (TILE_PX, 2 * len(image)):
        out = folder / f"out-{tile}"
        command = [
            sys.executable, "-m", "densebatch", "segment", str(slide), str(out),
            "--membrane", "nuclei", "--segmenter", name, "--segmenter-options", json.dumps(options),
            "--tile", str(tile), "--workers", "1",
        ]  # fmt: skip
        subprocess.run(command, check=True)
        labels[tile] = read_labels(out / "segmentation.ome.zarr")[:]
    tiled, in_one = labels.values()
    report = json.loads((folder / f"out-{TILE_PX}" / "run.json").read_text())
    half, most = (ScoreSettings((Fraction(iou, 10),)) for iou in (5, 8))
    alike = score_labels(in_one, tiled, most).by_threshold[0]
    return {
        "shape": list(image.shape),
        "tile_px": TILE_PX,
        "cells": report["cells"],
        "merging": {
            name: len(found) if isinstance(found, list) else found
            for name, found in report["merging"].items()
        },
        "ap_at_0.5": round(score_labels(truth, tiled, half).by_threshold[0].ap, 4),
        "cells_in_one_tile": alike.tp + alike.fn,
        "found_again_at_0.8": round(alike.recall, 4),
    }


def run_part(name: str, images: Path, folder: Path) -> dict[str, Any]:
    """All of one segmenter, in its environment; the model stays in the folder."""
    from densebatch.segmenters.find import find_segmenter
    from densebatch.testing import check_segmenter

    train, test = read_pairs(images)
    model = folder / ("small" if name == "stardist" else "small.pt")
    if not model.exists():
        (train_stardist if name == "stardist" else train_instanseg)(train, folder)
    options = {"model": str(model)}
    report = check_segmenter(name, options)
    with tempfile.TemporaryDirectory() as scratch:
        return {
            "packages": find_segmenter(name).packages | {"densebatch": version("densebatch")},
            "trained_on_images": len(train),
            "conformance": {
                "checks": [check.name for check in report.checks],
                "failed": list(report.failed),
                "findings": list(report.findings),
                "bytes_per_px": report.bytes_per_px,
            },
            "tiles": measure_tiles(name, options, test),
            "slide": measure_slide(name, options, test, Path(scratch)),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder of environments and models; kept")
    parser.add_argument("--part", choices=NEEDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        found = run_part(arguments.part, arguments.images, arguments.work)
        arguments.output.write_text(json.dumps(found))
        return 0
    from densebatch.base.machine import count_cores, name_processor

    record: dict[str, Any] = {
        "images": "BBBC038v1, stage 1, CC0",
        "machine": {"processor": name_processor(), "cores": count_cores()},
    }
    with tempfile.TemporaryDirectory() as scratch:
        work = (arguments.work or Path(scratch)).absolute()
        for name, packages in NEEDS.items():
            folder = work / name
            python = folder / "environment/bin/python"
            if not python.exists():
                venv.create(folder / "environment", with_pip=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(install, check=True)
            part = folder / "record.json"
            command = [str(python), __file__, str(arguments.images), "-o", str(part)]
            # The package is imported as it was installed.
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            subprocess.run(
                [*command, "--work", str(folder), "--part", name], check=True, env=environment
            )
            record[name] = json.loads(part.read_text())
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({name: record[name]["slide"]["ap_at_0.5"] for name in NEEDS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
