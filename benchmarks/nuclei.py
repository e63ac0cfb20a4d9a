"""Score a nuclei model on the images that its recipe holds out, at true and other scales.

    python benchmarks/nuclei.py IMAGES --model dense-nuclei

IMAGES holds `NAME_img.png` with `NAME_masks.png`; those of the recipe's validation share are
scored, and with `--all` those that the model may have been trained on. Each is segmented by the
ordinary path with a diameter that is its true median times a factor, or `auto`. AP at IoU 0.5, 0.7
and 0.9 are means over images, of all and by classes of the true median diameter, and go to
benchmarks/results/model-MODEL.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.cells.pairs import find_annotated
from densebatch.cells.read import open_labels
from densebatch.run.segment import segment
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings
from densebatch.training.annotated import is_held_out, measure_diameters
from densebatch.training.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from densebatch.cells.pairs import AnnotatedFile

ROOT = Path(__file__).resolve().parent
RECIPE = ROOT.parent / "configs/train/dense-nuclei.yaml"
IOUS = ("0.50", "0.70", "0.90")
SCALES = ("1", "0.5", "0.71", "1.41", "2", "auto")
CLASSES_PX = (0, 12, 16, 24, 40, 1000)  # borders between classes of median diameters


def score_image(
    file: AnnotatedFile, model: str, scales: Sequence[str], scratch: Path
) -> dict[str, Any]:
    truth = open_labels(file.labels)[:, :].astype(np.uint32)
    true_px = float(np.median(measure_diameters([truth.astype(np.int32)])))
    row: dict[str, Any] = {"image": file.name, "nuclei": int(truth.max()), "median_px": true_px}
    for scale in scales:
        out = scratch / file.name
        diameter = scale if scale == "auto" else true_px * float(scale)
        result = segment(
            file.image, out, model=model, diameter=diameter, workers=0, image="none", device="cpu"
        )
        found = open_labels(result.labels)[:, :]
        score = score_labels(truth, found, ScoreSettings(label_components=False))
        row[scale] = [score.at(iou).ap for iou in IOUS]
        if scale == "auto":
            row["estimate"] = result.report["plan"]["estimate"]
        row["model_sha256"] = result.report["model"]["sha256"]
        shutil.rmtree(out)
    return row


def summarise(rows: Sequence[dict[str, Any]], scales: Sequence[str]) -> dict[str, Any]:
    classes = {
        f"{low} to {high} px": [row for row in rows if low <= row["median_px"] < high]
        for low, high in itertools.pairwise(CLASSES_PX)
    }
    return {
        name: {
            "images": len(some),
            **{scale: np.mean([row[scale] for row in some], axis=0).tolist() for scale in scales},
        }
        for name, some in {"all": rows, **classes}.items()
        if some
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="dense-nuclei")
    parser.add_argument("--all", action="store_true", help="Not only those that are held out.")
    parser.add_argument("--scales", nargs="+", default=SCALES, help="Of true diameters, or auto.")
    parser.add_argument("--out", type=Path, help="Default: results/model-MODEL.json here.")
    arguments = parser.parse_args()
    share = load_recipe(RECIPE).validation_share
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for file in find_annotated(arguments.images):
            if arguments.all or is_held_out(file.name, share):
                rows.append(score_image(file, arguments.model, arguments.scales, Path(scratch)))
                print(json.dumps(rows[-1]), flush=True)
    means = summarise(rows, arguments.scales)
    document = {
        "command": " ".join(sys.argv),
        "model": arguments.model,
        "iou": IOUS,
        "mean": means,
        "images": rows,
        "versions": {name: version(name) for name in ("densebatch", "torch", "numpy")},
    }
    out = arguments.out or ROOT / "results" / f"model-{Path(arguments.model).stem}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(means, indent=1))


if __name__ == "__main__":
    main()
