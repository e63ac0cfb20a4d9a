"""Score a model on a folder of annotated images: `*_img.png` with `*_masks.png`.

    python benchmarks/model.py IMAGES --model dense-small

Each image is segmented by the ordinary path (`densebatch.segment`), each is scored as the paper
does (AP at IoU >= 0.5, without and with a size filter on both sides), and the means are written to
benchmarks/results/model-MODEL.json. A model's test score is computed once: choose between models on
images held out of training, not here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from densebatch.cells.read import open_labels
from densebatch.planning.settings import DEFAULT_MODEL
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings

MIN_SIZES = (0, 50, 100, 200)


def score_image(image: Path, truth: Path, model: str, scratch: Path) -> dict[str, Any]:
    out = scratch / image.stem
    result = segment(image, out, model=model, workers=0, image="none")
    found, expected = open_labels(result.labels), open_labels(truth)
    whole = (slice(None), slice(None))
    row: dict[str, Any] = {"image": image.name, "cells": result.cells}
    for size in MIN_SIZES:
        settings = ScoreSettings(min_size=size)
        row[f"ap_{size}"] = score_labels(expected[whole], found[whole], settings).at("0.50").ap
    row["model_sha256"] = result.report["model"]["sha256"]
    shutil.rmtree(out)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, help="Default: results/model-MODEL.json here.")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for image in sorted(arguments.images.glob("*_img.png")):
            truth = image.with_name(image.name.replace("_img.png", "_masks.png"))
            if truth.exists():
                rows.append(score_image(image, truth, arguments.model, Path(scratch)))
                print(json.dumps(rows[-1]), flush=True)
    means = {f"ap_{s}": float(np.mean([row[f"ap_{s}"] for row in rows])) for s in MIN_SIZES}
    document = {
        "command": " ".join(sys.argv),
        "model": arguments.model,
        "mean": means,
        "images": rows,
        "versions": {name: version(name) for name in ("densebatch", "torch", "numpy")},
    }
    name = f"model-{Path(arguments.model).stem}.json"
    out = arguments.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(means))


if __name__ == "__main__":
    main()
