"""Hold the labels of real tissue to each other over tile sizes, workers and task orders.

    python -m benchmarks.invariance FIELDS --model dense-small

FIELDS holds annotated fields (`*_img.png` with `*_masks.png`). The first of them, and a mosaic of
four (2 x 2), are segmented with tiles of 256, 500 and 1024 px and one tile for all, with 0, 1 and 2
workers, and in shuffled task orders. Labels are compared bit by bit with those of one tile in one
process, and so are the bytes of the cell table. benchmarks/results/invariance.json has the result;
the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from skimage.io import imread, imsave

from densebatch.cells.read import open_labels
from densebatch.planning.settings import DEFAULT_MODEL
from densebatch.run.segment import SegmentResult, segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

WHOLE = 65536
RUNS: tuple[tuple[int, int, int | None], ...] = (  # tile, workers, seed of the task order
    *((tile, 0, None) for tile in (256, 500, 1024)),
    *((tile, workers, None) for tile in (256, 500, 1024) for workers in (1, 2)),
    (WHOLE, 2, None),
    (256, 0, 1),
    (256, 2, 2),
    (500, 2, 3),
)


def read_marker(path: Path) -> NDArray[np.generic]:
    pixels = imread(path)
    return pixels[..., :3].max(axis=-1) if pixels.ndim == 3 else pixels


def run(
    slide: Path, scratch: Path, model: str, tile: int, workers: int, seed: int | None
) -> tuple[NDArray[np.uint32], str, SegmentResult]:
    out = scratch / "out"
    result = segment(
        slide, out, model=model, tile=tile, workers=workers, shuffle=seed, image="none"
    )
    labels = open_labels(result.labels)[slice(None), slice(None)]
    table = hashlib.sha256(result.table.read_bytes()).hexdigest()
    shutil.rmtree(out)
    return labels, table, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fields", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    default = Path(__file__).parent / "results/invariance.json"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    paths = sorted(
        path
        for path in arguments.fields.glob("*_img.png")
        if path.with_name(path.name.replace("_img.png", "_masks.png")).exists()
    )
    fields = [read_marker(path) for path in paths]
    slides = {"field": fields[0], "mosaic of 4": np.block([fields[:2], fields[2:4]])}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for title, pixels in slides.items():
            slide = scratch / "slide.png"
            imsave(slide, pixels, check_contrast=False)
            expected, expected_table, first = run(slide, scratch, arguments.model, WHOLE, 0, None)
            for tile, workers, seed in RUNS:
                labels, table, _ = run(slide, scratch, arguments.model, tile, workers, seed)
                row = {
                    "slide": title,
                    "shape": list(pixels.shape),
                    "cells": first.cells,
                    "tile": tile,
                    "workers": workers,
                    "shuffled": seed is not None,
                    "pixels_that_differ": int((labels != expected).sum()),
                    "same_table_bytes": table == expected_table,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    document = {
        "command": " ".join(["python -m benchmarks.invariance", *sys.argv[1:]]),
        "model_sha256": first.report["model"]["sha256"],
        "versions": {name: version(name) for name in ("densebatch", "torch", "numba", "zarr")},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    if any(row["pixels_that_differ"] or not row["same_table_bytes"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
