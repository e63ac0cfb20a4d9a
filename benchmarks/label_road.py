"""Labels of segmenters through tiles and workers, beside those of the same function untiled.

    python -m benchmarks.label_road --data FOLDER -o benchmarks/results/label-road.json

Slides: simulated tissue of some 20 000 cells, and mosaics of real fields in FOLDER/fields, one of
a membrane marker and one of nuclei. Functions: `watershed`, and one whose labels change wherever
the border of a tile is nearer than two diameters (`label_functions.label_by_surroundings`). Tiles
of 256 to 2048 px that share two and four diameters of the function's cells. What is counted is in
`stitching/faults.py`; the untiled labels are those of one tile that holds the whole slide. Cells
that are longer than the overlap, or of which a run says that no tile holds them, and what touches
these, are left out and counted as `larger`: the road does not promise them.

Then, for the same tiles: labels for no, one and two workers and a shuffled order, bit by bit; the
largest worker's memory on a slide and on one four times as large; and a bundled network called as
a label segmenter, beside the same network on the road of flows, on the four annotated fields.
It takes some 20 minutes on two cores. The exit code is 1 if a figure misses its mark.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from scipy import ndimage
from skimage.io import imread

from benchmarks.stitching.faults import count_faults
from densebatch.base.geometry import Region
from densebatch.cells.read import open_labels
from densebatch.run.segment import SegmentResult, segment
from densebatch.scoring.score import score_labels
from densebatch.simulation.tissue import Tissue, render

if TYPE_CHECKING:
    from numpy.typing import NDArray

SURROUNDINGS = "benchmarks.label_functions:label_by_surroundings"
FLOWS = "benchmarks.label_functions:label_by_flows"
WHOLE = 65536
TILES = (256, 512, 1024, 2048)
GOOD, ALIKE, AP_DIFFERENCE = 0.999, 0.97, 0.005


def write_slide(path: Path, planes: NDArray[Any], names: list[str]) -> Path:
    """An OME-TIFF of 0.5 um/px."""
    size = {f"PhysicalSize{axis}": 0.5 for axis in "XY"}
    tifffile.imwrite(
        path, planes, tile=(256, 256), photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": names}, **size},
    )  # fmt: skip
    return path


def simulate(path: Path, height: int, width: int) -> Path:
    """Tissue of cells that are 16 px across."""
    tissue = Tissue(height, width, seed=5, cell_diameter_px=16, stained_fraction=0.8)
    return write_slide(path, render(tissue, Region(0, 0, height, width))[0], ["CD3", "DAPI"])


def join_fields(path: Path, folder: Path) -> Path:
    """A field with all its channels, beside itself mirrored along each axis, and both."""
    [field] = sorted((folder / "fields").glob("*.ome.tif"))
    planes, names = tifffile.imread(field), ["CD3", "CD4", "CD8", "DAPI"]
    beside = np.concatenate([planes, planes[:, :, ::-1]], axis=2)
    return write_slide(path, np.concatenate([beside, beside[:, ::-1]], axis=1), names)


def run(
    slide: Path,
    scratch: Path,
    **settings: Any,  # noqa: ANN401
) -> tuple[NDArray[np.uint32], SegmentResult]:
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    result = segment(slide, out, image="none", **settings)
    return open_labels(result.labels)[slice(None), slice(None)], result


def leave_out(
    told: list[dict[str, Any]],
    truth: NDArray[np.uint32],
    labels: NDArray[np.uint32],
    overlap: int,
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], int]:
    """Both without what the road does not promise, and how many cells that is.

    Cells that touch those of which the run says that no tile holds them go from both, cells longer
    than the overlap from the truth.
    """
    truth, labels = truth.copy(), labels.copy()
    larger = set()
    for place in told:
        y0, x0, y1, x1 = place["region"]
        for image in (truth, labels):
            there = np.setdiff1d(image[y0:y1, x0:x1], 0)
            larger |= set(there.tolist()) if image is truth else set()
            image[np.isin(image, there)] = 0
    for cell, box in enumerate(ndimage.find_objects(truth), 1):
        if box is not None and max(side.stop - side.start for side in box) > overlap:
            truth[box][truth[box] == cell] = 0
            larger.add(cell)
    return truth, labels, len(larger)


def compare_tiles(
    title: str, slide: Path, scratch: Path, channel: str, segmenter: str, diameter: int
) -> list[dict[str, Any]]:
    """Faults of every tiling."""
    options = {"diameter_px": diameter}
    label = partial(
        run, slide, scratch, membrane=(channel,), segmenter=segmenter, segmenter_options=options
    )
    whole, _ = label(tile=WHOLE, overlap=2 * diameter, workers=0)
    rows = []
    for tile in TILES:
        for overlap in (2 * diameter, 4 * diameter):
            labels, result = label(tile=tile, overlap=overlap, workers=2)
            told = result.report["merging"]["larger_than_overlap"]
            truth, found, n_larger = leave_out(told, whole, labels, overlap)
            faults = count_faults(truth, found)
            merging = {
                name: len(value) if isinstance(value, list) else value
                for name, value in result.report["merging"].items()
            }
            row = {
                "slide": title, "channel": channel, "segmenter": segmenter.rpartition(":")[2],
                "shape": list(whole.shape), "diameter_px": diameter, "tile_px": tile,
                "overlap_px": overlap, "larger": n_larger, **faults, "merging": merging,
                "holds": faults["good"] >= GOOD
                and not (faults["cut"] or faults["merges"] or faults["duplicates"]),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def compare_workers(slide: Path, scratch: Path, segmenter: str) -> dict[str, Any]:
    """Whether labels depend on who makes them, and in which order."""
    label = partial(
        run, slide, scratch, membrane=("DAPI",), segmenter=segmenter, tile=512, overlap=64,
        segmenter_options={"diameter_px": 16},
    )  # fmt: skip
    first, _ = label(workers=0)
    differ = {}
    for workers, seed in ((1, None), (2, None), (0, 1), (2, 2)):
        labels, _ = label(workers=workers, shuffle=seed)
        differ[f"{workers} workers, order {seed}"] = int((labels != first).sum())
    return {
        "segmenter": segmenter.rpartition(":")[2], "pixels_that_differ": differ,
        "holds": not any(differ.values()),
    }  # fmt: skip


def compare_memory(slides: dict[str, Path], scratch: Path) -> dict[str, Any]:
    """The largest worker by slide, for tiles of 512 px."""
    peaks = {}
    for title, slide in slides.items():
        _, result = run(
            slide, scratch, membrane=("DAPI",), segmenter="watershed", tile=512, overlap=64,
            workers=2,
        )  # fmt: skip
        peaks[title] = result.report["worker_peak_rss_mb"]
    small, large = peaks.values()
    return {"worker_peak_rss_mb": peaks, "holds": large <= 1.1 * small}


def compare_roads(folder: Path, scratch: Path, model: str) -> dict[str, Any]:
    """A network as a label segmenter, beside the road of flows."""
    rows = []
    for image in sorted((folder / "fields").glob("*_img.png")):
        truth = imread(image.with_name(image.name.replace("_img", "_masks")))
        flows, _ = run(image, scratch, model=model, workers=2)
        row: dict[str, Any] = {"field": image.name}
        row["ap_flows"] = _score(truth, flows)
        for tile in (512, 1024):
            labels, _ = run(
                image, scratch, segmenter=FLOWS, segmenter_options={"model": model}, tile=tile,
                overlap=64, workers=2,
            )  # fmt: skip
            row[f"ap_{tile}"] = _score(truth, labels)
            row[f"alike_{tile}"] = round(float(count_faults(flows, labels, 0.8)["good"]), 4)
        print(json.dumps(row), flush=True)
        rows.append(row)
    means = {
        name: round(float(np.mean([row[name] for row in rows])), 4)
        for name in rows[0] if name != "field"
    }  # fmt: skip
    holds = all(
        abs(means[f"ap_{tile}"] - means["ap_flows"]) <= AP_DIFFERENCE
        and means[f"alike_{tile}"] >= ALIKE
        for tile in (512, 1024)
    )
    return {"model": model, "fields": rows, "means": means, "holds": holds}


def _score(truth: NDArray[Any], labels: NDArray[Any]) -> float:
    return score_labels(truth, labels).by_threshold[0].ap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="dense-small")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        simulated = simulate(scratch / "simulated.ome.tif", 3100, 3000)
        mosaic = join_fields(scratch / "mosaic.ome.tif", arguments.data)
        rows = []
        for title, slide, channel, segmenter, diameter in (
            ("simulated", simulated, "DAPI", "watershed", 16),
            ("simulated", simulated, "DAPI", SURROUNDINGS, 16),
            ("mosaic", mosaic, "DAPI", "watershed", 20),
            ("mosaic", mosaic, "DAPI", SURROUNDINGS, 20),
            ("mosaic", mosaic, "CD3", "watershed", 20),
        ):
            rows += compare_tiles(title, slide, scratch, channel, segmenter, diameter)
        large = simulate(scratch / "large.ome.tif", 6200, 6000)
        document = {
            "command": f"python -m benchmarks.label_road --data DATA --model {arguments.model}",
            "tiles": rows,
            "workers": [
                compare_workers(simulated, scratch, s) for s in ("watershed", SURROUNDINGS)
            ],
            "memory": compare_memory({"3100 x 3000": simulated, "6200 x 6000": large}, scratch),
            "roads": compare_roads(arguments.data, scratch, arguments.model),
        }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    held = [*rows, *document["workers"], document["memory"], document["roads"]]
    sys.exit(0 if all(each["holds"] for each in held) else 1)


if __name__ == "__main__":
    main()
