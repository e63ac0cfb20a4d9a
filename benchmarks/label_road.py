"""Labels of segmenters through tiles and workers, beside those of the same function untiled.

    python -m benchmarks.label_road --data FOLDER -o benchmarks/results/label-road.json

Slides: simulated tissue of some 20 000 cells, and mosaics of real fields in FOLDER/fields, one of
a membrane marker and one of nuclei. Tiles of 256 to 2048 px. What is counted is in
`stitching/faults.py`; the untiled labels are those of one tile that holds the whole slide. Cells
that are longer than the overlap, or of which a run says that no tile holds them, and what touches
these, are left out and counted as `larger`: the road does not promise them. Functions:

- `watershed`, with overlaps of two and four diameters of the slide's cells;
- `label_functions.label_within_reach`, whose labels change wherever the border of a tile is nearer
  than two diameters, with overlaps of two, three and four. These diameters are those of the cells
  that it finds: of a circle of their median area in the untiled labels;
- `label_functions.label_by_surroundings`, which looks further than two diameters of its cells, as
  `beyond`, in tiles of 256 px: to show what an overlap must hold. It need not pass.

Of each cell that merging misses it is asked whether any tile has a label of IoU >= 0.9 for it, and
whether that tile has which sees it furthest from its borders: without the first no rule can give
the cell, without the second none that trusts the tile which saw more.

Then, for the same tiles: labels for no, one and two workers and a shuffled order, bit by bit; the
largest worker's memory on a slide and on one four times as large; and a bundled network called as
a label segmenter, beside the same network on the road of flows, on the four annotated fields.
It takes some 20 minutes on two cores. The exit code is 1 if a figure misses its mark.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from scipy import ndimage
from skimage.io import imread

from benchmarks.label_functions import label_by_surroundings, label_within_reach
from benchmarks.stitching.faults import count_faults
from densebatch.base.geometry import Region
from densebatch.cells.read import open_labels
from densebatch.planning.plan import LabelPlan
from densebatch.run.folder import OutputFolder
from densebatch.run.segment import SegmentResult, segment
from densebatch.scoring.score import score_labels
from densebatch.simulation.tissue import Tissue, render
from densebatch.stages.label import read_image
from densebatch.stages.work import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.merging.layout import Layout

FUNCTIONS = {each.__name__: each for each in (label_by_surroundings, label_within_reach)}
WITHIN_REACH = "label_within_reach"
FLOWS = "benchmarks.label_functions:label_by_flows"
WHOLE = 65536
TILES = (256, 512, 1024, 2048)
PARTS = ("reach", "beyond", "watershed", "workers", "memory", "roads")
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


@dataclass(frozen=True)
class Case:
    """A segmenter on a slide.

    Attributes
    ----------
    title, channel : of the slide
    segmenter, options : `watershed`, or the name of one of `FUNCTIONS`
    reach_px : how far a pixel's label depends on what is around; None for `watershed`
    diameter_px : of a cell, in which overlaps are counted; None for that of the cells found
    diameters : overlaps
    tiles : px
    """

    title: str
    channel: str
    segmenter: str
    options: dict[str, Any]
    reach_px: int | None = None
    diameter_px: int | None = None
    diameters: tuple[int, ...] = (2, 3, 4)
    tiles: tuple[int, ...] = TILES

    @property
    def settings(self) -> dict[str, Any]:
        """Of a run."""
        own = f"benchmarks.label_functions:{self.segmenter}"
        return {
            "membrane": (self.channel,), "segmenter_options": self.options,
            "segmenter": own if self.segmenter in FUNCTIONS else self.segmenter,
        }  # fmt: skip


def flood(title: str, channel: str, diameter_px: int) -> Case:
    """By `watershed`."""
    options = {"diameter_px": diameter_px}
    return Case(title, channel, "watershed", options, diameter_px=diameter_px, diameters=(2, 4))


def within(title: str, reach_px: int, brighter: float, **more: Any) -> Case:  # noqa: ANN401
    options = {"reach_px": reach_px, "brighter": brighter}
    return Case(title, "DAPI", WITHIN_REACH, options, reach_px, **more)


def around(title: str, side: int) -> Case:
    options = {"diameter_px": side}
    return Case(title, "DAPI", "label_by_surroundings", options, round(1.75 * side))


@dataclass
class Missed:
    """Cells for which tiles have no good label, against those that the merged labels miss.

    Attributes
    ----------
    best : `(n + 1,)`, IoU of each cell with the best label of any tile
    trusted : `(n + 1,)`, the best in the tiles that see it furthest from their borders
    """

    truth: NDArray[np.uint32]
    layout: Layout
    boxes: NDArray[np.int64] = field(init=False)
    area: NDArray[np.int64] = field(init=False)
    furthest: NDArray[np.int64] = field(init=False)
    best: NDArray[np.float64] = field(init=False)
    trusted: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        found = ndimage.find_objects(self.truth)
        self.boxes = np.array([[s.start for s in b] + [s.stop for s in b] for b in found])
        self.area = np.bincount(self.truth.ravel())
        tiles = range(len(self.layout.regions))
        self.furthest = np.max([self.distances(tile) for tile in tiles], axis=0)
        self.best, self.trusted = np.zeros(self.area.size), np.zeros(self.area.size)

    def distances(self, tile: int) -> NDArray[np.int64]:
        """Of each cell's box to the tile's border; negative where it is not all inside."""
        own, (y0, x0, y1, x1) = self.layout.regions[tile], self.boxes.T
        inside = (y0 >= own.y0) & (x0 >= own.x0) & (y1 <= own.y1) & (x1 <= own.x1)
        return np.where(inside, self.layout.distances(tile, self.boxes), -1)

    def match(self, region: Region, labels: NDArray[np.uint32]) -> NDArray[np.float64]:
        """IoU of each cell with the best of some labels of a region."""
        n = int(labels.max()) + 1
        codes, shared = np.unique(
            self.truth[region.slices].astype(np.int64) * n + labels, return_counts=True
        )
        cell, label = np.divmod(codes, n)
        iou = shared / (self.area[cell] + np.bincount(labels.ravel())[label] - shared)
        iou[(cell == 0) | (label == 0)] = 0
        best = np.zeros(self.area.size)
        np.maximum.at(best, cell, iou)
        return best

    def see(self, tile: int, labels: NDArray[np.uint32]) -> None:
        """Take the labels of a tile into account."""
        iou = self.match(self.layout.regions[tile], labels)
        self.best = np.maximum(self.best, iou)
        trusted = np.concatenate([[False], self.distances(tile) == self.furthest])
        self.trusted = np.where(trusted, np.maximum(self.trusted, iou), self.trusted)

    def count(self, merged: NDArray[np.uint32]) -> dict[str, int]:
        """Cells without a label of IoU >= 0.9, and why."""
        missed = self.match(Region(0, 0, *self.truth.shape), merged) < 0.9
        missed[0] = False
        return {
            "missed": int(missed.sum()),
            "missed_by_all_tiles": int((missed & (self.best < 0.9)).sum()),
            "missed_by_the_furthest_tile": int((missed & (self.trusted < 0.9)).sum()),
        }


def explain(
    case: Case, scratch: Path, whole: NDArray[np.uint32], labels: NDArray[np.uint32]
) -> dict[str, int]:
    """What the tiles of the last run know of the cells that its labels miss."""
    plan = OutputFolder(scratch / "out").read_marker()
    assert isinstance(plan, LabelPlan)
    path = scratch / f"plan-{plan.edition}.json"
    path.write_text(plan.to_json())
    missed = Missed(whole, plan.layout)
    for tile, region in enumerate(plan.layout.regions):
        image, _ = read_image(Work(str(path), 512), plan, region)
        found = FUNCTIONS[case.segmenter](image, um_per_px=None, options=case.options)
        local = np.unique(np.append(0, found), return_inverse=True)[1][1:]
        missed.see(tile, local.reshape(region.shape).astype(np.uint32))
    return missed.count(labels)


def describe_cells(labels: NDArray[np.uint32]) -> tuple[float, float]:
    """Diameter of a circle of the median area, px, and the share of cells that touch another."""
    diameter = 2 * math.sqrt(float(np.median(np.bincount(labels.ravel())[1:])) / math.pi)
    touching = np.zeros(int(labels.max()) + 1, bool)
    for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        beside = (one != other) & (one > 0) & (other > 0)
        touching[one[beside]] = touching[other[beside]] = True
    return diameter, float(touching[1:].mean())


def compare_tiles(case: Case, slide: Path, scratch: Path) -> list[dict[str, Any]]:
    """Faults of every tiling."""
    label = partial(run, slide, scratch, **case.settings)
    whole, _ = label(tile=WHOLE, overlap=64, workers=0)
    own, touching = describe_cells(whole)
    unit = case.diameter_px or own
    facts: dict[str, Any] = {
        "slide": case.title, "channel": case.channel, "segmenter": case.segmenter,
        "options": case.options, "shape": list(whole.shape), "cell_diameter_px": round(own, 2),
        "touching": round(touching, 3),
    }  # fmt: skip
    if case.reach_px is not None:
        facts |= {"reach_px": case.reach_px, "reach_diameters": round(case.reach_px / own, 2)}
    rows = []
    for tile in case.tiles:
        for overlap in (math.ceil(n * unit) for n in case.diameters):
            labels, result = label(tile=tile, overlap=overlap, workers=2)
            told = result.report["merging"]["larger_than_overlap"]
            truth, found, n_larger = leave_out(told, whole, labels, overlap)
            faults = count_faults(truth, found)
            merging = {
                name: len(value) if isinstance(value, list) else value
                for name, value in result.report["merging"].items()
            }
            row = {
                **facts, "tile_px": tile, "overlap_px": overlap,
                "overlap_diameters": round(overlap / own, 2), "larger": n_larger, **faults,
                "merging": merging,
                "holds": faults["good"] >= GOOD
                and not (faults["cut"] or faults["merges"] or faults["duplicates"]),
            }  # fmt: skip
            if case.segmenter in FUNCTIONS:
                row |= explain(case, scratch, whole, labels)
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def compare_workers(case: Case, slide: Path, scratch: Path) -> dict[str, Any]:
    """Whether labels depend on who makes them, and in which order."""
    label = partial(run, slide, scratch, **case.settings, tile=512, overlap=64)
    first, _ = label(workers=0)
    differ = {}
    for workers, seed in ((1, None), (2, None), (0, 1), (2, 2)):
        labels, _ = label(workers=workers, shuffle=seed)
        differ[f"{workers} workers, order {seed}"] = int((labels != first).sum())
    row = {
        "segmenter": case.segmenter, "pixels_that_differ": differ,
        "holds": not any(differ.values()),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="dense-small")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="others stay as they are recorded"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    document: dict[str, Any] = {}
    if arguments.output.exists():
        document = json.loads(arguments.output.read_text())
    document["command"] = f"python -m benchmarks.label_road --data DATA --model {arguments.model}"
    nuclei, hostile = flood("simulated", "DAPI", 16), within("simulated", 22, 0.9)
    reach = (hostile, within("mosaic", 30, 1.0))
    watershed = (nuclei, flood("mosaic", "DAPI", 20), flood("mosaic", "CD3", 20))
    beyond = (around("simulated", 16), around("mosaic", 20))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        slides = {
            "simulated": simulate(scratch / "simulated.ome.tif", 3100, 3000),
            "mosaic": join_fields(scratch / "mosaic.ome.tif", arguments.data),
        }

        def compare(some: tuple[Case, ...]) -> list[dict[str, Any]]:
            return [
                row for case in some for row in compare_tiles(case, slides[case.title], scratch)
            ]

        if "reach" in arguments.parts:
            document["reach"] = compare(reach)
        if "beyond" in arguments.parts:
            document["beyond"] = compare(
                tuple(replace(case, diameters=(2, 3), tiles=(256,)) for case in beyond)
            )
        if "watershed" in arguments.parts:
            document["watershed"] = compare(watershed)
        if "workers" in arguments.parts:
            document["workers"] = [
                compare_workers(case, slides["simulated"], scratch) for case in (nuclei, hostile)
            ]
        if "memory" in arguments.parts:
            large = simulate(scratch / "large.ome.tif", 6200, 6000)
            sizes = {"3100 x 3000": slides["simulated"], "6200 x 6000": large}
            document["memory"] = compare_memory(sizes, scratch)
        if "roads" in arguments.parts:
            document["roads"] = compare_roads(arguments.data, scratch, arguments.model)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    told = [document[part] for part in PARTS if part != "beyond"]
    held = [row for part in told for row in (part if isinstance(part, list) else [part])]
    sys.exit(0 if all(each["holds"] for each in held) else 1)


if __name__ == "__main__":
    main()
