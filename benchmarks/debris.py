"""How many of the cells beside debris are found again, with debris masked and without.

    python benchmarks/debris.py --data hsv-dense --models dense-small

Debris of several kinds is put into real annotated fields (`densebatch fetch hsv-dense`) and into a
simulated slide. Cells of the clean image that debris does not touch count as found if the run on
the image with debris has one of an IoU of 0.5 or more. `shown` has what becomes of the
cells beside specks of 6 px in a tenth of the blocks, which do not move the bounds, if the network
is shown them as some value, where 1 is the upper bound: why debris becomes 0, and is not clipped.
`rare` has what becomes of rare bright cells and of those beside them, shown apart and on one scale.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from skimage.io import imread

from densebatch.base.geometry import Region
from densebatch.cells.read import open_labels
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import segment
from densebatch.simulation.debris import (
    count_beside,
    count_found,
    lay,
    put_area,
    put_bright_cells,
    put_columns,
    put_discs,
    put_specks,
    put_strewn,
)
from densebatch.simulation.tissue import Tissue, render
from densebatch.studies.benchmark_record import describe_machine, describe_versions
from densebatch.survey.normalization import HALO_PX

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

RESULT = Path(__file__).parent / "results/debris.json"
SIDE = 768
OFFSET = 1000  # counts of the camera, so that dead pixels lie below
KINDS = {
    "specks of 2 px, 10 % of the blocks, 20 times": (put_specks, (20, 2, 57)),
    "specks of 6 px, 3 % of the blocks, 100 times": (put_specks, (100, 6, 17)),
    "specks of 40 px, 2 % of the blocks, 8 times": (put_specks, (8, 40, 11)),
    "specks of 60 px, 1 % of the blocks, 150 times": (put_specks, (150, 60, 6)),
    "discs of 20 px out of focus, 2 % of the blocks, 40 times": (put_discs, (40, 20, 11)),
    "discs of 16 px like cells, 2 % of the blocks, 12 times": (put_discs, (12, 16, 11)),
    "any size to 30 px, 5 to 200 times, 3 % of the blocks": (put_strewn, (200, 30, 17)),
    "4 hot columns, 60 times": (put_columns, (60, 4)),
    "a saturated area": (put_area, (65535,)),
    "a dead area": (put_area, (0,)),
}
SHOWN = (6, 57)  # side of specks and blocks with one: too few pixels to move the bounds
VALUES = (0, 1, 2, 5, 8)


def read_images(data: Path) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """Name and pixels of each image, in counts of a camera with 16 bits."""
    for path in sorted((data / "fields").glob("*_img.png")):
        pixels = imread(path)
        pixels = pixels[..., :3].max(axis=-1) if pixels.ndim == 3 else pixels
        yield path.stem.removesuffix("_img"), pixels[:SIDE, :SIDE].astype(np.uint16) + OFFSET
    drawn = render(Tissue(SIDE, SIDE, seed=3), Region(0, 0, SIDE, SIDE))[0][0]
    yield "simulated", (drawn // 16 + OFFSET).astype(np.uint16)


def find_cells(
    pixels: NDArray[np.uint16], model: str, folder: Path, *, mask_debris: bool
) -> tuple[NDArray[np.uint32], dict[str, Any]]:
    """Labels, and what became of the channel."""
    tifffile.imwrite(folder / "a.tif", pixels, metadata=None)
    settings = SegmentSettings(
        model=model, pixel_size=0.5, workers=0, image="none", mask_debris=mask_debris
    )
    result = segment(folder / "a.tif", folder / "out", settings, restart=True)
    return open_labels(result.labels)[:, :], result.report["plan"]["membrane"][0]


def measure_recall(
    clean: NDArray[np.uint32], found: NDArray[np.uint32], covered: NDArray[np.bool_]
) -> float:
    """Share of the cells that debris does not touch and that are found again."""
    beside, again = count_beside(clean, found, covered, HALO_PX)
    return round(again / beside, 4)


def measure_image(pixels: NDArray[np.uint16], model: str, folder: Path) -> dict[str, Any]:
    """Recall beside each kind of debris, masked and not; and of specks shown as some value."""
    clean, bounds = find_cells(pixels, model, folder, mask_debris=True)
    kinds: dict[str, Any] = {}
    for kind, (put, numbers) in KINDS.items():
        dirty, covered = put(pixels, *numbers)  # type: ignore[operator]
        kinds[kind] = {
            name: measure_recall(
                clean, find_cells(dirty, model, folder, mask_debris=mask)[0], covered
            )
            for name, mask in (("masked", True), ("not masked", False))
        }
    shown: dict[str, float] = {}
    span = bounds["high"] - bounds["low"]
    _, covered = put_specks(pixels, 1, *SHOWN)
    for value in VALUES:
        dirty, _ = lay(pixels, covered, bounds["low"] + value * span)
        labels, _ = find_cells(dirty, model, folder, mask_debris=False)
        shown[str(value)] = measure_recall(clean, labels, covered)
    rare: dict[str, Any] = {}
    for shape, inside in (("rings", 0.0), ("solid", 1.0)):
        for n in (5, 15):
            dirty, truth = put_bright_cells(pixels, n, 12 * span, inside=inside, seed=n)
            for name, mask in (("apart", True), ("on one scale", False)):
                labels, _ = find_cells(dirty, model, folder, mask_debris=mask)
                rare[f"{n} {shape}, {name}"] = {
                    "found": count_found(truth, labels),
                    "beside": measure_recall(clean, labels, truth > 0),
                }
    return {
        "cells": int(clean.max()), "bounds": bounds, "recall": kinds, "shown": shown, "rare": rare,
    }  # fmt: skip


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of `fetch hsv-dense`")
    parser.add_argument("--models", default="dense-small")
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, pixels in read_images(options.data):
            for model in options.models.split(","):
                found[f"{name}, {model}"] = measure_image(pixels, model, Path(folder))
                print(name, model, json.dumps(found[f"{name}, {model}"]["recall"]), flush=True)
    masked = [kinds["masked"] for one in found.values() for kinds in one["recall"].values()]
    record = {
        "machine": describe_machine(), "versions": describe_versions(), "images": found,
        "least_masked": min(masked),
    }  # fmt: skip
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
